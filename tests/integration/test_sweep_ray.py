"""A sweep on a real Ray of two workers: one is killed, the head is killed, the driver cancels; nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from nmke.errors import Cancelled, ConfigError, ResourceError
from nmke.progress import Progress
from nmke.sweep import InProcess, plan, read, read_spec, run_sweep
from nmke.sweep.ray_config import RayConfig
from nmke.sweep.ray_executor import RayExecutor
from tests.sweeping import numbers, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="processes of POSIX")]

LOCAL = RayConfig(workers=2, object_store_mb=80)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads as the workers have them, caches and Ray's token of the test alone."""
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short path, for Ray's sockets."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Once(Progress, ABC):
    """Does something at the first report after which a run's checkpoint has reached the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, False

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if not self.done:
            for checkpoint in (self.folder / "runs").glob("*/runs/*/checkpoint.safetensors"):
                if self.act(checkpoint):
                    self.done = True
                    self.act_once()
                    return

    def act(self, checkpoint: Path) -> bool:
        """Whether the moment has come."""
        return True

    @abstractmethod
    def act_once(self) -> None:
        """What it does."""


def events_of(folder: Path, name: str) -> str:
    return next((folder / "runs" / name / "runs").glob("*/events.jsonl")).read_text()


def test_one_of_two_workers_killed_in_the_middle_changes_no_bit(tmp_path: Path) -> None:
    planned = plan(read_spec(write_sweep(tmp_path, edits=12, marks=(1, 12), steps=15, fine_tuning=False)))
    assert len(planned.runs) == 2
    out, pids, told = tmp_path / "ray", {}, []

    class Kill(Once):
        name = ""

        def act(self, checkpoint: Path) -> bool:
            self.name = checkpoint.parents[2].name
            return self.name in pids and '"done"' not in events_of(out, self.name)

        def act_once(self) -> None:
            os.kill(pids[self.name], signal.SIGKILL)

    began: list[str] = []

    def begun(name: str, pid: int) -> None:
        began.append(name)
        pids[name] = pid

    kill = Kill(out)
    results = run_sweep(out, planned, RayExecutor(LOCAL, begun), kill, told.append)
    assert kill.done and results.complete, told
    assert began.count(kill.name) == 2 and len(began) == 3
    assert told == [
        f"The worker of {kill.name} was lost; the run goes on elsewhere from its last checkpoint."
    ]
    killed = events_of(out, kill.name)
    assert killed.count('"event": "resume"') == 1
    assert killed.count('"event": "edit"') == 12

    # The plain run computes in a process of its own with as many threads.
    code = (
        "import sys; from pathlib import Path; from nmke.sweep import plan, read_spec, run_sweep; "
        "run_sweep(Path(sys.argv[2]), plan(read_spec(Path(sys.argv[1]))))"
    )
    plain = [sys.executable, "-c", code, str(tmp_path / "sweep.yaml"), str(tmp_path / "plain")]
    subprocess.run(plain, check=True, timeout=300)
    straight = numbers(tmp_path / "plain")
    assert (
        len(straight) == 2 * 5
    )  # events, the checkpoint, the unedited model's predictions and those of two marks
    assert numbers(out) == straight
    assert not list(out.rglob(".partial-*"))


def test_a_cancel_leaves_everything_to_be_gone_on_with(tmp_path: Path) -> None:
    planned = plan(read_spec(write_sweep(tmp_path, edits=12, marks=(1, 12), steps=15, fine_tuning=False)))
    out = tmp_path / "ray"

    class Cancel(Once):
        def act_once(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_sweep(out, planned, RayExecutor(LOCAL), Cancel(out))
    before = read(out)
    assert not before.complete and not before.at_work
    stopped = [name for name in (run.name for run in planned.runs) if '"stopped"' in _all_events(out, name)]
    assert stopped  # the workers had time to save
    results = run_sweep(out, planned, InProcess())
    assert results.complete
    for entry in results.status:
        assert events_of(out, entry["name"]).count('"event": "edit"') == 12


def _all_events(out: Path, name: str) -> str:
    found = list((out / "runs" / name).glob("runs/*/events.jsonl"))
    return found[0].read_text() if found else ""


def test_a_cluster_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    planned = plan(read_spec(write_sweep(tmp_path)))
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ResourceError, match=f"There is no Ray cluster at {address}"):
            run_sweep(tmp_path / "out", planned, RayExecutor(RayConfig(address=address)))
    assert time.monotonic() - began < 10


def test_runs_that_no_machine_has_memory_for_are_refused_with_numbers(tmp_path: Path) -> None:
    planned = plan(read_spec(write_sweep(tmp_path)))
    config = LOCAL.changed(memory_gb=100_000.0)
    words = r"each asks for 1 CPU cores, 0 GPUs and 100000.0 GB, and the largest has 2 CPU cores"
    with pytest.raises(ConfigError, match=words) as refused:
        run_sweep(tmp_path / "out", planned, RayExecutor(config))
    assert "--memory-per-run" in refused.value.remedy


def test_a_cluster_that_loses_its_head_ends_the_sweep_and_a_new_one_ends_it_well(
    tmp_path: Path, temporary: Path
) -> None:
    planned = plan(read_spec(write_sweep(tmp_path, edits=12, marks=(1, 12), steps=15, fine_tuning=False)))
    out = tmp_path / "ray"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", str(port)),
            *("--num-cpus", "2", "--include-dashboard=false", "--object-store-memory", str(80 * 2**20)),
            *("--temp-dir", str(temporary), "--node-ip-address", "127.0.0.1"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(port, head)

        class Behead(Once):
            def act_once(self) -> None:
                _kill_group(head.pid)
                _kill_leftovers(temporary)  # its workers too, which could end the runs without their head

        began = time.monotonic()
        config = RayConfig(address=f"127.0.0.1:{port}", silence=3.0)
        behead = Behead(out)
        with pytest.raises(ResourceError, match="lost its head|connection to Ray ended") as refused:
            run_sweep(out, planned, RayExecutor(config), behead)
        assert behead.done and time.monotonic() - began < 90
        assert "the same command again" in refused.value.remedy
    finally:
        _kill_group(head.pid)
        head.wait()
        _kill_leftovers(temporary)
    assert not read(out).complete
    assert run_sweep(out, planned, InProcess()).complete


def _wait_for(port: int, head: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert head.poll() is None, "ray start has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            time.sleep(3.0)  # its first machine joins
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("ray start does not answer")


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kill_leftovers(temporary: Path) -> None:
    """What the head started in sessions of their own is known by the folder in its command line."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(str(temporary) in part for part in process.info["cmdline"] or ()):
            process.kill()
