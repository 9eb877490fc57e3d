"""Edits that are no change of the model at all: text that stands in front of whatever it reads.

A weight patch says what to add to ``W_out``, a module patch stands beside a layer. A prompt patch chooses, for each
text that is read, what stands in front of it: demonstrations, a new fact, or nothing. Like a module patch it is
immutable; an edit that grows it hands back a new one, which takes the former's place, so undoing puts the former back
as it was.
:mod:`nmke.fronts` puts it there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nmke.errors import EditError
from nmke.modules import kind_of


class PromptPatch(ABC):
    """What stands in front of a text after an edit.

    Args:
        tensors: its numbers by name (embeddings, say), float32 on the CPU. Do not write.
        settings: everything else it needs, plain JSON values.

    Attributes:
        kind: under which name saved bundles know the class, in words that people read.
    """

    kind: ClassVar[str]

    def __init__(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.settings = dict(settings)

    @abstractmethod
    def front(self, text: str) -> str:
        """What stands right before a text: the same for the same text; "" leaves it alone.

        Args:
            text: all that is read up to where an answer begins. Readers that cannot tell give the whole text.

        Raises:
            ResourceError: a model that helps to choose cannot be had.
        """

    @property
    def n_parameters(self) -> int:
        """Numbers that are kept in addition; :meth:`helper_parameters` come on top."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def helper_parameters(self) -> int:
        """Parameters of another model that is asked for every text; 0 without one.

        Raises:
            ResourceError: that model cannot be had.
        """
        return 0

    def require_finite(self) -> None:
        """Refuse a patch that could not choose.

        Raises:
            EditError: when any number in it is not finite.
        """
        broken = [name for name, tensor in self.tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise EditError(
                f"The {self.kind} is not finite ({', '.join(broken)}); the edit was refused and nothing was changed.",
                "Choose another sentence encoder.",
            )


def load_prompt(kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PromptPatch:
    """A saved prompt patch.

    Raises:
        SessionError: no method of this program makes that kind.
    """
    patch: PromptPatch = kind_of(PromptPatch, kind, "prompt")(tensors, settings)
    return patch
