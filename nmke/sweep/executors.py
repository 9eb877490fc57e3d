"""Where the runs of a sweep are done: one interface, and this process as its plainest implementation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from nmke.errors import Cancelled, NmkeError, ResourceError
from nmke.progress import Progress
from nmke.sweep.work import Models, Task, do_run


class Watch(ABC):
    """Learns from an executor how the runs go, and tells it to stop. Used from one thread."""

    @abstractmethod
    def tick(self) -> None:
        """Called about every second, whatever happens.

        Raises:
            Cancelled: the user asked to stop.
        """

    @abstractmethod
    def going(self, run: str, stage: str, done: int, total: int | None, note: str = "") -> None:
        """A run is at work.

        Raises:
            Cancelled: the user asked to stop.
        """

    @abstractmethod
    def ended(self, run: str, message: str = "") -> None:
        """A run has ended; with a message where it could not be begun or done, else its events say how."""

    @abstractmethod
    def tell(self, message: str) -> None:
        """Something a person should read, such as a worker that was lost."""


class Executor(ABC):
    """Does lifelong runs somewhere; only the driver's process writes the runs' folders."""

    @abstractmethod
    def execute(self, tasks: Sequence[Task], folder: Path, watch: Watch) -> None:
        """Do every task in ``folder``/NAME and return when all have ended.

        A run that fails does not stop the others.

        Raises:
            NmkeError: nothing can be done here at all; what is done stays.
            Cancelled: from ``watch``; everything that was done stays and is gone on with the next time.
        """


class InProcess(Executor):
    """One run after the other in this process."""

    def execute(self, tasks: Sequence[Task], folder: Path, watch: Watch) -> None:
        models = Models()
        for task in tasks:
            message = ""
            try:
                do_run(task, folder / task.run.name, models, _Told(task.run.name, watch))
            except Cancelled:
                raise
            except ResourceError as error:
                if "disk" in error.what:  # full for the others as well
                    raise
                message = str(error)
            except NmkeError as error:
                message = str(error)
            except Exception as error:  # of this run alone, as far as one can know
                reason = " ".join(str(error).split())[:300]
                message = f"It failed unexpectedly ({type(error).__name__}: {reason})."
            watch.ended(task.run.name, message)


class _Told(Progress):
    """A run's progress as the watch hears it."""

    def __init__(self, run: str, watch: Watch) -> None:
        self._run, self._watch = run, watch

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self._watch.going(self._run, stage, done, total, note)
