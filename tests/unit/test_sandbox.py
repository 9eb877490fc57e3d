"""Code that a model wrote cannot harm: it ends, and nothing outside its process changes."""

import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmke.ability import confined, sandbox
from nmke.ability.sandbox import find_isolation, run_program
from nmke.errors import Cancelled, ResourceError

pytestmark = pytest.mark.skipif(
    not find_isolation().allowed, reason="this machine offers no filter of system calls, so no code is run"
)


def test_a_program_that_ends_well_passes_and_one_that_raises_fails() -> None:
    good = run_program("import math, re, collections, hashlib, typing\nassert math.gcd(4, 6) == 2")
    assert good.passed and good.reason == "passed"
    bad = run_program("assert 1 == 2, 'one is not two'")
    assert not bad.passed and bad.reason == "AssertionError: one is not two"
    assert run_program("def broken(:").reason.startswith("SyntaxError")


@pytest.mark.parametrize(
    "leaving", ["import os; os._exit(0)", "raise SystemExit(0)", "exit()", "import sys; sys.exit()"]
)
def test_leaving_early_is_not_passing(leaving: str) -> None:
    assert not run_program(f"{leaving}\nassert False").passed


def test_writing_the_word_passed_is_not_passing() -> None:
    program = "import os, contextlib\nfor fd in range(20):\n    with contextlib.suppress(OSError):\n"
    program += "        os.write(fd, b'x passed\\n')\nos._exit(0)"
    assert not run_program(program).passed


@pytest.mark.parametrize("place", ["../order", "order", "/proc/self/fd/0", "/dev/stdin"])
def test_the_word_lies_in_no_file_that_the_program_can_read(place: str) -> None:
    """A program that finds its order could claim to have passed without running its tests."""
    program = f"import os, json\norder = open({place!r}).read()\nword = json.loads(order)['word'] if order else ''\n"
    program += "for fd in range(20):\n    try:\n        os.write(fd, (word + ' passed\\n').encode())\n"
    program += "    except OSError:\n        pass\nos._exit(0)"
    assert not run_program(program).passed


def test_an_endless_loop_is_ended_by_processor_time() -> None:
    started = time.monotonic()
    verdict = run_program("while True:\n    pass", cpu_seconds=1)
    assert not verdict.passed and verdict.reason == "took too long"
    assert time.monotonic() - started < 15


def test_sleeping_on_is_ended_by_the_clock() -> None:
    verdict = run_program("import time\ntime.sleep(60)", seconds=1.0)
    assert not verdict.passed and verdict.reason == "took too long"


def test_a_memory_hog_gets_no_more_than_its_limit() -> None:
    verdict = run_program("kept = []\nwhile True:\n    kept.append(bytearray(2**26))")
    assert not verdict.passed and "MemoryError" in verdict.reason


@pytest.mark.parametrize(
    "write",
    [
        "open({target!r}, 'w').write('x')",
        "import os; os.open({target!r}, os.O_CREAT)",
        "import os; os.mkdir({target!r})",
        "import os; os.symlink('/', {target!r})",
        "open('here', 'w').write('x')",
    ],
)
def test_nothing_can_be_written_or_made(write: str, tmp_path: Path) -> None:
    target = tmp_path / "new"
    verdict = run_program(write.format(target=str(target)))
    assert not verdict.passed and verdict.reason.startswith("PermissionError")
    assert not target.exists()


@pytest.mark.parametrize(
    "harm",
    [
        "import os; os.unlink({file!r})",
        "import os; os.truncate({file!r}, 0)",
        "import os; os.rename({file!r}, {file!r} + 'x')",
        "import os; os.chmod({file!r}, 0)",
        "open({file!r}, 'r+').truncate(0)",
        "open({file!r}, 'a').write('x')",
    ],
)
def test_a_file_that_is_there_stays_as_it_is(harm: str, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("kept")
    before = file.stat()
    assert not run_program(harm.format(file=str(file))).passed
    assert file.read_text() == "kept" and file.stat().st_mode == before.st_mode


@pytest.mark.parametrize(
    "start",
    [
        "import os\nwhile True:\n    os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.system('true') and 1 / 0",
        "import subprocess; subprocess.run(['true'], check=True)",
        "import threading; threading.Thread(target=print).start()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_no_process_or_thread_can_be_started(start: str) -> None:
    assert not run_program(start).passed


def test_no_connection_can_be_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        plain = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        # The way around the module that is taken away: the system call itself.
        direct = "import ctypes; assert ctypes.CDLL(None).socket(2, 1, 0) >= 0, 'refused'"
        assert not run_program(plain).passed
        assert run_program(direct).reason in (
            "AssertionError: refused",
            "ModuleNotFoundError: No module named '_ctypes'",
        )
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_other_processes_cannot_be_signalled() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not run_program(f"import os; os.kill({sleeper.pid}, 9)").passed
        assert not run_program(f"import os; os.kill({os.getpid()}, 15)").passed
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_huge_output_fails_and_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verdict = run_program("print('x' * 2**26)")
    assert not verdict.passed and verdict.reason.startswith("OSError")
    assert list(tmp_path.iterdir()) == []
    assert run_program("print('hello')").passed


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMKE_SECRET", "hush")
    assert run_program("import os; assert not os.environ and not os.getenv('NMKE_SECRET')").passed
    if find_isolation().separated:
        read = f"open('/proc/{os.getpid()}/environ', 'rb').read()"
        assert run_program(read).reason.startswith("PermissionError")


def test_the_limits_cannot_be_raised() -> None:
    raised = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"
    assert not run_program(raised).passed


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("x = 1")
    run_program("while True:\n    pass", cpu_seconds=1)
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_kills_the_program_at_once() -> None:
    calls = []

    def tick() -> None:
        calls.append(time.monotonic())
        if len(calls) > 3:
            raise Cancelled()

    started = time.monotonic()
    with pytest.raises(Cancelled):
        run_program("import time\ntime.sleep(60)", tick=tick)
    assert time.monotonic() - started < 10


def test_the_isolation_is_told() -> None:
    told = find_isolation()
    assert told.allowed and told.filtered
    assert "read files, but write no file" in told.sentence


def test_nothing_is_run_where_nothing_keeps_the_code_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sandbox, "find_isolation", lambda: sandbox.Isolation(False, False, False, "Not here.")
    )
    with pytest.raises(ResourceError, match="Not here. Leave HumanEval out"):
        run_program("x = 1")


def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert confined.filter_calls(None) is False
    for machine in confined.PROCESSORS:
        steps = confined.filter_of(machine)
        assert all(0 <= yes < 256 and 0 <= no < 256 for _, yes, no, _ in steps)
        assert steps[-1] == (confined.RETURN, 0, 0, confined.REFUSE | 1)
