"""Which neurons of a version are knowledge-general and which knowledge-specific.

An edit keeps the weights of its mask, not the kinds that made it, so its prompts are attributed again on the weights it
was planned on: the same model and settings give the same scores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from numpy.typing import NDArray
from torch import Tensor

from nmke.contexts import context_templates
from nmke.drift.versions import Version
from nmke.errors import DriftError
from nmke.masks import KINDS
from nmke.methods import get_method
from nmke.methods.nmke import NMKEConfig, find_masks
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.session import EditSession


def has_kinds(version: Version) -> bool:
    """Whether the version's neurons can be told apart by kind: its edits are kept and made masks."""
    return any(edit.masks for edit in version.edits)


def find_kinds(
    model: EditableModel, version: Version, progress: Progress | None = None
) -> Mapping[int, Int8[Tensor, " d_mlp"]]:
    """Per layer the kind of each neuron (:data:`nmke.masks.KINDS`), a neuron's kinds in all edits joined.

    Raises:
        DriftError: no edit of the version has masks, or the scores do not give the masks it was written with.
    """
    progress = progress or Silent()
    if not has_kinds(version):
        raise DriftError(
            f"{version.label} has no masks, so its neurons have no kinds.",
            "Colour by original and edited, or choose saved edits of NMKE.",
        )
    session = EditSession(model)
    kinds: dict[int, Tensor] = {}
    for number, edit in enumerate(version.edits):
        progress.update("scoring the edits' prompts", number, len(version.edits))
        if edit.masks:
            config = get_method(edit.method).config_class.make(**edit.config)
            if not isinstance(config, NMKEConfig):
                raise DriftError(f"The masks of {edit.method} know no kinds.", "Colour by mask instead.")
            templates = context_templates(model, config.context_seed, progress, config.context_text)
            for layer, mask in find_masks(session, edit.facts, templates, config, progress).items():
                if layer in edit.masks and not torch.equal(mask.weights > 0, edit.masks[layer].cpu() > 0):
                    raise DriftError(
                        f"Scoring edit {number + 1} again gives another mask in layer {layer}, so its kinds are not "
                        "known.",
                        "Open the edits on the device they were made on.",
                    )
                kinds[layer] = kinds[layer] | mask.kinds if layer in kinds else mask.kinds
        session.apply(edit)
    return kinds


def group_names(codes: Int8[Tensor, " d_mlp"]) -> NDArray[Any]:
    """The name of each neuron's kind, as figures colour it."""
    return np.array(KINDS)[codes.cpu().numpy()]
