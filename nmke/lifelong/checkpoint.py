"""A session in one file, from which a run goes on with the same bits.

What a session is made of is its matrices in force, its modules, its prompt, and of every edit the keys, settings and
figures (:meth:`EditSession.restored`). All of it lies in one safetensors file, so that it is replaced in one step; the
records are JSON text in a tensor of bytes, because a file's header has a limit and thousands of edits do not.

A matrix is kept in the layout it had: sums over a transposed matrix round differently in the last bit.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.edit import Edit
from nmke.errors import SessionError
from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.modules import load_module
from nmke.prompting import load_prompt
from nmke.session import EditSession
from nmke.store import plain, written_atomically

_RECORD = "record"
_TURNED = ".T"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A saved session and how many facts it has written."""

    session: EditSession
    position: int


def save_checkpoint(session: EditSession, position: int, path: Path) -> None:
    """Write the session's state after ``position`` facts, whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    masters, modules = session.state()
    for layer, matrix in masters.items():
        _put(tensors, f"master.{layer}", matrix)
    for layer, module in modules.items():
        for name, tensor in module.tensors.items():
            _put(tensors, f"module.{layer}.{name}", tensor)
    prompt = session.prompt
    for name, tensor in prompt.tensors.items() if prompt is not None else ():
        _put(tensors, f"prompt.{name}", tensor)
    configs: list[Any] = []
    edits = []
    for number, edit in enumerate(session.edits):
        for layer, keys in edit.keys.items():
            _put(tensors, f"keys.{number}.{layer}", keys)
        config = plain(edit.config)
        if not configs or configs[-1] != config:
            configs.append(config)
        edits.append(
            {
                "method": edit.method,
                "config": len(configs) - 1,
                "facts": len(edit.facts),
                "key_layers": list(edit.keys),
                "seconds": plain(edit.seconds),
                "details": plain(edit.details),
            }
        )
    record = {
        "position": position,
        "digest": session.digest,
        "masters": list(masters),
        "modules": [
            {"layer": m.layer, "kind": m.kind, "tensors": list(m.tensors), "settings": plain(m.settings)}
            for m in modules.values()
        ],
        "prompt": None
        if prompt is None
        else {"kind": prompt.kind, "tensors": list(prompt.tensors), "settings": plain(prompt.settings)},
        "configs": configs,
        "edits": edits,
    }
    text = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    tensors[_RECORD] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    with written_atomically(path) as temporary:
        save_file(tensors, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def read_record(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself (``position``, ``digest``), without its matrices; None where there is none.

    Raises:
        SessionError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads(bytes(file.get_tensor(_RECORD).tolist()))
        return {"position": int(record["position"]), "digest": str(record["digest"])}
    except _DAMAGED as problem:
        raise _damaged(path, problem) from problem


def load_checkpoint(model: EditableModel, path: Path, facts: Sequence[Fact]) -> Checkpoint | None:
    """The session that :func:`save_checkpoint` wrote, its edits settled; None where there is none.

    Args:
        facts: in the order they are written.

    Raises:
        SessionError: the file is damaged, or the weights that come of it are not the saved ones.
    """
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        record = json.loads(bytes(tensors.pop(_RECORD).tolist()))
        modules = {
            saved["layer"]: load_module(
                saved["kind"],
                saved["layer"],
                {name: _take(tensors, f"module.{saved['layer']}.{name}", model) for name in saved["tensors"]},
                saved["settings"],
            )
            for saved in record["modules"]
        }
        prompt = None
        if record.get("prompt"):
            saved = record["prompt"]
            own = {name: _take(tensors, f"prompt.{name}", model).cpu() for name in saved["tensors"]}
            prompt = load_prompt(saved["kind"], own, saved["settings"])
        masters = {layer: _take(tensors, f"master.{layer}", model) for layer in record["masters"]}
        edits = _edits(record, tensors, facts, model)
    except _DAMAGED as problem:
        raise _damaged(path, problem) from problem
    session = EditSession.restored(model, edits, masters, modules, prompt)
    if session.digest != record["digest"]:
        raise SessionError(
            f"The checkpoint of {path.parent.name} does not give the weights it was made of.",
            f"Remove the folder {path.parent.name} and run it again.",
        )
    return Checkpoint(session, record["position"])


def _damaged(path: Path, problem: Exception) -> SessionError:
    return SessionError(
        f"The checkpoint of {path.parent.name} is damaged ({type(problem).__name__}).",
        f"Remove the folder {path.parent.name} and run it again.",
    )


def _edits(
    record: dict[str, Any], tensors: dict[str, Tensor], facts: Sequence[Fact], model: EditableModel
) -> list[Edit]:
    edits, at = [], 0
    for number, saved in enumerate(record["edits"]):
        edits.append(
            Edit(
                method=saved["method"],
                config=record["configs"][saved["config"]],
                facts=tuple(facts[at : at + saved["facts"]]),
                patches=(),
                keys={
                    layer: _take(tensors, f"keys.{number}.{layer}", model) for layer in saved["key_layers"]
                },
                seconds=saved["seconds"],
                details=saved["details"],
            )
        )
        at += saved["facts"]
    return edits


def _put(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu()
    if tensor.ndim == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous():
        name, tensor = name + _TURNED, tensor.T
    # A copy of its own: safetensors refuses tensors that share memory.
    tensors[name] = tensor.clone(memory_format=torch.contiguous_format)


def _take(tensors: dict[str, Tensor], name: str, model: EditableModel) -> Tensor:
    # A copy again: what lies in a file may lie at odd addresses, where products round differently.
    if name + _TURNED in tensors:
        return tensors.pop(name + _TURNED).clone().to(model.device).T
    return tensors.pop(name).clone().to(model.device)
