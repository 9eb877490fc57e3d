"""From a sweep's file to its runs: every combination, a stable name, and the command that makes it again."""

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

from nmke.config import Config
from nmke.dotted import flat_names, nearest, with_changes
from nmke.errors import ConfigError, EditError
from nmke.lifelong.spec import Entrant, LifelongConfig
from nmke.preset_names import STANDARD, labelled
from nmke.sweep.spec import MethodRow, Source

#: More runs than this are asked for by ``--yes``.
MANY = 10_000
_LONGEST = 60


@dataclass(frozen=True)
class Run:
    """One lifelong run of a sweep: one model, data, method with settings, and seed.

    Attributes:
        name: of its folder.
        label: of its configuration; runs that differ in nothing but the seed, model or data share it.
        changes: settings that differ from the model's preset, by dotted names.
        config: of the lifelong run.
    """

    name: str
    model: str
    data: str
    label: str
    method: str
    changes: Mapping[str, Any]
    seed: int
    config: LifelongConfig
    device: str = "auto"
    dtype: str = "auto"
    preset: str = STANDARD

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of a standard preset nothing is said, as before there were others."""
        named = {} if self.preset == STANDARD else {"preset": self.preset}
        return {
            **named,
            "name": self.name,
            "model": self.model,
            "data": self.data,
            "label": self.label,
            "method": self.method,
            "changes": dict(self.changes),
            "seed": self.seed,
            "config": self.config.model_dump(mode="json"),
            "device": self.device,
            "dtype": self.dtype,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            ConfigError: settings this version refuses.
        """
        return cls(**{**values, "config": LifelongConfig.make(**values["config"])})

    def entrant(self, preset: Config) -> Entrant:
        """The run's only entrant.

        Raises:
            ConfigError: a change does not fit the model's preset.
        """
        return Entrant(self.label, self.method, with_changes(preset, self.changes))

    def command(self) -> str:
        """``nmke lifelong ...`` that makes the run again, in a new folder of its name."""
        config = self.config
        own = ",".join(f"{name}={_as_text(self.method, name, value)}" for name, value in self.changes.items())
        words = ["nmke", "lifelong", "--model", self.model, "--data", self.data]
        named = "" if self.preset == STANDARD else f"@{self.preset}"
        words += ["--entrant", f"{self.label}={self.method}{named}" + (f":{own}" if own else "")]
        words += ["--edits", str(config.edits), "--eval-at", ",".join(map(str, config.marks))]
        words += ["--seeds", str(self.seed)]
        usual = LifelongConfig()
        for option, name in (
            ("--batch", "batch"),
            ("--generate-tokens", "generate_tokens"),
            ("--perplexity-tokens", "perplexity_tokens"),
            ("--perplexity-text", "perplexity_text"),
            ("--stop-reliability", "stop_reliability"),
            ("--stop-perplexity", "stop_perplexity"),
            ("--ability-data", "ability_data"),
        ):
            if getattr(config, name) != getattr(usual, name):
                words += [option, str(getattr(config, name))]
        words += ["--checkpoint-every", str(config.checkpoint_every)]
        if config.abilities:
            words += ["--abilities", ",".join(config.abilities)]
            # The command line cannot say "all"; so many questions has none of them.
            words += ["--ability-limit", str(config.ability_limit or 10**6)]
            words += ["--run-code"] if config.ability_run_code else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--dtype", self.dtype] if self.dtype != "auto" else []
        return shlex.join([*words, "--out", self.name])


@dataclass(frozen=True)
class Plan:
    """A sweep's runs, those of one model beside each other."""

    runs: tuple[Run, ...]

    @property
    def edits(self) -> int:
        """Facts that all runs together write."""
        return sum(run.config.edits for run in self.runs)


def plan(source: Source, *, many: bool = False) -> Plan:
    """Every run of a sweep.

    Args:
        many: ten thousand runs or more are meant.

    Raises:
        ConfigError: an unknown method or setting, a value that is not allowed, or too many runs; with the row.
    """
    count = _count(source)
    if count >= MANY and not many:
        raise ConfigError(
            f"The sweep has {count:,} runs.", "Shorten its lists, or say that so many are meant with --yes."
        )
    config = source.config
    choices = [list(_choices(source, number)) for number in range(len(config.methods))]
    labels: set[str] = set()
    for number, found in enumerate(choices):
        for label, _ in found:
            if label.lower() in labels:
                raise ConfigError(
                    f"{source.row('methods', number)}: two configurations have the label {label!r}.",
                    "Give one of the rows a label of its own.",
                )
            labels.add(label.lower())
    names = _short_names(config.models), _short_names(config.data)
    runs = []
    for model, data, (number, row) in product(config.models, config.data, enumerate(config.methods)):
        for (label, changes), seed in product(choices[number], config.seeds):
            name = _safe(f"{names[0][model]}_{names[1][data]}_{label}_seed{seed}")
            settings = config.run.changed(seeds=(seed,))
            where = config.device, config.dtype
            runs.append(Run(name, model, data, label, row.name, changes, seed, settings, *where, row.preset))
    twice = next((name for name, times in Counter(run.name.lower() for run in runs).items() if times > 1), "")
    if twice:
        raise ConfigError(
            f"Two runs would have the folder {twice}.", "Rename one of the models or data files."
        )
    return Plan(tuple(runs))


