"""MEMIT: many facts at once, weighed against what the layers do on ordinary text (Meng et al., arXiv 2210.07229).

Per layer ``X = (w C + K K^T)^-1 K R^T`` (eq. 14), ``C = E[k k^T]`` over a text, ``w`` how much it weighs. Earlier edits
are not protected: the published method knows no history. The keys of an edit are handed to the session all the same,
for methods that protect them.

Defaults are the authors' for GPT-J, but for the layers (theirs are 3 to 8 of 28). Their ``w`` of 15000 is for 10 000
facts an edit and for the keys of a large model; with one fact, or in a small model, it writes next to nothing.

One difference from the published code: ``C`` is made safely positive definite by what rounding may have taken from it
(:func:`nmke.solve.steadied`), so that a text shorter than the layer is wide still gives an update.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    LayersConfig,
    Stopwatch,
    edit_of,
    find_targets,
    guess_layers,
    prepare_layers,
    second_moments,
    write_layers,
)
from nmke.methods.solvers import LayerSolver, PriorRidge
from nmke.moments import StatisticsConfig
from nmke.progress import Progress
from nmke.session import EditSession


class MEMITConfig(LayersConfig):
    """Settings of MEMIT."""

    mom2_update_weight: float = Field(
        15_000.0,
        gt=0,
        title="Weight of the second moment",
        description="How much the keys of ordinary text weigh against the new ones; larger writes more timidly. Small "
        "models and few facts need far less than the published 15000.",
    )
    statistics: StatisticsConfig = Field(
        StatisticsConfig(),
        title="Statistics text",
        description="The text whose keys the update is weighed against; MEMIT cannot do without one.",
    )

    @field_validator("statistics")
    @classmethod
    def _there_is_a_text(cls, statistics: StatisticsConfig) -> StatisticsConfig:
        return needs_text(statistics, cls.__name__.removesuffix("Config"))


def needs_text(statistics: StatisticsConfig, who: str) -> StatisticsConfig:
    """Refuse statistics without a text, in a validator of settings."""
    if statistics.text == "none":
        raise ValueError(
            f"{who} weighs its update against the keys of ordinary text, so 'none' is not possible; "
            "choose 'wikipedia', a text file, or a method with a null space"
        )
    return statistics


class MEMIT(Method):
    """Mass editing by least squares."""

    name = "memit"
    title = "MEMIT"
    about = (
        "Writes many facts at once over several layers, weighed against what the layers do on ordinary text "
        "(Meng et al., ICLR 2023)."
    )
    config_class = MEMITConfig

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layers": guess_layers(n_layers)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: MEMITConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates = prepare_layers(session, facts, config, progress)
                moments = second_moments(session.model, config.statistics, config.layers, progress)
            assert moments is not None  # the settings refuse to be made without a text
            with watch.stage("target"):
                targets = find_targets(session, facts, templates, config, progress)
            solver = self._solver(config, moments)
            written = write_layers(session, facts, targets, templates, solver, {}, config, progress, watch)
        return edit_of(self.name, config, facts, written, targets, templates, watch)

    def _solver(self, config: Any, moments: Mapping[int, Tensor]) -> LayerSolver:
        return PriorRidge(moments, config.mom2_update_weight)
