"""The facts of a run: the built-in ones, a file, or a data set of the hub."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmke.errors import FactError, ResourceError
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.progress import Progress, Silent
from nmke.readers import MIB, RowProblem, facts_to_jsonl, read_facts

EXAMPLES = "examples"
HUB_PREFIX = "hf:"
#: Data set -> the form whose records cannot be of it.
NAMED = {"counterfact": "ZsRE", "zsre": "CounterFact"}
LARGEST_BYTES = 500 * MIB


@dataclass(frozen=True)
class Data:
    """Facts and where they came from.

    Attributes:
        about: ``source``, ``name``, ``sha256``, ``count`` and ``format``, for the spec.
        problems: rows that were left out.
    """

    facts: tuple[Fact, ...]
    about: dict[str, Any]
    problems: tuple[RowProblem, ...]


def read_data(source: str, progress: Progress | None = None) -> Data:
    """Read ``examples``, ``FILE``, ``counterfact:FILE``, ``zsre:FILE`` or ``hf:OWNER/NAME``.

    The name in front of a file is kept in the report and checked against the records. ZsRE is edited to ``alt``.

    Raises:
        FactError: no file, no facts, or records of the other data set.
        ResourceError: the hub cannot be reached.
    """
    name, sign, file = source.partition(":")
    if not sign or name not in NAMED:
        name, file = "", source
    if file == EXAMPLES and not Path(file).exists():
        content = facts_to_jsonl(builtin_facts()).encode()
        label = "The built-in examples"
    elif file.startswith(HUB_PREFIX) or _is_hub_name(file):
        content = _hub_records(file.removeprefix(HUB_PREFIX), progress or Silent())
        label = file
    else:
        content = _file_bytes(file)
        label = Path(file).name
    table = read_facts(content, name=label, max_bytes=LARGEST_BYTES)
    if name and table.format.startswith(NAMED[name]):
        raise FactError(
            f"{label} is called {name}, but its records are {table.format.split(',')[0]}.",
            f"Name the file without {name}:, or give the right file.",
        )
    about = {
        "source": source,
        "name": name or label,
        "sha256": hashlib.sha256(content).hexdigest(),
        "count": len(table.facts),
        "left_out": len(table.problems),
        "format": table.format,
    }
    return Data(table.facts, about, table.problems)


def _file_bytes(file: str) -> bytes:
    path = Path(file)
    if path.is_dir():
        raise FactError(f"{path.name} is a folder.", "Name a file of facts.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FactError(
            f"{path.name} cannot be read: {error.strerror}.",
            f"Check the file's name, or give '{EXAMPLES}' or hf:OWNER/NAME.",
        ) from None


def _is_hub_name(text: str) -> bool:
    """``owner/name``: one slash, no ending of a file, and nothing by that name here."""
    return text.count("/") == 1 and all(text.split("/")) and not Path(text).suffix and not Path(text).exists()


def _hub_records(name: str, progress: Progress) -> bytes:
    from datasets import get_dataset_split_names, load_dataset

    lines: list[str] = []
    try:
        split = _pick_split(get_dataset_split_names(name))
        for row in load_dataset(name, split=split, streaming=True):
            lines.append(json.dumps(row, ensure_ascii=False, default=str))
            progress.update("fetching the facts", len(lines), None)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
        raise ResourceError(
            f"The hub data set {name!r} could not be read: {reason}",
            "Give the path of a file of facts.",
        ) from problem
    return "\n".join(lines).encode()


def _pick_split(splits: Sequence[str]) -> str:
    """The split that is for scoring, where there is one."""
    return next((split for split in ("test", "validation", "train") if split in splits), splits[0])
