"""Answers that are known already: under the model, its state, the questions and how they were asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmke.storage import home
from nmke.store import content_key, write_json

#: Changes when answers are found or written down in another way.
FORMAT = 1


@dataclass(frozen=True)
class Answers:
    """What a model answered to some questions in one go.

    Attributes:
        rows: one per question, in order.
        seconds: it took.
        truncated: prompts that were too long and lost their beginning.
    """

    rows: Sequence[Mapping[str, Any]]
    seconds: float
    truncated: int


def path_of(**identity: Any) -> Path:
    """Where the answers to exactly this lie, or will."""
    return home() / "abilities" / "answers" / f"{content_key(format=FORMAT, **identity)}.json"


def read_answers(path: Path, count: int) -> Answers | None:
    """The kept answers; None where there are none, or they are damaged and must be found again."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found = Answers(saved["rows"], float(saved["seconds"]), int(saved["truncated"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if len(found.rows) == count else None


def keep_answers(path: Path, answers: Answers) -> None:
    """Write them whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    write_json(path, {"rows": answers.rows, "seconds": answers.seconds, "truncated": answers.truncated})
