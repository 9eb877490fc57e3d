"""Messages between the driver and its process that speaks with Ray: plain values and files, no pickles."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from nmke.sweep.transfer import File


@dataclass(frozen=True)
class Message:
    """What is said (``kind``), plain values, and files."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    files: Sequence[File] = ()


def send(connection: Connection, message: Message) -> None:
    """Send a message.

    Raises:
        OSError: the other side is gone.
    """
    head = {"kind": message.kind, "values": message.values, "files": [file.name for file in message.files]}
    connection.send_bytes(json.dumps(head).encode())
    for file in message.files:
        connection.send_bytes(file.content)


def receive(connection: Connection, seconds: float | None = None) -> Message | None:
    """The next message, or None when none comes in so many seconds.

    Raises:
        EOFError, OSError: the other side is gone.
    """
    if seconds is not None and not connection.poll(seconds):
        return None
    head = json.loads(connection.recv_bytes())
    files = [File(name, connection.recv_bytes()) for name in head["files"]]
    return Message(head["kind"], head["values"], files)
