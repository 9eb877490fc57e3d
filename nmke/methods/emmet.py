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

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    LayersConfig,
    Stopwatch,
    edit_of,
    find_targets,
    guess_layers,
    prepare_facts,
    second_moments,
    write_layers,
)
from nmke.methods.memit import needs_text
from nmke.methods.solvers import EqualityPrior
from nmke.moments import StatisticsConfig
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.target import TargetConfig


class EMMETConfig(LayersConfig):
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
    statistics: StatisticsConfig = Field(
        StatisticsConfig(),
        title="Statistics text",
        description="The text whose keys the update moves least; EMMET cannot do without one.",
    )

    @field_validator("statistics")
    @classmethod
    def _there_is_a_text(cls, statistics: StatisticsConfig) -> StatisticsConfig:
        return needs_text(statistics, "EMMET")


class EMMET(Method):
    """Mass editing under equality constraints."""

    name = "emmet"
    title = "EMMET"
    about = (
        "Writes many facts at once, each key mapped to its target while ordinary text moves least "
        "(Gupta et al., Findings of EMNLP 2024)."
    )
    config_class = EMMETConfig

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layers": guess_layers(n_layers)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: EMMETConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates = prepare_facts(session, facts, config.layers, config.context_seed, progress)
                moments = second_moments(session.model, config.statistics, config.layers, progress)
            assert moments is not None  # the settings refuse to be made without a text
            with watch.stage("target"):
                targets = find_targets(session, facts, templates, config, progress)
            solver = EqualityPrior(
                moments, config.mom2_update_weight, config.update_norm_lambda, config.emmet_lambda
            )
            written = write_layers(session, facts, targets, templates, solver, {}, config, progress, watch)
        return edit_of(self.name, config, facts, written, targets, templates, watch)
