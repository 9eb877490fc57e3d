"""The layer loop that MEMIT, AlphaEdit and NMKE share (method of MEMIT, section 4; AlphaEdit, section 3.3).

1. ``z`` per fact: the wanted output of the last edited layer at the subject's last token.
2. For each edited layer, with the earlier ones already changed: keys ``K``, residual
   ``R = (z - output now) / layers left``, a solve (:mod:`nmke.methods.solvers`), and an optional mask over neurons.
3. The keys, as they are with all layers changed, join the history ``K_p``.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from nmke.config import Config
from nmke.contexts import context_templates
from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.keys import KeySource, PlainKeys, key_source
from nmke.methods.solvers import DenseRidge, LayerSolver, NullSpaceRidge
from nmke.model import EditableModel
from nmke.moments import NullSpace, StatisticsConfig, collect_statistics
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.target import Target, TargetConfig, optimise_targets
from nmke.tokens import encode, find_subject_last, require_fits


class LayersConfig(Config):
    """Settings of every method that spreads an update over several layers."""

    layers: tuple[int, ...] = Field(
        (4, 5, 6, 7, 8), title="Edited layers", description="Which layers' down projections are changed."
    )
    statistics: StatisticsConfig = Field(
        StatisticsConfig(),
        title="Statistics text",
        description="The text whose keys are protected; 'none' protects nothing.",
    )
    target: TargetConfig = Field(
        TargetConfig(), title="z optimisation", description="How the wanted output is found."
    )
    contexts: Literal["the model's own", "ordinary text"] = Field(
        "the model's own",
        title="Contexts",
        description="The five texts that also stand before the prompt while a fact is written: short continuations by "
        "the model (as published), or sentences of the statistics text, which reach more paraphrases.",
    )
    context_seed: int = Field(0, ge=0, title="Context seed", description="Seed of the five context texts.")

    @property
    def context_text(self) -> StatisticsConfig | None:
        """Where the contexts' sentences come from; None has the model write them."""
        return self.statistics if self.contexts == "ordinary text" else None

    @model_validator(mode="after")
    def _contexts_have_their_text(self) -> "LayersConfig":
        if self.contexts == "ordinary text" and self.statistics.text == "none":
            raise ValueError(
                "contexts of ordinary text are sentences of the statistics text, which is 'none'"
            )
        return self

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers:
            raise ValueError("name at least one layer")
        return tuple(sorted(set(layers)))


class ClosedFormConfig(LayersConfig):
    """Settings of the methods that write into a null space, on top of the session's keys."""

    ridge: float = Field(
        1.0, gt=0, title="Ridge L2", description="Pulls the update towards zero; larger writes more timidly."
    )
    null_space_threshold: float = Field(
        0.02,
        gt=0,
        title="Null-space threshold",
        description="Directions of the keys' second moment with an eigenvalue under this may be written to.",
    )


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
    """Context templates and null spaces, computed once per model; see :func:`prepare_layers`."""
    templates = prepare_layers(session, facts, config, progress)
    return templates, null_spaces(session.model, config, config.layers, progress)


def prepare_layers(
    session: EditSession, facts: Sequence[Fact], config: LayersConfig, progress: Progress
) -> tuple[str, ...]:
    """:func:`prepare_facts` with the layers and contexts of the settings."""
    return prepare_facts(session, facts, config.layers, config.context_seed, progress, config.context_text)


def prepare_facts(
    session: EditSession,
    facts: Sequence[Fact],
    layers: Sequence[int],
    context_seed: int,
    progress: Progress,
    context_text: StatisticsConfig | None = None,
) -> tuple[str, ...]:
    """Check layers and facts against the model; fetch the context templates.

    Args:
        context_text: what the contexts are sentences of; None has the model write them.

    Raises:
        FactError: a fact does not fit the model's context.
        EditError: what is written at the last layer cannot reach the answer.
        ModelError: the model lacks a layer.
    """
    model, last = session.model, session.model.check_layers(layers)[-1]
    for fact in facts:
        if last == model.n_layers - 1 and not ends_with_subject(model.tokenizer, fact):
            raise EditError(
                f"The last layer's output at {fact.subject!r} is read by no later token, so nothing written there "
                "changes the answer.",
                f"Edit layers up to {model.n_layers - 2}, or facts whose prompt ends with the subject.",
            )
    templates = context_templates(session.model, context_seed, progress, context_text)
    for fact in facts:
        require_fits(session.model.tokenizer, fact, session.model.context_length, templates)
    return templates


