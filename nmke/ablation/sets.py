"""Sets of neurons to switch off: the strongest of a role or kind, by hand, or drawn at random beside another set.

A set keeps its neurons strongest first, so that :meth:`NeuronSet.first` is the set a smaller k would have given: the
sets of a dose-response curve lie within each other.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from nmke.attribution import Attribution
from nmke.errors import AblationError
from nmke.masks import MaskConfig, build_mask
from nmke.model import EditableModel
from nmke.store import write_json

if TYPE_CHECKING:
    from nmke.roles import Roles

#: How k is counted: over all chosen layers together, or in each of them.
Counted = Literal["in all", "per layer"]
#: Kinds of neurons told from facts' scores (:mod:`nmke.masks`).
KINDS = ("general", "specific")
_PAIR = re.compile(r"\s*\(?\s*(\d{1,9})\s*[:,;\t .]\s*(\d{1,9})\s*\)?\s*")


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
        _require_enough(k, have, f"The set “{self.label}”", self.counted)
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


# ---- choosing ---------------------------------------------------------------------------------------------------


def of_role(
    roles: "Roles",
    role: str,
    k: int,
    *,
    layers: Sequence[int] | None = None,
    task: str | None = None,
    domain: str | None = None,
    counted: Counted = "in all",
) -> NeuronSet:
    """The k strongest neurons of a role.

    Args:
        task, domain: for task-specific and domain-specific neurons, of which; left out, of any.

    Raises:
        AblationError: there are not that many; the message names the largest k.
    """
    from nmke.roles import strongest

    whose = task or domain
    label = f"{role}: {whose.replace('_', ' ')}" if whose else role
    named = tuple(roles.layers) if layers is None else tuple(sorted(set(layers)))
    width = len(next(iter(roles.codes.values())))
    table = strongest(
        roles, role, width * len(named), layers=named, task=task, domain=domain, per_layer=False
    )
    pairs = list(zip(table["layer"].astype(int), table["neuron"].astype(int), strict=True))
    ranked = _take(pairs, k, counted, named, f"neurons of the role “{label}”")
    how = (
        f"the {k} strongest {label} neurons {_counted(counted, named)}, by {roles.config.attribution.kind.upper()} "
        f"over {sum(roles.sizes)} questions{' with edits in force' if roles.edits else ''}: {roles.source}"
    )
    return NeuronSet(ranked, label, roles.model_hash, how, k, counted)


def of_kind(
    model: EditableModel,
    attribution: Attribution,
    kind: str,
    k: int,
    *,
    layers: Sequence[int] | None = None,
    counted: Counted = "in all",
    masks: MaskConfig | None = None,
) -> NeuronSet:
    """The k highest-scored neurons among those that facts' masks select as general or specific (NMKE, section 3.3).

    General ones stand in the order of ``S_gen``, which is a count, equal ones by their mean score; specific ones in
    the order of ``S_spec``.

    Raises:
        AblationError: no such kind, or there are not that many; the message names the largest k.
    """
    if kind not in KINDS:
        raise AblationError(f"Facts tell no {kind!r} neurons.", f"Choose {' or '.join(KINDS)}.")
    named = attribution.layers if layers is None else model.check_layers(layers)
    missing = sorted(set(named) - set(attribution.layers))
    if missing:
        were = "was" if len(missing) == 1 else "were"
        raise AblationError(f"{_layers(missing)} {were} not scored.", "Score them first, or leave them out.")
    rows: list[tuple[float, float, int, int]] = []
    for layer in named:
        scores = attribution.scores[layer]
        mask, mean = build_mask(scores, masks), scores.float().mean(0)
        score = mask.general_score if kind == "general" else mask.specific_score
        selected = mask.general if kind == "general" else mask.specific
        rows += [(-float(score[n]), -float(mean[n]), layer, n) for n in selected.nonzero().flatten().tolist()]
    pairs = [(layer, neuron) for _, _, layer, neuron in sorted(rows)]
    ranked = _take(pairs, k, counted, named, f"{kind} neurons")
    how = (
        f"the {k} highest-scored knowledge-{kind} neurons {_counted(counted, named)}, by "
        f"{attribution.config.kind.upper()} over {len(attribution.prompts)} prompts of facts"
    )
    return NeuronSet(ranked, f"knowledge-{kind}", model.weight_hash, how, k, counted)


def by_hand(
    model: EditableModel, neurons: str | Mapping[int, Sequence[int]], label: str = "by hand"
) -> NeuronSet:
    """Neurons somebody named: ``layer:neuron`` or ``layer,neuron`` a line, or a table with those two columns.

    Raises:
        AblationError: a line that is none, no neurons, or one the model does not have.
    """
    if isinstance(neurons, str):
        pairs = _read_pairs(neurons)
    else:
        pairs = [(layer, neuron) for layer, found in neurons.items() for neuron in found]
    unique = tuple(dict.fromkeys(pairs))
    if not unique:
        raise AblationError("No neurons are named.", "Write one a line, for example 5:120.")
    found = NeuronSet(unique, label, model.weight_hash, "named by hand", len(unique))
    found.require_for(model)
    return found


def random_like(chosen: NeuronSet, model: EditableModel, seed: int) -> NeuronSet:
    """As many neurons in the same layers, drawn from all others with a seed.

    Every layer has one order for each seed, so that the controls of a smaller and a larger set, or of two roles,
    differ no more than they must.

    Raises:
        AblationError: a layer does not have that many others.
    """
    ranked: list[tuple[int, int]] = []
    for layer, neurons in chosen.neurons.items():
        if model.d_mlp < 2 * len(neurons):
            raise AblationError(
                f"Layer {layer} has {model.d_mlp} neurons: beside {len(neurons)} of the set “{chosen.label}” there "
                "are not as many others to draw at random.",
                f"Take at most {model.d_mlp // 2} neurons of a layer, or no random controls.",
            )
        # Seeded by the layer too, or equal numbers would be drawn in every layer.
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + layer)
        order = torch.randperm(model.d_mlp, generator=generator).tolist()
        own = set(neurons)
        others = [neuron for neuron in order if neuron not in own]
        ranked += [(layer, neuron) for neuron in others[: len(neurons)]]
    how = f"drawn with seed {seed}, as many in each layer as “{chosen.label}” has and none of its own"
    return NeuronSet(tuple(ranked), f"random {seed}", chosen.model_hash, how, chosen.k, chosen.counted)


def _take(
    pairs: Sequence[tuple[int, int]],
    k: int,
    counted: Counted,
    layers: Sequence[int],
    what: str,
) -> tuple[tuple[int, int], ...]:
    if k < 1:
        raise AblationError(f"{k} neurons cannot be switched off.", "Ask for at least one.")
    if counted == "in all":
        having = f"{_layers(layers)} {'has' if len(layers) == 1 else 'have'}"
        _require_enough(k, len(pairs), f"{having} {len(pairs)} {what}", counted)
        return tuple(pairs[:k])
    per_layer = {layer: [pair for pair in pairs if pair[0] == layer] for layer in layers}
    least = min(per_layer, key=lambda layer: len(per_layer[layer]))
    have = len(per_layer[least])
    _require_enough(k, have, f"Layer {least} has {have} {what}", counted)
    kept = {pair for found in per_layer.values() for pair in found[:k]}
    return tuple(pair for pair in pairs if pair in kept)


def _require_enough(k: int, have: int, what: str, counted: Counted) -> None:
    if k > have:
        where = " per layer" if counted == "per layer" else ""
        raise AblationError(
            f"{what}; {k}{where} cannot be switched off.",
            f"Ask for at most {have}{where}." if have else "Choose other layers, or another role.",
        )


def _read_pairs(text: str) -> list[tuple[int, int]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and not re.search(r"\d", lines[0]):
        return _read_table(lines)
    pairs = []
    for number, line in enumerate(lines, 1):
        found = _PAIR.fullmatch(line)
        if found is None:
            raise AblationError(
                f"Line {number}, {line.strip()[:40]!r}, names no neuron.",
                "Write layer and neuron, for example 5:120, or paste a table with the columns layer and neuron.",
            )
        pairs.append((int(found[1]), int(found[2])))
    return pairs


def _read_table(lines: Sequence[str]) -> list[tuple[int, int]]:
    """A table with a head, as the dashboard's downloads have it."""
    import csv

    separator = next((sign for sign in ("\t", ";", ",") if sign in lines[0]), ",")
    rows = [dict(row) for row in csv.DictReader(lines, delimiter=separator)]
    rows = [{str(name).strip().lower(): value for name, value in row.items()} for row in rows]
    pairs = []
    for number, row in enumerate(rows, 2):
        layer, neuron = (str(row.get(name) or "").strip() for name in ("layer", "neuron"))
        if not all(part.isdecimal() and len(part) < 10 for part in (layer, neuron)):
            raise AblationError(
                f"Line {number} of the table names no neuron.",
                "Paste a table with the columns layer and neuron, whole numbers in both.",
            )
        pairs.append((int(layer), int(neuron)))
    return pairs


def _layers(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"Layer {layers[0]}"
    ends = list(layers)
    whole = ends == list(range(ends[0], ends[-1] + 1))
    return f"Layers {ends[0]} to {ends[-1]}" if whole else f"Layers {', '.join(map(str, ends))}"


def _counted(counted: Counted, layers: Sequence[int]) -> str:
    named = _layers(layers).lower()
    return f"in each of {named}" if counted == "per layer" else f"in {named} together"
