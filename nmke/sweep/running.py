"""A whole sweep: what is done already is passed over, the rest is handed to an executor, all of it is watched."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nmke.lifelong.data import Data, read_data
from nmke.lifelong.files import held
from nmke.progress import Progress, Silent
from nmke.storage import writing
from nmke.store import write_json
from nmke.sweep.executors import Executor, InProcess, Watch
from nmke.sweep.files import RUNS, SUMMARY, write_manifest
from nmke.sweep.planning import Plan
from nmke.sweep.results import SweepResults, summary_of
from nmke.sweep.work import Task

STAGE = "sweeping"


def run_sweep(
    folder: Path,
    plan: Plan,
    executor: Executor | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> SweepResults:
    """Do every run of a sweep that is not done, and write ``summary.json``.

    Args:
        executor: this process without one.
        tell: gets sentences about runs that ended and workers that were lost.

    Raises:
        FactError: a data file cannot be read, or has too few facts.
        SessionError: the folder holds another sweep, or somebody works on it.
        NmkeError: the executor cannot work; what is done stays.
        Cancelled: from ``progress``; everything done so far is kept.
    """
    progress = progress or Silent()
    found = {source: read_data(source, progress) for source in dict.fromkeys(run.data for run in plan.runs)}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        write_manifest(folder, plan)
        (folder / RUNS).mkdir(exist_ok=True)
        before = SweepResults(folder)
        done = {entry["name"] for entry in before.status if entry["state"] in ("done", "collapsed")}
        tasks = _tasks(plan, found, done)
        watch = _Overview(folder, plan, before, progress, tell)
        watch.write()
        try:
            if tasks:
                (executor or InProcess()).execute(tasks, folder / RUNS, watch)
        finally:
            watch.write()
    return SweepResults(folder)


def _tasks(plan: Plan, found: Mapping[str, Data], done: set[str]) -> list[Task]:
    return [
        Task(run, found[run.data].facts[: run.config.edits], found[run.data].about)
        for run in plan.runs
        if run.name not in done
    ]


class _Overview(Watch):
    """How far all runs are together."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        before: SweepResults,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self._folder, self._progress, self._tell = folder, progress, tell
        self._edits = {run.name: run.config.edits for run in plan.runs}
        self._at = {entry["name"]: entry["edits_done"] for entry in before.status}
        self._ended = {entry["name"] for entry in before.status if entry["state"] in ("done", "collapsed")}
        for name in self._ended:
            self._at[name] = self._edits[name]
        self._messages: dict[str, str] = {}
        self._began, self._first = time.monotonic(), sum(self._at.values())
        self._note = ""

    def tick(self) -> None:
        done, total = sum(self._at.values()), sum(self._edits.values())
        told = f"{len(self._ended)} of {len(self._edits)} runs{self._left(done, total)}"
        self._progress.update(STAGE, done, total, f"{told}; {self._note}" if self._note else told)

    def going(self, run: str, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage.startswith("editing"):
            self._at[run] = max(done, self._at.get(run, 0))
        amount = f" {done} of {total}" if total and note != "bytes" else ""
        self._note = f"{run}: {stage}{amount}"
        self.tick()

    def ended(self, run: str, message: str = "") -> None:
        self._at[run] = self._edits[run]
        self._ended.add(run)
        if message:
            self._messages[run] = message
            self._tell(f"{run} failed. {message}")
        self.write()
        self.tick()

    def tell(self, message: str) -> None:
        self._tell(message)

    def write(self) -> None:
        """Write ``summary.json`` as things stand."""
        write_json(self._folder / SUMMARY, summary_of(SweepResults(self._folder, messages=self._messages)))

    def _left(self, done: int, total: int) -> str:
        """The time the rest takes at the pace so far; measuring is part of it."""
        made, seconds = done - self._first, time.monotonic() - self._began
        if not made or seconds < 1:
            return ""
        left = seconds / made * (total - done)
        return (
            f", about {left / 3600:.1f} h left"
            if left >= 5400
            else f", about {max(1, round(left / 60))} min left"
        )
