"""Work in a child process, so that a cancel ends it at once and its memory goes with it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """How a child process ended."""

    code: int
    out: str
    err: str


def run_module(
    arguments: Sequence[str],
    *,
    scratch: Path,
    environment: Mapping[str, str] | None = None,
    tick: Callable[[str], None],
    seconds: float = 0.1,
) -> Finished:
    """Run ``python -m arguments...`` with its temporary files in ``scratch`` until it ends.

    ``tick`` gets the child's standard output so far, about every ``seconds``; when it raises
    (a cancel, Ctrl-C), the child is killed first.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    variables |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    # The output goes into files: a pipe that nobody empties would stop the child.
    out, err = scratch / "child.out", scratch / "child.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            env=variables,
        )
        try:
            while child.poll() is None:
                tick(_text(out))
                time.sleep(seconds)
        except BaseException:
            child.kill()
            child.wait()
            raise
    return Finished(child.returncode, _text(out), _text(err))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
