"""WISE's settings, and how one fact is trained into a shard of its side memory; see :mod:`nmke.methods.wise`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from nmke.config import Config
from nmke.errors import EditError
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.methods.side_memory import (
    TRAINED,
    SideMemory,
    activation_margin,
    margin_loss,
    mixed_seed,
    shard_mask,
)
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.replay import Replay
from nmke.session import EditSession
from nmke.sites import FINAL, POST, RESID_POST
from nmke.texts import read_windows
from nmke.tokens import (
    Batch,
    encode,
    encode_batch,
    encode_continuation,
    fill_template,
    pad,
    pad_id,
)

#: Stops once the loss is this small and moves no more, as published.
_STOP_CHANGE = 1e-4


class WISEConfig(Config):
    """Settings of WISE-Merge; defaults are the authors' for LLaMA-2-7B."""

    layer: int = Field(
        27,
        ge=0,
        title="Edited layer",
        description="Beside which layer's down projection the side memory stands.",
    )
    steps: int = Field(70, ge=1, le=1000, title="Steps", description="Most optimisation steps per fact.")
    learning_rate: float = Field(
        1.0, gt=0, title="Learning rate", description="Step size of gradient descent."
    )
    norm_constraint: float = Field(
        1.0, gt=0, title="Norm constraint", description="No entry of the side memory moves further than this."
    )
    alpha: float = Field(
        5.0, ge=0, title="Alpha", description="Irrelevant tokens shall have an activation margin under this."
    )
    beta: float = Field(
        20.0, ge=0, title="Beta", description="The edit's tokens shall have an activation margin over this."
    )
    gamma: float = Field(
        10.0, ge=0, title="Gamma", description="The least distance between the margins of the two."
    )
    act_ratio: float = Field(
        0.88,
        gt=0,
        le=1,
        title="Activation ratio",
        description="The side memory answers above this share of the smallest margin of any edit. Smaller reaches more "
        "paraphrases and more unrelated prompts.",
    )
    mask_ratio: float = Field(
        0.2, gt=0, le=1, title="Mask ratio", description="The share of entries one shard may change (rho)."
    )
    overlap: Literal["random", "none"] = Field(
        "random",
        title="Overlap of shards",
        description="random: each shard draws its entries anew, as published. none: shards have no entry in common, "
        "until all are used.",
    )
    save_freq: int = Field(
        500, ge=1, title="Edits a shard", description="So many edits are trained into a shard."
    )
    merge_freq: int = Field(
        1000,
        ge=1,
        title="Edits a merge",
        description="After so many edits the shards are merged; a multiple of the edits a shard.",
    )
    merge: Literal["ties", "linear"] = Field(
        "ties", title="Merge", description="How shards become one memory: TIES, or their weighted mean."
    )
    density: float = Field(
        0.53,
        gt=0,
        le=1,
        title="Density",
        description="TIES keeps this share of all entries, the largest ones.",
    )
    stop_loss: float = Field(
        0.02,
        ge=0,
        title="Stop loss",
        description="Stops once the whole loss is under this and no longer moves.",
    )
    text: str = Field(
        "wikipedia",
        title="Irrelevant text",
        description="'wikipedia' (106 articles from a Python package), the path of a text file, hf:NAME for a hub data "
        "set, or 'none': then only the edit's own tokens are in the margin loss.",
    )
    text_tokens: int = Field(
        128,
        ge=1,
        le=8192,
        title="Irrelevant tokens",
        description="So many tokens of it are drawn for each edit.",
    )
    text_window: int = Field(
        32, ge=2, le=512, title="Window", description="Tokens of the irrelevant text that are read together."
    )
    decoys: int = Field(
        0,
        ge=0,
        le=64,
        title="Decoys",
        description="So many times the edit's own prompt with another subject, of the built-in examples, counts as "
        "irrelevant too. Not in the published method; protects prompts that differ in the subject only.",
    )
    context_seed: int = Field(0, ge=0, title="Context seed", description="Seed of the five context texts.")
    seed: int = Field(
        0, ge=0, title="Seed", description="Seed of the shards' entries and of the irrelevant text drawn."
    )

    @model_validator(mode="after")
    def _merges_whole_shards(self) -> "WISEConfig":
        if self.merge_freq % self.save_freq:
            raise ValueError("the edits a merge must be a multiple of the edits a shard")
        return self


