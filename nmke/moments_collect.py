"""Collecting second moments and top passages at about the speed of the forward pass, and going on after a stop.

Every batch holds windows of one length, so that no position is a pad. Its keys' product ``K^T K`` is made in float32,
by half the work of a plain product as it is symmetric, and added to sums that are wide enough for any number of
batches. The sums, the top passages and how far the text was read are the whole state: written to a checkpoint and read
back, the collection goes on and ends with the same bits as one that was never stopped.

Memory: a layer's sum takes ``4 D (D + PANEL)`` bytes on its device, as float64 or compensated float32: 0.9 GB at
D = 14336, and its float32 product ``4 D PANEL``, 0.1 GB. One batch's keys take ``BATCH_TOKENS x D`` numbers a layer.
While a checkpoint or the result is written, the computer's own memory holds every layer's sum or mean, and the
writer's copy of it.
"""

import contextlib
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nmke.errors import Cancelled, ResourceError
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.sites import POST
from nmke.solve import exact_dtype
from nmke.storage import remove
from nmke.store import content_key, written_atomically
from nmke.tokens import Batch

STAGE = "reading the statistics text"
BATCH_TOKENS = 1024  #: tokens of one forward pass; a longer window is a batch of its own
PANEL = 2048  #: rows of a product made at once; what lies left of their diagonal square is not made
CHECKPOINT_SECONDS = 20.0  #: at least so long between two checkpoints
CHECKPOINT_SHARE = 20  #: and at least so many times as long as the last one took to write
CHECKPOINT_FORM = 1  #: raised when the order or the form of the sums changes


