"""What GRACE and MELO share: balls in the space of one layer's activations, each with an answer of its own.

A ball is a centre, a radius and the label of what is answered in it: the target's tokens. Where a new query goes is
decided by the nearest centre (GRACE, arXiv 2211.11031, section 3.1; MELO, arXiv 2312.11795, takes the rule over), with
``d`` its distance and ``r`` its ball's radius:

    d > r + initial radius       a ball of its own              "added"
    the label is the same        the ball grows to reach it     "grown", or "kept" where it does already
    another label                the two share the way          "split": about d / 2 each

Two things are ours. Labels are the same where the target's tokens are; the published codes compare the mean, or the
sum, of token numbers, which two different targets can share and one target behind two prompts need not. And a query
that stands where a centre of another label does (the same prompt with a new target) takes that ball over, "replaced":
the published split leaves two balls of radius zero there, of which the older answers, or neither.

Queries are **per token**, as WISE's are here and for its reasons (:mod:`nmke.methods.side_memory`): the published codes
query once a text, at the last token of the batch, pads included, and at whatever stands there while a text is written.
A token that asks for itself is answered alike in whole prompts, in batches padded on either side, and token by token
behind remembered ones; a token outside of all balls keeps the layer's own output, to the bit.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nmke.errors import EditError
from nmke.methods.wise_training import Lesson
from nmke.model import EditableModel
from nmke.modules import ModulePatch
from nmke.progress import Progress
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.tokens import Batch

CENTERS, RADII, LABELS = "centers", "radii", "labels"
#: What a split takes off the older ball, so that the two cannot both reach one token.
APART = 1e-5
#: How far, relative to its length, one token's activations may differ between batches of different shapes.
_ROUNDING = 1e-3
#: Largest error of a squared distance taken by a matrix product, relative to the squared lengths.
_PRODUCT_ERROR = 1e-4
#: The index of no ball.
NONE = -1

Move = Literal["added", "kept", "grown", "split", "replaced"]


@dataclass(frozen=True)
class Placement:
    """Where a query goes.

    Attributes:
        nearest: the ball whose centre is nearest; None where there is no ball yet.
        distance: to that centre.
    """

    move: Move
    nearest: int | None = None
    distance: float = float("inf")


class Balls(ModulePatch):
    """A patch that answers for tokens in its balls.

    Tensors, float32:
        centers: [ball, d_mlp].
        radii: [ball].

    Settings:
        labels: of each ball the target's tokens.
    """

    @property
    def centers(self) -> Float[Tensor, "ball d_mlp"]:
        return self.tensors[CENTERS]

    @property
    def radii(self) -> Float[Tensor, " ball"]:
        return self.tensors[RADII]

    @property
    def labels(self) -> list[list[int]]:
        return [list(label) for label in self.settings[LABELS]]

    def __len__(self) -> int:
        return len(self.radii)

    def answer(
        self, inputs: Float[Tensor, "*batch d_mlp"], output: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Per token what its ball answers; ``output`` itself outside of all balls."""
        balls = self.find(inputs)
        inside = balls != NONE
        if not bool(inside.any()):
            return output
        answered = output.clone()
        answered[inside] = self.within(inputs[inside].float(), output[inside], balls[inside])
        return answered

    @abstractmethod
    def within(
        self,
        inputs: Float[Tensor, "token d_mlp"],
        output: Float[Tensor, "token d_model"],
        balls: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d_model"]:
        """What the down projection shall give for tokens in these balls; ``output`` is what it gave, in its dtype."""

    @torch.no_grad()
    def find(self, inputs: Float[Tensor, "*batch d_mlp"]) -> Int[Tensor, "*batch"]:
        """The ball each token lies in: the nearest centre's, where it reaches so far; else -1."""
        tokens = inputs.reshape(-1, inputs.shape[-1]).float()
        centers, radii = self.centers.to(tokens.device), self.radii.to(tokens.device)
        found = torch.full((len(tokens),), NONE, device=tokens.device)
        (close,) = may_be_inside(tokens, centers, radii).nonzero(as_tuple=True)
        if len(close):
            distance, ball = distances(tokens[close], centers).min(1)
            found[close] = torch.where(distance <= radii[ball], ball, NONE)
        return found.view(inputs.shape[:-1])

    def place(
        self, query: Float[Tensor, " d_mlp"], label: Sequence[int], initial: float, rounding: float
    ) -> Placement:
        """Where a query goes; see the module.

        Args:
            initial: the radius of new balls.
            rounding: how far two readings of one token may differ.
        """
        if not len(self):
            return Placement("added")
        apart = distances(query.to(self.centers.device)[None], self.centers)[0]
        nearest = int(apart.argmin())
        distance, radius = float(apart[nearest]), float(self.radii[nearest])
        if distance > radius + initial:
            return Placement("added", nearest, distance)
        if self.labels[nearest] == list(label):
            return Placement("grown" if distance > radius else "kept", nearest, distance)
        return Placement("replaced" if distance <= 2 * rounding else "split", nearest, distance)


def distances(
    tokens: Float[Tensor, "token d_mlp"], centers: Float[Tensor, "ball d_mlp"]
) -> Float[Tensor, "token ball"]:
    """Euclidean distances from differences, exact where two points are close."""
    return torch.cdist(tokens, centers, compute_mode="donot_use_mm_for_euclid_dist")


def may_be_inside(
    tokens: Float[Tensor, "token d_mlp"],
    centers: Float[Tensor, "ball d_mlp"],
    radii: Float[Tensor, " ball"],
) -> Bool[Tensor, " token"]:
    """False only for tokens that no ball reaches: one matrix product instead of all differences.

    ``|x - c|^2 = |x|^2 + |c|^2 - 2 x c``, which is wrong by rounding; what could be inside is measured properly after.
    """
    squares, lengths = tokens.square().sum(1)[:, None], centers.square().sum(1)
    squared = squares + lengths - 2 * tokens @ centers.T
    return (squared <= radii.square() + _PRODUCT_ERROR * (squares + lengths)).any(1)


def rounding_of(model: EditableModel, query: Float[Tensor, " d_mlp"]) -> float:
    """How far two readings of one token may differ, in batches of different shapes; half precision rounds more."""
    relative = max(_ROUNDING, 8 * torch.finfo(getattr(torch, model.dtype)).eps)
    return relative * float(query.norm())


@torch.no_grad()
def read_tokens(
    model: EditableModel, lesson: Lesson, layer: int
) -> tuple[Float[Tensor, "token d_mlp"], Float[Tensor, "token d_model"]]:
    """What goes into the layer's down projection and comes out of it, at the tokens that predict the target.

    On the bare prompt, with whatever is in force.
    """
    sites = [(POST, layer), (MLP_OUT, layer)]
    kept = model.run(_bare(lesson), sites, stop_after=layer)
    inputs, output = (kept[site][_predicting(lesson)][0].float() for site in sites)
    return inputs, output


@torch.no_grad()
def check(model: EditableModel, lesson: Lesson, patch: Balls) -> tuple[list[bool], float]:
    """On the bare prompt, with the patch in force: which predicting tokens it answers for, and the target's
    probability (geometric mean over its tokens)."""
    sites = [(POST, patch.layer), FINAL]
    kept = model.run(_bare(lesson), sites)
    inside = patch.find(kept[sites[0]][_predicting(lesson)][0]) != NONE
    log_p = model.logits(kept[sites[1]][_predicting(lesson)][0]).log_softmax(-1)
    answer = lesson.answer.to(log_p.device)[:, None]
    return inside.tolist(), float(log_p.gather(-1, answer).mean().exp())


def _bare(lesson: Lesson) -> Batch:
    return Batch(lesson.batch.ids[:1], lesson.batch.mask[:1])


def _predicting(lesson: Lesson) -> tuple[Tensor, Tensor]:
    rows, positions = lesson.places
    return rows[:1], positions[:1]


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[], Float[Tensor, ""]],
    steps: int,
    learning_rate: float,
    progress: Progress,
    stage: str,
    note: str = "",
    halve_every: int | None = None,
) -> list[float]:
    """Adam on leaves, in place; the loss before every step.

    Args:
        halve_every: after so many steps the learning rate is halved.

    Raises:
        EditError: when the loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, halve_every or steps, 0.5) if halve_every else None
    losses: list[float] = []
    for step in range(steps):
        progress.update(stage, step, steps, note)
        with torch.enable_grad():
            value = loss()
            gradients = torch.autograd.grad(value, list(parameters))
        losses.append(float(value.detach()))
        if not abs(losses[-1]) < float("inf"):
            raise EditError(
                f"The training for {note!r} diverged at step {step + 1}; nothing was changed.",
                "Lower the learning rate.",
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        if schedule is not None:
            schedule.step()
    progress.update(stage, steps, steps, note)
    return losses