@dataclass(frozen=True)
class Lesson:
    """A fact under every context with its target teacher-forced.

    Attributes:
        batch: whole rows, the bare prompt first.
        starts: each row's position of the prompt's last token, which predicts the target's first.
        answer: the target's tokens.
    """

    batch: Batch
    starts: Int[Tensor, " row"]
    answer: Int[Tensor, " token"]

    @classmethod
    def of(cls, model: EditableModel, fact: Fact, templates: Sequence[str]) -> "Lesson":
        answer = encode_continuation(model.tokenizer, fact.prompt, fact.target_new)
        prompts = [encode(model.tokenizer, fill_template(template, fact.prompt)) for template in templates]
        batch = pad([prompt + answer[:-1] for prompt in prompts], pad_id(model.tokenizer))
        starts = torch.tensor([len(prompt) - 1 for prompt in prompts])
        return cls(batch, starts, torch.tensor(answer))

    @property
    def places(self) -> tuple[Int[Tensor, "row 1"], Int[Tensor, "row token"]]:
        """Index of the tokens that predict the target, in values [row, position, ...]."""
        rows = torch.arange(len(self.starts))[:, None]
        return rows, self.starts[:, None] + torch.arange(len(self.answer))

    def split(self, fill: int) -> tuple[Batch, Batch]:
        """What stands before the predicting tokens, and those."""
        cuts = self.starts.tolist()
        before = pad([row[:cut].tolist() for row, cut in zip(self.batch.ids, cuts, strict=True)], fill)
        rest = self.batch.ids[self.places]
        return before, Batch(rest, torch.ones_like(rest))


@dataclass(frozen=True)
class Forward:
    """From what the side memory adds at the predicting tokens to the target's log-likelihood.

    Attributes:
        inputs: the edited layer's activations at these tokens [row, token, d_mlp], float32.
        ran: the later layers on the target's tokens, or whole prompts.
    """

    model: EditableModel
    lesson: Lesson
    layer: int
    inputs: Float[Tensor, "row token d_mlp"]
    output: Float[Tensor, "row token d_model"] | None
    tail: Replay | None
    ran: Literal["later layers", "whole prompts"]

    @classmethod
    @torch.no_grad()
    def prepare(cls, model: EditableModel, lesson: Lesson, layer: int, plain: bool = False) -> "Forward":
        """Capture what does not change, with whatever weights are active; the caller holds the model's lock."""
        tail = None if plain else _record_tail(model, lesson, layer)
        if tail is not None:
            inputs, output = tail.keys(tail.entry, layer)
            return cls(model, lesson, layer, inputs.float(), output, tail, "later layers")
        site = (POST, layer)
        inputs = model.run(lesson.batch, [site], stop_after=layer)[site][lesson.places]
        return cls(model, lesson, layer, inputs.float(), None, None, "whole prompts")

    def __call__(self, change: Float[Tensor, "row token d_model"]) -> Float[Tensor, " row"]:
        """Each row's mean negative log-likelihood of the target's tokens; gradients flow."""
        log_p = self._logits(change).log_softmax(-1)
        answer = self.lesson.answer.to(log_p.device).expand(log_p.shape[:-1])
        return -log_p.gather(-1, answer[..., None])[..., 0].mean(-1)

    def _logits(self, change: Tensor) -> Float[Tensor, "row token d_vocab"]:
        if self.tail is not None and self.output is not None:
            resid = self.output + change.to(self.output)
            return self.tail.logits(self.tail.final(self.tail.run(resid, start=self.layer + 1)))
        places = self.lesson.places

        def added(resid: Tensor) -> Tensor:
            where = tuple(place.to(resid.device) for place in places)
            return resid.index_put(where, change.to(resid), accumulate=True)

        site = FINAL
        final = self.model.run(self.lesson.batch, [site], hooks={(RESID_POST, self.layer): added})[site]
        return self.model.logits(final[places])


def _record_tail(model: EditableModel, lesson: Lesson, layer: int) -> Replay | None:
    """The edited layer and the later ones on the predicting tokens, or None where the model has no replay."""
    unhooked = model.unhooked
    if unhooked is None:
        return None
    before, rest = lesson.split(pad_id(model.tokenizer))
    past = model.remember(before, unhooked.network) if before.ids.shape[1] else None
    return Replay.record(model, rest, layer, model.n_layers - 1, past)


@torch.no_grad()
def read_outside(
    model: EditableModel, layer: int, edit: int, config: WISEConfig, progress: Progress
) -> Float[Tensor, "other d_mlp"]:
    """The layer's activations on an irrelevant text, other windows for each edit; empty for the text 'none'."""
    if config.text == "none":
        return torch.zeros(0, model.d_mlp, device=model.device)
    seed = mixed_seed(config.seed, edit)
    count = max(config.text_tokens, config.text_window)
    windows = read_windows(model, config.text, count, config.text_window, seed, progress)
    batch = pad([row[row >= 0].tolist() for row in windows], pad_id(model.tokenizer))
    site = (POST, layer)
    found = model.run(batch, [site], stop_after=layer)[site]
    return found[batch.mask.bool().to(found.device)].float().to(model.device)


