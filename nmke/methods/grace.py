"""GRACE: a codebook beside one layer, whose values answer inside balls around keys (Hartvigsen et al., NeurIPS 2023).

arXiv 2211.11031. A key is what enters the layer's down projection at the prompt's last token. Inside the key's ball its
value stands in the place of the down projection's output; outside of all balls nothing changes, to the bit. An edit
first finds its place (section 3.1; :mod:`nmke.methods.balls` has the rule): a new key with the initial radius, a ball
that grows to reach the query, or a split where a ball with another answer is near. Then the value chosen is trained
by Adam on the mean cross-entropy of the target's tokens, teacher-forced behind the bare prompt; all others stay.

The published code has three ways to replace (``replacement``). This is its ``replace_last``: only the token that asks
is answered, which is what its configs for LLaMA choose. The value then reaches the rest of an answer through the later
layers' attention, so at the last layer only the answer's first token can be written. ``replace_all`` and
``replace_prompt`` also overwrite the tokens in front of the one that asks, which are computed and remembered before it
is known, so they mean something else in a whole text than in one that is still being written.

Further differences to the published code (its authors' and EasyEdit's): every token asks, not one a text (the reasons
are in :mod:`nmke.methods.balls`), so a token that repeats an edited prompt in the middle of a text is answered too.
Labels are the target's tokens. A ball that grows reaches a hair further than its query (0.1% of the query's length),
so that the query stays inside whatever its batch rounds to. A prompt edited again with another target takes its key
over. The perturbed training (``val_train`` adv) is left out. In training only the token that asks is answered, as
published, even if tokens in front of it lie in other balls.

The value is trained on the later layers alone (:mod:`nmke.replay`), as WISE's side memory is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.balls import (
    APART,
    CENTERS,
    LABELS,
    RADII,
    Balls,
    Placement,
    check,
    descend,
    read_tokens,
    rounding_of,
)
from nmke.methods.base import Method, module_at
from nmke.methods.closed_form import Stopwatch
from nmke.methods.side_memory import mixed_seed
from nmke.methods.wise_training import Forward, Lesson
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import require_fits

VALUES = "values"


class GRACEConfig(Config):
    """Settings of GRACE; defaults are EasyEdit's for LLaMA-2-7B (the authors': 100 steps, the same otherwise)."""

    layer: int = Field(
        27,
        ge=0,
        title="Edited layer",
        description="Beside which layer's down projection the codebook stands.",
    )
    radius: float = Field(
        1.0,
        gt=0,
        title="Initial radius",
        description="Radius of a new key's ball (epsilon). Larger reaches more paraphrases and more unrelated prompts.",
    )
    expand: Literal["coverage", "moving average"] = Field(
        "coverage",
        title="Growing",
        description="A ball that grows reaches the new query; moving average also moves its key halfway there.",
    )
    start: Literal["cold", "warm"] = Field(
        "cold",
        title="Start of a value",
        description="cold: random numbers between 0 and 1. warm: what the layer gives by itself.",
    )
    steps: int = Field(50, ge=1, le=1000, title="Steps", description="Optimisation steps per fact.")
    learning_rate: float = Field(1.0, gt=0, le=1e30, title="Learning rate", description="Adam's step size.")
    seed: int = Field(0, ge=0, title="Seed", description="Seed of values that start cold.")


class Codebook(Balls):
    """GRACE's keys and values.

    Tensors, all float32:
        centers: the keys [ball, d_mlp].
        radii: their epsilons [ball].
        values: what the down projection gives inside [ball, d_model].

    Settings:
        labels: of each key the target's tokens.
        edits: how many were written into it.
    """

    kind = "codebook"

    @property
    def values(self) -> Float[Tensor, "ball d_model"]:
        return self.tensors[VALUES]

    @property
    def edits(self) -> int:
        return int(self.settings["edits"])

    def within(
        self,
        inputs: Float[Tensor, "token d_mlp"],
        output: Float[Tensor, "token d_model"],
        balls: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d_model"]:
        return self.values.to(output.device)[balls].to(output.dtype)

    def admitting(
        self,
        query: Float[Tensor, " d_mlp"],
        label: Sequence[int],
        value: Float[Tensor, " d_model"],
        config: GRACEConfig,
        rounding: float,
    ) -> tuple["Codebook", int, Placement]:
        """The codebook with a place for a query, which place that is, and how it was found.

        Args:
            value: what a new key's value starts from; where the query's ball is there already, its value stays.
            rounding: how far two readings of the query may differ.
        """
        placed = self.place(query, label, config.radius, rounding)
        keys, radii, values = self.centers.clone(), self.radii.clone(), self.values.clone()
        labels, near = self.labels, placed.nearest or 0
        if placed.move in ("added", "split"):
            keys, values = torch.cat([keys, query[None]]), torch.cat([values, value[None]])
            radii, labels = torch.cat([radii, radii.new_tensor([config.radius])]), [*labels, list(label)]
            if placed.move == "split":
                radii[near], radii[-1] = placed.distance / 2 - APART, placed.distance / 2
            near = len(labels) - 1
        elif placed.move == "replaced":
            keys[near], values[near], labels[near] = query, value, list(label)
        elif placed.move == "grown":
            radii[near] = placed.distance + rounding
            if config.expand == "moving average":
                keys[near] = (keys[near] + query) / 2
        tensors = {CENTERS: keys, RADII: radii, VALUES: values}
        return Codebook(self.layer, tensors, {LABELS: labels, "edits": self.edits + 1}), near, placed

    def with_value(self, key: int, value: Float[Tensor, " d_model"]) -> "Codebook":
        """The codebook with one value exchanged."""
        values = self.values.clone()
        values[key] = value
        return Codebook(self.layer, {**self.tensors, VALUES: values}, self.settings)


def empty_codebook(layer: int, d_mlp: int, d_model: int, device: str | torch.device = "cpu") -> Codebook:
    """One without keys."""
    shapes = {CENTERS: (0, d_mlp), RADII: (0,), VALUES: (0, d_model)}
    tensors = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    return Codebook(layer, tensors, {LABELS: [], "edits": 0})


class GRACE(Method):
    """A codebook of keys with balls and trained values."""

    name = "grace"
    title = "GRACE"
    about = (
        "Keeps facts in a codebook beside one late layer, whose trained values answer for tokens close to their keys; "
        "nothing else changes (Hartvigsen et al., NeurIPS 2023)."
    )
    config_class = GRACEConfig
    facts_at_once = 1

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """27 of 32, where EasyEdit edits LLaMA-2-7B."""
        return {"layer": min(round(n_layers * 27 / 32), n_layers - 1)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: GRACEConfig, progress: Progress
    ) -> Edit:
        model, (fact,), watch = session.model, facts, Stopwatch()
        (layer,) = model.check_layers([config.layer])
        before = module_at(session, layer, Codebook)
        book = before or empty_codebook(layer, model.d_mlp, model.d_model, model.device)
        with watch.stage("total"):
            require_fits(model.tokenizer, fact, model.context_length)
            lesson = Lesson.of(model, fact, ("{}",))
            with session.active(modules={layer: None}):
                with watch.stage("reading"):
                    inputs, output = read_tokens(model, lesson, layer)
                    forward = Forward.prepare(model, lesson, layer)
                query, own, rounding = inputs[0], output[0], rounding_of(model, inputs[0])
                label = lesson.answer.tolist()
                book, key, placed = book.admitting(
                    query, label, _start(own, book.edits, config), config, rounding
                )
                with watch.stage("training"):
                    value, losses = train_value(
                        forward, own, book.values[key], config, progress, fact.subject
                    )
            book = book.with_value(key, value)
            with watch.stage("checking"), session.active(modules={layer: book}):
                answered, probability = check(model, lesson, book)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=(),
            keys={},
            modules=(book,),
            seconds=watch.seconds,
            details={
                "target_probability": [probability],
                "move": placed.move,
                "nearest_key": placed.nearest,
                "distance_to_nearest_key": placed.distance if placed.nearest is not None else None,
                "key": key,
                "radius": float(book.radii[key]),
                "keys_in_codebook": len(book),
                "edits_in_codebook": book.edits,
                "answered_tokens": answered,
                "losses": losses,
                "ran": forward.ran,
            },
        )


def train_value(
    forward: Forward,
    own: Float[Tensor, " d_model"],
    start: Float[Tensor, " d_model"],
    config: GRACEConfig,
    progress: Progress,
    note: str = "",
) -> tuple[Float[Tensor, " d_model"], list[float]]:
    """A value that says the target, and the loss before each step.

    Args:
        own: what the layer's down projection gives at the prompt's last token, which the value replaces there.

    Raises:
        EditError: when the loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    value = start.detach().clone().requires_grad_()
    nothing = torch.zeros(1, forward.inputs.shape[1] - 1, len(own), device=own.device)

    def loss() -> Tensor:
        return forward(torch.cat([(value - own)[None, None], nothing], dim=1)).mean()

    losses = descend([value], loss, config.steps, config.learning_rate, progress, "training the value", note)
    return value.detach(), losses


def _start(own: Float[Tensor, " d_model"], edits: int, config: GRACEConfig) -> Float[Tensor, " d_model"]:
    if config.start == "warm":
        return own
    generator = torch.Generator().manual_seed(mixed_seed(config.seed, edits))
    return torch.rand(len(own), generator=generator).to(own.device)
