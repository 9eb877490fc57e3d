"""What a session's edits have made of the model: an immutable value, from which an edit makes the next one.

States share what did not change between them. A matrix is replaced, never written, so a state that is still held is
the model of that time to the bit.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.edit import Edit
from nmke.errors import EditError
from nmke.model import EditableModel
from nmke.modules import ModulePatch
from nmke.prompting import PromptPatch


@dataclass(frozen=True)
class EditedState:
    """The changed matrices [d_mlp, d_model] in float32, the same in the model's own form and type, what stands beside
    layers, and what stands in front of every text."""

    masters: Mapping[int, Tensor] = field(default_factory=dict)
    stored: Mapping[int, Tensor] = field(default_factory=dict)
    modules: Mapping[int, ModulePatch] = field(default_factory=dict)
    prompt: PromptPatch | None = None

    @classmethod
    def of(
        cls,
        model: EditableModel,
        masters: Mapping[int, Float[Tensor, "d_mlp d_model"]],
        modules: Mapping[int, ModulePatch],
        prompt: PromptPatch | None,
    ) -> "EditedState":
        """The state with these matrices and modules, each brought where its layer computes."""
        masters = {layer: matrix.to(model.device) for layer, matrix in masters.items()}
        stored = {layer: model.as_stored(layer, matrix) for layer, matrix in masters.items()}
        return cls(masters, stored, {layer: _placed(model, each) for layer, each in modules.items()}, prompt)

    def after(self, edit: Edit, model: EditableModel) -> "EditedState":
        """The state once the edit is in force too.

        Raises:
            EditError: when the edit is not finite or does not fit the model.
        """
        edit.require_finite()
        masters, stored = dict(self.masters), dict(self.stored)
        for patch in edit.patches:
            master = masters[patch.layer] if patch.layer in masters else loaded_matrix(model, patch.layer)
            if patch.left.shape[0] != master.shape[0] or patch.right.shape[1] != master.shape[1]:
                raise EditError(
                    f"The edit's update of layer {patch.layer} is for {patch.left.shape[0]} neurons of width "
                    f"{patch.right.shape[1]}; this model has {master.shape[0]} of width {master.shape[1]}.",
                    "Load the model the edit was made for.",
                )
            masters[patch.layer] = patch.added_to(master)
            stored[patch.layer] = model.as_stored(patch.layer, masters[patch.layer])
            if not torch.isfinite(stored[patch.layer]).all():
                raise EditError(
                    f"Layer {patch.layer} would overflow in {model.dtype}; the edit was refused.",
                    "Load the model in bfloat16 or float32.",
                )
        modules = {**self.modules, **{module.layer: _placed(model, module) for module in edit.modules}}
        return EditedState(masters, stored, modules, self.prompt if edit.prompt is None else edit.prompt)

    def size(self) -> int:
        """Bytes of all its tensors."""
        tensors = [*self.masters.values(), *self.stored.values()]
        tensors += [tensor for module in self.modules.values() for tensor in module.tensors.values()]
        tensors += self.prompt.tensors.values() if self.prompt is not None else ()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def digest(self) -> str:
        """SHA-256 of what decides what the model computes: stored matrices, modules and prompt, with their settings."""
        named = [(f"{layer}", self.stored[layer]) for layer in sorted(self.stored)]
        digest = hashlib.sha256()
        for layer in sorted(self.modules):
            module = self.modules[layer]
            named += [(f"{layer}.{name}", value) for name, value in sorted(module.tensors.items())]
            # A threshold decides what is computed as much as a matrix does.
            digest.update(json.dumps([layer, module.kind, module.settings], sort_keys=True).encode())
        if self.prompt is not None:
            named += [(f"prompt.{name}", value) for name, value in sorted(self.prompt.tensors.items())]
            digest.update(json.dumps([self.prompt.kind, self.prompt.settings], sort_keys=True).encode())
        for name, tensor in named:
            flat = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
            digest.update(name.encode())
            digest.update(flat.numpy().data)  # without a copy: these may be gigabytes
        return digest.hexdigest()


def loaded_matrix(model: EditableModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The layer's down projection as the model was loaded, float32, whatever edits are in force. Do not write."""
    with model.weights_in({}):
        return model.W_out(layer).float()


def _placed(model: EditableModel, module: ModulePatch) -> ModulePatch:
    """The module where its layer computes, so that running it moves nothing."""
    return module.on(model.down_projection(module.layer).device)