@torch.no_grad()
def read_decoys(
    session: EditSession, fact: Fact, edit: int, config: WISEConfig
) -> Float[Tensor, "decoy d_mlp"]:
    """The layer's activations at the end of the edit's prompt with other subjects in the place of its own.

    Subjects that edits in force are about are left out: their prompts shall go on reaching the side memory.
    """
    model, layer = session.model, config.layer
    edited = {fact.subject, *(each.subject for done in session.edits for each in done.facts)}
    subjects = sorted({each.subject for each in builtin_facts()} - edited)
    random.Random(mixed_seed(config.seed, edit)).shuffle(subjects)
    prompts = [fill_template(fact.template, subject) for subject in subjects[: config.decoys]]
    if not prompts:
        return torch.zeros(0, model.d_mlp, device=model.device)
    batch, site = encode_batch(model.tokenizer, prompts), (POST, layer)
    found = model.run(batch, [site], stop_after=layer)[site]
    return found[torch.arange(len(prompts)), batch.last].float().to(model.device)


@dataclass(frozen=True)
class Trained:
    """A trained shard.

    Attributes:
        difference: the shard's difference to the layer's own weights, all its edits in it.
        min_act: the edit's smallest margin on its bare prompt.
        outside: the largest margin on the irrelevant text; None without one.
        losses: per step (total, target, margin).
    """

    difference: Float[Tensor, "d_mlp d_model"]
    min_act: float
    outside: float | None
    losses: list[tuple[float, float, float]]


def train(
    forward: Forward,
    outside: Float[Tensor, "other d_mlp"],
    before: SideMemory | None,
    config: WISEConfig,
    progress: Progress,
    note: str = "",
) -> Trained:
    """Gradient descent on one fact in the shard whose turn it is.

    Raises:
        EditError: when the loss stops being finite, or the shard answers the edit's own tokens by nothing.
        Cancelled: from ``progress``, between steps.
    """
    start, mask = _shard(forward, before, config)
    difference = start.clone().requires_grad_()
    losses: list[tuple[float, float, float]] = []
    for step in range(config.steps):
        progress.update("training the side memory", step, config.steps, note)
        with torch.enable_grad():
            change = forward.inputs.to(difference.device) @ difference
            inside = activation_margin(change).view(-1)
            target = forward(change).mean().to(difference.device)
            margin = margin_loss(
                inside, activation_margin(outside @ difference), config.alpha, config.beta, config.gamma
            )
            loss = target + margin
            (gradient,) = torch.autograd.grad(loss, difference)
        losses.append((float(loss.detach()), float(target.detach()), float(margin.detach())))
        if not abs(losses[-1][0]) < float("inf"):
            raise EditError(
                f"The training for {note!r} diverged at step {step + 1}; nothing was changed.",
                "Lower the learning rate or the norm constraint.",
            )
        if _settles(losses, config.stop_loss):
            break
        with torch.no_grad():
            difference -= config.learning_rate * gradient * mask
            difference.clamp_(-config.norm_constraint, config.norm_constraint)
    progress.update("training the side memory", config.steps, config.steps, note)
    with torch.no_grad():
        done = difference.detach()
        own = activation_margin(forward.inputs[0].to(done.device) @ done)
        others = activation_margin(outside @ done)
    if not 0 < float(own.min()) < float("inf"):
        # The threshold is a share of this margin; at 0 every token would reach the side memory from then on.
        raise EditError(
            f"The training for {note!r} left no margin that could tell its tokens from others; nothing was changed.",
            "Raise the mask ratio or the learning rate.",
        )
    return Trained(done, float(own.min()), float(others.max()) if len(others) else None, losses)


def _settles(losses: Sequence[tuple[float, float, float]], stop_loss: float) -> bool:
    """The published stop: the last loss is small and hardly differs from the one before."""
    if len(losses) < 2 or losses[-1][0] > stop_loss:
        return False
    return abs(losses[-1][0] - losses[-2][0]) <= _STOP_CHANGE


def _shard(
    forward: Forward, before: SideMemory | None, config: WISEConfig
) -> tuple[Float[Tensor, "d_mlp d_model"], Float[Tensor, "d_mlp d_model"]]:
    """The shard to train on, zero where a new one begins, and 1 on the entries that are its own."""
    model = forward.model
    shape = (model.d_mlp, model.d_model)
    shard = before.finished if before else 0
    mask = shard_mask(shape, shard, config.mask_ratio, config.seed, config.overlap).float().to(model.device)
    if before is not None and TRAINED in before.tensors:
        return before.tensors[TRAINED].to(model.device), mask
    return torch.zeros(shape, device=model.device), mask


@torch.no_grad()
def check(model: EditableModel, lesson: Lesson, memory: SideMemory) -> tuple[float, float]:
    """On the bare prompt, with the memory in force: the share of predicting tokens it answers for, and the target's
    probability (geometric mean over its tokens)."""
    places = tuple(place[:1] for place in lesson.places)
    row = Batch(lesson.batch.ids[:1], lesson.batch.mask[:1])
    sites = [(POST, memory.layer), FINAL]
    kept = model.run(row, sites)
    routed = memory.margins(kept[sites[0]][places]) > memory.threshold
    log_p = model.logits(kept[sites[1]][places]).log_softmax(-1)
    answer = lesson.answer.to(log_p.device)[None, :, None]
    return float(routed.float().mean()), float(log_p.gather(-1, answer).mean().exp())
