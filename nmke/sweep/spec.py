"""The file of a sweep: YAML, read without running anything in it, every mistake told with its row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from nmke.config import Config
from nmke.dotted import flat_names, nearest
from nmke.errors import ConfigError
from nmke.lifelong.spec import LifelongConfig
from nmke.preset_names import STANDARD

#: Where in the file something stands: keys and indices from the top.
Place = tuple[str | int, ...]
#: From the place of a value to its row, from 1.
Rows = Mapping[Place, int]

LARGEST_BYTES = 1_000_000


class MethodRow(Config):
    """One method of a sweep, with what is fixed and what is tried."""

    name: str = Field(min_length=1, title="Method", description="Its registry name, see `nmke methods`.")
    label: str = Field("", title="Label", description="What its runs are called; the method's name if empty.")
    preset: str = Field(
        STANDARD,
        pattern=r"^[\w-]+$",
        title="Preset",
        description="Which of the method's presets for a model the settings start from, where there are several.",
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        title="Settings",
        description="Changes to the model's preset for every run, by dotted names: mask.alpha: 20.",
    )
    grid: dict[str, list[Any]] = Field(
        default_factory=dict,
        title="Grid",
        description="Lists of values by dotted names; every combination is a run: mask.general_low: [0.1, 0.2].",
    )
    layers: tuple[tuple[int, ...], ...] = Field(
        (),
        title="Layers",
        description="Choices of layers for this method alone, each 5, '4-8' or [4, 6]; empty takes the sweep's.",
    )

    @field_validator("set", mode="before")
    @classmethod
    def _dotted(cls, values: Any) -> Any:
        return _flat(values) if isinstance(values, Mapping) else values

    @field_validator("grid", mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        flat = _flat(values)
        for name, choices in flat.items():
            if not isinstance(choices, list):
                raise ValueError(
                    f"{name} needs a list of values, as [{choices}]; a fixed value goes under set"
                )
            if not choices:
                raise ValueError(f"the list of {name} is empty, so there is nothing to run; name a value")
            if any(value in choices[:number] for number, value in enumerate(choices)):
                raise ValueError(f"the list of {name} names a value twice; name each once")
        return flat

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, values: Any) -> Any:
        return _choices_of_layers(values)


class SweepConfig(Config):
    """What a sweep tries."""

    methods: tuple[MethodRow, ...] = Field(
        min_length=1, title="Methods", description="Names of methods, or name, label, set, grid and layers."
    )
    models: tuple[str, ...] = Field(
        ("smollm2-135m",),
        min_length=1,
        title="Models",
        description="Registry names, folders, .gguf files or hub ids.",
    )
    data: tuple[str, ...] = Field(
        min_length=1,
        title="Data",
        description="As `nmke lifelong --data`: counterfact:FILE, zsre:FILE, FILE ...",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, title="Seeds", description="One run for each.")
    layers: tuple[tuple[int, ...], ...] = Field(
        (),
        title="Layers",
        description="Choices of layers for every method that edits layers of choice; empty takes the presets'.",
    )
    run: LifelongConfig = Field(
        title="Each run",
        description="The settings of every lifelong run but its seeds: edits, marks, batch ...",
    )
    device: str = Field("auto", min_length=1, title="Device", description="auto, cpu, cuda or mps.")
    dtype: str = Field("auto", title="Precision", description="auto, float32, bfloat16 or float16.")

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, rows: Any) -> Any:
        if not isinstance(rows, list):
            return rows
        return [{"name": row} if isinstance(row, str) else row for row in rows]

    @field_validator("models", "data", "seeds", mode="before")
    @classmethod
    def _one_or_several(cls, values: Any) -> Any:
        return [values] if isinstance(values, str | int) else values

    @field_validator("models", "data", "seeds")
    @classmethod
    def _differ(cls, values: Any) -> Any:
        if len(set(values)) < len(values):
            raise ValueError("one is named twice; name each once")
        return values

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, values: Any) -> Any:
        return _choices_of_layers(values)

    @field_validator("run", mode="before")
    @classmethod
    def _marks(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if "seeds" in values:
            raise ValueError("seeds stand at the top of the file, not under run")
        return (
            {**values, "marks": values["marks"]} if "marks" in values else {**values, **_usual_marks(values)}
        )


class Source:
    """A sweep's file and where things stand in it.

    Attributes:
        config: what it says.
        rows: from places to rows.
    """

    def __init__(self, config: SweepConfig, rows: Rows) -> None:
        self.config, self.rows = config, rows

    def row(self, *place: str | int) -> str:
        """``Row 12`` for the deepest place that the file has."""
        return _row(self.rows, place)


def read_spec(path: Path) -> Source:
    """Read and check a sweep's file.

    Raises:
        ConfigError: it cannot be read, is no YAML, has an unknown key, or a value that is not allowed; with its row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path.name} cannot be read ({error.strerror}).", "Check the file's name."
        ) from None
    if len(content) > LARGEST_BYTES:
        raise ConfigError(f"{path.name} is larger than a sweep's file ever is.", "Check the file's name.")
    return parse_spec(content.decode("utf-8", errors="replace"))


