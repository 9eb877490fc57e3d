"""MEND: a trained network turns the gradient of a fact's loss into an edit (Mitchell et al., ICLR 2022, 2110.11309).

An edit is one forward and one backward pass a fact: the gradient factors of ``-log p(target_new | prompt)`` at the
edited layers, sent through the editor (:mod:`nmke.methods.mend_transform`), which has been trained for this very model
(:mod:`nmke.methods.mend_training`, ``nmke train mend``). Without a trained editor the method refuses.

Defaults are the published ones: the last three blocks, rank 1920 (1920 in every published configuration for decoders),
one hidden block, ``u`` and ``delta`` transformed together, one editor shared by the layers.

Where this differs from the published code: only the down projections are edited, where the published settings edit all
matrices of the last three blocks' MLPs; several facts' factors are those each fact has alone, and their updates add,
where the published code takes the mean of one batch's loss and trains for that number of facts; an edit on top of
others reads its gradient from the edited model, though the editor was trained on the unedited one, as published.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from nmke.edit import Edit, WeightPatch
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch
from nmke.methods.forced import Answers
from nmke.methods.mend_passes import WholePrompts, nothing_added, read_factors
from nmke.methods.mend_transform import GradientTransform, TransformConfig, Update
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import require_fits
from nmke.trained import Trained, load_trained, trained_path

STAGE = "transforming gradients"


class MENDConfig(TransformConfig):
    """Settings of MEND: which trained editor it uses."""

    trained: str = Field(
        "",
        title="Trained editor",
        description="File of a trained editor; empty takes the one that `nmke train mend` keeps for this model and "
        "the settings above.",
    )


class MEND(Method):
    """A hypernetwork for gradients."""

    name = "mend"
    title = "MEND"
    about = (
        "A network trained for this model turns the gradient of a fact's loss into an edit of late layers; train it "
        "first with `nmke train mend` (Mitchell et al., ICLR 2022)."
    )
    config_class = MENDConfig

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """The last three layers."""
        return {"layers": tuple(range(max(0, n_layers - 3), n_layers))}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: MENDConfig, progress: Progress
    ) -> Edit:
        model, watch = session.model, Stopwatch()
        with watch.stage("total"):
            layers = model.check_layers(config.layers)
            for fact in facts:
                require_fits(model.tokenizer, fact, model.context_length)
            with watch.stage("loading the editor"):
                trained = find_editor(model, config)
                editor = editor_of(model, trained, config)
            losses: list[float] = []
            parts: dict[int, list[Update]] = {layer: [] for layer in layers}
            with watch.stage("gradients"), session.active(), torch.no_grad():
                for number, fact in enumerate(facts):
                    progress.update(STAGE, number, len(facts), fact.subject)
                    answers = Answers.of(model.tokenizer, [fact], "target")
                    passes = WholePrompts(model, answers.batch, layers)
                    factors, loss = read_factors(passes, answers, layers, model.d_model)
                    losses.append(float(loss))
                    for layer, update in editor.updates(factors).items():
                        parts[layer].append(update)
            patches = tuple(
                WeightPatch(
                    layer,
                    torch.cat([update.left for update in parts[layer]], dim=1),
                    torch.cat([update.right for update in parts[layer]]),
                )
                for layer in layers
            )
            with watch.stage("checking"):
                probabilities = _probabilities(session, facts, patches)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=patches,
            keys={},
            seconds=watch.seconds,
            details={
                "target_probability": probabilities,
                "losses": losses,
                "rates": editor.rates.detach().tolist(),
                "editor": {
                    name: trained.about.get(name) for name in ("digest", "steps", "data", "facts", "held_out")
                },
            },
        )


def find_editor(model: EditableModel, config: MENDConfig) -> Trained:
    """The trained editor the settings name.

    Raises:
        EditError: there is none, or it was trained for another model or with other settings; the remedy is the
            command that trains it.
    """
    path = (
        Path(config.trained).expanduser()
        if config.trained
        else trained_path(MEND.name, model.weight_hash, config.shape)
    )
    command = training_command(model, config)
    return load_trained(path, MEND.name, model.name, model.weight_hash, config.shape, command)


def editor_of(model: EditableModel, trained: Trained, config: TransformConfig) -> GradientTransform:
    """The trained editor, ready to transform; it has no gradients."""
    editor = GradientTransform(model.d_mlp, model.d_model, config.layers, config.rank, config.n_hidden)
    editor.load_state_dict(dict(trained.tensors))
    return editor.to(model.device).requires_grad_(False)


def training_command(model: EditableModel, config: TransformConfig) -> str:
    """The command that trains an editor of these settings for this model."""
    from nmke.presets import preset_for  # presets are made of methods, so they import this module

    usual = preset_for(model, MEND.name).config.model_dump()
    resolved = getattr(model, "resolved", None)
    # A folder or file is named by its path; its short name says nothing to the command line.
    spec = resolved.path if resolved is not None and resolved.kind in ("folder", "gguf") else model.name
    parts = ["nmke train mend --model", shlex.quote(spec), "--data zsre_train.jsonl"]
    if not model.device.startswith("cpu"):
        parts.append(f"--device {model.device}")
    if model.dtype != "float32":
        parts.append(f"--dtype {model.dtype}")
    for name, value in config.shape.items():
        if value != usual[name]:
            told = ",".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"--set {name}={told}")
    return " ".join(parts)


@torch.no_grad()
def _probabilities(
    session: EditSession, facts: Sequence[Fact], patches: Sequence[WeightPatch]
) -> list[float]:
    """Per fact the answer's probability a token (geometric mean) with the patches in place."""
    model = session.model
    changed = {patch.layer: patch.added_to(session.master(patch.layer)) for patch in patches}
    found = []
    with session.active(instead=changed):
        for fact in facts:
            answers = Answers.of(model.tokenizer, [fact], "target")
            passes = WholePrompts(model, answers.batch, ())
            final = passes.final(nothing_added(model.d_model))
            loss = answers.losses(passes.logits(final[answers.rows, answers.places]))
            found.append(float((-loss).exp()))
    return found
