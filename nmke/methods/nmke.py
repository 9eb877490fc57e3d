"""NMKE: AlphaEdit's update, of which only the selected neurons' columns are kept (arXiv 2510.22139, section 3).

Attribution runs once per edit, on the edit prompt and its five contexts, before any layer is changed; every layer has
its own mask. The history receives the full, unmasked keys, as in the authors' code.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from nmke.attribution import AttributionConfig, attribute, prompts_of
from nmke.edit import Edit
from nmke.facts import Fact
from nmke.masks import LayerMask, MaskConfig, build_masks
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    ClosedFormConfig,
    Stopwatch,
    find_targets,
    guess_layers,
    prepare,
    write_layers,
)
from nmke.progress import Progress
from nmke.session import EditSession


class NMKEConfig(ClosedFormConfig):
    """Settings of NMKE; defaults are the authors' for Llama-like models."""

    attribution: AttributionConfig = Field(
        AttributionConfig(), title="Attribution", description="How neurons are scored."
    )
    mask: MaskConfig = Field(MaskConfig(), title="Mask", description="Which neurons the update is kept for.")


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
                templates, spaces = prepare(session, facts, config, progress)
            with watch.stage("attribution"):
                masks = find_masks(session, facts, templates, config, progress)
            with watch.stage("target"):
                targets = find_targets(session, facts, templates, config, progress)
            weights = {layer: mask.weights for layer, mask in masks.items()}
            written = write_layers(
                session, facts, targets, templates, spaces, weights, config, progress, watch
            )
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=written.patches,
            keys=written.keys,
            masks=weights,
            seconds=watch.seconds,
            details={
                **written.details,
                "masks": {layer: describe_mask(mask) for layer, mask in masks.items()},
                "target_probability": [target.probabilities[-1] for target in targets],
                "target_steps": [len(target.losses) for target in targets],
                "templates": list(templates),
            },
        )


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
