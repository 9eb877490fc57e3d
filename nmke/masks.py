"""Knowledge-general and knowledge-specific neurons, and the mask they make (NMKE, section 3.3).

From one layer's scores ``A`` [prompt, d_mlp], with ``z`` the rows standardised over neurons::

    S_gen(i)  = sum_j [z_ji > 0]                    in how many prompts neuron i is above average
    S_spec(i) = max_j A_ji                          its largest score on any one prompt
    H_gen     = mean_j H(softmax(alpha A_j)) / ln D         in [0, 1]
    H_spec    = H(max(S_spec, 0) / sum) / ln D              in [0, 1]
    rho       = low + (high - low) H ** gamma       the share selected

A neuron is selected when its score is at or above the ``1 - rho`` quantile of its kind.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int8
from pydantic import Field, model_validator
from torch import Tensor

from nmke.attribution import Attribution
from nmke.config import Config
from nmke.errors import FactError

KINDS = ("none", "general", "specific", "both")
_LOG_FLOOR = 1e-8
_STD_FLOOR = 1e-6

Variant = Literal["union", "overlap", "non_overlap", "general", "specific", "soft"]


class MaskConfig(Config):
    """Every knob of the selection; defaults are the authors'."""

    alpha: float = Field(
        30.0,
        gt=0,
        le=10000,
        title="Temperature alpha",
        description="How sharply a prompt's scores are turned into a distribution before its entropy is taken.",
    )
    general_low: float = Field(
        0.3, ge=0, le=1, title="General: lowest share", description="Share selected as general at entropy 0."
    )
    general_high: float = Field(
        0.4, ge=0, le=1, title="General: highest share", description="Share selected as general at entropy 1."
    )
    general_gamma: float = Field(
        3.0,
        gt=0,
        le=20,
        title="General: exponent gamma",
        description="Bends the way from lowest to highest share.",
    )
    specific_low: float = Field(
        0.3,
        ge=0,
        le=1,
        title="Specific: lowest share",
        description="Share selected as specific at entropy 0.",
    )
    specific_high: float = Field(
        0.4,
        ge=0,
        le=1,
        title="Specific: highest share",
        description="Share selected as specific at entropy 1.",
    )
    specific_gamma: float = Field(
        2.0,
        gt=0,
        le=20,
        title="Specific: exponent gamma",
        description="Bends the way from lowest to highest share.",
    )
    ties: Literal["all", "score"] = Field(
        "all",
        title="Ties at the threshold",
        description="General scores are counts, so many are equal: 'all' takes every neuron at the threshold (the "
        "published behaviour), 'score' breaks ties by mean score and takes exactly the share asked for.",
    )
    variant: Variant = Field(
        "union",
        title="Neurons kept",
        description="Which kinds the mask keeps: union of both, only their overlap, only the non-overlap, one kind, "
        "or soft: every neuron, scaled by its normalised score.",
    )

    @property
    def keeps_everything(self) -> bool:
        """Whether every neuron is kept whatever its score, so that none needs to be known."""
        general, specific = self.general_low == 1, self.specific_low == 1
        return {
            "union": general or specific,
            "overlap": general and specific,
            "general": general,
            "specific": specific,
        }.get(self.variant, False)

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> "MaskConfig":
        for kind in ("general", "specific"):
            low, high = getattr(self, f"{kind}_low"), getattr(self, f"{kind}_high")
            if low > high:
                raise ValueError(
                    f"the {kind} neurons' lowest share {low} is above their highest share {high}"
                )
        return self


@dataclass(frozen=True)
class LayerMask:
    """One layer's neurons by kind.

    Attributes:
        general, specific: which neurons are selected as each kind [d_mlp].
        kinds: 0 none, 1 general, 2 specific, 3 both [d_mlp]; ``KINDS`` names them.
        weights: what the solved update is multiplied with, per neuron [d_mlp].
        general_score, specific_score: ``S_gen`` and ``S_spec`` [d_mlp].
        rho_general, rho_specific: the share asked for.
        entropy_general, entropy_specific: ``H_gen`` and ``H_spec``.
        general_cut, specific_cut: the thresholds (the lowest selected score where ties are broken by score).
    """

    general: Bool[Tensor, " d_mlp"]
    specific: Bool[Tensor, " d_mlp"]
    kinds: Int8[Tensor, " d_mlp"]
    weights: Float[Tensor, " d_mlp"]
    general_score: Float[Tensor, " d_mlp"]
    specific_score: Float[Tensor, " d_mlp"]
    rho_general: float
    rho_specific: float
    entropy_general: float
    entropy_specific: float
    general_cut: float
    specific_cut: float

    @property
    def count(self) -> int:
        """Number of neurons whose update is kept."""
        return int((self.weights != 0).sum())


def standardise(scores: Float[Tensor, "prompt d_mlp"]) -> Float[Tensor, "prompt d_mlp"]:
    """Each row to mean 0 and (unbiased) deviation 1 over neurons."""
    return (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + _STD_FLOOR)


