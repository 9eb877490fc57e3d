"""Running code that a model wrote: in a process of its own, with nothing it could harm.

Each program gets a fresh Python process (:mod:`nmke.ability.confined`, a script of its own) with an empty folder as
place and home, an empty environment, no terminal, and limits of processor time, memory and output. Before the first
line of the program the process gives up, for good, every system call but the few that computing and importing need:
it cannot open a file for writing, start a process or thread, make a socket, or signal anybody. Where the system has
user namespaces it moves into one without any network and without access to other processes besides. The parent kills
it, with its group, when its time is over, and believes that it passed only by a word that no file and nothing the
program is given holds, so that leaving early or printing is not passing. Two things it does not prevent: reading the
files this user can read (there is no way to send them off), and a program that searches its own interpreter for the
word, which wins a point and nothing else; the published test runner can be fooled likewise.

Where the kernel offers no filter of system calls (other systems than Linux, other processors than x86-64 and arm64)
nothing is run.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nmke.errors import ResourceError

#: Processor seconds a program may use; time it waits for other work of the machine does not count.
CPU_SECONDS = 5
#: Seconds by the clock.
SECONDS = 20.0
MEMORY_BYTES = 2**30
OUTPUT_BYTES = 2**20
_CONFINED = Path(__file__).with_name("confined.py")
_TOLD_BYTES = 4096


@dataclass(frozen=True)
class Isolation:
    """What keeps the code in, on this machine.

    Attributes:
        allowed: whether code is run here at all.
        filtered: system calls are filtered.
        separated: namespaces of its own: no network and no view of other processes.
        sentence: the same for people.
    """

    allowed: bool
    filtered: bool
    separated: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """How a program ended: ``reason`` is "passed", or what went wrong in a few words."""

    passed: bool
    reason: str


@cache
def find_isolation() -> Isolation:
    """Try out, once, what this machine offers."""
    if os.name != "posix" or not sys.platform.startswith("linux"):
        return Isolation(
            False, False, False, "Code is not run: this system offers no filter of system calls (Linux does)."
        )
    told = _run("", CPU_SECONDS, SECONDS, None)[1]
    separated = "separated" in told
    if "filtered" not in told:
        return Isolation(
            False,
            False,
            separated,
            "Code is not run: this machine's kernel or processor offers no filter of system calls.",
        )
    network = (
        "in namespaces without any network" if separated else "its network refused by the system-call filter"
    )
    return Isolation(
        True,
        True,
        separated,
        f"Code runs in a process of its own, {network}; it can read files, but write no file and start no "
        f"process, and has {CPU_SECONDS} s of processor time and {MEMORY_BYTES // 2**20} MB.",
    )


def run_program(
    program: str,
    cpu_seconds: int = CPU_SECONDS,
    seconds: float = SECONDS,
    tick: Callable[[], None] | None = None,
) -> Verdict:
    """Run Python source to its end; it passes when it gets there without an exception.

    Args:
        tick: called about ten times a second; when it raises, the program is killed first.

    Raises:
        ResourceError: this machine offers nothing that keeps the code in.
    """
    isolation = find_isolation()
    if not isolation.allowed:
        raise ResourceError(
            isolation.sentence, "Leave HumanEval out here, or run it on Linux (x86-64 or arm64)."
        )
    return _run(program, cpu_seconds, seconds, tick)[0]


def _run(
    program: str, cpu_seconds: int, seconds: float, tick: Callable[[], None] | None
) -> tuple[Verdict, str]:
    word = secrets.token_hex(16)
    order = {
        "program": program,
        "word": word,
        "cpu_seconds": cpu_seconds,
        "memory": MEMORY_BYTES,
        "output": OUTPUT_BYTES,
    }
    with (
        tempfile.TemporaryDirectory(prefix="nmke-code-") as place,
        # Files without a name: the program could read one that lay beside its place, and with it the word.
        tempfile.TemporaryFile() as order_file,
        tempfile.TemporaryFile() as told_file,
    ):
        order_file.write(json.dumps(order).encode())
        order_file.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CONFINED)],
            stdin=order_file,
            stdout=told_file,
            stderr=subprocess.DEVNULL,
            cwd=place,
            env={"HOME": place},
            start_new_session=True,
            close_fds=True,
        )
        late = _wait(child, seconds, tick)
        told_file.seek(0)
        text = told_file.read(_TOLD_BYTES).decode("utf-8", errors="replace")
    return _verdict(text, word, child.returncode, late), text


def _wait(child: subprocess.Popen, seconds: float, tick: Callable[[], None] | None) -> bool:
    """Whether it had to be killed because its time was over."""
    end = time.monotonic() + seconds
    try:
        while True:
            if tick is not None:
                tick()
            left = end - time.monotonic()
            if left <= 0:
                return True
            try:
                child.wait(min(0.1, left))
                return False
            except subprocess.TimeoutExpired:
                continue
    finally:
        _kill(child)


def _kill(child: subprocess.Popen) -> None:
    """End the process and whatever it started; the group is its own, so nobody else is hit."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _verdict(told: str, word: str, code: int, late: bool) -> Verdict:
    lines = told.splitlines()
    if late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict(False, "took too long")
    for line in lines:
        found, _, rest = line.partition(" ")
        if found == word:
            return Verdict(rest == "passed" and code == 0, rest)
    return Verdict(False, f"ended early (code {code})")