def equal_batches(windows: Int[Tensor, "window position"]) -> list[Int[Tensor, " row"]]:
    """The rows of each batch: windows of equal length, longest first, else in their own order.

    The statistic does not depend on the order, and equal lengths leave no pads to compute on or to mask out.
    """
    lengths = (windows >= 0).sum(1)
    order = lengths.argsort(descending=True, stable=True)
    batches: list[Tensor] = []
    for length in lengths.unique().flip(0).tolist():
        if length:
            rows = order[lengths[order] == length]
            batches += rows.split(max(1, BATCH_TOKENS // length))
    return batches


class SymmetricSum:
    """``sum_t k_t k_t^T`` over any number of tokens, in panels of rows from the diagonal square on.

    A batch's product is float32: over n tokens an entry is off by at most about ``n 2^-24`` of the sum of its terms'
    sizes (6e-5 for 1024, typically the root of that many: 2e-6), and these errors average out over batches. The sum
    over batches is float64, or, where the device has none (MPS), float32 with Kahan's compensation, whose error does
    not grow with the number of batches.

    Attributes:
        total: the panels' entries one after another [upper].
        lost: what rounding took from ``total`` [upper]; None when ``total`` is float64.
    """

    def __init__(
        self, d_mlp: int, total: Float[Tensor, " upper"], lost: Float[Tensor, " upper"] | None
    ) -> None:
        self.d_mlp = d_mlp
        self.total = total
        self.lost = lost
        # Held from batch to batch: allocating fresh [D, D] products costs more than adding them.
        self._product = torch.empty(min(PANEL, d_mlp) * d_mlp, device=total.device)

    @classmethod
    def zero(cls, d_mlp: int, device: torch.device, compensated: bool) -> "SymmetricSum":
        """Nothing added yet."""
        size = sum((stop - start) * (d_mlp - start) for start, stop, _ in _panels(d_mlp))
        wide = torch.float32 if compensated else torch.float64
        total = torch.zeros(size, dtype=wide, device=device)
        return cls(d_mlp, total, torch.zeros_like(total) if compensated else None)

    def add(self, keys: Float[Tensor, "token d_mlp"]) -> None:
        """Add ``K^T K`` of one batch's keys, taken as float32."""
        keys = keys.float()
        self._move(keys.device)
        for start, stop, place in _panels(self.d_mlp):
            product = self._product[: place.stop - place.start].view(stop - start, self.d_mlp - start)
            _square(keys[:, start:stop], product[:, : stop - start])
            torch.mm(keys[:, start:stop].T, keys[:, stop:], out=product[:, stop - start :])
            if self.lost is None:
                self.total[place] += product.view(-1)
            else:
                _add_compensated(self.total[place], self.lost[place], product.view(-1))

    def _move(self, device: torch.device) -> None:
        # A sum read from a checkpoint meets its device with the first keys.
        if self.total.device != device:
            self.total = self.total.to(device)
            self.lost = None if self.lost is None else self.lost.to(device)
            self._product = self._product.to(device)

    def mean(self, tokens: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """The sum over ``tokens`` as a full matrix, exactly symmetric: float32, in the computer's memory."""
        mean = torch.empty(self.d_mlp, self.d_mlp)
        for start, stop, place in _panels(self.d_mlp):
            panel = self.total[place].cpu().double()
            if self.lost is not None:
                panel -= self.lost[place].cpu()
            panel = (panel / tokens).view(stop - start, self.d_mlp - start)
            square = panel[:, : stop - start]
            panel[:, : stop - start] = (square + square.T) / 2
            mean[start:stop, start:] = panel
            mean[start:, start:stop] = panel.T
        return mean


def _panels(d_mlp: int) -> list[tuple[int, int, slice]]:
    """Per panel its first row, the row after its last, and where its entries lie; columns begin at the first row."""
    panels, begin = [], 0
    for start in range(0, d_mlp, PANEL):
        stop = min(start + PANEL, d_mlp)
        end = begin + (stop - start) * (d_mlp - start)
        panels.append((start, stop, slice(begin, end)))
        begin = end
    return panels


def _square(keys: Float[Tensor, "token panel"], out: Float[Tensor, "panel panel"]) -> None:
    """``out = K^T K``, on a processor in half the time of ``torch.mm``."""
    if keys.device.type == "cpu":
        # numpy sees that one factor is the other's transpose and takes BLAS syrk, which torch does not offer.
        np.matmul(keys.numpy().T, keys.numpy(), out=out.numpy())
    else:
        torch.mm(keys.T, keys, out=out)


def _add_compensated(
    total: Float[Tensor, " entry"], lost: Float[Tensor, " entry"], term: Float[Tensor, " entry"]
) -> None:
    """Kahan's step in place: ``total - lost`` grows by ``term`` nearly without rounding. ``term`` is used up."""
    term -= lost
    grown = total + term
    torch.sub(grown, total, out=lost)
    lost -= term
    total.copy_(grown)


class TopPassages:
    """Per neuron the windows with the largest activation in size, strongest first; one place a window.

    Attributes:
        value: the activations there [passage, d_mlp]; 0 where there is none yet.
        window, position: where that is [passage, d_mlp]; -1 where there is none yet.
    """

    def __init__(
        self,
        value: Float[Tensor, "passage d_mlp"],
        window: Int[Tensor, "passage d_mlp"],
        position: Int[Tensor, "passage d_mlp"],
    ) -> None:
        self.value, self.window, self.position = value, window, position

    @classmethod
    def none(cls, passages: int, d_mlp: int, device: torch.device) -> "TopPassages":
        """No passage seen yet."""
        nowhere = torch.full((passages, d_mlp), -1, dtype=torch.int32, device=device)
        return cls(torch.zeros(passages, d_mlp, device=device), nowhere, nowhere.clone())

    def add(self, rows: Int[Tensor, " window"], values: Float[Tensor, "window position d_mlp"]) -> None:
        """Let the windows ``rows`` of the text take their ranks."""
        passages = len(self.value)
        if not passages:
            return
        self.value, self.window, self.position = (
            kept.to(values.device) for kept in (self.value, self.window, self.position)
        )
        high, low = values.amax(1), values.amin(1)
        strongest = torch.where(high >= -low, high, low).float()
        ranked = torch.cat([self.value, strongest])
        best = ranked.abs().topk(passages, dim=0).indices
        window = rows.to(values.device, torch.int32)[:, None].expand(-1, strongest.shape[1])
        nowhere = torch.full_like(window, -1)
        self.value = ranked.gather(0, best)
        self.window = torch.cat([self.window, window]).gather(0, best)
        self.position = torch.cat([self.position, nowhere]).gather(0, best)
        # Few windows enter a ranking after the first batches, so only those that do are searched for the place.
        rank, neuron = (best >= passages).nonzero(as_tuple=True)
        row = best[rank, neuron] - passages
        here = values[row, :, neuron].float() == strongest[row, neuron][:, None]
        self.position[rank, neuron] = here.int().argmax(1).to(torch.int32)


class Collected:
    """What was summed and ranked up to now: the state of a collection, and all of it.

    Attributes:
        batches: batches read.
        tokens: tokens read.
        sums, top: per layer.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.tokens = 0
        self.sums: dict[int, SymmetricSum] = {}
        self.top: dict[int, TopPassages] = {}

    def add(self, rows: Int[Tensor, " window"], values: Mapping[int, Tensor], passages: int) -> None:
        """Add one batch without pads: the windows ``rows``, per layer their keys [window, position, d_mlp]."""
        for layer, keys in values.items():
            d_mlp = keys.shape[-1]
            if layer not in self.sums:
                compensated = exact_dtype(keys) != torch.float64
                self.sums[layer] = SymmetricSum.zero(d_mlp, keys.device, compensated)
                self.top[layer] = TopPassages.none(passages, d_mlp, keys.device)
            self.sums[layer].add(keys.reshape(-1, d_mlp))
            self.top[layer].add(rows, keys)
        self.batches += 1
        self.tokens += int(next(iter(values.values()))[..., 0].numel())

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors in the computer's memory; :meth:`restored` is the way back."""
        named = {"read": torch.tensor([self.batches, self.tokens])}
        for layer, total in self.sums.items():
            top = self.top[layer]
            named |= {f"total.{layer}": total.total, f"value.{layer}": top.value}
            named |= {f"window.{layer}": top.window, f"position.{layer}": top.position}
            if total.lost is not None:
                named[f"lost.{layer}"] = total.lost
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def restored(cls, named: Mapping[str, Tensor]) -> "Collected":
        """The state that :meth:`tensors` gave; each layer goes to its keys' device with the next batch."""
        state = cls()
        state.batches, state.tokens = named["read"].tolist()
        for layer in sorted(int(name.removeprefix("total.")) for name in named if name.startswith("total.")):
            total, value, window, position = (
                named[f"{kind}.{layer}"] for kind in ("total", "value", "window", "position")
            )
            state.sums[layer] = SymmetricSum(value.shape[1], total, named.get(f"lost.{layer}"))
            state.top[layer] = TopPassages(value, window, position)
        return state


class Checkpoint:
    """One file beside the finished statistics that says how far a collection got.

    Args:
        path: where it lies.
        **made_from: everything the state depends on. A file of another text, model, device or form of the sums is
            as good as none.
    """

    def __init__(self, path: Path, **made_from: Any) -> None:
        self.path = path
        settings = {"batch_tokens": BATCH_TOKENS, "panel": PANEL, "form": CHECKPOINT_FORM}
        self.key = content_key(**made_from, **settings)
        self._pause = CHECKPOINT_SECONDS
        self._last = time.monotonic()

    def read(self) -> Collected:
        """The state on disk, or an empty one where there is none, a foreign one or a damaged one."""
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return Collected()
                # Copies: the sums are added to in place, and the file is replaced while they are.
                named = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return Collected()
        return Collected.restored(named) if about.get("checksum") == _checksum(named) else Collected()

    def write_now_and_then(self, state: Collected) -> None:
        """Write the state if enough time has passed for it not to slow the collection down."""
        if time.monotonic() - self._last >= self._pause:
            self.write(state)

    def write(self, state: Collected) -> None:
        """Write the state, whole or not at all. A disk without room for it costs the checkpoint, not the work."""
        begun = time.monotonic()
        named = state.tensors()
        about = {"key": self.key, "checksum": _checksum(named)}
        # A full disk comes as SafetensorError where it is met inside save_file.
        with (
            contextlib.suppress(ResourceError, SafetensorError),
            written_atomically(self.path) as temporary,
        ):
            save_file(named, temporary, metadata=about)
        self._last = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (self._last - begun))

    def remove(self) -> None:
        """The statistics are finished and need it no more."""
        remove(self.path)


def _checksum(named: Mapping[str, Tensor]) -> str:
    """CRC-32 of the tensors' bytes: a file that lost its blocks to a power cut still has a readable header."""
    crc = 0
    for name in sorted(named):
        crc = zlib.crc32(named[name].numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


@torch.no_grad()
def collect(
    model: EditableModel,
    windows: Int[Tensor, "window position"],
    layers: Sequence[int],
    passages: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Collected:
    """Sum and rank the unedited model's keys over ``windows``, from the checkpoint on.

    Forward passes stop at the last layer needed. The result has the same bits wherever the checkpoint lay.

    Raises:
        Cancelled: between batches; what was read until then is in the checkpoint.
    """
    state = checkpoint.read()
    batches = equal_batches(windows)
    done = sum(len(rows) for rows in batches[: state.batches])
    begun = state.batches
    try:
        for rows in batches[begun:]:
            progress.update(STAGE, done, len(windows), f"{state.tokens} tokens")
            # Rows of a batch are equally long, so nothing is padded and every position counts.
            ids = windows[rows][:, : int((windows[rows[0]] >= 0).sum())]
            with model.weights_in({}):
                kept = model.run(
                    Batch(ids, torch.ones_like(ids)),
                    [(POST, layer) for layer in layers],
                    stop_after=layers[-1],
                )
            state.add(rows, {layer: kept[(POST, layer)] for layer in layers}, passages)
            done += len(rows)
            checkpoint.write_now_and_then(state)
        progress.update(STAGE, done, len(windows))
    except Cancelled:
        if state.batches > begun:
            checkpoint.write(state)
        raise
    return state
