"""What a layer's keys look like on ordinary text: second moments, their null space, and where neurons fire most.

``C = E[k k^T]`` over the tokens of a text, ``k`` the down projection's input [d_mlp]. Directions whose eigenvalue lies
strictly under a threshold are hardly used by ordinary text; AlphaEdit (arXiv 2410.02355, section 3.2) confines updates
to them. Collected once per model and text, then read from disk.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.config import Config
from nmke.errors import EditError
from nmke.model import EditableModel
from nmke.moments_collect import Checkpoint, Collected, collect
from nmke.progress import Progress, Silent
from nmke.resources import home
from nmke.store import content_key, written_atomically
from nmke.texts import read_windows, text_hash


class StatisticsConfig(Config):
    """Which text the second moments are taken over, and how much of it."""

    text: str = Field(
        "wikipedia",
        title="Text",
        description="'wikipedia' (106 articles from a Python package), the path of a text file, or hf:NAME for a hub "
        "data set with a text column.",
    )
    tokens: int = Field(
        60_000,
        ge=256,
        title="Tokens",
        description="How many tokens of the text are read; more is steadier and slower.",
    )
    window: int = Field(
        128, ge=16, le=2048, title="Window", description="Tokens read at once; no window crosses it."
    )
    seed: int = Field(0, ge=0, title="Seed", description="Which paragraphs are drawn, and in which order.")
    passages: int = Field(5, ge=0, le=20, title="Passages", description="Top passages kept per neuron.")


@dataclass(frozen=True)
class Passage:
    """Where a neuron fires: the token in its surroundings and the activation there."""

    before: str
    token: str
    after: str
    value: float


@dataclass(frozen=True)
class NullSpace:
    """A projection on the directions ordinary text hardly uses.

    Attributes:
        basis: orthonormal columns [d_mlp, r] of whichever side is thinner: the space kept, or its complement.
        keeps_basis: True when the basis spans the space kept.
        kept: number of directions kept.
        d_mlp: number of directions in all.
    """

    basis: Float[Tensor, "d_mlp r"]
    keeps_basis: bool
    kept: int
    d_mlp: int

    @property
    def kept_share(self) -> float:
        return self.kept / self.d_mlp

    def project(self, K: Float[Tensor, "d_mlp key"]) -> Float[Tensor, "d_mlp key"]:
        """``P K``, without forming the D x D projection."""
        basis = self.basis.to(device=K.device, dtype=K.dtype)
        along = basis @ (basis.T @ K)
        return along if self.keeps_basis else K - along

    @classmethod
    def everything(cls, d_mlp: int) -> "NullSpace":
        """The identity: no direction is protected."""
        return cls(torch.zeros(d_mlp, 0), False, d_mlp, d_mlp)


@dataclass(frozen=True)
class Statistics:
    """Second moments and top passages of some layers over one text.

    Attributes:
        second_moment: per layer ``E[k k^T]`` [d_mlp, d_mlp], float32.
        tokens: number of tokens read.
        windows: the token ids read [window, position]; -1 on pads.
        top_value, top_window, top_position: per layer the strongest passages of each neuron [passage, d_mlp].
        about: text, hashes and settings they were made from.
        folder: where they are kept.
    """

    second_moment: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    tokens: int
    windows: Int[Tensor, "window position"]
    top_value: Mapping[int, Float[Tensor, "passage d_mlp"]]
    top_window: Mapping[int, Int[Tensor, "passage d_mlp"]]
    top_position: Mapping[int, Int[Tensor, "passage d_mlp"]]
    about: Mapping[str, Any]
    folder: Path
    _eigen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.second_moment))

    def eigenvalues(self, layer: int) -> Float[Tensor, " d_mlp"]:
        """Eigenvalues of the layer's second moment, rising."""
        return self._decompose(layer)[0]

    def null_space(self, layer: int, threshold: float) -> NullSpace:
        """The directions whose eigenvalue is strictly under ``threshold``.

        Raises:
            EditError: when no direction is, so that no edit could be written.
        """
        values, vectors = self._decompose(layer)
        kept = int((values < threshold).sum())
        if kept == 0:
            raise EditError(
                f"No direction of layer {layer} lies under the null-space threshold {threshold}.",
                f"Raise the threshold above {float(values[0]):.2g}.",
            )
        keeps_basis = kept <= len(values) // 2
        basis = vectors[:, :kept] if keeps_basis else vectors[:, kept:]
        return NullSpace(basis.contiguous(), keeps_basis, kept, len(values))

    def passages(self, tokenizer: Any, layer: int, neuron: int, around: int = 12) -> list[Passage]:
        """The passages where a neuron's activation is largest in size, strongest first."""
        found = []
        for rank in range(len(self.top_value.get(layer, ()))):
            window = int(self.top_window[layer][rank, neuron])
            place = int(self.top_position[layer][rank, neuron])
            if window < 0:
                continue
            ids = [int(token) for token in self.windows[window] if token >= 0]
            start = max(0, place - around)
            found.append(
                Passage(
                    tokenizer.decode(ids[start:place]),
                    tokenizer.decode(ids[place : place + 1]),
                    tokenizer.decode(ids[place + 1 : place + 1 + around]),
                    float(self.top_value[layer][rank, neuron]),
                )
            )
        return found

    def _decompose(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._eigen:
            path = self.folder / f"eigen-{layer}.safetensors"
            if not path.exists():
                values, vectors = torch.linalg.eigh(self.second_moment[layer].double())
                with written_atomically(path) as temporary:
                    save_file({"values": values.float(), "vectors": vectors.float().contiguous()}, temporary)
            saved = load_file(path)
            self._eigen[layer] = (saved["values"], saved["vectors"])
        return self._eigen[layer]


def statistics_folder(model: EditableModel, config: StatisticsConfig, layers: Sequence[int]) -> Path:
    """Where the statistics of these layers and this text are kept, whether or not they are there yet."""
    key = content_key(
        weights=model.weight_hash,
        dtype=model.dtype,
        text=text_hash(config.text),
        layers=list(model.check_layers(layers)),
        **config.model_dump(exclude={"text"}),
    )
    return home() / "statistics" / key


def find_statistics(
    model: EditableModel, config: StatisticsConfig, layers: Sequence[int]
) -> Statistics | None:
    """Statistics already on disk, or None."""
    folder = statistics_folder(model, config, layers)
    return _load(folder) if (folder / "about.json").exists() else None


def collect_statistics(
    model: EditableModel, config: StatisticsConfig, layers: Sequence[int], progress: Progress | None = None
) -> Statistics:
    """Second moments and top passages of ``layers``; read from disk when they were collected before.

    Always of the unedited model. Forward passes stop at the last layer needed. A collection that was cancelled or
    killed goes on from its checkpoint and ends with the same bits.

    Raises:
        ResourceError: the text cannot be read, or the disk is full.
        EditError: the text has too few tokens.
        Cancelled: between batches; what was read until then is kept, and collecting again goes on from there.
    """
    progress = progress or Silent()
    chosen = model.check_layers(layers)
    folder = statistics_folder(model, config, chosen)
    if (folder / "about.json").exists():
        return _load(folder)
    windows = read_windows(model, config.text, config.tokens, config.window, config.seed, progress)
    # The folder's name stands for weights and settings; the token ids also for a hub text that has changed since.
    checkpoint = Checkpoint(
        folder.with_name(f"{folder.name}.partial.safetensors"),
        statistics=folder.name,
        windows=hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        device=model.device,
    )
    collected = collect(model, windows, chosen, config.passages, checkpoint, progress)
    about = {
        **config.model_dump(),
        "text_hash": text_hash(config.text),
        "layers": chosen,
        "model": model.name,
    }
    _save(folder, collected, windows, about)
    checkpoint.remove()
    return _load(folder)


def _save(folder: Path, collected: Collected, windows: Tensor, about: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {"windows": windows.to(torch.int32)}
    for layer, total in collected.sums.items():
        top = collected.top[layer]
        tensors[f"second_moment.{layer}"] = total.mean(collected.tokens)
        tensors[f"top_value.{layer}"] = top.value.cpu().contiguous()
        tensors[f"top_window.{layer}"] = top.window.cpu().contiguous()
        tensors[f"top_position.{layer}"] = top.position.cpu().contiguous()
    with written_atomically(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "moments.safetensors")
        (temporary / "about.json").write_text(json.dumps({**about, "read": collected.tokens}, indent=1))


def _load(folder: Path) -> Statistics:
    about = json.loads((folder / "about.json").read_text())
    tensors = load_file(folder / "moments.safetensors")

    def per_layer(name: str) -> dict[int, Tensor]:
        return {layer: tensors[f"{name}.{layer}"] for layer in about["layers"]}

    return Statistics(
        second_moment=per_layer("second_moment"),
        tokens=about["read"],
        windows=tensors["windows"],
        top_value=per_layer("top_value"),
        top_window=per_layer("top_window"),
        top_position=per_layer("top_position"),
        about=about,
        folder=folder,
    )