def parse_spec(text: str) -> Source:
    """The same for its text."""
    values, rows = _load(text)
    try:
        return Source(SweepConfig(**values), rows)
    except ValidationError as error:
        problems = error.errors()
        told = [_tell(problem, values, rows) for problem in problems[:3]]
        more = f" And {len(problems) - 3} more." if len(problems) > 3 else ""
        raise ConfigError(" ".join(what for what, _ in told) + more, told[0][1]) from None


def _load(text: str) -> tuple[dict[str, Any], Rows]:
    rows: dict[Place, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _walk(node, (), rows, 0)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"Row {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(
            f"{where}the file is no YAML: {reason}.", "Mend the row, or its indentation."
        ) from None
    except RecursionError:
        raise ConfigError("The file is nested too deeply.", "Write it flat.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            "The file holds no settings of a sweep.", "Write at least methods:, data: and run:, one a row."
        )
    return values, rows


def _walk(node: yaml.Node, place: Place, rows: dict[Place, int], depth: int) -> None:
    if depth > 20:
        raise RecursionError
    rows.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(
                    f"Row {key.start_mark.line + 1}: {name} is there twice.", "Keep one of them."
                )
            seen.add(name)
            rows[(*place, name)] = key.start_mark.line + 1
            _walk(value, (*place, name), rows, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, (*place, number), rows, depth + 1)


def _row(rows: Rows, place: Place) -> str:
    for end in range(len(place), -1, -1):
        if place[:end] in rows:
            return f"Row {rows[place[:end]]}"
    return "The file"


def _tell(problem: Any, values: Mapping[str, Any], rows: Rows) -> tuple[str, str]:
    """A problem in words with its row, and a remedy."""
    place = tuple(problem["loc"])
    name = ".".join(str(part) for part in place if isinstance(part, str)) or "the file"
    row = _row(rows, place)
    if problem["type"] == "extra_forbidden":
        parents: dict[str, type[Config]] = {"methods": MethodRow, "run": LifelongConfig}
        parent = parents.get(str(place[0]), SweepConfig)
        known = [key for key in parent.model_fields if parent is not LifelongConfig or key != "seeds"]
        if len(place) == 1:
            known = list(SweepConfig.model_fields)
        return f"{row}: there is no key {str(place[-1])!r}.", nearest(str(place[-1]), known)
    if problem["type"] == "missing":
        missing = str(place[-1])
        field = (MethodRow if place[0] == "methods" else SweepConfig).model_fields.get(missing)
        return f"{row}: {name} is missing.", f"Write {missing}: {field.description if field else ''}"
    if problem["type"] == "too_short":
        return f"{row}: {name} is empty, so there is nothing to run.", f"Name at least one of {name}."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{row}: {name}: {message} (got {str(problem['input'])[:60]!r}).", "Mend this row."


def _flat(values: Mapping[Any, Any]) -> dict[str, Any]:
    return flat_names({str(key): value for key, value in values.items()})


def _choices_of_layers(values: Any) -> Any:
    """``[5, '4-8', [4, 6]]`` as choices of layers."""
    if not isinstance(values, list):
        raise ValueError("layers are a list of choices, as ['4-8', 5, [4, 6]]")
    return [_layers(value) for value in values]


def _layers(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return tuple(sorted(set(value)))
    found: set[int] = set()
    for part in str(value).split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < 10_000):
            raise ValueError(f"{value!r} names no layers; write 5, '4-8' or [4, 6]")
        found.update(range(int(first), int(last) + 1))
    return tuple(sorted(found))


def _usual_marks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Where the paper measures, each at the end of its edit, and at the end."""
    edits, batch = values.get("edits", LifelongConfig().edits), values.get("batch", 1)
    if not isinstance(edits, int) or not isinstance(batch, int) or edits < 1 or batch < 1:
        return {}  # refused for itself
    moved = {-(-mark // batch) * batch for mark in LifelongConfig().marks}
    return {"marks": tuple(sorted({mark for mark in moved if mark < edits} | {edits}))}
