"""NMKE: AlphaEdit's update, of which only the selected neurons' columns are kept (arXiv 2510.22139, section 3).

Attribution runs once per edit, on the edit prompt and its five contexts, before any layer is changed; every layer has
its own mask. The history receives the full, unmasked keys, as in the authors' code.

Beyond the paper, for the same masks (:mod:`nmke.methods.solvers`):

- ``mask_acts="in the solve"``: the update is solved for the selected neurons alone, with their keys, their history and
  their part of the second moment, instead of solving for all and throwing a part of the solution away.
- ``protection="prior"``: ordinary text weighs against the update by ``prior_weight * C``, as in MEMIT, where the null
  space forbids directions altogether.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from nmke.attribution import AttributionConfig, attribute, prompts_of
from nmke.edit import Edit
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.masks import LayerMask, MaskConfig, build_masks
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    ClosedFormConfig,
    Stopwatch,
    edit_of,
    find_targets,
    guess_layers,
    null_spaces,
    prepare_layers,
    second_moments,
    write_layers,
)
from nmke.methods.memit import needs_text
from nmke.methods.solvers import LayerSolver, NullSpaceRidge, PriorRidge, SelectedRidge
from nmke.moments import NullSpace
from nmke.progress import Progress
from nmke.session import EditSession


class NMKEConfig(ClosedFormConfig):
    """Settings of NMKE; defaults are the authors' for Llama-like models."""

    attribution: AttributionConfig = Field(
        AttributionConfig(), title="Attribution", description="How neurons are scored."
    )
    mask: MaskConfig = Field(MaskConfig(), title="Mask", description="Which neurons the update is kept for.")
    mask_acts: Literal["on the update", "in the solve"] = Field(
        "on the update",
        title="Mask acts",
        description="'on the update' solves for all neurons and keeps the selected ones' part (as published). 'in the "
        "solve' solves for the selected neurons alone, which reaches the target better; of a soft mask, every neuron "
        "with a weight above 0 counts as selected.",
    )
    protection: Literal["null space", "prior"] = Field(
        "null space",
        title="Protection",
        description="'null space' keeps the update out of directions that ordinary text uses (as published). 'prior' "
        "weighs ordinary text against the update instead, as MEMIT does; the threshold is then not used.",
    )
    prior_weight: float = Field(
        15.0,
        gt=0,
        title="Prior weight",
        description="How much ordinary text weighs with the prior; larger writes more timidly.",
    )

    @model_validator(mode="after")
    def _a_prior_has_its_text(self) -> "NMKEConfig":
        if self.protection == "prior":
            needs_text(self.statistics, "the prior")
        return self


class NMKE(Method):
    """Neuron-level masked knowledge editing."""

    name = "nmke"
    title = "NMKE"
    about = (
        "Writes facts with AlphaEdit's null-space update, kept only for the knowledge-general and knowledge-specific "
        "neurons (Liu et al., NeurIPS 2025)."
    )
    config_class = NMKEConfig

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layers": guess_layers(n_layers)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: NMKEConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates = prepare_layers(session, facts, config, progress)
                protection = protection_of(session, config, progress)
            with watch.stage("attribution"):
                kept, described = kept_neurons(session, facts, templates, config, progress)
            if not any(bool(weight.any()) for weight in kept.values()):
                raise EditError(
                    "The masks keep no neuron in any layer, so nothing would be written.",
                    "Raise the shares of neurons selected, or keep another kind of neuron.",
                )
            with watch.stage("target"):
                targets = find_targets(session, facts, templates, config, progress)
            weights = kept
            if config.mask_acts == "in the solve":
                weights = {layer: (weight > 0).float() for layer, weight in kept.items()}
            solver = solver_of(session, config, protection, weights)
            written = write_layers(
                session, facts, targets, templates, solver, weights, config, progress, watch
            )
        return edit_of(
            self.name, config, facts, written, targets, templates, watch, weights, {"masks": described}
        )


def protection_of(
    session: EditSession, config: NMKEConfig, progress: Progress
) -> Mapping[int, NullSpace] | Mapping[int, Tensor] | None:
    """Null spaces of whole layers, or the second moments that the other solves start from."""
    if config.mask_acts == "on the update" and config.protection == "null space":
        return null_spaces(session.model, config, config.layers, progress)
    return second_moments(session.model, config.statistics, config.layers, progress)


def solver_of(
    session: EditSession, config: NMKEConfig, protection: Any, weights: Mapping[int, Tensor]
) -> LayerSolver:
    """How a layer is solved for under these settings.

    Args:
        protection: of :func:`protection_of`.
        weights: per layer what the mask weighs each neuron with [d_mlp]; above 0 counts as selected.
    """
    by_prior = config.protection == "prior"
    if config.mask_acts == "in the solve":
        selected = {layer: weight > 0 for layer, weight in weights.items()}
        threshold = None if by_prior else config.null_space_threshold
        return SelectedRidge(session, selected, protection, config.ridge, threshold, config.prior_weight)
    if by_prior:
        return PriorRidge(protection, config.prior_weight, config.ridge, session)
    return NullSpaceRidge(session, protection, config.ridge)


def kept_neurons(
    session: EditSession,
    facts: Sequence[Fact],
    templates: Sequence[str],
    config: NMKEConfig,
    progress: Progress,
) -> tuple[dict[int, Tensor], dict[int, dict[str, Any]]]:
    """Per edited layer what the mask weighs each neuron with [d_mlp], and the mask's figures.

    Nothing is attributed where the mask keeps every neuron whatever its score.
    """
    if config.mask.keeps_everything:
        count = session.model.d_mlp
        everything = {layer: torch.ones(count) for layer in config.layers}
        return everything, {layer: {"neurons": count, "attributed": False} for layer in config.layers}
    masks = find_masks(session, facts, templates, config, progress)
    weights = {layer: mask.weights for layer, mask in masks.items()}
    return weights, {layer: describe_mask(mask) for layer, mask in masks.items()}


def find_masks(
    session: EditSession,
    facts: Sequence[Fact],
    templates: Sequence[str],
    config: NMKEConfig,
    progress: Progress,
) -> dict[int, LayerMask]:
    """Attribute the facts' prompts under every context and select each edited layer's neurons."""
    prompts = prompts_of(facts, templates, config.attribution.target)
    with session.active():
        found = attribute(session.model, prompts, config.layers, config.attribution, progress)
    return build_masks(found, config.mask)


def describe_mask(mask: LayerMask) -> dict[str, Any]:
    """The mask's figures, without its tensors."""
    figures = {name: value for name, value in vars(mask).items() if not isinstance(value, Tensor)}
    return {
        **figures,
        "neurons": mask.count,
        "general": int(mask.general.sum()),
        "specific": int(mask.specific.sum()),
    }
