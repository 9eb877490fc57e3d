"""Edits that are no change of a weight matrix: something beside a layer's down projection, and its state.

A weight patch says what to add to ``W_out``. A module patch stands behind the down projection and may answer in its
place: it sees what goes in and what comes out, and returns what shall come out. It is immutable; an edit that grows it
hands back a new one, which takes the former's place, so undoing puts the former back as it was.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.errors import EditError, SessionError


class ModulePatch(ABC):
    """What stands behind one layer's down projection after an edit.

    Args:
        layer: which layer.
        tensors: its state by name; float32 or integers, on any device. Do not write.
        settings: everything else it needs, plain JSON values.

    Attributes:
        kind: under which name saved bundles know the class.
    """

    kind: ClassVar[str]

    def __init__(self, layer: int, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        self.layer = layer
        self.tensors = dict(tensors)
        self.settings = dict(settings)

    @abstractmethod
    def answer(
        self, inputs: Float[Tensor, "*batch d_mlp"], output: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What the down projection shall give.

        Args:
            inputs: the neurons' activations (``hook_post``), in the model's dtype.
            output: what the layer's own down projection, with the session's weight patches, made of them.
        """

    def on(self, device: torch.device) -> "ModulePatch":
        """The same patch with its tensors on a device; itself where they are there."""
        if all(tensor.device == device for tensor in self.tensors.values()):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return type(self)(self.layer, moved, self.settings)

    @property
    def n_parameters(self) -> int:
        """Numbers the model carries in addition."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def require_finite(self) -> None:
        """Refuse a patch that would break the model.

        Raises:
            EditError: when any number in it is not finite.
        """
        broken = [
            name
            for name, tensor in self.tensors.items()
            if tensor.is_floating_point() and not torch.isfinite(tensor).all()
        ]
        if broken:
            raise EditError(
                f"The {self.kind} of layer {self.layer} is not finite ({', '.join(broken)}); the edit was refused "
                "and nothing was changed.",
                "Lower the learning rate.",
            )


def load_module(
    kind: str, layer: int, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> ModulePatch:
    """A saved module patch.

    Raises:
        SessionError: no method of this program makes that kind.
    """
    patch: ModulePatch = kind_of(ModulePatch, kind, "module")(layer, tensors, settings)
    return patch


def kind_of(parent: type[Any], kind: str, what: str) -> type[Any]:
    """The class of patches that saved bundles know under that name.

    Args:
        what: what its patches are, for the message.

    Raises:
        SessionError: no method of this program makes that kind.
    """
    import nmke.methods  # noqa: F401  methods define the kinds, and import this module

    known = {each.kind: each for each in subclasses_of(parent) if hasattr(each, "kind")}
    if kind not in known:
        raise SessionError(
            f"This program knows no {what} patch of the kind {kind!r}.",
            "Open the bundle with the version that wrote it.",
        )
    return known[kind]


def subclasses_of(parent: type[Any]) -> list[type[Any]]:
    """All classes below one, at any depth."""
    found: list[type[Any]] = []
    for child in parent.__subclasses__():
        found += [child, *subclasses_of(child)]
    return found
