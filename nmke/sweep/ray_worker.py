"""What a Ray worker does with a run: computes it in a scratch folder and hands out what changed there.

Knows nothing of Ray; :mod:`nmke.sweep.ray_child` makes an actor of it.
"""

import os
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from nmke.errors import Cancelled, NmkeError
from nmke.progress import Progress
from nmke.sweep.transfer import Changes, File, write_files

SCRATCH = "nmke-sweep-"
#: Seconds: an answer without news takes so long.
PATIENCE = 1.0


class Worker:
    """One run. Its methods are called one after the other, but :meth:`stop` at any time."""

    def begin(self, task: bytes, files: list[tuple[str, bytes]]) -> int:
        """Start or go on with a run in a folder that has these files; returns the process id."""
        from nmke.sweep.work import Task

        _remove_orphans(Path(tempfile.gettempdir()))
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
        self._folder = self._scratch / "run"
        self._folder.mkdir()
        write_files(self._folder, [File(name, content) for name, content in files])
        self._changes = Changes(self._folder)
        self._changes.take()  # the driver has those
        self._progress, self._error = _Told(), ""
        self._thread = threading.Thread(target=self._work, args=(Task.from_bytes(task),), daemon=True)
        self._thread.start()
        return os.getpid()

    def news(self) -> dict[str, Any]:
        """What changed since the last call: ``files``, ``progress`` (stage, done, total, note), and once nothing more
        comes ``ended`` with the ``error`` of a run that could not be begun."""
        self._thread.join(PATIENCE)
        ended = not self._thread.is_alive()  # asked before the files are read
        files = [(file.name, file.content) for file in self._changes.take()]
        if ended:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return {"files": files, "progress": self._progress.last, "ended": ended, "error": self._error}

    def stop(self) -> None:
        """Cancel the run at its next step; :meth:`news` goes on until it has saved its state."""
        self._progress.cancelled = True

    def _work(self, task: Any) -> None:
        from nmke.sweep.work import Models, do_run

        try:
            do_run(task, self._folder, Models(), self._progress)
        except Cancelled:
            return
        except NmkeError as error:
            self._error = str(error)
        except BaseException as error:
            reason = " ".join(str(error).split())[:300]
            self._error = f"It failed unexpectedly ({type(error).__name__}: {reason})."


class _Told(Progress):
    """Keeps the last report, and cancels when asked."""

    def __init__(self) -> None:
        self.last: tuple[str, int, int | None, str] = ("starting", 0, None, "")
        self.cancelled = False

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.last = (stage, done, total, note)
        if self.cancelled:
            raise Cancelled


def _remove_orphans(place: Path) -> None:
    """Remove what workers that were killed left behind on this machine."""
    for path in place.glob(f"{SCRATCH}*"):
        match = re.fullmatch(rf"{SCRATCH}(\d+)-.*", path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
