"""Sets of neurons to switch off (:mod:`nmke.ablation.choosing` makes them), and their files.

A set keeps its neurons strongest first, so that :meth:`NeuronSet.first` is the set a smaller k would have given: the
sets of a dose-response curve lie within each other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from nmke.errors import AblationError
from nmke.model import EditableModel
from nmke.store import write_json

#: How k is counted: over all chosen layers together, or in each of them.
Counted = Literal["in all", "per layer"]


@dataclass(frozen=True)
class NeuronSet:
    """Neurons of one model.

    Attributes:
        ranked: (layer, neuron), the strongest first; each once.
        label: what it is called on charts: "general", "task: college biology", "by hand".
        model_hash: of the weights the neurons were chosen on.
        chosen_by: one sentence saying how.
        k: how many were asked for.
        counted: of which layers k counts.
    """

    ranked: tuple[tuple[int, int], ...]
    label: str
    model_hash: str
    chosen_by: str
    k: int
    counted: Counted = "in all"

    def __post_init__(self) -> None:
        if not self.ranked:
            raise AblationError(f"The set “{self.label}” has no neurons.", "Choose at least one.")
        if len(set(self.ranked)) < len(self.ranked):
            raise AblationError(
                f"The set “{self.label}” names a neuron twice.", "Name every neuron of a layer once."
            )

    @cached_property
    def neurons(self) -> Mapping[int, tuple[int, ...]]:
        """Per layer its neurons, strongest first; layers rising."""
        layers = sorted({layer for layer, _ in self.ranked})
        return {layer: tuple(n for of, n in self.ranked if of == layer) for layer in layers}

    @property
    def count(self) -> int:
        """Number of neurons in all layers."""
        return len(self.ranked)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of which neurons of which model they are; order and label do not matter."""
        content = json.dumps([self.model_hash, sorted(self.ranked)])
        return hashlib.sha256(content.encode()).hexdigest()

    def first(self, k: int) -> "NeuronSet":
        """The set that the smaller ``k`` would have given.

        Raises:
            AblationError: the set does not hold so many.
        """
        have = min(map(len, self.neurons.values())) if self.counted == "per layer" else self.count
        require_enough(k, have, f"The set “{self.label}”", self.counted)
        if self.counted == "in all":
            ranked = self.ranked[:k]
        else:
            kept = {(layer, neuron) for layer, found in self.neurons.items() for neuron in found[:k]}
            ranked = tuple(pair for pair in self.ranked if pair in kept)
        return NeuronSet(ranked, self.label, self.model_hash, self.chosen_by, k, self.counted)

    def require_for(self, model: EditableModel) -> None:
        """Refuse a set that was chosen on other weights, or names neurons the model does not have.

        Raises:
            AblationError: saying which.
        """
        outside = [
            (layer, neuron)
            for layer, neuron in self.ranked
            if not (0 <= layer < model.n_layers and 0 <= neuron < model.d_mlp)
        ]
        if outside:
            layer, neuron = outside[0]
            raise AblationError(
                f"The set “{self.label}” names neuron {neuron} of layer {layer}; {model.name} has layers 0 to "
                f"{model.n_layers - 1} of neurons 0 to {model.d_mlp - 1}.",
                "Choose neurons of this model.",
            )
        if self.model_hash != model.weight_hash:
            raise AblationError(
                f"The neurons of the set “{self.label}” were chosen on another model than {model.name}.",
                "Load the model they were chosen on, or choose neurons anew.",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, readable by a person: per layer its neurons, and their order."""
        return {
            "label": self.label,
            "model_hash": self.model_hash,
            "chosen_by": self.chosen_by,
            "k": self.k,
            "counted": self.counted,
            "ranked": [list(pair) for pair in self.ranked],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The set that :meth:`to_json` wrote.

        Raises:
            AblationError: something is missing or is no neuron.
        """
        try:
            if values["counted"] not in ("in all", "per layer"):
                raise ValueError
            return cls(
                tuple((int(layer), int(neuron)) for layer, neuron in values["ranked"]),
                str(values["label"]),
                str(values["model_hash"]),
                str(values["chosen_by"]),
                int(values["k"]),
                values["counted"],
            )
        except (KeyError, TypeError, ValueError):
            raise AblationError(
                "This is no set of neurons, or it is damaged.", "Choose a file that was saved as a set."
            ) from None


def save_set(chosen: NeuronSet, path: Path) -> None:
    """Write the set as JSON, whole or not at all."""
    write_json(path, chosen.to_json())


def load_set(path: Path) -> NeuronSet:
    """The set that :func:`save_set` wrote.

    Raises:
        AblationError: there is no such file, or it is no set.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AblationError(f"The set {path} cannot be read ({error.strerror}).", "Check the path.") from None
    except ValueError:
        values = {}
    return NeuronSet.from_json(values if isinstance(values, dict) else {})


def require_enough(k: int, have: int, what: str, counted: Counted) -> None:
    """Refuse more neurons than there are.

    Args:
        what: the sentence's beginning: where there are how many.

    Raises:
        AblationError: naming the largest k.
    """
    if k > have:
        where = " per layer" if counted == "per layer" else ""
        raise AblationError(
            f"{what}; {k}{where} cannot be switched off.",
            f"Ask for at most {have}{where}." if have else "Choose other layers, or another role.",
        )
