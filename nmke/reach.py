"""How far each neuron can move any token's logit: what the sampled attribution leans on.

Neuron ``i`` moves token ``v``'s logit along ``a_iv = x_i . u_v``, ``x_i`` its value vector as the unembedding reads it.
The few tokens it moves farthest up and farthest down are known by name and value, and are summed exactly; all others
lie between two bounds. Both depend on weights alone, so they are measured once per model and layer and read from disk
afterwards. For edited weights the far tokens stay the same and their values are brought up to date. The change ``d_i``
widens the bounds of the others, by Cauchy and Schwarz ``|d_i . (u_v - mean u)| <= |d_i| max_v |u_v - mean u|``; where
edits have moved so far that this says little, everything is measured anew, or the scores that fail such bounds are
summed over the whole vocabulary, whichever costs less.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.resources import home
from nmke.store import content_key, written_atomically

#: So many tokens farthest up, and as many farthest down, are known for each neuron.
FAR = 32
#: Of a small vocabulary, at most this share each way.
_FAR_SHARE = 1 / 8
#: Neurons whose far tokens' unembeddings are gathered at once.
_GATHERED = 128


@dataclass(frozen=True)
class Reach:
    """Each neuron's far tokens, and how far it can move the others; per unit of the neuron.

    Attributes:
        lowest_rest, highest_rest: bounds of ``directions @ U^T`` over all but the far tokens [d_mlp], float32.
        far: the far tokens, none of them twice in a row [d_mlp, far].
        far_moves: ``directions @ U^T`` at those [d_mlp, far], float32.
    """

    lowest_rest: Float[Tensor, " d_mlp"]
    highest_rest: Float[Tensor, " d_mlp"]
    far: Int[Tensor, "d_mlp far"]
    far_moves: Float[Tensor, "d_mlp far"]

    @property
    def lowest(self) -> Float[Tensor, " d_mlp"]:
        """A bound over the whole vocabulary."""
        return torch.cat([self.lowest_rest[:, None], self.far_moves], 1).amin(1)

    @property
    def highest(self) -> Float[Tensor, " d_mlp"]:
        """A bound over the whole vocabulary."""
        return torch.cat([self.highest_rest[:, None], self.far_moves], 1).amax(1)

    @property
    def width(self) -> Float[Tensor, " d_mlp"]:
        """How far apart the other tokens may be moved."""
        return self.highest_rest - self.lowest_rest


def reach_of(
    model: EditableModel,
    layer: int,
    directions: Float[Tensor, "d_mlp d_model"],
    unembedding: Float[Tensor, "d_vocab d_model"],
    block: int,
    progress: Progress,
    widest: float,
) -> Reach:
    """Far tokens and bounds for the layer's active weights; a function of these and the arguments, never of what was
    asked before.

    Args:
        directions: the active value vectors as the unembedding reads them.
        unembedding: float32, on the model's device.
        block: neurons held against the whole vocabulary at once.
        widest: bounds that edits have widened by more than so many times the reach are measured anew.

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
    if (widened.width - known.width).median() > widest * (known.highest - known.lowest).median():
        return measure(directions, unembedding, block, progress, f"layer {layer}")
    return widened


def measure(
    directions: Float[Tensor, "d_mlp d_model"],
    unembedding: Float[Tensor, "d_vocab d_model"],
    block: int,
    progress: Progress,
    note: str = "",
) -> Reach:
    """Far tokens and the extremes of all others, from the product with the whole vocabulary."""
    count = min(FAR, int(len(unembedding) * _FAR_SHARE))
    parts = []
    for start in range(0, len(directions), block):
        progress.update("measuring how far neurons reach", start, len(directions), note)
        moved = directions[start : start + block] @ unembedding.T
        down = moved.topk(count + 1, largest=False)
        # Out of the way, so that no token is far in both directions, whatever the ties.
        moved.scatter_(1, down.indices[:, :count], -torch.inf)
        up = moved.topk(count + 1)
        parts.append(
            Reach(
                down.values[:, count],
                up.values[:, count],
                torch.cat([down.indices[:, :count], up.indices[:, :count]], 1),
                torch.cat([down.values[:, :count], up.values[:, :count]], 1),
            )
        )
    return Reach(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Reach)))


def widen(
    known: Reach, change: Float[Tensor, "d_mlp d_model"], unembedding: Float[Tensor, "d_vocab d_model"]
) -> Reach:
    """What holds after every direction moved by ``change``: the same far tokens, and wider bounds of the others."""
    mean = unembedding.mean(0)
    radius = (unembedding - mean).norm(dim=1).max()
    drift, slack = change @ mean, change.norm(dim=1) * radius
    moves = known.far_moves.clone()
    for neurons in change.any(1).nonzero()[:, 0].split(_GATHERED):
        moves[neurons] += (unembedding[known.far[neurons]] @ change[neurons, :, None])[..., 0]
    return Reach(known.lowest_rest + drift - slack, known.highest_rest + drift + slack, known.far, moves)


def _measured_once(
    model: EditableModel, layer: int, loaded: Tensor, unembedding: Tensor, block: int, progress: Progress
) -> Reach:
    key = content_key(weights=model.weight_hash, layer=layer, far=FAR)
    path = home() / "reach" / f"{key}.safetensors"
    if not path.exists():
        found = measure(loaded, unembedding, block, progress, f"layer {layer}, once per model")
        kept = {field.name: getattr(found, field.name).cpu() for field in fields(Reach)}
        with written_atomically(path) as temporary:
            save_file({**kept, "far": kept["far"].int()}, temporary)
    saved = {name: value.to(loaded.device) for name, value in load_file(path).items()}
    return Reach(**{**saved, "far": saved["far"].long()})
