"""Models on the Hugging Face hub: what is there, and what to do when the hub is out of reach."""

from dataclasses import dataclass
from typing import Any

from nmke.errors import ModelError
from nmke.registry import MODELS

SECONDS = 10  # how long to wait for the hub's answer


@dataclass(frozen=True)
class HubModel:
    """A model on the hub, at one exact revision."""

    name: str
    revision: str
    local: str = ""  # the folder, when the model is on this machine already


def find_on_hub(spec: str) -> HubModel:
    """Look up ``owner/name`` or ``owner/name@revision``; a copy on this machine serves without the hub.

    Raises:
        ModelError: no such model, no access, only pickled weights, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = spec.partition("@")
    try:
        info = HfApi().model_info(name, revision=revision or None, timeout=SECONDS)
    except GatedRepoError:
        raise ModelError(
            f"{name} is on the hub, but its owner wants its licence accepted first.",
            "Accept it on the model's page, sign in with `hf auth login`, and try again.",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise ModelError(
            f"{spec!r} is no model that is known here or on the Hugging Face hub.", _local_ways()
        ) from None
    except Exception as error:  # the hub's client raises its network library's own errors
        if copy := _local_copy(name, revision):
            return copy
        raise ModelError(
            f"{spec!r} is not on this machine and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}).",
            _local_ways(),
        ) from None
    _refuse_pickle(name, [file.rfilename for file in info.siblings or ()])
    return HubModel(name, info.sha or revision)


def _local_copy(name: str, revision: str) -> HubModel | None:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        folder = snapshot_download(name, local_files_only=True, **options)
    except Exception:  # not there, or only in part
        return None
    return HubModel(name, folder.rstrip("/\\").replace("\\", "/").rpartition("/")[2], folder)


def _refuse_pickle(name: str, files: list[str]) -> None:
    if files and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{name} has no safetensors on the hub, only weights in a format that may run code when it is read.",
            "Choose a model with safetensors, or convert it on a machine you trust with "
            "save_pretrained(safe_serialization=True) and name that folder.",
        )


def _local_ways() -> str:
    return (
        f"Give a name that needs no hub ({', '.join(MODELS)}), a local folder with config.json, tokenizer and "
        "safetensors, or a local .gguf file."
    )
