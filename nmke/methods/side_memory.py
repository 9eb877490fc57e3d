"""WISE's side memory: a second down projection beside a layer's own, and which of the two answers (arXiv 2405.14768).

The side memory ``W'`` is kept as its difference ``D = W' - W`` to the layer's own down projection ``W``. With the
neurons' activations ``a`` of a token, it answers where the activation margin (section 2.3.1, equation 4)

    Delta_act(a) = || a (W' - W) ||_2 = || a D ||_2

is above a threshold, with ``a W' = a W + a D``; elsewhere the layer's own answer is returned as it came, to the bit.

Routing is **per token**. The paper writes the margin of a query; the published code takes its mean over the tokens of
a text, pads among them (of more than 100 tokens the maximum), and lets one margin decide for a batch. None of that can
be had of a text that is still being written, whose tokens come one at a time. A token's own margin depends on nothing
behind it and nothing beside it: padding, batches and remembered keys leave the answer as it is. The published code also
passes both outputs through the model's activation function before it takes the difference; the paper does not, and
neither does this.

Knowledge sharding (section 2.3.2): edits are trained into ``k`` shards in turn, each confined to a random share of the
entries; finished shards are merged into one memory by TIES (Yadav et al., 2023). Before that every shard answers beside
the merged memory, the largest margin first. (The published WISE-Merge keeps finished shards out of the answer until
their merge, or merges early when the model is first asked, which changes it for good.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmke.modules import ModulePatch

MERGED, TRAINED, SHARD, THRESHOLD = "merged", "trained", "shard", "threshold"


class SideMemory(ModulePatch):
    """What WISE puts beside one layer's down projection.

    Tensors, all float32; memories are differences to the layer's own down projection [d_mlp, d_model]:
        merged: what earlier rounds were merged to, once there was a merge.
        shard.0, shard.1, ...: finished shards of this round.
        trained: the shard that edits are now trained into, once it has one.
        threshold: margin above which a memory answers [1].

    Settings:
        edits: how many were trained into it.
        in_shard: how many of them into ``trained``.
        finished: how many shards were finished over all rounds, merged ones among them.
        min_act: the smallest margin of any edit on its own prompt.
    """

    kind = "side memory"

    @property
    def memories(self) -> dict[str, Float[Tensor, "d_mlp d_model"]]:
        """Every memory that may answer, by name, always in the same order."""
        return {name: tensor for name, tensor in sorted(self.tensors.items()) if name != THRESHOLD}

    @property
    def shards(self) -> list[Float[Tensor, "d_mlp d_model"]]:
        """The finished shards of this round, the oldest first."""
        count = sum(name.startswith(SHARD) for name in self.tensors)
        return [self.tensors[f"{SHARD}.{number}"] for number in range(count)]

    @property
    def threshold(self) -> float:
        return float(self.tensors[THRESHOLD])

    @property
    def edits(self) -> int:
        return int(self.settings["edits"])

    @property
    def finished(self) -> int:
        return int(self.settings["finished"])

    def answer(
        self, inputs: Float[Tensor, "*batch d_mlp"], output: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Per token the memory with the largest margin, if that is above the threshold; else ``output`` itself."""
        a = inputs.float()
        chosen = torch.zeros_like(output, dtype=torch.float32)
        largest = self.tensors[THRESHOLD].to(a.device).expand(a.shape[:-1])
        routed = torch.zeros_like(largest, dtype=torch.bool)
        for difference in self.memories.values():
            change = a @ difference.to(a.device)
            margin = activation_margin(change)
            wins = margin > largest
            chosen = torch.where(wins[..., None], change, chosen)
            largest = torch.where(wins, margin, largest)
            routed = routed | wins
        return torch.where(routed[..., None], output + chosen.to(output.dtype), output)

    def margins(self, inputs: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch"]:
        """Each token's largest margin over all memories."""
        a = inputs.float()
        found = [activation_margin(a @ difference.to(a.device)) for difference in self.memories.values()]
        return torch.stack(found).amax(0)


def activation_margin(change: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """``|| a (W' - W) ||_2`` of every token, from ``change = a (W' - W)``."""
    return torch.linalg.vector_norm(change, dim=-1)


def margin_loss(
    inside: Float[Tensor, " token"],
    outside: Float[Tensor, " other"],
    alpha: float,
    beta: float,
    gamma: float,
) -> Float[Tensor, ""]:
    """Equation 5: irrelevant tokens under ``alpha``, the edit's over ``beta``, ``gamma`` between every two of them.

    ``mean+(outside - alpha) + mean+(beta - inside) + mean+(outside - inside + gamma)``, each the mean over its positive
    entries as in the published code, whose entries are texts and here tokens.
    """
    between = outside[:, None] - inside[None, :] + gamma
    return _mean_positive(outside - alpha) + _mean_positive(beta - inside) + _mean_positive(between)


def _mean_positive(values: Tensor) -> Float[Tensor, ""]:
    """Mean over the entries above zero; 0 where there are none."""
    return values.clamp_min(0).sum() / (values > 0).sum().clamp_min(1)


def shard_mask(
    shape: Sequence[int], shard: int, ratio: float, seed: int, overlap: Literal["random", "none"]
) -> Bool[Tensor, "d_mlp d_model"]:
    """Which entries a shard may change.

    Args:
        shard: its number over all rounds, from 0.
        ratio: the share of entries, ``rho``.
        overlap: ``random`` draws every entry by itself, as published, so that shards share about ``rho`` of theirs;
            ``none`` cuts one permutation into ``1 / rho`` shards without common entries, then starts anew.
    """
    size = shape[0] * shape[1]
    if overlap == "random":
        generator = torch.Generator().manual_seed(mixed_seed(seed, shard))
        return (torch.rand(size, generator=generator) < ratio).view(*shape)
    each = max(1, int(ratio * size))
    lap, place = divmod(shard, size // each)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(mixed_seed(seed, lap)))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[order[place * each : (place + 1) * each]] = True
    return mask.view(*shape)


def mixed_seed(seed: int, number: int) -> int:
    """One seed for each pair of small numbers."""
    return (seed * 1_000_003 + number) % 2**63  # a generator takes no more


def trim(difference: Float[Tensor, "d_mlp d_model"], density: float) -> Float[Tensor, "d_mlp d_model"]:
    """The share ``density`` of entries that are largest, the others 0 (TIES, step 1).

    The share is of all entries, not of those that are not zero: with shards of a fifth of the entries the published
    density of 0.53 trims nothing until shards were merged.
    """
    if density >= 1:
        return difference
    kept = difference.abs().view(-1).topk(max(1, int(density * difference.numel()))).indices
    mask = torch.zeros_like(difference).view(-1)
    mask[kept] = 1
    return difference * mask.view_as(difference)


def merge_ties(
    differences: Sequence[Float[Tensor, "d_mlp d_model"]], weights: Sequence[float], density: float
) -> Float[Tensor, "d_mlp d_model"]:
    """TIES: trim, elect each entry's sign by the weighted sum, and average those that agree with it.

    ``sum_i w_i t_i [sign t_i = s] / sum_i w_i [sign t_i = s]``, ``s = sign(sum_i w_i t_i)`` with + for 0.
    """
    trimmed = [trim(each, density) for each in differences]
    total = torch.stack([w * t for w, t in zip(weights, trimmed, strict=True)]).sum(0)
    elected = torch.where(total >= 0, 1.0, -1.0)
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for weight, t in zip(weights, trimmed, strict=True):
        agrees = (t.sign() == elected).float()
        merged += weight * t * agrees
        divisor += weight * agrees
    return merged / torch.where(divisor == 0, 1.0, divisor)


def merge_linear(
    differences: Sequence[Float[Tensor, "d_mlp d_model"]], weights: Sequence[float]
) -> Float[Tensor, "d_mlp d_model"]:
    """The weighted mean. (The published function of that name reads its first memory only.)"""
    total = sum(weights)
    return torch.stack([w / total * each for w, each in zip(weights, differences, strict=True)]).sum(0)


def merge_shards(
    merged: Float[Tensor, "d_mlp d_model"] | None,
    shards: Sequence[Float[Tensor, "d_mlp d_model"]],
    how: Literal["ties", "linear"],
    density: float,
    earlier: float = 0.6,
) -> Float[Tensor, "d_mlp d_model"]:
    """One memory of a round's shards and of what earlier rounds were merged to.

    Args:
        earlier: the weight of earlier rounds; the shards share the rest alike (published: 0.6 and 0.4).
    """
    if merged is None:
        parts, weights = list(shards), [1 / len(shards)] * len(shards)
    else:
        parts = [*shards, merged]
        weights = [(1 - earlier) / len(shards)] * len(shards) + [earlier]
    return merge_ties(parts, weights, density) if how == "ties" else merge_linear(parts, weights)


def grow(
    before: SideMemory | None,
    layer: int,
    trained: Float[Tensor, "d_mlp d_model"],
    min_act: float,
    settings: Mapping[str, Any],
) -> SideMemory:
    """The side memory after one more edit: its shard trained on, finished or merged when it is time.

    Args:
        trained: the shard after the edit.
        min_act: the edit's smallest margin on its own prompt.
        settings: of the method: save_freq, merge_freq, merge, density, act_ratio.
    """
    edits = (before.edits if before else 0) + 1
    in_shard = (before.settings["in_shard"] if before else 0) + 1
    least = min([min_act, *([before.settings["min_act"]] if before else [])])
    merged = before.tensors.get(MERGED) if before else None
    shards = before.shards if before else []
    finished = before.finished if before else 0
    running: Tensor | None = trained
    if in_shard >= settings["save_freq"]:
        shards, running, in_shard, finished = [*shards, trained], None, 0, finished + 1
        if len(shards) >= settings["merge_freq"] // settings["save_freq"]:
            merged, shards = merge_shards(merged, shards, settings["merge"], settings["density"]), []
    tensors = {f"{SHARD}.{number}": each for number, each in enumerate(shards)}
    tensors |= {name: each for name, each in ((MERGED, merged), (TRAINED, running)) if each is not None}
    tensors[THRESHOLD] = torch.tensor([settings["act_ratio"] * least], device=trained.device)
    counts = {"edits": edits, "in_shard": in_shard, "finished": finished, "min_act": least}
    return SideMemory(layer, tensors, counts)
