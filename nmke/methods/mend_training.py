"""MEND's training: the editor learns from facts what to make of their gradients (Mitchell et al., 2110.11309, 3.1).

A step takes one fact. The loaded model, never changed itself, is edited by the transform (:mod:`mend_transform`) from
the gradient of the fact's own prompt; the edited model is then asked for the new answer to a paraphrase, and for the
next tokens of a text it must leave alone::

    L = c_edit * -log p_W~(y | paraphrase) + c_loc * KL(p_W(. | text) || p_W~(. | text))

The first is the mean over the answer's tokens, the second over the text's. Gradients of ``accumulate`` steps are
averaged, clipped, and taken by Adam, one learning rate for the transform and one for its edit rates. No derivative goes
through the inner gradient: the factors are given, so ``L`` is differentiated through the edit alone.

The text is one of the fact's neighbourhood prompts with its answer; for a fact without any it is another fact's prompt
with its true answer, as the authors' training does throughout. Facts without a paraphrase are asked their own prompt.

Defaults are the published ones (the authors' ``zsre`` configuration and EasyEdit's for LLaMA-7B). Where this differs:
the number of steps is fixed, where the published training stops early by a validation set (here facts that are held
out are measured at the end); edit rates really learn with their own rate, whereas the published loop clears their
gradient before their optimiser steps; nothing is truncated, facts that do not fit the context are left out.

Which fact, paraphrase and text a step takes depends on the seed and the step's number alone. The state on disk
(transform, gradients gathered, Adam's moments, figures) therefore goes on with the same bits.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open

from nmke.errors import Cancelled, EditError, FactError
from nmke.facts import Fact
from nmke.methods.mend_lessons import Curriculum, Draw, Lesson
from nmke.methods.mend_state import Checkpoint, State, TrainingConfig
from nmke.methods.mend_transform import GradientTransform, TransformConfig
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.storage import locked, remove
from nmke.store import content_key, plain
from nmke.tokens import encode, encode_continuation
from nmke.trained import Trained, read_about, save_trained, trained_path

STAGE = "training the editor"
CHECK = "checking on held-out facts"
METHOD = "mend"
CURVE_STEPS = 100  #: steps whose mean losses make a point of the curve
CACHE_BYTES = 2**29  #: residuals of facts seen before, at most
_FORM = 1


def train_editor(
    model: EditableModel,
    facts: Sequence[Fact],
    config: TrainingConfig,
    progress: Progress,
    data: str = "",
    path: Path | None = None,
    plain_: bool = False,
) -> Trained:
    """Train an editor for the loaded, unedited model and keep it; stopped, the same call goes on with the same bits.

    An editor trained before by the same settings on the same facts is handed back as it is.

    Args:
        data: what the facts are called.
        path: where to keep the editor, instead of the place where editing looks for it.
        plain_: by whole prompts; see :mod:`nmke.methods.mend_passes`.

    Raises:
        ModelError: the architecture failed the gate, or lacks a layer.
        FactError: too few facts to train on.
        EditError: the training diverged.
        ResourceError: the disk is full or the folder cannot be written.
        Cancelled: from ``progress``, between steps; what was learned until then is in the checkpoint.
    """
    model.require_conformance()
    config = config.changed(layers=model.check_layers(config.layers))
    path = path or trained_path(METHOD, model.weight_hash, config.shape)
    training, held_out, left_out = _split(model, facts, config)
    key = _key(model, config, facts)
    if (
        (done := read_about(path)) is not None
        and done.get("key") == key
        and done.get("steps") == config.steps
    ):
        with safe_open(path, "pt") as file:
            return Trained({name: file.get_tensor(name).clone() for name in file.keys()}, done)  # noqa: SIM118
    state = State.fresh(model, config)
    with locked(path.parent, progress):
        checkpoint = Checkpoint(path.with_suffix(".training"), key)
        checkpoint.read_into(state, config.steps)
        _train(model, training, config, state, checkpoint, progress, plain_)
        figures = measure_held_out(model, state.transform, held_out, progress, plain_)
        about = {
            "method": METHOD,
            "model": model.name,
            "weight_hash": model.weight_hash,
            "shape": config.shape,
            "key": key,
            "steps": state.step,
            "training": config.model_dump(mode="json"),
            "data": data,
            "facts": len(training),
            "left_out": left_out,
            "seconds": state.seconds,
            "curve": state.curve,
            "held_out": figures,
        }
        found = save_trained(path, state.transform.state_dict(), about)
        remove(checkpoint.path)
    return found


def _train(
    model: EditableModel,
    facts: Sequence[Fact],
    config: TrainingConfig,
    state: State,
    checkpoint: Checkpoint,
    progress: Progress,
    plain_: bool,
) -> None:
    curriculum = Curriculum(model.tokenizer, facts, config.seed, config.hard_share)
    kept: dict[Draw, Lesson] = {}
    room, begun, note = CACHE_BYTES, state.step, ""
    try:
        while state.step < config.steps:
            progress.update(STAGE, state.step, config.steps, note)
            started = time.monotonic()
            draw = curriculum.draw(state.step)
            with model.weights_in({}):
                lesson = kept.get(draw) or Lesson.of(model, draw, config.layers, plain_)
                if draw not in kept and lesson.bytes <= room:
                    kept[draw], room = lesson, room - lesson.bytes
                note = take_step(model, lesson, config, state)
            state.seconds += time.monotonic() - started
            checkpoint.write_now_and_then(state)
        progress.update(STAGE, state.step, config.steps, note)
    except Cancelled:
        if state.step > begun:
            checkpoint.write(state)
        raise


def take_step(model: EditableModel, lesson: Lesson, config: TrainingConfig, state: State) -> str:
    """One step in place; every ``accumulate`` of them Adam takes the mean gradient. Returns a note for people.

    Raises:
        EditError: a loss or gradient stopped being finite.
    """
    with torch.enable_grad():
        edit, locality, _, _ = lesson.losses(state.transform, model.d_model, training=True)
        total = config.c_edit * edit + config.c_loc * locality
        (total / config.accumulate).backward()
    state.step += 1
    state.sums = [state.sums[0] + float(edit.detach()), state.sums[1] + float(locality.detach())]
    diverged = not torch.isfinite(total.detach())
    if state.step % config.accumulate == 0 and not diverged:
        norm = torch.nn.utils.clip_grad_norm_(state.transform.parameters(), config.grad_clip)
        diverged = not torch.isfinite(norm)
        if not diverged:
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
    if diverged:
        raise EditError(
            f"The training diverged at step {state.step}; no editor was kept.",
            "Lower --set learning_rate or rate_learning_rate and train again.",
        )
    if state.step % CURVE_STEPS == 0:
        state.curve.append([state.step, *(total / CURVE_STEPS for total in state.sums)])
        state.sums = [0.0, 0.0]
    if not state.curve:
        return ""
    _, edit_mean, locality_mean = state.curve[-1]
    return f"edit loss {edit_mean:.2f}, locality loss {locality_mean:.4f}"


@torch.no_grad()
def measure_held_out(
    model: EditableModel,
    transform: GradientTransform,
    facts: Sequence[Fact],
    progress: Progress,
    plain_: bool = False,
) -> dict[str, float | int]:
    """What the editor does with facts it was not trained on, each written alone into the loaded model.

    Returns:
        ``facts``; ``edit``: share of the answer's tokens that are the argmax on the edit prompt; ``paraphrase``: on a
        paraphrase; ``locality``: share of the text's next tokens whose argmax stays; ``kl``: their mean KL.
    """
    curriculum = Curriculum(model.tokenizer, facts, 0) if facts else None
    sums = dict.fromkeys(("edit", "paraphrase", "locality", "kl"), 0.0)
    for number in range(len(facts)):
        progress.update(CHECK, number, len(facts))
        assert curriculum is not None
        draw = curriculum.draw(number)
        with model.weights_in({}):
            for name, prompt in (("edit", draw.fact.prompt), ("paraphrase", draw.prompt)):
                lesson = Lesson.of(model, Draw(draw.fact, prompt, draw.text), transform.layers, plain_)
                _, kl, answer, text = lesson.losses(transform, model.d_model)
                hits = answer.argmax(-1) == lesson.outcome.tokens.to(answer.device)
                sums[name] += float(hits.float().mean())
            same = text.argmax(-1) == lesson.outer.logits(lesson.before).argmax(-1)
            sums["locality"] += float(same.float().mean())
            sums["kl"] += float(kl)
    return {"facts": len(facts), **{name: value / max(len(facts), 1) for name, value in sums.items()}}


def _split(
    model: EditableModel, facts: Sequence[Fact], config: TrainingConfig
) -> tuple[list[Fact], list[Fact], int]:
    """Facts to train on, facts held out, and how many do not fit the context."""
    fitting = [fact for fact in facts if _longest(model, fact) <= model.context_length]
    count = min(config.held_out, len(fitting) // 5)
    training = fitting[: len(fitting) - count]
    if len(training) < 2:
        raise FactError(
            f"{len(training)} facts that fit the model's context are too few to train on.",
            "Give a file with at least 2, better hundreds, such as ZsRE's training split.",
        )
    return training, fitting[len(fitting) - count :], len(facts) - len(fitting)


def _longest(model: EditableModel, fact: Fact) -> int:
    """Tokens of the longest text that a step about the fact may run."""
    asked = [(prompt, fact.target_new) for prompt in (fact.prompt, *fact.paraphrases)]
    asked += [(fact.prompt, fact.target_true), *((near.prompt, near.answer) for near in fact.neighborhood)]
    tokenizer = model.tokenizer
    return max(
        len(encode(tokenizer, prompt))
        + (len(encode_continuation(tokenizer, prompt, answer)) if answer else 0)
        for prompt, answer in asked
    )


def _key(model: EditableModel, config: TrainingConfig, facts: Sequence[Fact]) -> str:
    """Everything the state depends on but the number of steps, so that training can be taken further."""
    settings = {name: value for name, value in config.model_dump().items() if name != "steps"}
    lines = "\n".join(json.dumps(fact.to_dict(), sort_keys=True) for fact in facts)
    return content_key(
        form=_FORM,
        model=model.weight_hash,
        device=model.device.split(":")[0],
        settings=plain(settings),
        facts=hashlib.sha256(lines.encode()).hexdigest(),
    )


#: (layers, d_model, d_mlp, vocabulary) -> a training that was measured on that model (benchmarks/presets.md).
_MEASURED: Mapping[tuple[int, int, int, int], Mapping[str, Any]] = MappingProxyType(
    {
        (30, 576, 1536, 49152): {
            "steps": 500,
            "learning_rate": 1e-5,
            "edit_rate": 1e-3,
            "accumulate": 1,
            "hard_share": 0.5,
        }
    }
)


def training_for(model: EditableModel) -> TrainingConfig:
    """The training known for a model: measured for its shape, or else the published one; layers as in its preset."""
    from nmke.presets import preset_for  # presets are made of methods, so they import this module

    shape = preset_for(model, METHOD).config.model_dump(include=set(TransformConfig.model_fields))
    measured = _MEASURED.get((model.n_layers, model.d_model, model.d_mlp, model.d_vocab), {})
    return TrainingConfig.make(**shape, **measured)
