"""Which Ray cluster a sweep uses and what each run takes of it; what is refused before anything is handed out."""

import socket
from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from nmke.config import Config
from nmke.errors import ConfigError, ResourceError

GIGABYTE = 10**9
#: Seconds to make a connection.
CONNECT = 5.0


class RayConfig(Config):
    """Which Ray cluster, and what each run takes of it."""

    address: str = Field(
        "",
        title="Address",
        description="HOST:PORT of a cluster's head, or auto; empty starts Ray on this machine.",
    )
    requirements: str = Field(
        "",
        title="Requirements",
        description="A file that pip installs on the workers before a run; empty for none.",
    )
    cpus: int = Field(
        1, ge=1, title="CPU cores a run", description="Also the threads that a run computes with."
    )
    gpus: float = Field(0.0, ge=0, title="GPUs a run", description="0.5 puts two runs on one GPU.")
    memory_gb: float = Field(
        0.0, ge=0, title="Memory a run", description="Gigabytes of a machine's memory; 0 reserves none."
    )
    workers: int = Field(
        0,
        ge=0,
        title="Workers",
        description="Cores that Ray on this machine uses; 0 takes all. Not for a cluster.",
    )
    object_store_mb: int = Field(
        0, ge=0, title="Object store", description="Megabytes, for Ray on this machine; 0 leaves it to Ray."
    )
    silence: float = Field(
        15.0,
        gt=0,
        title="Silence",
        description="Seconds without an answer after which the cluster's head is lost.",
    )

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if address in ("", "auto"):
            return address
        if address.startswith("ray://"):
            raise ValueError(
                "Ray Client is not used; start the sweep on a machine of the cluster, with HOST:PORT"
            )
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("write HOST:PORT, as 10.0.0.5:6379, or auto")
        return address


def room_in(node: Mapping[str, float], config: RayConfig) -> int:
    """How many runs fit into a machine."""
    needs = {"CPU": config.cpus, "GPU": config.gpus, "memory": config.memory_gb * GIGABYTE}
    return min(int(node.get(name, 0) / need + 1e-9) for name, need in needs.items() if need)


def require_answer(address: str) -> None:
    """Refuse an address where nobody listens, at once: Ray itself waits for minutes.

    Raises:
        ResourceError: nobody does.
    """
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except OSError as error:
        reason = error.strerror or "no answer"
        raise ResourceError(
            f"There is no Ray cluster at {address} ({reason}).",
            "Start one (`ray start --head --port 6379`), check --address, or leave it out to use this machine.",
        ) from None


def require_room(nodes: Sequence[Mapping[str, float]], config: RayConfig) -> None:
    """Refuse runs that no machine can ever take.

    Raises:
        ConfigError: saying what is asked for and what there is.
    """
    if any(room_in(node, config) for node in nodes):
        return

    def told(cpus: float, gpus: float, memory: float) -> str:
        return f"{cpus:g} CPU cores, {gpus:g} GPUs and {memory / GIGABYTE:.1f} GB"

    largest = max(nodes, key=lambda node: (node["GPU"], node["memory"], node["CPU"]), default=None)
    has = told(largest["CPU"], largest["GPU"], largest["memory"]) if largest else "nothing"
    raise ConfigError(
        f"No machine has room for a run: each asks for {told(config.cpus, config.gpus, config.memory_gb * GIGABYTE)}, "
        f"and the largest has {has}.",
        "Ask for less (--cpus-per-run, --gpus-per-run, --memory-per-run), or join a larger machine to the cluster.",
    )
