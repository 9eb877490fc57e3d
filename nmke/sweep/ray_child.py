"""The process that speaks with Ray for the driver: ``python -m nmke.sweep.ray_child FD``.

Ray ends the process that is connected to a cluster when the cluster's head is gone, and may wait for minutes for one
that is not there. Both must not happen to the driver, which writes the runs' folders; so the connection lives here.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from nmke.sweep.messages import Message, receive, send
from nmke.sweep.transfer import File

#: Seconds: between two looks at the cluster's size.
LOOKING = 3.0
#: Seconds that runs have to save their state after a cancel.
STOPPING = 60.0
#: Exit code when the cluster's head is gone.
LOST = 75


class _Child:
    """Starts actors, asks them for news, and hands it on."""

    def __init__(self, ray: Any, connection: Connection, settings: Mapping[str, Any]) -> None:
        from nmke.sweep.ray_worker import Worker

        self.ray, self.connection, self.needs = ray, connection, settings["needs"]
        # Two threads: a stop must not wait for news.
        self.actor = ray.remote(Worker).options(
            num_cpus=self.needs["CPU"],
            num_gpus=self.needs["GPU"],
            memory=int(self.needs["memory"]) or None,
            max_restarts=0,
            max_concurrency=2,
        )
        self.actors: dict[str, Any] = {}
        self.asked: dict[Any, str] = {}
        self.begun: set[str] = set()
        self.stopping = 0.0
        self.looked = 0.0

    def go(self) -> None:
        """Work until the driver has nothing more, or is gone."""
        while self._listen():
            now = time.monotonic()
            if now - self.looked > LOOKING:
                self.looked = now
                send(self.connection, Message("nodes", {"nodes": nodes_of(self.ray)}))
            if self.stopping and (not self.actors or now > self.stopping):
                send(self.connection, Message("stopped"))
                return
            if not self.asked:
                time.sleep(0.05)
                continue
            ready, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=0.2)
            for ref in ready:
                self._heard(ref, self.asked.pop(ref))

    def _listen(self) -> bool:
        while (message := receive(self.connection, 0)) is not None:
            if message.kind == "run":
                self._begin(message)
            elif message.kind == "stop":
                self._stop()
            else:
                return False
        return True

    def _begin(self, message: Message) -> None:
        name, (task, *files) = message.values["name"], message.files
        actor = self.actors[name] = self.actor.remote()
        ref = actor.begin.remote(task.content, [(file.name, file.content) for file in files])
        self.asked[ref] = name

    def _heard(self, ref: Any, name: str) -> None:
        try:
            news = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            self._drop(name)
            reason = " ".join(str(error.cause).split())[:300]
            send(self.connection, Message("ended", {"name": name, "error": f"Its worker failed: {reason}"}))
            return
        except self.ray.exceptions.RuntimeEnvSetupError as error:
            send(self.connection, Message("useless", {"reason": " ".join(str(error).split())[:600]}))
            self._drop(name)
            return
        except self.ray.exceptions.RayError as error:
            self._drop(name)
            send(self.connection, Message("lost", {"name": name, "reason": _reason(error)}))
            return
        if isinstance(news, int):  # it has begun
            self.begun.add(name)
            send(self.connection, Message("begun", {"name": name, "pid": news}))
        else:
            files = [File(file, content) for file, content in news["files"]]
            values = {"name": name, "progress": news["progress"]}
            send(self.connection, Message("news", values, files))
            if news["ended"]:
                self._drop(name)
                send(self.connection, Message("ended", {"name": name, "error": news["error"]}))
                return
        self.asked[self.actors[name].news.remote()] = name

    def _stop(self) -> None:
        self.stopping = time.monotonic() + STOPPING
        for name in self.begun:
            self.actors[name].stop.remote()
        for name in set(self.actors) - self.begun:  # no worker has them, so there is nothing to save
            self._drop(name)
        self.asked = {ref: name for ref, name in self.asked.items() if name in self.actors}

    def _drop(self, name: str) -> None:
        self.begun.discard(name)
        self.ray.kill(self.actors.pop(name))


def nodes_of(ray: Any) -> list[dict[str, float]]:
    """CPU, GPU and memory (bytes) of every machine that is there."""
    return [
        {name: float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU", "memory")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def _reason(error: BaseException) -> str:
    if "OutOfMemory" in type(error).__name__:
        return "it ran out of memory"
    return " ".join(str(error).split())[:200]


def _connect(ray: Any, settings: Mapping[str, Any]) -> None:
    environment: dict[str, Any] = {}
    if settings["address"]:
        environment["py_modules"] = [settings["package"]]  # the very program, whatever the workers have
    if settings["requirements"]:
        environment["pip"] = settings["requirements"]
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "error",
        "runtime_env": environment or None,
    }
    if settings["address"]:
        ray.init(address=settings["address"], **common)
        return
    local = {"num_cpus": settings["workers"], "object_store_memory": settings["object_store"]}
    ray.init(include_dashboard=False, **{key: value for key, value in local.items() if value}, **common)


def _guard(address: str, silence: float) -> None:
    """End this process when nobody answers at the head's address for so many seconds."""
    host, _, port = address.rpartition(":")
    answered = time.monotonic()
    while True:
        time.sleep(1.0)
        try:
            socket.create_connection((host, int(port)), timeout=3.0).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > silence:
                os._exit(LOST)


def main(descriptor: int) -> None:
    """Serve the driver at the other end of a socket."""
    connection = Connection(descriptor)
    hello = receive(connection)
    assert hello is not None
    settings = hello.values
    import ray

    try:
        _connect(ray, settings)
    except Exception as error:
        cause = error.__cause__ or error
        text = " ".join(str(cause).split())
        token = "AuthenticationError" in text or "Authentication token" in text
        send(
            connection, Message("refused", {"reason": text[-300:] if not token else "it wants another token"})
        )
        return
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_guard, args=(head, settings["silence"]), daemon=True).start()
    send(connection, Message("ready", {"nodes": nodes_of(ray), "head": head}))
    with suppress(EOFError, OSError):  # the driver is gone; its actors go with this process
        _Child(ray, connection, settings).go()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
