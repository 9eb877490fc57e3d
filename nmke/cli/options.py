"""The options that ``neurons`` and ``edit`` share, and how their values are read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmke.cli.terminal import warn
from nmke.dotted import AnyConfig, flat_names, with_changes
from nmke.errors import ConfigError, ResourceError
from nmke.facts import Fact
from nmke.storage import writing

if TYPE_CHECKING:
    from nmke.readers import RowProblem

EXAMPLES = "examples"
MOST_PROBLEMS_TOLD = 10

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Registry name, folder with safetensors, .gguf file or hub id.")
]
FactsOption = Annotated[
    str,
    typer.Option(
        "--facts",
        "-f",
        help="File of facts: CounterFact, EasyEdit, ZsRE, KnowEdit, CSV or JSONL; "
        f"'{EXAMPLES}' for the built-in ones.",
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the first N good facts.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made when missing.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="A setting, for example mask.alpha=20; repeatable."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with the model. Off for good reason."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


def read_fact_file(facts: str, limit: int | None) -> tuple[Fact, ...]:
    """The good facts; bad rows are told with their remedy.

    Raises:
        FactError: the file as a whole cannot be used, or holds no good fact.
    """
    from nmke.examples import builtin_facts
    from nmke.readers import read_facts

    if facts == EXAMPLES and not Path(facts).exists():
        return builtin_facts()[:limit]
    table = read_facts(Path(facts), limit=limit)
    tell_problems(table.problems)
    return table.facts


def tell_problems(problems: Sequence["RowProblem"]) -> None:
    """Warn of rows that were left out, each with its remedy; of many only that there are more."""
    for problem in problems[:MOST_PROBLEMS_TOLD]:
        field = f", {problem.field}" if problem.field else ""
        warn(f"row {problem.row}{field}: {problem.problem} {problem.remedy}".strip())
    if len(problems) > MOST_PROBLEMS_TOLD:
        warn(f"{len(problems) - MOST_PROBLEMS_TOLD} more rows were left out.")


def parse_layers(text: str) -> list[int] | None:
    """``4-8`` or ``4,6,10-12``; ``all`` is None.

    Raises:
        ConfigError: when it is neither.
    """
    if text.strip().lower() == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last > 10_000:
            raise ConfigError(f"{text!r} names no layers.", "Write for example 4-8, or 4,6,8, or all.")
        layers.update(range(first, last + 1))
    return sorted(layers)


def change_settings(config: AnyConfig, assignments: Sequence[str] | None) -> AnyConfig:
    """The settings with each ``key=value`` put in; dots reach into groups (``mask.alpha=20``).

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    before = flat_names(config.model_dump())
    changes = {}
    for assignment in assignments or ():
        key, sign, text = assignment.partition("=")
        name = key.strip()
        if not sign or not name:
            raise ConfigError(
                f"The setting {assignment!r} is no key=value.", "Write for example mask.alpha=20."
            )
        changes[name] = _value(name, text.strip(), before.get(name))
    return with_changes(config, changes)


def _value(name: str, text: str, before: Any) -> Any:
    if name.rpartition(".")[2] == "layers" or isinstance(before, tuple | list):
        if before is None and text.lower() == "all":
            return None
        if (layers := _maybe_layers(text)) is not None:
            return layers
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return {"none": None, "yes": True, "no": False}.get(text.lower(), text)


def _maybe_layers(text: str) -> list[int] | None:
    try:
        return parse_layers(text)
    except ConfigError:
        return None


def make_folder(out: Path) -> Path:
    """The folder for the results.

    Raises:
        ResourceError: when it cannot be made.
    """
    with writing(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ResourceError(f"{out} is a file.", "Give --out a folder.") from None
    return out
