"""Under which conditions the questions are answered: nothing switched off, each set, and random sets beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from nmke.errors import AblationError
from nmke.store import content_key

if TYPE_CHECKING:
    from nmke.ablation.config import AblationConfig
    from nmke.ablation.sets import NeuronSet
    from nmke.model import EditableModel

#: How the unablated condition is called.
NONE = "none"
Kind = Literal["none", "set", "random"]


@dataclass(frozen=True)
class Condition:
    """One way to answer all questions.

    Attributes:
        name: "none", "general, k = 10", "general, k = 10, random 0".
        kind: nothing switched off, a chosen set, or a random one beside it.
        label: of the set; of a random one, that of the set it stands beside.
        k: how many neurons were asked for; 0 for none.
        seed: what a random set was drawn with.
        neurons: per layer those switched off.
        chosen_by: one sentence on how they were chosen.
        ranked: the same neurons as (layer, neuron), the strongest first over all layers.
    """

    name: str
    kind: Kind
    label: str
    k: int
    seed: int | None = None
    neurons: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    chosen_by: str = ""
    ranked: tuple[tuple[int, int], ...] = ()

    @property
    def count(self) -> int:
        """Neurons switched off, in all layers."""
        return sum(map(len, self.neurons.values()))

    @property
    def beside(self) -> str:
        """The name of the set's condition that a random one stands beside; of others their own."""
        return self.name.rpartition(", random ")[0] if self.kind == "random" else self.name

    @property
    def key(self) -> str:
        """Equal for conditions that switch off the same neurons."""
        return content_key(neurons=sorted((layer, n) for layer, found in self.neurons.items() for n in found))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "label": self.label,
            "k": self.k,
            "seed": self.seed,
            "count": self.count,
            "neurons": {str(layer): list(found) for layer, found in self.neurons.items()},
            "chosen_by": self.chosen_by,
            "ranked": [list(pair) for pair in self.ranked],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The condition that :meth:`to_dict` wrote."""
        neurons = {int(layer): tuple(found) for layer, found in values["neurons"].items()}
        # Results of before ranks were kept have their neurons layer by layer.
        ranked = values.get("ranked") or [(layer, n) for layer, found in neurons.items() for n in found]
        return cls(
            values["name"],
            values["kind"],
            values["label"],
            int(values["k"]),
            values["seed"],
            neurons,
            values["chosen_by"],
            tuple((int(layer), int(neuron)) for layer, neuron in ranked),
        )


def conditions_of(
    model: "EditableModel", sets: "Sequence[NeuronSet]", config: "AblationConfig"
) -> tuple[Condition, ...]:
    """None first, then every set, then the random sets, all of the first seed before those of the next.

    Raises:
        AblationError: a set of another model, two sets of one name, or a layer too small for random controls.
    """
    from nmke.ablation.choosing import random_like

    for chosen in sets:
        chosen.require_for(model)
    found = [Condition(NONE, "none", NONE, 0)]
    found += [
        Condition(name_of(one), "set", one.label, one.k, None, one.neurons, one.chosen_by, one.ranked)
        for one in sets
    ]
    names = [condition.name for condition in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise AblationError(
            f"Two sets are called “{twice}”.", "Leave one of them out, or give it another label."
        )
    for seed in range(config.seed, config.seed + config.controls):
        for chosen in sets:
            drawn = random_like(chosen, model, seed)
            name = f"{name_of(chosen)}, random {seed}"
            about = chosen.label, chosen.k, seed, drawn.neurons, drawn.chosen_by, drawn.ranked
            found.append(Condition(name, "random", *about))
    return tuple(found)


def name_of(chosen: "NeuronSet") -> str:
    """What a set's condition is called."""
    per_layer = " per layer" if chosen.counted == "per layer" else ""
    return f"{chosen.label}, k = {chosen.k}{per_layer}"
