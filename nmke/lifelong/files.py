"""The files of a run's folder: written whole or not at all, the events line by line.

Nothing here is left half-done by a kill: files are moved into place in one step, and an event's line counts once its
line break is there.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nmke.errors import ResourceError, SessionError
from nmke.storage import PARTIAL, remove, writing
from nmke.store import plain, write_text

SPEC, FACTS, ORDERS, SUMMARY = "spec.json", "facts.jsonl", "orders.json", "summary.json"
UNEDITED, UNEDITED_ROWS, HELD_OUT = "unedited.json", "unedited.parquet", "held_out.json"
ABILITIES = "abilities.json"
EVENTS, CHECKPOINT, LOCK = "events.jsonl", "checkpoint.safetensors", ".lock"
#: How long a start waits for somebody who only looks whether the run is going on.
SECONDS_FOR_LOCK = 2.0
#: Events that say how a run ended.
ENDS = ("done", "collapsed", "failed", "stopped")


def run_folder(folder: Path, label: str, seed: int) -> Path:
    """Where one entrant's run with one seed lies."""
    return folder / "runs" / f"{label}-seed{seed}"


def predictions_file(folder: Path, label: str, seed: int, mark: int) -> Path:
    """What the model said about every fact at a mark."""
    return run_folder(folder, label, seed) / f"predictions-{mark}.parquet"


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote.

    Raises:
        ResourceError: it is not there, or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResourceError(
            f"{path.name} cannot be read ({error.strerror}).", "Choose a folder of a lifelong run."
        ) from None
    except ValueError:
        raise ResourceError(f"{path.name} is damaged.", "Start the run in a new folder.") from None


class EventLog:
    """The events of one run, one JSON object a line, each on the disk before the work goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All events; a last line that a kill cut off is left out.

        Raises:
            ResourceError: a line before the last is damaged.
        """
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")[:-1]  # what follows the last line break is nothing, or cut off
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            name = self.path.parent.name
            raise ResourceError(
                f"The events of {name} are damaged.", f"Remove the folder {name} and run it again."
            ) from None

    def stamp(self) -> tuple[int, int]:
        """Time and size of the file, which change whenever it does; zeros where there is none."""
        try:
            told = self.path.stat()
        except OSError:
            return 0, 0
        return told.st_mtime_ns, told.st_size

    def mend(self) -> None:
        """Take off a last line that a kill cut off, so that the next one starts on its own."""
        if not self.path.is_file():
            return
        with self.path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)

    def append(self, event: str, position: int, **values: Any) -> None:
        """Add an event after ``position`` facts.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        line = json.dumps(plain({"event": event, "position": position, **values}), ensure_ascii=False)
        with writing(self.path.parent), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut(self, position: int) -> list[dict[str, Any]]:
        """Drop the edits and marks after ``position``, which are done again, and return what is kept.

        Failures, stops and resumes are history and stay.
        """
        kept = [
            event
            for event in self.read()
            if event["event"] not in ("edit", "mark") or event["position"] <= position
        ]
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        write_text(self.path, text)
        return kept


def state_of(events: list[dict[str, Any]]) -> tuple[str, str]:
    """How a run's events say it ended (or "" where it goes on), and the message."""
    if events and events[-1]["event"] in ENDS:
        return events[-1]["event"], events[-1].get("message", "")
    return "", ""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Only one process or thread works on a run's folder; what a killed one left unfinished is removed.

    Raises:
        SessionError: somebody else does.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    with writing(folder):
        try:
            lock.acquire(timeout=SECONDS_FOR_LOCK)
        except Timeout:
            raise SessionError(
                f"The benchmark in {folder.name} is running already.",
                "Wait for it or stop it, or choose a new folder.",
            ) from None
    try:
        for place in (folder, *folder.glob("runs/*")):
            for leftover in place.glob(PARTIAL + "*"):
                remove(leftover)
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether somebody works on a run's folder at this moment."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError) as problem:
        return isinstance(problem, Timeout)
    lock.release()
    return False
