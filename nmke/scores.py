"""The scores of one layer's neurons: plainly, as published, and fast.

:func:`score_plain` is the definition step by step and the documentation of the fast form: add ``lambda m_i v_i`` to the
residual, norm it with the frozen scale, read the whole vocabulary out, take the target's log-probability; once for
every neuron of every prompt. :func:`score_layers` gives the same scores from two observations:

- With the scale frozen the logits move by ``c a_v``, with ``c = lambda m_i s`` a number of the prompt and
  ``a_v = (v_i diag(g)) . u_v`` the same for all prompts, so ``LPS = c a_y - log E_p[exp(c a)]``.
- That expectation needs the whole vocabulary only for the few neurons that move the logits far (:mod:`nmke.partition`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.model import EditableModel
from nmke.partition import Anchor, Tilts, log_partition
from nmke.progress import Progress
from nmke.reach import reach_of

#: Tokens drawn for the moments, and for the exponential of neurons whose moments do not suffice.
DRAWS = (2048, 8192)
#: So many layers share an anchor: neighbouring layers' distributions are alike.
LAYERS_TOGETHER = 5
#: So many prompts share a draw and one product with the unembedding; 32 need 2.2 times less work each than 8.
PROMPTS_TOGETHER = 32
#: Bounds that edits widened by more than this over the number of prompts, in times the reach, are measured anew: whole
#: sums in their place are dearer the more prompts there are, the measuring is not (benchmarks/speed.md).
WIDEST = 60.0


class AttributionConfig(Config):
    """How neurons are scored."""

    kind: Literal["lps", "psa", "mpc"] = Field(
        "lps",
        title="Score",
        description="LPS: rise of the target's log-probability when the neuron is amplified. PSA: rise of its "
        "probability. MPC: the activation itself, far cheaper.",
    )
    target: Literal["top1", "new", "true"] = Field(
        "top1",
        title="Target token",
        description="Which token's probability is followed: the model's own prediction (the authors' choice), the "
        "new answer's first token, or the true answer's.",
    )
    scale: float = Field(
        30.0,
        gt=0,
        le=1000,
        title="Amplification lambda",
        description="How strongly each neuron is amplified.",
    )
    prob_floor: float = Field(
        1e-8,
        ge=0,
        lt=1,
        title="Probability floor",
        description="Probabilities are raised to this before the log.",
    )
    read_position: Literal["last", "padded"] = Field(
        "last",
        title="Read position",
        description="'last' reads each prompt's last real token; 'padded' reads position -1 of the right-padded "
        "batch, as the published code does, which is a pad token for all but the longest prompt.",
    )
    tolerance: float = Field(
        1e-3,
        ge=0,
        le=0.1,
        title="Tolerance (nats)",
        description="How far an LPS score may be off. Above 0, most neurons are read from the tokens that matter, "
        "each with an error bound, and only the others from the whole vocabulary; 0 reads every neuron from the "
        "whole vocabulary. For PSA that bounds the log of the probability reached, so its own error by about the "
        "same number.",
    )
    seed: int = Field(0, ge=0, title="Seed", description="Which tokens are drawn where a tolerance is given.")
    memory_mib: int = Field(
        512,
        ge=16,
        title="Workspace (MiB)",
        description="Largest block of neuron-by-vocabulary logits held at once.",
    )


@dataclass(frozen=True)
class Reading:
    """What one forward pass says at the position read, float32.

    Attributes:
        activations: per layer [prompt, d_mlp].
        resid_mid: per layer the residual before the MLP's write [prompt, d_model].
        final: the last layer's output [prompt, d_model], whose norm scale is frozen.
    """

    activations: Mapping[int, Float[Tensor, "prompt d_mlp"]]
    resid_mid: Mapping[int, Float[Tensor, "prompt d_model"]]
    final: Float[Tensor, "prompt d_model"]


def score_plain(
    model: EditableModel,
    layer: int,
    read: Reading,
    targets: Int[Tensor, " prompt"],
    config: AttributionConfig,
    block: int | None = None,
) -> Float[Tensor, "prompt d_mlp"]:
    """Scores of one layer by the definition: the plain twin of :func:`score_layers`.

    Args:
        block: neurons whose logits are held at once; by default what ``config.memory_mib`` holds.
    """
    readout, activations = model.readout, read.activations[layer]
    scale = readout.scale(read.final)
    values = model.W_out(layer).to(model.device).float()
    block = block or neurons_per_block(config.memory_mib, model.d_vocab)
    scores = torch.empty_like(activations)
    for row, target in enumerate(targets.tolist()):
        resid = read.resid_mid[layer][row]
        before = readout.logits(resid, scale[row]).log_softmax(-1)[target]
        for start in range(0, len(values), block):
            chunk = slice(start, start + block)
            amplified = resid + config.scale * activations[row, chunk, None] * values[chunk]
            after = readout.logits(amplified, scale[row].expand(len(amplified), 1)).log_softmax(-1)[:, target]
            scores[row, chunk] = rise(before, after, config)
    return scores.cpu()


def rise(
    before: Float[Tensor, "*batch"], after: Float[Tensor, "*neurons"], config: AttributionConfig
) -> Float[Tensor, "*neurons"]:
    """The target's rise from log-probability ``before`` to ``after``: of its probability (PSA) or the log (LPS)."""
    if config.kind == "psa":
        return after.exp() - before.exp()
    return _floored(after, config) - _floored(before, config)


