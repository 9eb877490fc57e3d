"""Files that are either whole or absent, filed under what they were made from."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmke.storage import partial_folder, publish, writing


def content_key(**parts: Any) -> str:
    """A short key that changes when any part does."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextmanager
def written_atomically(target: Path) -> Iterator[Path]:
    """A path to write a file or folder at; it becomes ``target`` when the block ends well, else it is removed.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target.parent) as scratch:
            yield scratch / target.name
            publish(scratch / target.name, target)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, down to the disk.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write plain values; numbers that JSON does not know become null."""
    write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: text keys, lists, null for numbers without end."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
