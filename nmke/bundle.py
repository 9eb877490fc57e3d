"""A session on disk: factors and keys as safetensors, everything else as JSON; read back and compared when written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.edit import Edit, WeightPatch
from nmke.errors import SessionError
from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.modules import ModulePatch, load_module
from nmke.prompting import PromptPatch, load_prompt
from nmke.session import EditSession
from nmke.store import written_atomically
from nmke.versions import library_versions

FORMAT = 1
_TENSORS, _RECORD = "factors.safetensors", "session.json"


def save_session(session: EditSession, folder: Path) -> Path:
    """Write the edits in force as a folder, then read it back and compare.

    Args:
        folder: a new folder, or an older bundle, which is replaced.

    Raises:
        SessionError: the folder holds something else, what was read back differs, or edits are settled.
        ResourceError: the disk is full or the folder cannot be written.
    """
    session.require_unsettled()
    if folder.exists() and not (folder / _RECORD).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise SessionError(f"{folder.name} holds something that is no edit bundle.", "Choose a new folder.")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _tensors(session.edits).items()}
    aliases = _aliases(tensors)
    with written_atomically(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file(
            {name: tensor for name, tensor in tensors.items() if name not in aliases}, temporary / _TENSORS
        )
        text = json.dumps({**_record(session), "aliases": aliases}, indent=1, ensure_ascii=False)
        (temporary / _RECORD).write_text(text, encoding="utf-8")
        _require_same(tensors, session, temporary)
    return folder


def load_session(model: EditableModel, folder: Path) -> tuple[EditSession, bool]:
    """A session with the bundle's edits applied, and whether its weights equal the saved ones bit by bit.

    They do on the same kind of device; another device may round the sums of factors differently in the last bit.

    Raises:
        SessionError: no bundle, a damaged one, or one made for another model.
    """
    record, edits = read_bundle(folder)
    if record["model"]["weight_hash"] != model.weight_hash:
        raise SessionError(
            f"This bundle was made for {record['model']['name']}, whose weights are not those of {model.name}.",
            f"Load {record['model']['name']} first.",
        )
    session = EditSession(model)
    for edit in edits:
        session.apply(edit)
    return session, session.digest == record["digest"]


def read_bundle(folder: Path) -> tuple[dict[str, Any], list[Edit]]:
    """The record and the edits of a bundle, without a model.

    Raises:
        SessionError: no bundle, or a damaged one.
    """
    if not (folder / _RECORD).is_file():
        raise SessionError(
            f"{folder.name} is no edit bundle: it has no {_RECORD}.", "Choose a folder nmke saved."
        )
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise SessionError(
                f"This bundle has format {record.get('format')}; this program reads format {FORMAT}.",
                "Open it with the version that wrote it.",
            )
        tensors = load_file(folder / _TENSORS) if record["edits"] else {}
        tensors |= {name: tensors[first] for name, first in record.get("aliases", {}).items()}
        return record, [_edit(number, entry, tensors) for number, entry in enumerate(record["edits"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as problem:
        raise SessionError(
            f"The bundle {folder.name} is damaged ({type(problem).__name__}).", "Save the session again."
        ) from problem


def _tensors(edits: tuple[Edit, ...]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for number, edit in enumerate(edits):
        for patch in edit.patches:
            named[f"{number}.{patch.layer}.left"] = patch.left
            named[f"{number}.{patch.layer}.right"] = patch.right
        for layer, keys in edit.keys.items():
            named[f"{number}.{layer}.keys"] = keys
        for layer, mask in edit.masks.items():
            named[f"{number}.{layer}.mask"] = mask
        for module in edit.modules:
            for name, tensor in module.tensors.items():
                named[f"{number}.{module.layer}.module.{name}"] = tensor
        if edit.prompt is not None:
            named |= {f"{number}.prompt.{name}": tensor for name, tensor in edit.prompt.tensors.items()}
    return named


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are another's, and that one's name: modules hand on what an edit did not change."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), name)
        if known != name and tensor.numel():
            aliases[name] = known
    return aliases


def _record(session: EditSession) -> dict[str, Any]:
    model = session.model
    return {
        "format": FORMAT,
        "model": {"name": model.name, "weight_hash": model.weight_hash, "dtype": model.dtype},
        "digest": session.digest,
        "libraries": library_versions(),
        "edits": [
            {
                "method": edit.method,
                "config": dict(edit.config),
                "facts": [fact.to_dict() for fact in edit.facts],
                "layers": list(edit.layers),
                "key_layers": list(edit.keys),
                "mask_layers": list(edit.masks),
                "modules": [
                    {
                        "layer": module.layer,
                        "kind": module.kind,
                        "tensors": list(module.tensors),
                        "settings": module.settings,
                    }
                    for module in edit.modules
                ],
                "prompt": None
                if edit.prompt is None
                else {
                    "kind": edit.prompt.kind,
                    "tensors": list(edit.prompt.tensors),
                    "settings": edit.prompt.settings,
                },
                "seconds": dict(edit.seconds),
                "details": dict(edit.details),
            }
            for edit in session.edits
        ],
    }


def _edit(number: int, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    return Edit(
        method=entry["method"],
        config=entry["config"],
        facts=tuple(Fact.from_dict(fact) for fact in entry["facts"]),
        patches=tuple(
            WeightPatch(layer, tensors[f"{number}.{layer}.left"], tensors[f"{number}.{layer}.right"])
            for layer in entry["layers"]
        ),
        keys={layer: tensors[f"{number}.{layer}.keys"] for layer in entry["key_layers"]},
        masks={layer: tensors[f"{number}.{layer}.mask"] for layer in entry["mask_layers"]},
        seconds=entry["seconds"],
        details=entry["details"],
        modules=tuple(_module(number, saved, tensors) for saved in entry.get("modules", ())),
        prompt=_prompt(number, entry["prompt"], tensors) if entry.get("prompt") else None,
    )


def _module(number: int, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModulePatch:
    layer = saved["layer"]
    own = {name: tensors[f"{number}.{layer}.module.{name}"] for name in saved["tensors"]}
    return load_module(saved["kind"], layer, own, saved["settings"])


def _prompt(number: int, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PromptPatch:
    own = {name: tensors[f"{number}.prompt.{name}"] for name in saved["tensors"]}
    return load_prompt(saved["kind"], own, saved["settings"])


def _require_same(tensors: Mapping[str, Tensor], session: EditSession, folder: Path) -> None:
    record, edits = read_bundle(folder)
    again = _tensors(tuple(edits))
    same = set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    facts = [edit.facts for edit in edits] == [edit.facts for edit in session.edits]
    if not (same and facts and record["digest"] == session.digest):
        raise SessionError(
            "What was read back from the disk differs from the session.", "Save to another disk."
        )