def _floored(log_p: Tensor, config: AttributionConfig) -> Tensor:
    return log_p.clamp_min(math.log(config.prob_floor)) if config.prob_floor else log_p


def neurons_per_block(memory_mib: int, d_vocab: int) -> int:
    """How many neurons' logits fit the workspace: two float32 blocks [neuron, d_vocab], before and after."""
    return max(1, memory_mib * 2**20 // (2 * 4 * d_vocab))


def score_layers(
    model: EditableModel,
    layers: Sequence[int],
    read: Reading,
    targets: Int[Tensor, " prompt"],
    config: AttributionConfig,
    progress: Progress,
) -> Iterator[tuple[int, Float[Tensor, "prompt d_mlp"], Float[Tensor, "prompt d_mlp"]]]:
    """Per layer its scores, within ``config.tolerance``, and how far each may be off; on the CPU.

    Raises:
        Cancelled: from ``progress``.
    """
    stage = f"scoring neurons ({config.kind.upper()})"
    if config.kind == "mpc":
        for layer in layers:
            yield layer, read.activations[layer].cpu(), torch.zeros_like(read.activations[layer].cpu())
        return
    unembedding = model.readout.unembedding.float()
    together = layers_together(config.memory_mib, len(unembedding))
    for start in range(0, len(layers), together):
        group = layers[start : start + together]
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in group}
        for first in range(0, len(targets), PROMPTS_TOGETHER):
            rows = slice(first, first + PROMPTS_TOGETHER)
            progress.update(stage, start, len(layers), f"layers {group[0]} to {group[-1]}")
            scorer = _Scorer.prepare(model, unembedding, group, read, targets, rows, config)
            for done, layer in enumerate(group):
                tick = partial(progress.update, stage, start + done, len(layers), f"layer {layer}")
                tick()
                parts[layer].append(scorer.score(layer, _OfLayer(tick), tick))
        for layer in group:
            scores, bounds = zip(*parts[layer], strict=True)
            yield layer, torch.cat(scores).cpu(), torch.cat(bounds).cpu()


class _OfLayer(Progress):
    """Stages within one layer, told as that layer's: the bar and its estimate stay those of all layers."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self._tick()


def layers_together(memory_mib: int, d_vocab: int) -> int:
    """How many layers are prepared at once: three float32 blocks [layer, prompt, d_vocab] within the workspace."""
    return max(1, min(LAYERS_TOGETHER, memory_mib * 2**20 // (3 * 4 * PROMPTS_TOGETHER * d_vocab)))


@dataclass(frozen=True)
class _Scorer:
    """Some prompts' distributions at some layers before anything is amplified, and what all those layers share."""

    model: EditableModel
    unembedding: Tensor
    activations: Mapping[int, Tensor]
    scale: Float[Tensor, "prompt 1"]
    targets: Int[Tensor, " prompt"]
    log_p: Mapping[int, Tensor]
    mean: Mapping[int, Tensor]
    anchor: Anchor | None
    config: AttributionConfig

    @classmethod
    def prepare(
        cls,
        model: EditableModel,
        unembedding: Tensor,
        layers: Sequence[int],
        read: Reading,
        targets: Tensor,
        rows: slice,
        config: AttributionConfig,
    ) -> "_Scorer":
        """All layers in one product with the unembedding, which is what reading it costs."""
        readout, scale = model.readout, model.readout.scale(read.final[rows])
        resid = torch.cat([read.resid_mid[layer][rows] for layer in layers])
        log_p = readout.logits(resid, scale.repeat(len(layers), 1)).log_softmax(-1)
        p = log_p.exp()
        mean = p @ unembedding
        # Where even the larger draw would be a good part of the vocabulary, drawing saves nothing.
        worth = config.tolerance > 0 and len(unembedding) > 3 * DRAWS[1]
        n = len(scale)
        return cls(
            model=model,
            unembedding=unembedding,
            activations={layer: read.activations[layer][rows] for layer in layers},
            scale=scale,
            targets=targets[rows],
            log_p=dict(zip(layers, log_p.split(n), strict=True)),
            mean=dict(zip(layers, mean.split(n), strict=True)),
            anchor=Anchor.at(p.mean(0), unembedding) if worth else None,
            config=config,
        )

    def score(self, layer: int, progress: Progress, tick: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Scores and bounds [prompt, d_mlp]."""
        config, U = self.config, self.unembedding
        block = neurons_per_block(config.memory_mib, len(U))
        directions = self.model.readout.direction(self.model.W_out(layer).to(U.device))
        widest = WIDEST / len(self.targets) if self.anchor is not None else math.inf
        tilts = Tilts(
            directions=directions,
            amounts=config.scale * self.activations[layer] * self.scale,
            log_p=self.log_p[layer],
            mean=self.mean[layer],
            reach=reach_of(self.model, layer, directions, U, block, progress, widest),
        )
        value, bound = log_partition(tilts, U, self.anchor, config.tolerance, DRAWS, config.seed, block, tick)
        moved = tilts.amounts * ((U[self.targets] @ directions.T) - tilts.centre)
        before = self.log_p[layer].gather(1, self.targets[:, None])
        # What is off by its bound must not be a probability above 1.
        after = (before + moved - value).clamp_max(0)
        return rise(before, after, config), bound if config.kind == "lps" else bound.expm1()