def _count(source: Source) -> int:
    """How many runs there are, without making them."""
    config = source.config
    each = sum(
        math.prod(len(values) for values in row.grid.values()) * max(1, len(row.layers or config.layers))
        for row in config.methods
    )
    return each * len(config.models) * len(config.data) * len(config.seeds)


def _choices(source: Source, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and changes of every configuration of a row of methods."""
    from nmke.methods import get_method, methods

    row = source.config.methods[number]
    try:
        default = get_method(row.name).config_class()
    except EditError:
        raise ConfigError(
            f"{source.row('methods', number, 'name')}: there is no method {row.name!r}.",
            nearest(row.name, sorted(methods())),
        ) from None
    layers = _layer_changes(source, number, default)
    for chosen in layers:
        for values in product(*row.grid.values()):
            tried = {**dict(zip(row.grid, values, strict=True)), **chosen}
            changes = _checked(source, number, default, {**row.set, **tried})
            label = _label(row, {name: changes[name] for name in tried})
            try:
                Entrant(label, row.name, default)
            except ConfigError as error:
                raise ConfigError(
                    f"{source.row('methods', number, 'label')}: {error.what}", error.remedy
                ) from None
            yield label, changes


def _layer_changes(source: Source, number: int, default: Config) -> list[dict[str, Any]]:
    """The choices of layers as changes; one without any where the presets' are taken."""
    row, fields = source.config.methods[number], type(default).model_fields
    own = bool(row.layers)
    choices = row.layers or source.config.layers
    where = source.row("methods", number, "layers") if own else source.row("layers")
    named = {"layers", "layer"} & {*row.set, *row.grid}
    if choices and named:
        raise ConfigError(
            f"{source.row('methods', number)}: {row.name} gets its layers twice, by layers and by set or grid.",
            "Keep one of them.",
        )
    if "layers" in fields:
        return [{"layers": list(chosen)} for chosen in choices] or [{}]
    if "layer" in fields:
        several = next((chosen for chosen in choices if len(chosen) > 1), None)
        if several:
            raise ConfigError(
                f"{where}: {row.name} edits one layer, not {', '.join(map(str, several))}.",
                f"Give {row.name} a layers: list of its own, as [5, 10].",
            )
        return [{"layer": chosen[0]} for chosen in choices] or [{}]
    if own:
        raise ConfigError(f"{where}: {row.name} has no choice of layers.", "Leave its layers out.")
    return [{}]


def _checked(source: Source, number: int, default: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes as the method's settings have them."""
    row = source.config.methods[number]
    known = flat_names(default.model_dump(mode="json"))
    for name in changes:
        if name not in known:
            part = "grid" if name in row.grid else "set"
            place = source.row("methods", number, part, *_place(source, number, part, name))
            raise ConfigError(f"{place}: {row.name} has no setting {name!r}.", nearest(name, list(known)))
    from nmke.presets import changed_anywhere

    try:
        fitting = changed_anywhere(row.name, lambda base: with_changes(base, changes))
    except ConfigError as error:
        at = next((part for part in ("grid", "set") if getattr(row, part)), "name")
        raise ConfigError(
            f"{source.row('methods', number, at)}: {row.name}: {error.what}", error.remedy
        ) from None
    settings = flat_names(fitting.model_dump(mode="json"))
    return {name: settings[name] for name in changes}


def _place(source: Source, number: int, part: str, name: str) -> tuple[str, ...]:
    """How a dotted name is written in the file: in one word, or nested."""
    nested = tuple(name.split("."))
    return nested if ("methods", number, part, nested[0]) in source.rows and len(nested) > 1 else (name,)


def _label(row: MethodRow, tried: Mapping[str, Any]) -> str:
    """The row's label and what the configuration tries, cut to what can name a folder."""
    parts = [
        row.label or labelled(row.name, row.preset),
        *(f"{name} {_told(value)}" for name, value in tried.items()),
    ]
    # No "=": the command line splits there.
    label = re.sub(r"[^\w .,+()-]+", "-", " ".join(parts)).strip(" .,-")
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 9].rstrip(' .,-')} {_digest(' '.join(parts))}"


def _told(value: Any) -> str:
    if isinstance(value, list):
        whole = all(isinstance(item, int) for item in value)
        if whole and len(value) > 1 and value == list(range(value[0], value[-1] + 1)):
            return f"{value[0]}-{value[-1]}"
        return "+".join(map(str, value)) if whole else json.dumps(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _short_names(values: Sequence[str]) -> dict[str, str]:
    """What folders call models or data sets: the last part, told apart by a checksum where that is not enough."""
    found: dict[str, str] = {}
    for value in values:
        name, sign, _ = value.partition(":")
        own = name if sign and name in ("counterfact", "zsre") else Path(value.removeprefix("hf:")).name
        found[value] = Path(own).stem if own.endswith((".json", ".jsonl", ".csv", ".gguf")) else own
    names = list(found.values())
    return {
        value: name if names.count(name) == 1 else f"{name}-{_digest(value)}" for value, name in found.items()
    }


def _safe(name: str) -> str:
    return re.sub(r"[^\w.,+()-]+", "-", name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _as_text(method: str, name: str, value: Any) -> str:
    """A value as ``--entrant`` reads it back."""
    from nmke.methods import get_method

    before = flat_names(get_method(method).config_class().model_dump()).get(name)
    if (
        isinstance(value, list)
        and value
        and value == sorted(set(value))
        and all(type(v) is int for v in value)
    ):
        return ",".join(map(str, value))
    return value if isinstance(value, str) and isinstance(before, str) else json.dumps(value)
