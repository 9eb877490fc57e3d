"""Neurons whose activations are fixed: what :meth:`nmke.model.EditableModel.holding` puts in front of a projection."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nmke.errors import ModelError

if TYPE_CHECKING:
    from nmke.model import EditableModel

#: Neurons of a layer, and the activation they are held at: one number, or one for each.
Held = tuple[Sequence[int] | Int[Tensor, " held"], float | Float[Tensor, " held"]]


def held_at(model: "EditableModel", layer: int, held: Held) -> Callable[..., tuple[Any, ...]]:
    """A hook for the down projection's module, in front of its forward, that fixes those of its inputs.

    Raises:
        ModelError: a layer or neuron the model does not have, as many values as there are not neurons, or a value that
            is no number.
    """
    model.check_layers([layer])
    neurons, values = (
        torch.as_tensor(held[0], dtype=torch.long),
        torch.as_tensor(held[1], dtype=torch.float32),
    )
    if int(neurons.min()) < 0 or int(neurons.max()) >= model.d_mlp:
        wrong = int(neurons.max()) if int(neurons.max()) >= model.d_mlp else int(neurons.min())
        raise ModelError(
            f"Layer {layer} of {model.name} has no neuron {wrong}; its neurons are 0 to {model.d_mlp - 1}.",
            "Choose neurons in that range.",
        )
    if (values.ndim and values.shape != neurons.shape) or not torch.isfinite(values).all():
        raise ModelError(
            f"The activations to hold in layer {layer} are not one number each for {len(neurons)} neurons.",
            "Give one number for all of them, or one for each.",
        )
    parameter = model.down_projection(layer)
    return _holding(neurons.to(parameter.device), values.to(parameter.device, parameter.dtype))


def _holding(neurons: Int[Tensor, " held"], values: Tensor) -> Callable[..., tuple[Any, ...]]:
    def hold(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        activations = inputs[0].clone()  # others keep what the neurons computed
        activations[..., neurons] = values.to(activations.dtype)
        return (activations, *inputs[1:])

    return hold
