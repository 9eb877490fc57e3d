"""What a method hands back: a small description of a change, not the changed model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.errors import EditError
from nmke.facts import Fact
from nmke.modules import ModulePatch
from nmke.prompting import PromptPatch


@dataclass(frozen=True)
class WeightPatch:
    """A change of one layer's down projection, ``W_out += left @ right``.

    Attributes:
        layer: which layer.
        left: for the closed forms one column per fact [d_mlp, rank], float32; rows of neurons left alone are zero.
        right: [rank, d_model], float32.
    """

    layer: int
    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "rank d_model"]

    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.left @ self.right

    def added_to(self, W_out: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """The changed down projection, a new float32 tensor where ``W_out`` lies."""
        # Multiplied where the matrix lies: a saved edit's factors come back on the CPU, which rounds differently.
        return W_out + self.left.to(W_out.device) @ self.right.to(W_out.device)

    @property
    def neurons(self) -> int:
        """How many neurons' value vectors change."""
        return int((self.left != 0).any(1).sum())


@dataclass(frozen=True)
class Edit:
    """One planned edit: everything needed to apply it, undo it, save it and explain it.

    Attributes:
        method: the registry name of the method.
        config: its settings as plain values.
        facts: what is written in.
        patches: the weight changes, one a layer.
        keys: per layer the keys that join the history [d_mlp, fact].
        masks: per layer the weight of each neuron in the mask [d_mlp], empty for methods without masks.
        seconds: time per stage.
        details: figures of the computation for display (losses, kept shares, ratios), JSON values only.
        modules: what stands beside layers' down projections after this edit, at most one a layer, in the place of
            what an earlier edit put there.
        prompt: what stands in front of every text after this edit, in the place of what an earlier edit put there.
    """

    method: str
    config: Mapping[str, Any]
    facts: tuple[Fact, ...]
    patches: tuple[WeightPatch, ...]
    keys: Mapping[int, Float[Tensor, "d_mlp fact"]]
    masks: Mapping[int, Float[Tensor, " d_mlp"]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[ModulePatch, ...] = ()
    prompt: PromptPatch | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose weights change."""
        return tuple(patch.layer for patch in self.patches)

    def require_finite(self) -> None:
        """Refuse an edit that would break the model.

        Raises:
            EditError: when any number in it is not finite.
        """
        for patch in self.patches:
            if not (torch.isfinite(patch.left).all() and torch.isfinite(patch.right).all()):
                raise EditError(
                    f"The update of layer {patch.layer} is not finite; the edit was refused and nothing was changed.",
                    "Lower the learning rate, or raise the ridge L2 or the weight of the second moment.",
                )
        for module in self.modules:
            module.require_finite()
        if self.prompt is not None:
            self.prompt.require_finite()

    def changes(self, W_out: Mapping[int, Tensor]) -> list[dict[str, int | float]]:
        """Per layer: neurons and parameters changed and the size of the change.

        Args:
            W_out: the down projections before the edit [d_mlp, d_model], for the relative norm.
        """
        return [
            {
                "layer": patch.layer,
                "neurons": patch.neurons,
                "parameters": patch.neurons * patch.right.shape[1],
                "norm": float(patch.matrix().norm()),
                "relative_norm": float(patch.matrix().norm() / W_out[patch.layer].float().norm()),
            }
            for patch in self.patches
        ]
