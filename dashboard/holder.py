"""The loaded base models of the server and the browser sessions that use them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashboard import garbage

if TYPE_CHECKING:
    from nmke.loading import LoadedModel

#: A tab that has been closed this long no longer keeps its model in memory.
GONE_AFTER = 120.0


@dataclass(frozen=True)
class ModelKey:
    """What was asked for; equal keys share one loaded model."""

    spec: str
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass
class _Entry:
    model: "LoadedModel"
    users: set[str] = field(default_factory=set)


class ModelHolder:
    """The loaded base models and who uses them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._entries: dict[ModelKey, _Entry] = {}
        self._left: dict[str, float] = {}

    def load(self, key: ModelKey, owner: str, loader: Callable[[], "LoadedModel"]) -> "LoadedModel":
        """The model for this key, loaded when nobody has it yet; the owner's earlier model is let go after."""
        with self._loading:
            with self._lock:
                entry = self._entries.get(key)
            if entry is None:
                self.release_gone()
                loaded = loader()
                entry = _Entry(loaded)
                garbage.collect_all()
            with self._lock:
                self._entries[key] = entry
                entry.users.add(owner)
        self.release(owner, keep=key)
        return entry.model

    def get(self, key: ModelKey, owner: str) -> "LoadedModel | None":
        """The owner's model; None when it is not loaded (any more)."""
        with self._lock:
            entry = self._entries.get(key)
            return entry.model if entry is not None and owner in entry.users else None

    def release(self, owner: str, keep: ModelKey | None = None) -> None:
        """Let go of the owner's models; those nobody uses are freed."""
        with self._lock:
            for key, entry in self._entries.items():
                if key != keep:
                    entry.users.discard(owner)
        self._free_unused()

    def others(self, key: ModelKey, owner: str) -> int:
        """How many other browser sessions use this model."""
        with self._lock:
            entry = self._entries.get(key)
            return 0 if entry is None else len(entry.users - {owner})

    def here(self, owner: str) -> None:
        """The owner's tab is open."""
        with self._lock:
            self._left.pop(owner, None)

    def away(self, owner: str) -> None:
        """The owner's tab was closed or lost its connection."""
        with self._lock:
            self._left[owner] = self._clock()

    def release_gone(self) -> None:
        """Free what only tabs closed some time ago still held."""
        with self._lock:
            limit = self._clock() - GONE_AFTER
            gone = {owner for owner, left in self._left.items() if left < limit}
            for owner in gone:
                del self._left[owner]
            for entry in self._entries.values():
                entry.users -= gone
        self._free_unused()

    def _free_unused(self) -> None:
        with self._lock:
            unused = [key for key, entry in self._entries.items() if not entry.users]
            models = [self._entries.pop(key).model for key in unused]
        while models:
            models.pop().unload()
        if unused:
            garbage.collect_all()
