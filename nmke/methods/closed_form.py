"""The layer loop that MEMIT, AlphaEdit and NMKE share (method of MEMIT, section 4; AlphaEdit, section 3.3).

1. ``z`` per fact: the wanted output of the last edited layer at the subject's last token.
2. For each edited layer, with the earlier ones already changed: keys ``K``, residual
   ``R = (z - output now) / layers left``, a solve, and an optional mask over neurons.
3. The keys, as they are with all layers changed, join the history ``K_p``.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from nmke.config import Config
from nmke.contexts import context_templates
from nmke.edit import WeightPatch
from nmke.facts import Fact
from nmke.keys import KeySource, PlainKeys, key_source
from nmke.model import EditableModel
from nmke.moments import NullSpace, StatisticsConfig, collect_statistics
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.solve import exact_dtype, ridge_solve
from nmke.target import Target, TargetConfig, optimise_targets
from nmke.tokens import require_fits


class ClosedFormConfig(Config):
    """Settings that the closed-form methods share."""

    layers: tuple[int, ...] = Field(
        (4, 5, 6, 7, 8), title="Edited layers", description="Which layers' down projections are changed."
    )
    ridge: float = Field(
        1.0, gt=0, title="Ridge L2", description="Pulls the update towards zero; larger writes more timidly."
    )
    null_space_threshold: float = Field(
        0.02,
        gt=0,
        title="Null-space threshold",
        description="Directions of the keys' second moment with an eigenvalue under this may be written to.",
    )
    statistics: StatisticsConfig = Field(
        StatisticsConfig(),
        title="Statistics text",
        description="The text whose keys are protected; 'none' protects nothing.",
    )
    target: TargetConfig = Field(
        TargetConfig(), title="z optimisation", description="How the wanted output is found."
    )
    context_seed: int = Field(0, ge=0, title="Context seed", description="Seed of the five context texts.")

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers:
            raise ValueError("name at least one layer")
        return tuple(sorted(set(layers)))


def guess_layers(n_layers: int) -> tuple[int, ...]:
    """Up to five layers from about an eighth of the depth on: 4 to 8 of 32, as for LLaMA-3-8B and GPT-J."""
    first = min(round(n_layers / 8), n_layers - 1)
    count = max(1, min(5, round(n_layers * 5 / 32)))
    return tuple(range(first, min(first + count, n_layers)))


@dataclass
class Stopwatch:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Written:
    """What the loop computed: patches, history keys, and figures for display."""

    patches: tuple[WeightPatch, ...]
    keys: Mapping[int, Float[Tensor, "d_mlp fact"]]
    details: Mapping[str, Any]


def prepare(
    session: EditSession, facts: Sequence[Fact], config: ClosedFormConfig, progress: Progress
) -> tuple[tuple[str, ...], dict[int, NullSpace]]:
    """Check the facts against the model; fetch context templates and null spaces (computed once per model).

    Raises:
        FactError: a fact does not fit the model's context.
        ModelError: the model lacks a layer.
    """
    layers = session.model.check_layers(config.layers)
    templates = context_templates(session.model, config.context_seed, progress)
    for fact in facts:
        require_fits(session.model.tokenizer, fact, session.model.context_length, templates)
    return templates, null_spaces(session.model, config, layers, progress)


def null_spaces(
    model: EditableModel, config: ClosedFormConfig, layers: Sequence[int], progress: Progress
) -> dict[int, NullSpace]:
    """Per layer the directions that may be written to."""
    if config.statistics.text == "none":
        return {layer: NullSpace.everything(model.d_mlp) for layer in layers}
    statistics = collect_statistics(model, config.statistics, layers, progress)
    spaces = {}
    for done, layer in enumerate(layers):
        progress.update("finding the null space", done, len(layers), f"layer {layer}")
        spaces[layer] = statistics.null_space(layer, config.null_space_threshold)
    return spaces


def find_targets(
    session: EditSession,
    facts: Sequence[Fact],
    templates: Sequence[str],
    config: ClosedFormConfig,
    progress: Progress,
    plain: bool = False,
) -> list[Target]:
    """z of every fact, at the last edited layer, on top of the session's edits.

    Args:
        plain: by whole prompts, the twin in tests; see :mod:`nmke.target`.
    """
    with session.active():
        return optimise_targets(
            session.model, facts, config.layers[-1], templates, config.target, progress, plain
        )


def write_layers(
    session: EditSession,
    facts: Sequence[Fact],
    targets: Sequence[Target],
    templates: Sequence[str],
    spaces: Mapping[int, NullSpace],
    masks: Mapping[int, Float[Tensor, " d_mlp"]],
    config: ClosedFormConfig,
    progress: Progress,
    watch: Stopwatch,
    plain: bool = False,
) -> Written:
    """The layer loop. Changes live in a scratch that ends with this function.

    Args:
        masks: per layer what multiplies each neuron's update; layers without one are written whole.
        plain: whole prompts for every layer's keys, dense solves, and the history's keys collected anew: the
            published procedure step by step, the twin in tests.
    """
    layers = config.layers
    z = torch.stack([target.z for target in targets], dim=1)
    scratch: dict[int, Tensor] = {}
    patches, details, history = [], [], {}
    solve = _solve_densely if plain else EditSession.solve_update
    with watch.stage("keys"):
        make = PlainKeys if plain else key_source
        source: KeySource = make(session, facts, layers, templates)
    for done, layer in enumerate(layers):
        progress.update("writing layers", done, len(layers), f"layer {layer}")
        with watch.stage("keys"):
            found = source.at(layer, scratch)
        R = (z - found.output) / (len(layers) - done)
        with watch.stage("solve"):
            left, right = solve(session, layer, found.K, R, spaces[layer], config.ridge)
            solved = factored_norm(left, right)
            if layer in masks:
                left = left * masks[layer].to(left)[:, None]
            patch = WeightPatch(layer, left.float(), right.float())
            scratch[layer] = patch.added_to(session.master(layer))
        patches.append(patch)
        history[layer] = found.K
        details.append(
            {
                "layer": layer,
                "null_space_kept": spaces[layer].kept_share,
                "residual_norm": float(R.norm()),
                "solved_norm": solved,
                "written_norm": factored_norm(left, right),
            }
        )
    if plain:
        with watch.stage("keys"):
            history = {layer: source.at(layer, scratch).K for layer in layers}
    ran = {"target": targets[0].ran, "keys": source.ran}
    return Written(tuple(patches), history, {"layers": details, "ran": ran})


def factored_norm(left: Float[Tensor, "d_mlp fact"], right: Float[Tensor, "fact d_model"]) -> float:
    """Frobenius norm of ``left @ right``, without forming it: ``tr(L^T L R R^T)`` under the root."""
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())


def _solve_densely(
    session: EditSession,
    layer: int,
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    space: NullSpace,
    ridge: float,
) -> tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, "d_model d_model"]]:
    """The plain twin of :meth:`EditSession.solve_update`: a D x D solve, its result a factor of its own."""
    P = space.project(torch.eye(space.d_mlp, dtype=exact_dtype(K), device=K.device))
    X = ridge_solve(K, R, session.history_keys(layer), P, ridge)
    return X, torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
