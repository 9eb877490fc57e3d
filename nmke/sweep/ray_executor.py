"""The runs of a sweep on a Ray cluster: one task a run, results streamed to this process, which alone writes them.

Ray itself is spoken to by a process of its own (:mod:`nmke.sweep.ray_child`). A run whose worker is lost is sent to
another one with the folder as far as it has reached this process, and goes on from the checkpoint in it.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import nmke
from nmke.errors import Cancelled, ConfigError, NmkeError, ResourceError
from nmke.lifelong.files import held
from nmke.sweep.executors import Executor, Watch
from nmke.sweep.messages import Message, receive, send
from nmke.sweep.ray_child import LOST
from nmke.sweep.ray_config import GIGABYTE, RayConfig, require_answer, require_room, room_in
from nmke.sweep.transfer import File, has_checkpoint, whole, write_files
from nmke.sweep.work import Task

PIP = 'pip install "ray>=2.60,<2.61"'
#: A run whose worker is lost so often without anything new being saved is given up.
MOST_LOSSES = 3
#: Seconds: until Ray must have answered, and that a cluster may be without any room.
START, ROOMLESS = 90.0, 120.0
_AGAIN = "Give the same command again: finished runs are passed over, the others go on from their last checkpoints."


class RayExecutor(Executor):
    """Does runs on the workers of a Ray cluster, as many at once as there is room for.

    Args:
        watching: gets the name and process id of every run that a worker begins, where a test wants them.

    Raises:
        ConfigError: Ray is not installed, or the file of requirements is not there.
    """

    def __init__(
        self, config: RayConfig | None = None, watching: Callable[[str, int], None] = lambda name, pid: None
    ) -> None:
        self.config, self.watching = config or RayConfig(), watching
        if find_spec("ray") is None:
            raise ConfigError(
                "Ray is not installed here.", f"Install it: {PIP} (or -r requirements-ray.txt)."
            )
        if self.config.requirements and not Path(self.config.requirements).is_file():
            raise ConfigError(
                f"There is no file {self.config.requirements}.", "Check the name after --requirements."
            )

    def execute(self, tasks: Sequence[Task], folder: Path, watch: Watch) -> None:
        require_answer(self.config.address)
        with _Ray(self.config) as ray:
            nodes = ray.start(watch)
            require_room(nodes, self.config)
            _Driver(ray, self.config, tasks, folder, watch, self.watching).go(nodes)


class _Ray:
    """The child process and the line to it; ended with the block, whatever happens."""

    def __init__(self, config: RayConfig) -> None:
        self.config = config

    def __enter__(self) -> "_Ray":
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()
        paths = [str(Path(nmke.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nmke.sweep.ray_child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the driver alone, which stops the runs in order
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            },
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            send(self._connection, Message("bye"))
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()
        self._log.close()

    def start(self, watch: Watch) -> list[Mapping[str, float]]:
        """Connect; returns what each machine has.

        Raises:
            ResourceError: the cluster does not answer or refuses.
        """
        config = self.config
        values = {
            "address": config.address,
            "requirements": str(Path(config.requirements).absolute()) if config.requirements else "",
            "package": str(Path(nmke.__file__).parent),
            "needs": {"CPU": config.cpus, "GPU": config.gpus, "memory": config.memory_gb * GIGABYTE},
            "workers": config.workers,
            "object_store": config.object_store_mb * 2**20,
            "silence": config.silence,
        }
        self.send(Message("hello", values))
        end = time.monotonic() + START
        while (message := self.receive(0.5)) is None:
            watch.tick()
            if time.monotonic() > end:
                self._process.kill()
                raise ResourceError(
                    f"{self.name} did not answer in {START:.0f} seconds.", "Look at `ray status`."
                )
        if message.kind == "refused":
            raise ResourceError(
                f"{self.name} cannot be used: {message.values['reason']}.",
                "Check --address and the cluster (`ray status`); its Ray must be of the same version as here, and its "
                "token must be in RAY_AUTH_TOKEN or ~/.ray/auth_token.",
            )
        nodes: list[Mapping[str, float]] = message.values["nodes"]
        return nodes

    @property
    def name(self) -> str:
        return f"The Ray cluster at {self.config.address}" if self.config.address else "Ray on this machine"

    def send(self, message: Message) -> None:
        """Say something to the child.

        Raises:
            ResourceError: it is gone.
        """
        try:
            send(self._connection, message)
        except OSError:
            raise self._gone() from None

    def receive(self, seconds: float) -> Message | None:
        """What the child says, if anything.

        Raises:
            ResourceError: it is gone.
        """
        try:
            return receive(self._connection, seconds)
        except (EOFError, OSError):
            raise self._gone() from None

    def _gone(self) -> ResourceError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        if self._process.returncode == LOST:
            return ResourceError(f"{self.name} has lost its head: nobody answers there any more.", _AGAIN)
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())[-300:]
        return ResourceError(f"The connection to Ray ended ({text or self._process.returncode}).", _AGAIN)


class _Driver:
    """Hands out the runs and writes what comes back."""

    def __init__(
        self,
        ray: _Ray,
        config: RayConfig,
        tasks: Sequence[Task],
        folder: Path,
        watch: Watch,
        watching: Callable[[str, int], None],
    ) -> None:
        self.ray, self.config, self.folder, self.watch, self.watching = ray, config, folder, watch, watching
        self.waiting = {task.run.name: task for task in tasks}
        self.working: dict[str, tuple[Task, ExitStack]] = {}
        self.losses = dict.fromkeys(self.waiting, 0)
        self.slots, self.room_seen = 0, time.monotonic()

    def go(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Until every run has ended.

        Raises:
            ResourceError: the cluster is lost, or the disk is full.
            Cancelled: from the watch; what the workers had is written first.
        """
        try:
            self._size(nodes)
            while self.waiting or self.working:
                while self.waiting and len(self.working) < self.slots:
                    self._hand_out(next(iter(self.waiting)))
                self._listen(0.3)
                self.watch.tick()
        except (Cancelled, KeyboardInterrupt):
            self._stop()
            raise
        finally:
            for _, lock in self.working.values():
                lock.close()

    def _size(self, nodes: Sequence[Mapping[str, float]]) -> None:
        self.slots = sum(room_in(node, self.config) for node in nodes)
        if self.slots:
            self.room_seen = time.monotonic()
        elif time.monotonic() - self.room_seen > ROOMLESS:
            raise ResourceError("The Ray cluster has had no room for a run for two minutes.", _AGAIN)

    def _hand_out(self, name: str) -> None:
        task, own = self.waiting.pop(name), self.folder / name
        with ExitStack() as stack:
            try:
                own.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(own))
            except NmkeError as error:
                self.watch.ended(name, str(error))
                return
            files = [File("", task.to_bytes()), *whole(own)]
            self.ray.send(Message("run", {"name": name}, files))
            self.working[name] = task, stack.pop_all()

    def _listen(self, seconds: float, stopping: bool = False) -> bool:
        """Take what the child says; False once it has stopped everything."""
        message = self.ray.receive(seconds)
        while message is not None:
            name = message.values.get("name", "")
            if message.kind == "stopped":
                return False
            if message.kind == "nodes" and not stopping:
                self._size(message.values["nodes"])
            elif message.kind == "begun":
                self.watching(name, message.values["pid"])
            elif message.kind == "news":
                write_files(self.folder / name, message.files)
                if has_checkpoint(message.files):
                    self.losses[name] = 0
                if not stopping:
                    self.watch.going(name, *message.values["progress"])
            elif message.kind == "ended":
                self._done(name, message.values["error"], stopping)
            elif message.kind == "lost" and not stopping:
                self._lost(name, message.values["reason"])
            elif message.kind == "useless":
                raise ResourceError(
                    f"The workers could not be made ready: {message.values['reason']}.",
                    "Check the file after --requirements, and whether the workers reach a package index.",
                )
            message = self.ray.receive(0)
        return True

    def _done(self, name: str, error: str, stopping: bool) -> None:
        _, lock = self.working.pop(name)
        lock.close()
        if not stopping:
            self.watch.ended(name, error)

    def _lost(self, name: str, reason: str) -> None:
        task, lock = self.working.pop(name)
        lock.close()
        self.losses[name] += 1
        if self.losses[name] < MOST_LOSSES:
            self.watch.tell(
                f"The worker of {name} was lost; the run goes on elsewhere from its last checkpoint."
            )
            self.waiting[name] = task
            return
        self.watch.ended(
            name,
            f"Its worker was lost {MOST_LOSSES} times in a row with nothing new saved ({reason}). If memory ran out, "
            "reserve more with --memory-per-run; then give the same command again.",
        )

    def _stop(self) -> None:
        """Have all runs save their state, and write it."""
        with suppress(NmkeError, KeyboardInterrupt):
            self.ray.send(Message("stop"))
            while self._listen(0.5, stopping=True):
                pass
