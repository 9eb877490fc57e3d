"""The folder that keeps each condition's answers while an ablation goes on.

spec.json               what the answers depend on, beside which neurons are switched off
conditions/KEY.parquet  one condition's answers, to the first questions or to all
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout

from nmke.answers import Answered
from nmke.errors import SessionError
from nmke.storage import PARTIAL, remove, writing
from nmke.store import plain, write_json, written_atomically

SPEC, CONDITIONS, LOCK = "spec.json", "conditions", ".lock"
_NAMES: Mapping[str, str] = {
    "model": "model",
    "device": "device",
    "dtype": "dtype",
    "session": "edits",
    "questions": "questions",
    "how": "way of switching off",
    "answers": "scores",
}


class AnswerFolder:
    """An open folder; nobody else works on it meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextmanager
    def open(cls, folder: Path, spec: Mapping[str, Any]) -> Iterator[Self]:
        """The folder, made when missing; what a killed process left unfinished in it is removed.

        Raises:
            SessionError: it holds another ablation's answers, or somebody works on it.
            ResourceError: it cannot be written.
        """
        with writing(folder):
            (folder / CONDITIONS).mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK, thread_local=False)
            try:
                lock.acquire(timeout=1)
            except Timeout:
                raise SessionError(
                    f"Another ablation is writing to {folder.name}.", "Wait for it, or choose a new folder."
                ) from None
        try:
            for leftover in (*folder.glob(PARTIAL + "*"), *(folder / CONDITIONS).glob(PARTIAL + "*")):
                remove(leftover)
            _require_same(folder, spec)
            yield cls(folder)
        finally:
            lock.release()

    def read(self, key: str) -> list[Answered] | None:
        """A condition's answers so far; None where there are none, or none that can be read."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return read_answers(pd.read_parquet(path))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # answering again replaces it

    def write(self, key: str, answered: Sequence[Answered]) -> None:
        """Keep a condition's answers so far, in place of those before.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        with written_atomically(self._path(key)) as path:
            pd.DataFrame([one.to_row() for one in answered]).to_parquet(path, index=False)

    def _path(self, key: str) -> Path:
        return self.folder / CONDITIONS / f"{key}.parquet"


def read_answers(table: pd.DataFrame) -> list[Answered]:
    """Answers from rows of a table, its missing values None again."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [Answered.from_row({str(name): value for name, value in row.items()}) for row in rows]


def _require_same(folder: Path, spec: Mapping[str, Any]) -> None:
    path = folder / SPEC
    if not path.is_file():
        write_json(path, spec)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SessionError(f"{path.name} in {folder.name} is damaged.", "Choose a new folder.") from None
    wanted = plain(spec)
    other = [name for name in wanted if before.get(name) != wanted[name]] if isinstance(before, dict) else []
    if not isinstance(before, dict) or other:
        named = " and ".join(f"other {_NAMES.get(name, name)}" for name in other) or "something else"
        raise SessionError(f"The folder {folder.name} holds answers with {named}.", "Choose a new folder.")
