"""NSE: neuron-level sequential editing (Jiang et al., arXiv 2410.04045).

MEMIT's layer loop with three changes, each meant for long sequences of edits:

- *Weights rewinding*: z is found with the model as it was loaded, not as the edits so far have made it.
- *Neuron selection*: per layer only the value vectors of the neurons ``S`` that fire hardest are written, those with
  the largest ``sum over facts |k|`` which together hold a share ``p`` of the whole sum. With the keys ``K_p`` of all
  edits in force protected, ``X[S] = (w C[S, S] + K_p[S] K_p[S]^T + K[S] K[S]^T)^-1 K[S] R^T``; other rows are zero.
- *Iteration*: passes over the layers are repeated for the facts whose output is still farther than ``alpha`` from z
  (and nearer than an upper bound, beyond which z is given up).

The procedure is that of the code published with AlphaEdit; defaults are its file for GPT-J (``p`` 0.8, ``alpha`` 15,
bound 100, ``w`` 15000), but for the layers (theirs are 3 to 8 of 28). Its file for LLaMA-3-8B has ``p`` 1, so all
neurons, ``alpha`` 2.5 and bound 50: distances are in the units of the model's residual stream. The published
``max_iterations`` of 3 are two passes here, since the third only looks.

Where this differs: ``C`` is made safely positive definite (:func:`nmke.solve.steadied`); a selection that would hold no
neuron, where the published code fails, holds the strongest one; facts given up are named, and an edit none of whose
facts can be written is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.keys import key_source
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    Stopwatch,
    Written,
    edit_of,
    guess_layers,
    prepare_layers,
    second_moments,
    write_layers,
)
from nmke.methods.memit import MEMITConfig
from nmke.methods.solvers import SelectedRidge
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.target import Target, optimise_targets


class NSEConfig(MEMITConfig):
    """Settings of NSE."""

    neuron_share: float = Field(
        0.8,
        gt=0,
        le=1,
        title="Neuron share p",
        description="The neurons written hold this share of a layer's activation on the facts; 1 writes all.",
    )
    alpha: float = Field(
        15.0,
        ge=0,
        title="Distance alpha",
        description="Facts whose output is nearer to z than this count as written. In units of the residual stream, "
        "so it differs between models.",
    )
    upper_bound: float = Field(
        100.0,
        gt=0,
        title="Upper bound",
        description="Facts whose output is farther from z than this are given up, in the same units.",
    )
    passes: int = Field(
        2,
        ge=1,
        le=20,
        title="Passes",
        description="Most passes over the layers; only facts not yet written go on.",
    )

    @model_validator(mode="after")
    def _there_is_room_between(self) -> "NSEConfig":
        if self.alpha >= self.upper_bound:
            raise ValueError(
                f"alpha ({self.alpha:g}) must lie under the upper bound ({self.upper_bound:g}), or nothing is written"
            )
        return self


def strongest(K: Float[Tensor, "d_mlp fact"], share: float) -> Bool[Tensor, " d_mlp"]:
    """The neurons with the largest ``sum over facts |k|``, as many as hold no more than ``share`` of its whole."""
    score = K.double().abs().sum(1)
    order = score.argsort(descending=True, stable=True)
    kept = torch.ones(len(score), dtype=torch.bool, device=K.device)
    if share < 1:  # rounding of the sum must not drop the last one of all
        kept[order] = score[order].cumsum(0) <= share * score.sum()
    kept[order[0]] = True
    return kept


class StrongestRidge(SelectedRidge):
    """:class:`SelectedRidge` by the prior, for the neurons that :func:`strongest` finds in the keys it is given."""

    def __init__(
        self, session: EditSession, moments: Mapping[int, Tensor], weight: float, share: float
    ) -> None:
        super().__init__(session, {}, moments, 0.0, None, weight)
        self.share = share
        self._share_kept: dict[int, float] = {}

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        chosen = strongest(K, self.share)
        self._selected = {layer: chosen}
        self._share_kept[layer] = float(chosen.double().mean())
        return super().solve(layer, K, R)

    def figures(self, layer: int) -> dict[str, float]:
        return {"neurons_kept": self._share_kept[layer]}


@dataclass
class _Scratch:
    """The session as the passes so far would make it; ends with the plan.

    Attributes:
        session: a session of its own, whose edits are the real one's and then the passes.
        written: what each pass wrote.
    """

    session: EditSession
    written: list[Written] = field(default_factory=list)

    @classmethod
    def beside(cls, session: EditSession) -> "_Scratch":
        return cls(EditSession.restored(session.model, session.edits, *session.state()))

    def add(self, written: Written) -> None:
        self.session.apply(Edit("nse", {}, (), written.patches, {}))
        self.written.append(written)

    def patches(self) -> tuple[WeightPatch, ...]:
        """All passes as one patch a layer."""
        by_layer: dict[int, list[WeightPatch]] = {}
        for written in self.written:
            for patch in written.patches:
                by_layer.setdefault(patch.layer, []).append(patch)
        return tuple(
            WeightPatch(
                layer, torch.cat([p.left for p in parts], dim=1), torch.cat([p.right for p in parts], dim=0)
            )
            for layer, parts in by_layer.items()
        )


class NSE(Method):
    """Neuron-level sequential editing."""

    name = "nse"
    title = "NSE"
    about = (
        "Writes only the neurons that fire hardest, towards outputs found with the unedited model, in repeated passes "
        "(Jiang et al., 2024)."
    )
    config_class = NSEConfig

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layers": guess_layers(n_layers)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: NSEConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates = prepare_layers(session, facts, config, progress)
                moments = second_moments(session.model, config.statistics, config.layers, progress)
            assert moments is not None  # the settings refuse to be made without a text
            with watch.stage("target"), session.original():
                targets = optimise_targets(
                    session.model, facts, config.layers[-1], templates, config.target, progress
                )
            written = self._write(session, facts, targets, templates, moments, config, progress, watch)
        return edit_of(self.name, config, facts, written, targets, templates, watch)

    def _write(
        self,
        session: EditSession,
        facts: Sequence[Fact],
        targets: Sequence[Target],
        templates: Sequence[str],
        moments: Mapping[int, Tensor],
        config: NSEConfig,
        progress: Progress,
        watch: Stopwatch,
    ) -> Written:
        """Passes over the layers until every fact is near enough to its z, or given up."""
        scratch, far = _Scratch.beside(session), []
        for number in range(config.passes + 1):
            with watch.stage("keys"):
                keys, now = read_keys(scratch.session, facts, config.layers, templates)
            far.append([float((t.z - out).norm()) for t, out in zip(targets, now.T, strict=True)])
            chosen = [n for n, distance in enumerate(far[-1]) if config.alpha < distance < config.upper_bound]
            if number == 0:
                _require_within(facts, far[0], config.upper_bound)
            if not chosen or number == config.passes:
                break
            solver = StrongestRidge(scratch.session, moments, config.mom2_update_weight, config.neuron_share)
            some = [facts[n] for n in chosen], [targets[n] for n in chosen]
            scratch.add(write_layers(scratch.session, *some, templates, solver, {}, config, progress, watch))
        given_up = [
            fact.subject for fact, last in zip(facts, far[-1], strict=True) if last >= config.upper_bound
        ]
        details = {
            "layers": scratch.written[-1].details["layers"] if scratch.written else [],
            "ran": {"target": targets[0].ran},
            "passes": len(scratch.written),
            "distances": far,
            "given_up": given_up,
        }
        return Written(scratch.patches(), keys, details)


@torch.no_grad()
def read_keys(
    session: EditSession, facts: Sequence[Fact], layers: Sequence[int], templates: Sequence[str]
) -> tuple[dict[int, Float[Tensor, "d_mlp fact"]], Float[Tensor, "d_model fact"]]:
    """Every layer's keys, and the last layer's output, with the session's weights."""
    source = key_source(session, facts, layers, templates)
    found = {layer: source.at(layer, {}) for layer in layers}
    return {layer: each.K for layer, each in found.items()}, found[layers[-1]].output


def _require_within(facts: Sequence[Fact], distances: Sequence[float], bound: float) -> None:
    """Refuse an edit in which every fact's z lies out of bounds.

    Raises:
        EditError: naming the nearest.
    """
    if min(distances) >= bound:
        nearest = facts[distances.index(min(distances))].subject
        raise EditError(
            f"The wanted output for {nearest!r} is {min(distances):.3g} away, beyond the upper bound of {bound:g}; "
            "nothing was written.",
            "Raise the upper bound, or lower the clamp factor of the z optimisation.",
        )
