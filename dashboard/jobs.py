"""Long work: a thread, progress, a time left, cancel, a queue.

The registry is owned by ``st.cache_resource``; a browser session keeps only the ids of its own jobs, and
every question asked of the registry names the owner, so one visitor never sees another's work.
"""

import errno
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import streamlit as st

from dashboard import state
from nmke.errors import Cancelled, NmkeError
from nmke.progress import Progress

_LOG = logging.getLogger(__name__)
_KEEP_SECONDS = 3600.0


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobBusy(NmkeError):
    """The same work is running already."""


@dataclass(frozen=True)
class JobView:
    """What can be shown of a job at one moment."""

    id: str
    purpose: str
    name: str
    state: JobState
    stage: str
    done: int
    total: int | None
    note: str
    elapsed: float
    remaining: float | None
    error: str | None

    @property
    def active(self) -> bool:
        """Whether the job waits or works."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    @property
    def fraction(self) -> float | None:
        """The share of the current stage that is done, when its length is known."""
        if not self.total:
            return None
        return min(max(self.done / self.total, 0.0), 1.0)


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and its value when it was done."""

    name: str
    state: JobState
    value: Any
    error: str


@dataclass
class _Job:
    id: str
    owner: str
    purpose: str
    name: str
    work: Callable[[Progress], Any] | None
    lane: str
    cancelled: threading.Event = field(default_factory=threading.Event)
    state: JobState = JobState.QUEUED
    stage: str = ""
    done: int = 0
    total: int | None = None
    note: str = ""
    made: float = 0.0
    started: float | None = None
    stage_started: float = 0.0
    stage_first: int = 0
    ended: float | None = None
    value: Any = None
    error: str = ""


class JobProgress(Progress):
    """Carries the engine's progress to the registry, and the user's cancel to the engine."""

    def __init__(self, job: _Job, lock: threading.Lock, clock: Callable[[], float]) -> None:
        self._job = job
        self._lock = lock
        self._clock = clock

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Record the progress.

        Raises:
            Cancelled: when the user asked to stop.
        """
        if self._job.cancelled.is_set():
            raise Cancelled
        with self._lock:
            job = self._job
            if stage != job.stage or done < job.done:
                job.stage_started, job.stage_first = self._clock(), done
            job.stage, job.done, job.total, job.note = stage, done, total, note


class JobRegistry:
    """All jobs of the server: one worker per lane, first come, first served."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._lanes: dict[str, deque[_Job]] = {}

    def submit(
        self, owner: str, purpose: str, name: str, work: Callable[[Progress], Any], lane: str = "model"
    ) -> str:
        """Queue the work and return the job's id.

        Raises:
            JobBusy: when the owner's work of this purpose has not ended yet.
        """
        job = _Job(uuid.uuid4().hex, owner, purpose, name, work, lane, made=self._clock())
        with self._lock:
            self._forget_old()
            for other in self._jobs.values():
                if other.owner == owner and other.purpose == purpose and other.ended is None:
                    raise JobBusy(f"“{other.name}” is still running.", "Wait for it, or cancel it first.")
            self._jobs[job.id] = job
            idle = lane not in self._lanes
            self._lanes.setdefault(lane, deque()).append(job)
        if idle:
            threading.Thread(target=self._drain, args=(lane,), name=f"jobs-{lane}", daemon=True).start()
        return job.id

    def view(self, owner: str, job_id: str) -> JobView | None:
        """The owner's job as it stands; None when there is no such job of this owner."""
        with self._lock:
            job = self._owned(owner, job_id)
            return None if job is None else self._view(job)

    def cancel(self, owner: str, job_id: str) -> None:
        """Ask the job to stop; a waiting one ends at once, a running one at its next item."""
        with self._lock:
            job = self._owned(owner, job_id)
            if job is None or job.ended is not None:
                return
            job.cancelled.set()
            if job.state is JobState.QUEUED:
                self._end(job, JobState.CANCELLED, error=str(Cancelled()))

    def take(self, owner: str, job_id: str) -> Outcome | None:
        """Hand over the outcome of a finished job and forget the job; None while it works."""
        with self._lock:
            job = self._owned(owner, job_id)
            if job is None or job.ended is None:
                return None
            del self._jobs[job_id]
            return Outcome(job.name, job.state, job.value, job.error)

    def _owned(self, owner: str, job_id: str) -> _Job | None:
        job = self._jobs.get(job_id)
        return job if job is not None and job.owner == owner else None

    def _forget_old(self) -> None:
        """Drop results nobody fetched, such as those of closed tabs."""
        limit = self._clock() - _KEEP_SECONDS
        for job in [job for job in self._jobs.values() if job.ended is not None and job.ended < limit]:
            del self._jobs[job.id]

    def _drain(self, lane: str) -> None:
        while True:
            with self._lock:
                queue = self._lanes[lane]
                while queue and queue[0].ended is not None:
                    queue.popleft()
                if not queue:
                    # under the lock, so a job submitted now starts a worker of its own
                    del self._lanes[lane]
                    return
                job = queue.popleft()
                job.state, job.started, job.stage_started = JobState.RUNNING, self._clock(), self._clock()
            self._run(job)
            del job

    def _run(self, job: _Job) -> None:
        work, state_, value, error = job.work, JobState.DONE, None, ""
        assert work is not None
        try:
            value = work(JobProgress(job, self._lock, self._clock))
        except Cancelled as stop:
            state_, error = JobState.CANCELLED, str(stop)
        except BaseException as problem:  # a worker must always report, whatever happened
            state_, error = JobState.FAILED, explain(problem, job.name)
        with self._lock:
            self._end(job, state_, value, error)

    def _end(self, job: _Job, state_: JobState, value: Any = None, error: str = "") -> None:
        job.state, job.value, job.error, job.ended = state_, value, error, self._clock()
        job.work = None  # it may hold a model

    def _view(self, job: _Job) -> JobView:
        now = job.ended if job.ended is not None else self._clock()
        elapsed = 0.0 if job.started is None else now - job.started
        return JobView(
            job.id,
            job.purpose,
            job.name,
            job.state,
            job.stage,
            job.done,
            job.total,
            job.note,
            elapsed,
            self._remaining(job, now),
            job.error or None,
        )

    @staticmethod
    def _remaining(job: _Job, now: float) -> float | None:
        made = job.done - job.stage_first
        if job.state is not JobState.RUNNING or not job.total or made <= 0:
            return None
        return max(job.total - job.done, 0) * (now - job.stage_started) / made


