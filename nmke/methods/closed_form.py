"""The layer loop that MEMIT, AlphaEdit and NMKE share (method of MEMIT, section 4; AlphaEdit, section 3.3).

1. ``z`` per fact: the wanted output of the last edited layer at the subject's last token.
2. For each edited layer, with the earlier ones already changed: keys ``K``, residual
   ``R = (z - output now) / layers left``, a solve, and an optional mask over neurons.
3. The keys collected anew with all layers changed join the history ``K_p``.
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
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.model import POST, RESID_POST, EditableModel
from nmke.moments import NullSpace, StatisticsConfig, collect_statistics
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.target import Target, TargetConfig, optimise_target
from nmke.tokens import encode, fill_template, find_subject_last, pad, pad_id, require_fits


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
class Keys:
    """What the facts put into one layer.

    Attributes:
        K: down-projection inputs at the subject's last token, averaged over contexts [d_mlp, fact].
        output: output of the last edited layer there, of the bare prompts [d_model, fact].
    """

    K: Float[Tensor, "d_mlp fact"]
    output: Float[Tensor, "d_model fact"]


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
        EditError: no facts.
        ModelError: the architecture failed the gate, or lacks a layer.
    """
    if not facts:
        raise EditError("There are no facts to write.", "Choose at least one fact.")
    session.model.require_conformance()
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
) -> list[Target]:
    """z of every fact, at the last edited layer, on top of the session's edits."""
    with session.active():
        return [
            optimise_target(session.model, fact, config.layers[-1], templates, config.target, progress)
            for fact in facts
        ]


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
) -> Written:
    """The layer loop. Changes live in a scratch that ends with this function.

    Args:
        masks: per layer what multiplies each neuron's update; layers without one are written whole.
    """
    layers = config.layers
    z = torch.stack([target.z for target in targets], dim=1)
    scratch: dict[int, Tensor] = {}
    patches, details = [], []
    for done, layer in enumerate(layers):
        progress.update("writing layers", done, len(layers), f"layer {layer}")
        with watch.stage("keys"):
            found = collect_keys(session, facts, [layer], layers[-1], templates, scratch)[layer]
        R = (z - found.output) / (len(layers) - done)
        with watch.stage("solve"):
            left, right = session.solve_update(layer, found.K, R, spaces[layer], config.ridge)
            solved_norm = float((left @ right).norm())
            if layer in masks:
                left = left * masks[layer].to(left)[:, None]
            patch = WeightPatch(layer, left.float(), right.float())
            scratch[layer] = patch.added_to(session.master(layer))
        patches.append(patch)
        details.append(
            {
                "layer": layer,
                "null_space_kept": spaces[layer].kept_share,
                "residual_norm": float(R.norm()),
                "solved_norm": solved_norm,
                "written_norm": float(patch.matrix().norm()),
            }
        )
    with watch.stage("keys"):
        progress.update("writing layers", len(layers), len(layers), "keys for the history")
        after = collect_keys(session, facts, layers, layers[-1], templates, scratch)
    return Written(tuple(patches), {layer: after[layer].K for layer in layers}, {"layers": details})


@torch.no_grad()
def collect_keys(
    session: EditSession,
    facts: Sequence[Fact],
    layers: Sequence[int],
    last_layer: int,
    templates: Sequence[str],
    scratch: Mapping[int, Tensor],
) -> dict[int, Keys]:
    """Keys of ``layers`` and the output of ``last_layer``, in one forward pass over all facts and contexts."""
    model = session.model
    batch, subject = context_batch(model, facts, templates)
    sites = [*((POST, layer) for layer in layers), (RESID_POST, last_layer)]
    with session.active(scratch):
        kept = model.run(batch, sites, stop_after=last_layer)
    rows = torch.arange(len(subject))
    n = len(templates)
    output = kept[(RESID_POST, last_layer)][rows, subject][::n].float().to(model.device).T
    found = {}
    for layer in layers:
        activations = kept[(POST, layer)][rows, subject].float().to(model.device)
        found[layer] = Keys(average_contexts(activations.view(len(facts), n, -1)).T, output)
    return found


def average_contexts(activations: Float[Tensor, "fact context d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
    """Half the bare prompt (the first context), half the mean of the others."""
    if activations.shape[1] == 1:
        return activations[:, 0]
    return (activations[:, 0] + activations[:, 1:].mean(1)) / 2


def context_batch(
    model: EditableModel, facts: Sequence[Fact], templates: Sequence[str]
) -> tuple[Any, Tensor]:
    """Every fact's prompt under every template, facts outermost, and each row's subject position."""
    rows, subject = [], []
    for fact in facts:
        for template in templates:
            rows.append(encode(model.tokenizer, fill_template(template, fact.prompt)))
            subject.append(find_subject_last(model.tokenizer, fact, template))
    return pad(rows, pad_id(model.tokenizer)), torch.tensor(subject)
