"""EMMET: many facts at once under an equality constraint (Gupta et al., arXiv 2403.14236).

Per layer ``X = C'^-1 K (K^T C'^-1 K + lambda I)^-1 R^T``, ``C' = w C + nu I``: the update that maps every key exactly
to its target and moves ordinary keys least, softened by ``lambda``. One key and ``lambda = 0`` is ROME's update with
the target at a layer's output.

By the push-through identity this is ``(lambda C' + K K^T)^-1 K R^T``: for ``lambda > 0`` EMMET *is* MEMIT with the
weight ``lambda w`` (and a ridge). The two differ only in their defaults and at ``lambda = 0``; a test holds both forms
together.

Defaults are the published code's for Llama-7B: layers 4 to 8, ``lambda`` 0.1, ``w`` 1, ``nu`` 0, clamp 4, 25 steps at
0.5.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from nmke.methods.memit import MEMIT, MEMITConfig
from nmke.methods.solvers import EqualityPrior, LayerSolver
from nmke.target import TargetConfig


class EMMETConfig(MEMITConfig):
    """Settings of EMMET."""

    emmet_lambda: float = Field(
        0.1,
        ge=0,
        title="Softening lambda",
        description="0 maps every key exactly to its target; larger lets several alike keys share a gentler update.",
    )
    mom2_update_weight: float = Field(
        1.0,
        gt=0,
        title="Weight of the second moment",
        description="How much the keys of ordinary text weigh against the new ones.",
    )
    update_norm_lambda: float = Field(
        0.0,
        ge=0,
        title="Ridge nu",
        description="Added to the diagonal of the weighed second moment; larger keeps the update smaller.",
    )
    target: TargetConfig = Field(
        TargetConfig(clamp_norm_factor=4.0, weight_decay=1e-3),
        title="z optimisation",
        description="How the wanted output is found.",
    )


class EMMET(MEMIT):
    """Mass editing under equality constraints."""

    name = "emmet"
    title = "EMMET"
    about = (
        "Writes many facts at once, each key mapped to its target while ordinary text moves least "
        "(Gupta et al., Findings of EMNLP 2024)."
    )
    config_class = EMMETConfig

    def _solver(self, config: EMMETConfig, moments: Mapping[int, Tensor]) -> LayerSolver:
        return EqualityPrior(
            moments, config.mom2_update_weight, config.update_norm_lambda, config.emmet_lambda
        )
