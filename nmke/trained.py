"""Editors that are trained before they edit: their weights on disk, filed under the model they were trained for.

One safetensors file an editor, in the cache folder under the model's weight hash and the settings that shape the
editor's tensors. What it was trained on and how well it did stands in the file's header as JSON.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nmke.errors import EditError
from nmke.storage import home
from nmke.store import content_key, plain, written_atomically

FORMAT = 1
_ABOUT = "about"


@dataclass(frozen=True)
class Trained:
    """A trained editor.

    Attributes:
        tensors: its weights, in the computer's memory.
        about: plain values: ``method``, ``model``, ``weight_hash``, ``shape`` (settings that shape the tensors),
            ``digest`` of the tensors, and what the training adds.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.about["digest"])


def trained_path(method: str, weight_hash: str, shape: Mapping[str, Any]) -> Path:
    """Where a model's trained editor of that shape is kept, whether or not it is there."""
    key = content_key(method=method, weight_hash=weight_hash, shape=plain(shape))
    return home() / "trained" / method / f"{weight_hash[:16]}-{key}.safetensors"


def save_trained(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Trained:
    """Write an editor, whole or not at all.

    Args:
        about: see :class:`Trained`; the digest is added here.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    # Copies of their own: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = plain({**about, "format": FORMAT, "digest": tensors_digest(own)})
    with written_atomically(path) as temporary:
        save_file(own, temporary, metadata={_ABOUT: json.dumps(told, ensure_ascii=False)})
    return Trained(own, told)


def read_about(path: Path) -> Mapping[str, Any] | None:
    """What the file says about its editor; None where there is no such file or it is no trained editor."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return about if isinstance(about, dict) and about.get("format") == FORMAT else None


def load_trained(
    path: Path, method: str, model: str, weight_hash: str, shape: Mapping[str, Any], command: str
) -> Trained:
    """The editor kept at ``path``.

    Args:
        method, model, weight_hash, shape: what it must have been trained as and for.
        command: the command that trains it, told where it is not there or cannot be used.

    Raises:
        EditError: there is none, it is damaged, or it was trained for another model, method or shape.
    """
    remedy = f"Train it: {command}"
    if not path.is_file():
        raise EditError(
            f"{method.upper()} has no trained editor for {model} with these settings; it cannot edit untrained.",
            remedy,
        )
    about = read_about(path)
    if about is None or about.get("method") != method:
        raise EditError(f"{path.name} is not a trained editor of {method.upper()}, or it is damaged.", remedy)
    if about.get("weight_hash") != weight_hash:
        raise EditError(
            f"This editor was trained for {about.get('model')!r}, not for {model!r}: their weights differ, and so do "
            "the gradients it learned to read.",
            remedy,
        )
    wanted = plain(shape)
    different = [name for name, value in wanted.items() if about.get("shape", {}).get(name) != value]
    if different:
        said = ", ".join(f"{name} {about.get('shape', {}).get(name)}" for name in different)
        raise EditError(f"This editor was trained with other settings ({said}).", f"Use those, or: {remedy}")
    try:
        with safe_open(path, "pt") as file:
            # Copies: what lies in a file may lie at odd addresses, where products round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        tensors = {}
    if tensors_digest(tensors) != about["digest"]:
        raise EditError(f"The trained editor {path.name} is damaged.", remedy)
    return Trained(tensors, about)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: equal digests mean bit-identical weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
