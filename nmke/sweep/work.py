"""What one run of a sweep needs where it is done, and doing it: the same on this machine and on a cluster's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nmke.facts import Fact
from nmke.progress import Progress
from nmke.readers import facts_to_jsonl
from nmke.sweep.planning import Run

if TYPE_CHECKING:
    from nmke.loading import LoadedModel


@dataclass(frozen=True)
class Task:
    """A run with its facts, which travel with it; models and texts are found where it is done.

    Attributes:
        about: where the facts came from, see :func:`nmke.lifelong.read_data`.
    """

    run: Run
    facts: tuple[Fact, ...]
    about: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """For another process."""
        record = {"run": self.run.to_dict(), "facts": facts_to_jsonl(self.facts), "about": dict(self.about)}
        return json.dumps(record, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """What :meth:`to_bytes` gave."""
        record = json.loads(content)
        facts = tuple(Fact.from_dict(json.loads(line)) for line in record["facts"].split("\n") if line)
        return cls(Run.from_dict(record["run"]), facts, record["about"])


@dataclass
class Models:
    """The model loaded last, kept for the next run that wants it."""

    loaded: "LoadedModel | None" = None
    key: tuple[str, str, str] | None = field(default=None)

    def get(self, run: Run, progress: Progress) -> "LoadedModel":
        """The run's model.

        Raises:
            NmkeError: it cannot be loaded.
        """
        from nmke.loading import load_model

        key = (run.model, run.device, run.dtype)
        if self.loaded is None or self.key != key:
            self.loaded = self.key = None  # its memory first
            self.loaded = load_model(run.model, run.device, run.dtype, progress=progress)
            self.key = key
        return self.loaded


def do_run(task: Task, folder: Path, models: Models, progress: Progress) -> None:
    """Start a run in its folder or go on with it there, to its end.

    Raises:
        NmkeError: it cannot be started; what fails later is told in the run's events.
        Cancelled: from ``progress``; everything done so far is kept.
    """
    from nmke import lifelong
    from nmke.presets import preset_for

    model = models.get(task.run, progress)
    entrant = task.run.entrant(preset_for(model, task.run.method, task.run.preset).config)
    lifelong.start(folder, model, task.facts, [entrant], task.run.config, task.about)
    lifelong.run(folder, model, progress)