def ends_with_subject(tokenizer: Any, fact: Fact) -> bool:
    """Whether the answer is read at the subject's last token."""
    return find_subject_last(tokenizer, fact, "{}") == len(encode(tokenizer, fact.prompt)) - 1


def second_moments(
    model: EditableModel, statistics: StatisticsConfig, layers: Sequence[int], progress: Progress
) -> Mapping[int, Float[Tensor, "d_mlp d_mlp"]] | None:
    """Per layer ``C = E[k k^T]`` over the statistics' text; None where there is no text."""
    if statistics.text == "none":
        return None
    return collect_statistics(model, statistics, layers, progress).second_moment


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
    config: LayersConfig,
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
    spaces: Mapping[int, NullSpace] | LayerSolver,
    masks: Mapping[int, Float[Tensor, " d_mlp"]],
    config: LayersConfig,
    progress: Progress,
    watch: Stopwatch,
    plain: bool = False,
) -> Written:
    """The layer loop. Changes live in a scratch that ends with this function.

    Args:
        spaces: how each layer is solved for. Null spaces stand for AlphaEdit's ridge inside them, with the ridge of
            ``config``, which is then a :class:`ClosedFormConfig`.
        masks: per layer what multiplies each neuron's update; layers without one are written whole.
        plain: whole prompts for every layer's keys, dense solves for null spaces, and the history's keys collected
            anew: the published procedure step by step, the twin in tests.
    """
    layers = config.layers
    z = torch.stack([target.z for target in targets], dim=1)
    scratch: dict[int, Tensor] = {}
    patches, details, history = [], [], {}
    solver = spaces if isinstance(spaces, LayerSolver) else _null_space_solver(session, spaces, config, plain)
    with watch.stage("keys"):
        make = PlainKeys if plain else key_source
        source: KeySource = make(session, facts, layers, templates)
    for done, layer in enumerate(layers):
        progress.update("writing layers", done, len(layers), f"layer {layer}")
        with watch.stage("keys"):
            found = source.at(layer, scratch)
        R = (z - found.output) / (len(layers) - done)
        with watch.stage("solve"):
            left, right = solver.solve(layer, found.K, R)
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
                **solver.figures(layer),
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


def edit_of(
    method: str,
    config: Config,
    facts: Sequence[Fact],
    written: Written,
    targets: Sequence[Target],
    templates: Sequence[str],
    watch: Stopwatch,
    masks: Mapping[int, Float[Tensor, " d_mlp"]] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Edit:
    """What a method hands back, put together from what the loop computed."""
    return Edit(
        method=method,
        config=config.model_dump(mode="json"),
        facts=tuple(facts),
        patches=written.patches,
        keys=written.keys,
        masks=masks or {},
        seconds=watch.seconds,
        details={
            **written.details,
            **(details or {}),
            "target_probability": [target.probabilities[-1] for target in targets],
            "target_steps": [len(target.losses) for target in targets],
            "templates": list(templates),
        },
    )


def factored_norm(left: Float[Tensor, "d_mlp rank"], right: Float[Tensor, "rank d_model"]) -> float:
    """Frobenius norm of ``left @ right``, without forming it: ``tr(L^T L R R^T)`` under the root."""
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())


def _null_space_solver(
    session: EditSession, spaces: Mapping[int, NullSpace], config: LayersConfig, plain: bool
) -> LayerSolver:
    if not isinstance(config, ClosedFormConfig):
        raise TypeError(f"null spaces are solved in with a ridge, which {type(config).__name__} has not")
    return (DenseRidge if plain else NullSpaceRidge)(session, spaces, config.ridge)
