"""How far each neuron can move any token's logit: bounds that the sampled attribution leans on.

Neuron ``i`` moves token ``v``'s logit along ``a_iv = x_i . u_v``, ``x_i`` its value vector as the unembedding reads it.
The largest and smallest ``a_iv`` over the whole vocabulary depend on weights alone, so they are measured once per model
and layer and read from disk afterwards. For edited weights the change ``d_i`` widens them, by Cauchy and Schwarz
``|d_i . (u_v - mean u)| <= |d_i| max_v |u_v - mean u|``; where edits have moved so far that this says little, they are
measured anew.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.resources import home
from nmke.store import content_key, written_atomically

#: Widening beyond this share of the reach says too little; measuring again is cheaper than exact sums.
WORTH_WIDENING = 0.5


@dataclass(frozen=True)
class Reach:
    """Smallest and largest logit change per unit of each neuron.

    Attributes:
        lowest, highest: over the vocabulary, of ``directions @ U^T`` [d_mlp], float32.
    """

    lowest: Float[Tensor, " d_mlp"]
    highest: Float[Tensor, " d_mlp"]


def reach_of(
    model: EditableModel,
    layer: int,
    directions: Float[Tensor, "d_mlp d_model"],
    unembedding: Float[Tensor, "d_vocab d_model"],
    block: int,
    progress: Progress,
) -> Reach:
    """Bounds for the layer's active weights; a function of weights only, never of what was asked before.

    Args:
        directions: the active value vectors as the unembedding reads them.
        unembedding: float32, on the model's device.
        block: neurons held against the whole vocabulary at once.

    Raises:
        Cancelled: from ``progress``, between blocks.
    """
    with model.weights_in({}):
        loaded = model.readout.direction(model.W_out(layer).to(directions.device))
    known = _measured_once(model, layer, loaded, unembedding, block, progress)
    change = directions - loaded
    if not change.any():
        return known
    widened = widen(known, change, unembedding)
    grown = (widened.highest - widened.lowest) - (known.highest - known.lowest)
    if grown.median() > WORTH_WIDENING * (known.highest - known.lowest).median():
        return measure(directions, unembedding, block, progress, f"layer {layer}")
    return widened


def measure(
    directions: Float[Tensor, "d_mlp d_model"],
    unembedding: Float[Tensor, "d_vocab d_model"],
    block: int,
    progress: Progress,
    note: str = "",
) -> Reach:
    """The extremes over the whole vocabulary, by the product itself."""
    lowest, highest = torch.empty_like(directions[:, 0]), torch.empty_like(directions[:, 0])
    for start in range(0, len(directions), block):
        progress.update("measuring how far neurons reach", start, len(directions), note)
        moved = directions[start : start + block] @ unembedding.T
        lowest[start : start + block], highest[start : start + block] = moved.amin(1), moved.amax(1)
    return Reach(lowest, highest)


def widen(
    known: Reach, change: Float[Tensor, "d_mlp d_model"], unembedding: Float[Tensor, "d_vocab d_model"]
) -> Reach:
    """Bounds that hold after every direction moved by ``change``."""
    mean = unembedding.mean(0)
    radius = (unembedding - mean).norm(dim=1).max()
    drift, slack = change @ mean, change.norm(dim=1) * radius
    return Reach(known.lowest + drift - slack, known.highest + drift + slack)


def _measured_once(
    model: EditableModel, layer: int, loaded: Tensor, unembedding: Tensor, block: int, progress: Progress
) -> Reach:
    path = home() / "reach" / f"{content_key(weights=model.weight_hash, layer=layer)}.safetensors"
    if not path.exists():
        found = measure(loaded, unembedding, block, progress, f"layer {layer}, once per model")
        with written_atomically(path) as temporary:
            save_file({"lowest": found.lowest.cpu(), "highest": found.highest.cpu()}, temporary)
    saved = load_file(path)
    return Reach(saved["lowest"].to(loaded.device), saved["highest"].to(loaded.device))
