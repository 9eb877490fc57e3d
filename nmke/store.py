"""Files that are either whole or absent, filed under what they were made from."""

import hashlib
import json
from collections.abc import Iterator
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
