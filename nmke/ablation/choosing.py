"""Choosing neurons to switch off: the strongest of a role or kind, by hand, or at random beside another set."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from nmke.ablation.sets import Counted, NeuronSet, require_enough
from nmke.attribution import Attribution
from nmke.errors import AblationError
from nmke.masks import MaskConfig, build_mask
from nmke.model import EditableModel

if TYPE_CHECKING:
    from nmke.roles import Roles

#: Kinds of neurons told from facts' scores (:mod:`nmke.masks`).
KINDS = ("general", "specific")
_PAIR = re.compile(r"\s*\(?\s*(\d{1,9})\s*[:,;\t .]\s*(\d{1,9})\s*\)?\s*")


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
        require_enough(k, len(pairs), f"{having} {len(pairs)} {what}", counted)
        return tuple(pairs[:k])
    per_layer = {layer: [pair for pair in pairs if pair[0] == layer] for layer in layers}
    least = min(per_layer, key=lambda layer: len(per_layer[layer]))
    have = len(per_layer[least])
    require_enough(k, have, f"Layer {least} has {have} {what}", counted)
    kept = {pair for found in per_layer.values() for pair in found[:k]}
    return tuple(pair for pair in pairs if pair in kept)


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