def explain(problem: BaseException, doing: str) -> str:
    """One sentence for the screen; what nobody foresaw goes to the log with its traceback."""
    if isinstance(problem, NmkeError):
        return str(problem)
    _LOG.error("%s failed", doing, exc_info=problem)
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return f"{doing} stopped because the disk is full. Free some space and try again."
    if isinstance(problem, MemoryError) or "out of memory" in str(problem).lower():
        return f"{doing} stopped because the memory ran out. Unload other models or choose a smaller one."
    reason = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else "no reason given"
    kind = type(problem).__name__
    return f"{doing} failed unexpectedly ({kind}: {reason}). Nothing was changed; the server's log has more."


@st.cache_resource(show_spinner=False)
def registry() -> JobRegistry:
    """The server's one registry."""
    return JobRegistry()


def start(purpose: str, name: str, work: Callable[[Progress], Any], *, lane: str = "model") -> str:
    """Start work of this browser session; it must not call Streamlit.

    Raises:
        JobBusy: when work of the same purpose has not ended yet.
    """
    mine = state.get()
    job_id = registry().submit(mine.owner, purpose, name, work, lane)
    mine.job_ids[purpose] = job_id
    return job_id


def view(purpose: str) -> JobView | None:
    """This browser session's job of that purpose, if there is one."""
    mine = state.get()
    job_id = mine.job_ids.get(purpose)
    return None if job_id is None else registry().view(mine.owner, job_id)


def views() -> list[JobView]:
    """All jobs of this browser session that are not taken yet."""
    return [shown for purpose in list(state.get().job_ids) if (shown := view(purpose)) is not None]


def running(purpose: str) -> bool:
    """Whether that work waits or works."""
    shown = view(purpose)
    return shown is not None and shown.active


def any_running() -> bool:
    """Whether any work of this browser session waits or works."""
    return any(shown.active for shown in views())


def cancel(purpose: str) -> None:
    """Ask that work to stop."""
    mine = state.get()
    if purpose in mine.job_ids:
        registry().cancel(mine.owner, mine.job_ids[purpose])


def take(purpose: str) -> Outcome | None:
    """The outcome of finished work, once."""
    mine = state.get()
    job_id = mine.job_ids.get(purpose)
    if job_id is None:
        return None
    outcome = registry().take(mine.owner, job_id)
    if outcome is not None:
        del mine.job_ids[purpose]
    return outcome


def say_seconds(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def say_progress(shown: JobView) -> str:
    """One line saying where a job stands."""
    if shown.state is JobState.QUEUED:
        return "Waiting for the work before it"
    stage = shown.stage[:1].upper() + shown.stage[1:] if shown.stage else "Starting"
    parts = [stage]
    if shown.note == "bytes":
        parts[0] += f" ({shown.done / 1e6:.0f} of {(shown.total or 0) / 1e6:.0f} MB)"
    elif shown.note:
        parts.append(shown.note)
    if shown.remaining is not None:
        parts.append(f"about {say_seconds(shown.remaining)} left")
    else:
        parts.append(f"{say_seconds(shown.elapsed)} so far")
    return ", ".join(parts)
