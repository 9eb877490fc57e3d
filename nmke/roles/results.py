"""Roles of a model's neurons: the answer of :mod:`nmke.roles`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from nmke.errors import ConfigError, ModelError
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.roles.config import SCORED, RolesConfig
from nmke.roles.resampling import Stability, commonest_patterns, resample
from nmke.roles.rules import (
    ROLES,
    active_in,
    domain_members,
    hit_counts,
    patterns_of,
    roles_of,
    tasks_of_pattern,
)
from nmke.roles.scores import QuestionScores


@dataclass(frozen=True)
class Roles:
    """Which neuron works for which tasks.

    Attributes:
        model_name, model_hash: the model, its hash over the weights as loaded.
        edits: digest of the edits in force when the questions were read; "" for none.
        tasks, domains: the subjects, and each one's domain.
        sizes: questions of each task.
        active: per layer, in which tasks each neuron is active.
        strength: per layer, the mean score over each task's questions, in the score's unit.
        activation: per layer, the mean activation over each task's questions; its sign says whether a neuron raises
            or lowers what its value vector promotes.
        codes: per layer, index in ``ROLES``.
        source, sha256: where the questions are from, and their content.
        stability: what resampling says; None when it was not asked for.
    """

    model_name: str
    model_hash: str
    edits: str
    tasks: tuple[str, ...]
    domains: Mapping[str, str]
    sizes: tuple[int, ...]
    layers: tuple[int, ...]
    active: Mapping[int, Bool[Tensor, "task d_mlp"]]
    strength: Mapping[int, Float[Tensor, "task d_mlp"]]
    activation: Mapping[int, Float[Tensor, "task d_mlp"]]
    codes: Mapping[int, Int8[Tensor, " d_mlp"]]
    config: RolesConfig
    source: str
    sha256: str
    seconds: float
    stability: Stability | None = None

    def require_for(self, model: EditableModel) -> None:
        """Refuse another model's roles.

        Raises:
            ModelError: the weights differ from those the roles were found in.
        """
        if model.weight_hash != self.model_hash:
            raise ModelError(
                f"These roles were found in {self.model_name}, whose weights are not those of {model.name}.",
                f"Load {self.model_name}, or find the roles of {model.name}.",
            )

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Each role's count from and to, by resampling; empty when it was not asked for."""
        if self.stability is None:
            return {}
        return {
            str(role): (float(low), float(high))
            for role, low, high in self.stability.roles[["role", "low", "high"]].itertuples(index=False)
        }

    def counts(self) -> pd.DataFrame:
        """Neurons per layer and role: layer, role, count."""
        rows = [
            {"layer": layer, "role": role, "count": int(count)}
            for layer in self.layers
            for role, count in zip(
                ROLES, torch.bincount(self.codes[layer].long(), minlength=len(ROLES)).tolist(), strict=True
            )
        ]
        return pd.DataFrame(rows)

    def totals(self) -> dict[str, int]:
        """Neurons per role over all layers."""
        return {str(role): int(count) for role, count in self.counts().groupby("role")["count"].sum().items()}

    def overlaps(self) -> pd.DataFrame:
        """The commonest combinations of tasks: tasks (a tuple), count, role, low and high; commonest first.

        The empty combination, inactive neurons, is among them. ``low`` and ``high`` are missing without resampling.
        """
        patterns = commonest_patterns(self.active).tolist()
        every = torch.cat([patterns_of(one) for one in self.active.values()])
        found = pd.DataFrame({"pattern": patterns})
        found["count"] = [int((every == pattern).sum()) for pattern in patterns]
        if self.stability is not None:
            found = found.merge(self.stability.overlaps[["pattern", "low", "high"]], on="pattern", how="left")
        else:
            found["low"] = found["high"] = np.nan
        found["tasks"] = [tasks_of_pattern(pattern, self.tasks) for pattern in patterns]
        members = domain_members(self.tasks, self.domains)
        bits = [[bool(pattern >> task & 1) for task in range(len(self.tasks))] for pattern in patterns]
        found["role"] = [ROLES[code] for code in roles_of(torch.tensor(bits).T, members).tolist()]
        found = found.sort_values("count", ascending=False, kind="stable", ignore_index=True)
        return found[["tasks", "role", "count", "low", "high"]]

    def frame(self) -> pd.DataFrame:
        """One row a neuron: layer, neuron, role, tasks, strength, activation, then active and strength per task."""
        return pd.concat([self._layer_frame(layer) for layer in self.layers], ignore_index=True)

    def _layer_frame(self, layer: int) -> pd.DataFrame:
        active, strength = self.active[layer].numpy(), self.strength[layer].numpy()
        columns: dict[str, Any] = {
            "layer": np.full(active.shape[1], layer, dtype=np.int16),
            "neuron": np.arange(active.shape[1], dtype=np.int32),
            "role": pd.Categorical.from_codes(self.codes[layer].numpy(), categories=pd.Index(ROLES)),
            "tasks": active.sum(0).astype(np.int16),
            "strength": strength.mean(0),
            "activation": self.activation[layer].numpy().mean(0),
        }
        for number, task in enumerate(self.tasks):
            columns[f"active.{task}"] = active[number]
        for number, task in enumerate(self.tasks):
            columns[f"strength.{task}"] = strength[number]
        for number, task in enumerate(self.tasks):
            columns[f"activation.{task}"] = self.activation[layer][number].numpy()
        return pd.DataFrame(columns)


