"""What the commands share: saying things, progress with an estimate, errors in one line."""

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from nmke.errors import Cancelled, NmkeError
from nmke.progress import Progress
from nmke.storage import megabytes

INTERRUPTED = 130
SECONDS_BETWEEN_DRAWINGS = 0.05


def say(text: str) -> None:
    """One line of result, as it is, to standard output."""
    typer.echo(text)


def note(text: str) -> None:
    """One line about the work to standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(escape(text))


def warn(text: str) -> None:
    """One line about something that was left out."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[yellow]Note:[/] {escape(text)}")


def reporting_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, its errors told in one line and turned into exit codes."""

    @functools.wraps(command)
    def reported(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, Cancelled):
            note("Stopped; nothing else was changed.")
            raise typer.Exit(INTERRUPTED) from None
        except NmkeError as error:
            _fail(str(error))
        except OSError as error:
            _fail(
                f"{error.strerror or error}: {error.filename or 'unknown file'}. Check the path and the disk."
            )
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get("NMKE_TRACEBACK"):
                raise
            detail = " ".join(str(error).split())[:300]
            _fail(
                f"This should not have happened: {type(error).__name__}: {detail} "
                "Set NMKE_TRACEBACK=1 and run it again for a report to send."
            )

    return reported


def _fail(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]Error:[/] {escape(text)}")
    raise typer.Exit(1)


class TerminalProgress(Progress):
    """A bar for the running stage, with an estimate, and one above it for the whole when there is one.

    Without a terminal (a log file) each stage is told once instead.

    Use as a context manager; what it drew is gone at the end.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._whole: TaskID | None = None
        self._stage: TaskID | None = None
        self._name = ""
        self._told: set[str] = set()
        self._drawn = 0.0

    def __enter__(self) -> "TerminalProgress":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def whole(self, what: str, done: int, total: int) -> None:
        """The work as a whole: ``done`` of ``total`` facts."""
        if not self._console.is_terminal:
            return
        if self._whole is not None and self._bars.tasks[0].description != what:
            self._bars.remove_task(self._whole)  # another walk over the facts has its own estimate
            self._whole = None
        if self._whole is None:
            self._whole = self._bars.add_task(what, total=total, amount="")
        self._bars.update(
            self._whole, description=what, completed=done, total=total, amount=f"{done} of {total}"
        )

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if not self._console.is_terminal:
            if stage not in self._told:
                self._told.add(stage)
                self._console.print(f"{stage} ...", highlight=False, markup=False)
            return
        now = time.monotonic()
        if stage == self._name and now - self._drawn < SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn = now
        if stage != self._name or self._stage is None:
            if self._stage is not None:
                self._bars.remove_task(self._stage)
            self._name, self._stage = stage, self._bars.add_task(escape(stage), total=total, amount="")
        self._bars.update(self._stage, completed=done, total=total, amount=escape(_amount(done, total, note)))


def _amount(done: int, total: int | None, note: str) -> str:
    if note == "bytes":
        return f"{megabytes(done)} of {megabytes(total)}" if total else megabytes(done)
    counted = f"{done} of {total}" if total else str(done)
    return f"{counted}  {note}" if note else counted


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()
