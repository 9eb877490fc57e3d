"""A run's folder on its way between machines: what changed, in an order that a loss at any moment does not hurt.

A checkpoint counts on the events before it, and the events on the predictions they tell of. What is read first is
therefore the checkpoint, then the events, then the rest, so that each comes with everything it counts on; and what is
written first is the rest. A folder that is written so is one that a kill could have left, and is gone on with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nmke.errors import SessionError
from nmke.lifelong.files import CHECKPOINT, EVENTS, LOCK
from nmke.storage import PARTIAL
from nmke.store import written_atomically


@dataclass(frozen=True)
class File:
    """A file's path below the run's folder, with slashes, and its content."""

    name: str
    content: bytes


class Changes:
    """What changed in a folder since it was last asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, int]] = {}

    def take(self) -> list[File]:
        """The files that are new or changed, in the order in which they may be written."""
        found = []
        for path in sorted(_files(self._folder), key=_when_read):
            name = path.relative_to(self._folder).as_posix()
            try:
                told = path.stat()
                stamp = (told.st_mtime_ns, told.st_size)
                if self._seen.get(name) == stamp:
                    continue
                found.append(File(name, path.read_bytes()))
            except FileNotFoundError:  # it is being replaced
                continue
            self._seen[name] = stamp
        return found[::-1]


def whole(folder: Path) -> list[File]:
    """Everything in a run's folder."""
    return Changes(folder).take() if folder.is_dir() else []


def write_files(folder: Path, files: Iterable[File]) -> None:
    """Write files into a run's folder, each whole or not at all.

    Raises:
        SessionError: a name that leads out of the folder.
        ResourceError: the disk is full or the folder cannot be written.
    """
    for file in files:
        name = PurePosixPath(file.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise SessionError(
                f"A worker sent a file of a strange name ({file.name!r}).", "Look at the worker."
            )
        with written_atomically(folder / name) as temporary:
            temporary.write_bytes(file.content)


def has_checkpoint(files: Sequence[File]) -> bool:
    """Whether what was done so far will not be lost any more."""
    return any(PurePosixPath(file.name).name == CHECKPOINT for file in files)


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != LOCK
        and not any(part.startswith(PARTIAL) for part in path.relative_to(folder).parts)
    ]


def _when_read(path: Path) -> tuple[int, int]:
    """Checkpoint, events, then the rest, the newest first."""
    try:
        written = -path.stat().st_mtime_ns
    except FileNotFoundError:
        written = 0
    return {CHECKPOINT: 0, EVENTS: 1}.get(path.name, 2), written