def assign_roles(
    scores: QuestionScores, config: RolesConfig | None = None, progress: Progress | None = None
) -> Roles:
    """Apply the rule to kept scores; quick, and no model is needed.

    Args:
        config: its rule and resampling; what the scores themselves depend on must be as it was.

    Raises:
        ConfigError: the settings ask for other scores than these.
        Cancelled: from ``progress``, while resampling.
    """
    config, progress = config or scores.config, progress or Silent()
    other = [name for name in SCORED if getattr(config, name) != getattr(scores.config, name)]
    if other:
        raise ConfigError(
            f"These scores were computed with other settings of {' and '.join(other)}.",
            "Score the questions again.",
        )
    members = domain_members(scores.tasks, scores.domains)
    active = {
        layer: active_in(hit_counts(scores, layer, config), scores.sizes, config) for layer in scores.layers
    }
    return Roles(
        model_name=scores.model_name,
        model_hash=scores.model_hash,
        edits=scores.edits,
        tasks=scores.tasks,
        domains=scores.domains,
        sizes=scores.sizes,
        layers=scores.layers,
        active=active,
        strength=scores.strength,
        activation=scores.activation,
        codes={layer: roles_of(active[layer], members) for layer in scores.layers},
        config=config,
        source=scores.source,
        sha256=scores.sha256,
        seconds=scores.seconds,
        stability=resample(scores, active, config, progress) if config.resamples else None,
    )


def sweep_rule(
    scores: QuestionScores, config: RolesConfig, setting: str, values: Sequence[float]
) -> pd.DataFrame:
    """How many neurons each role has as one setting of the rule moves: value, role, count.

    Args:
        setting: ``top_share``, ``task_share`` or ``level``.
    """
    members = domain_members(scores.tasks, scores.domains)
    totals = np.zeros((len(values), len(ROLES)), dtype=np.int64)
    for layer in scores.layers:
        counts = hit_counts(scores, layer, config)
        for row, value in enumerate(values):
            tried = config.changed(**{setting: value})
            if setting == "top_share":
                counts = hit_counts(scores, layer, tried)
            codes = roles_of(active_in(counts, scores.sizes, tried), members)
            totals[row] += torch.bincount(codes.long(), minlength=len(ROLES)).numpy()
    return pd.DataFrame(
        {
            "value": np.repeat(np.asarray(values, dtype=float), len(ROLES)),
            "role": list(ROLES) * len(values),
            "count": totals.ravel(),
        }
    )


def strongest(
    roles: Roles,
    role: str,
    k: int,
    layers: Sequence[int] | None = None,
    task: str | None = None,
    domain: str | None = None,
    per_layer: bool = False,
) -> pd.DataFrame:
    """The ``k`` neurons of a role with the highest strength: layer, neuron, strength, role, tasks (a tuple).

    A neuron's strength is its mean score over the tasks in which it is active (over all tasks when it is inactive),
    each task counting alike. Scores of different layers are compared as they are; later layers' are larger.

    Args:
        layers: only these; all by default.
        task: only neurons active in this task, by its strength there.
        domain: only neurons active in some task of this domain, by its mean strength in the domain's tasks.
        per_layer: ``k`` of every layer instead of ``k`` in all.

    Raises:
        ConfigError: a role, task, domain or layer that is not there.
    """
    _check(role, ROLES, "role")
    if task is not None:
        _check(task, roles.tasks, "task")
    if domain is not None:
        _check(domain, tuple(dict.fromkeys(roles.domains.values())), "domain")
    for layer in layers or ():
        _check(layer, roles.layers, "layer")
    parts = []
    for layer in roles.layers if layers is None else sorted(set(layers)):
        active, strength = roles.active[layer], roles.strength[layer]
        counted = active if role != "inactive" else torch.ones_like(active)
        wanted = roles.codes[layer] == ROLES.index(role)
        if task is not None or domain is not None:
            inside = torch.tensor(
                [
                    (task is None or name == task) and (domain is None or roles.domains[name] == domain)
                    for name in roles.tasks
                ]
            )[:, None]
            counted = counted & inside
            wanted = wanted & counted.any(0)
        mean = (strength.double() * counted).sum(0) / counted.sum(0).clamp_min(1)
        neurons = wanted.nonzero()[:, 0]
        neurons = neurons[mean[neurons].argsort(descending=True, stable=True)[:k]]
        parts += [
            (layer, neuron, float(mean[neuron]), role, _named(roles, active[:, neuron]))
            for neuron in neurons.tolist()
        ]
    found = pd.DataFrame(parts, columns=["layer", "neuron", "strength", "role", "tasks"])
    if per_layer:
        return found
    return found.sort_values("strength", ascending=False, kind="stable", ignore_index=True).head(k)


def _named(roles: Roles, active: Tensor) -> tuple[str, ...]:
    return tuple(task for task, on in zip(roles.tasks, active.tolist(), strict=True) if on)


def _check(value: Any, known: Sequence[Any], what: str) -> None:
    if value not in known:
        raise ConfigError(
            f"There is no {what} {value!r} among these roles.", f"Choose from {', '.join(map(str, known))}."
        )