def general_score(scores: Float[Tensor, "prompt d_mlp"]) -> Float[Tensor, " d_mlp"]:
    """``S_gen``: in how many prompts the neuron's standardised score is positive."""
    return (standardise(scores) > 0).sum(0).float()


def specific_score(scores: Float[Tensor, "prompt d_mlp"]) -> Float[Tensor, " d_mlp"]:
    """``S_spec``: the neuron's largest raw score over prompts."""
    return scores.max(0).values


def _normalised_entropy(p: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch"]:
    return -(p * (p + _LOG_FLOOR).log()).sum(-1) / math.log(p.shape[-1])


def general_entropy(scores: Float[Tensor, "prompt d_mlp"], alpha: float) -> float:
    """``H_gen``: mean normalised entropy of ``softmax(alpha A_j)`` over neurons."""
    p = (alpha * (scores - scores.max(1, keepdim=True).values)).softmax(1)
    return float(_normalised_entropy(p).mean().clamp(0, 1))


def specific_entropy(specific: Float[Tensor, " d_mlp"]) -> float:
    """``H_spec``: normalised entropy of the positive specific scores; 0 where there are none."""
    positive = specific.clamp_min(0)
    total = positive.sum()
    if total <= _LOG_FLOOR:
        return 0.0
    return float(_normalised_entropy(positive / total).clamp(0, 1))


def ratio(entropy: float, low: float, high: float, gamma: float) -> float:
    """``rho = low + (high - low) H ** gamma``: the share of neurons selected."""
    return low + (high - low) * entropy**gamma


def select(
    score: Float[Tensor, " d_mlp"],
    rho: float,
    ties: Literal["all", "score"],
    tie_break: Float[Tensor, " d_mlp"],
) -> tuple[Bool[Tensor, " d_mlp"], float]:
    """The neurons at or above the ``1 - rho`` quantile, and that threshold.

    With ``ties="score"`` exactly ``round(rho * d_mlp)`` neurons, equal scores ordered by ``tie_break``.
    """
    if ties == "all":
        cut = torch.quantile(score, 1 - rho)
        return score >= cut, float(cut)
    wanted = round(rho * len(score))
    by_tie_break = tie_break.argsort(descending=True, stable=True)
    order = by_tie_break[score[by_tie_break].argsort(descending=True, stable=True)]
    chosen = torch.zeros(len(score), dtype=torch.bool)
    chosen[order[:wanted]] = True
    return chosen, float(score[order[wanted - 1]]) if wanted else math.inf


def soft_weights(
    general: Float[Tensor, " d_mlp"], specific: Float[Tensor, " d_mlp"], n_prompts: int
) -> Float[Tensor, " d_mlp"]:
    """Soft mask: the larger of both scores, each normalised to [0, 1] (counts by prompts, S_spec by its maximum)."""
    positive = specific.clamp_min(0)
    return torch.maximum(general / n_prompts, positive / positive.max().clamp_min(_LOG_FLOOR))


def build_mask(scores: Float[Tensor, "prompt d_mlp"], config: MaskConfig | None = None) -> LayerMask:
    """Select one layer's neurons from its scores; never attributes again.

    Raises:
        FactError: when there are no prompts.
    """
    config = config or MaskConfig()
    if scores.ndim != 2 or len(scores) == 0:
        raise FactError("There are no scores to select neurons from.", "Attribute at least one prompt first.")
    scores = torch.nan_to_num(scores.float().cpu())
    s_gen, s_spec, mean = general_score(scores), specific_score(scores), scores.mean(0)
    h_gen, h_spec = general_entropy(scores, config.alpha), specific_entropy(s_spec)
    rho_gen = ratio(h_gen, config.general_low, config.general_high, config.general_gamma)
    rho_spec = ratio(h_spec, config.specific_low, config.specific_high, config.specific_gamma)
    general, general_cut = select(s_gen, rho_gen, config.ties, mean)
    specific, specific_cut = select(s_spec, rho_spec, config.ties, mean)
    return LayerMask(
        general=general,
        specific=specific,
        kinds=general.to(torch.int8) + 2 * specific.to(torch.int8),
        weights=_weights(config.variant, general, specific, s_gen, s_spec, len(scores)),
        general_score=s_gen,
        specific_score=s_spec,
        rho_general=rho_gen,
        rho_specific=rho_spec,
        entropy_general=h_gen,
        entropy_specific=h_spec,
        general_cut=general_cut,
        specific_cut=specific_cut,
    )


def build_masks(attribution: Attribution, config: MaskConfig | None = None) -> dict[int, LayerMask]:
    """One mask per attributed layer."""
    return {layer: build_mask(attribution.scores[layer], config) for layer in attribution.layers}


def _weights(
    variant: Variant, general: Tensor, specific: Tensor, s_gen: Tensor, s_spec: Tensor, n_prompts: int
) -> Tensor:
    if variant == "soft":
        return soft_weights(s_gen, s_spec, n_prompts)
    chosen = {
        "union": general | specific,
        "overlap": general & specific,
        "non_overlap": general ^ specific,
        "general": general,
        "specific": specific,
    }[variant]
    return chosen.float()
