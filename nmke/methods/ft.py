"""FT: constrained fine-tuning of one layer's down projection, as FT-L and as FT-M.

Adam on the loss, a step a batch of facts, at most ``steps`` times through all of them (ROME, arXiv 2202.05262, appendix
E.1; Zhang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models", arXiv 2401.01286, section
4.2, and their published code). Per fact, with ``y_1 .. y_n`` the tokens of the new answer to the prompt ``x``::

    FT-L ("last token")   -1/n sum_i log p(y_i | x)             all of them at the prompt's last token
    FT-M ("target")       -1/n sum_i log p(y_i | x y_1 .. y_i-1)  teacher-forced; the prompt's own tokens do not count

and a batch's loss is the mean over its facts. As published: a batch whose loss is under ``stop_loss`` takes no step,
the whole ends after a pass whose mean loss is; after every step the change is clamped to the norm constraint.

Where this differs from the published code: it encodes the answer alone, which for tokenizers that begin a text with a
special token makes FT-L teach that token too, and (with a pad token of its own) the pads of shorter answers; here an
answer's tokens are those that follow the prompt, and nothing else. The optimisation runs in float32 whatever the
model's type, on the change ``delta`` and not on ``W_out + delta``: Adam's steps are the same up to rounding, and the
edit, ``delta`` times the identity, is to the bit what was optimised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch
from nmke.methods.forced import Answers, ForcedLoss, Objective, forced_loss
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import require_fits


class FTConfig(Config):
    """Settings of FT-L and FT-M; defaults are the survey's for LLaMA-2-7B."""

    layer: int = Field(
        21, ge=0, title="Edited layer", description="Which layer's down projection is trained."
    )
    steps: int = Field(
        25,
        ge=1,
        le=1000,
        title="Steps",
        description="Most passes through the facts; one fact is one step a pass.",
    )
    learning_rate: float = Field(5e-4, gt=0, le=1, title="Learning rate", description="Adam's step size.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        title="Weight decay",
        description="L2 penalty that Adam adds to the gradient of the weights.",
    )
    norm_constraint: float = Field(
        0.0,
        ge=0,
        title="Norm constraint",
        description="No weight changes by more than this (L-infinity). 0 sets no bound.",
    )
    stop_loss: float = Field(
        1e-2, ge=0, title="Stop loss", description="Training ends once the mean loss is under this."
    )
    batch_size: int = Field(
        1, ge=1, le=1024, title="Batch size", description="Facts that share a step, when several are written."
    )


@dataclass(frozen=True)
class Tuned:
    """The result of the training.

    Attributes:
        delta: change of the down projection.
        losses: mean loss of each pass, before its steps.
        final: each fact's loss with ``delta``.
        ran: what each step ran.
    """

    delta: Float[Tensor, "d_mlp d_model"]
    losses: tuple[float, ...]
    final: Float[Tensor, " fact"]
    ran: str


class _FineTuning(Method):
    """What FT-L and FT-M share: everything but the loss."""

    objective: ClassVar[Objective]
    config_class = FTConfig

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """21 of 32, where the survey trains LLaMA-2-7B."""
        return {"layer": min(round(n_layers * 21 / 32), n_layers - 1)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: FTConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            session.model.check_layers([config.layer])
            for fact in facts:
                require_fits(session.model.tokenizer, fact, session.model.context_length)
            found = tune(session, facts, self.objective, config, progress)
        identity = torch.eye(found.delta.shape[1], device=found.delta.device)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=(WeightPatch(config.layer, found.delta, identity),),
            keys={},
            seconds=watch.seconds,
            details={
                "objective": self.objective,
                "losses": list(found.losses),
                "target_probability": (-found.final).exp().tolist(),
                "ran": {"training": found.ran},
            },
        )


class FTL(_FineTuning):
    """Fine-tuning with the whole answer predicted at the prompt's last token."""

    name = "ft-l"
    title = "FT-L"
    about = (
        "Fine-tunes one layer's down projection to say all of the answer's tokens at the prompt's last token "
        "(Meng et al., 2022; Zhang et al., 2024)."
    )
    objective = "last token"


class FTM(_FineTuning):
    """Fine-tuning with the cross-entropy of the answer alone."""

    name = "ft-m"
    title = "FT-M"
    about = (
        "Fine-tunes one layer's down projection on the answer's tokens, the prompt masked out of the loss "
        "(Zhang et al., 2024)."
    )
    objective = "target"


def tune(
    session: EditSession,
    facts: Sequence[Fact],
    objective: Objective,
    config: FTConfig,
    progress: Progress,
    plain: bool = False,
) -> Tuned:
    """Train the change of the layer's down projection on top of the session's edits.

    Args:
        plain: by whole prompts with the changed matrix in place; see :mod:`nmke.methods.forced`.

    Raises:
        EditError: when a loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    weights = session.master(config.layer)
    delta = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    groups = [facts[start : start + config.batch_size] for start in range(0, len(facts), config.batch_size)]
    losses: list[float] = []
    with session.active():
        batches = [
            forced_loss(session, Answers.of(session.model.tokenizer, group, objective), config.layer, plain)
            for group in groups
        ]
        for number in range(config.steps):
            total = 0.0
            for done, (batch, group) in enumerate(zip(batches, groups, strict=True)):
                named = ", ".join(fact.subject for fact in group)
                progress.update("fine-tuning", number * len(groups) + done, config.steps * len(groups), named)
                total += len(group) * _step(batch, delta, weights, optimiser, config, named, number)
            losses.append(total / len(facts))
            if losses[-1] < config.stop_loss:
                break
        final = torch.cat([batch.losses(delta) for batch in batches])
    if not final.isfinite().all():
        raise _diverged(", ".join(fact.subject for fact in facts[:3]), len(losses))
    progress.update("fine-tuning", config.steps * len(groups), config.steps * len(groups))
    return Tuned(delta, tuple(losses), final, batches[0].ran)


def _step(
    batch: ForcedLoss,
    delta: Float[Tensor, "d_mlp d_model"],
    weights: Float[Tensor, "d_mlp d_model"],
    optimiser: torch.optim.Optimizer,
    config: FTConfig,
    named: str,
    number: int,
) -> float:
    """One of Adam's steps on ``delta``, in place, clamped; the batch's loss before it."""
    found, gradient = batch.gradient(delta)
    loss = float(found.mean())
    if not abs(loss) < float("inf"):
        raise _diverged(named, number + 1)
    if loss >= config.stop_loss:
        delta.grad = gradient + config.weight_decay * (weights + delta)
        optimiser.step()
        delta.grad = None
    if config.norm_constraint:
        delta.clamp_(-config.norm_constraint, config.norm_constraint)
    return loss


def _diverged(named: str, step: int) -> EditError:
    return EditError(
        f"The fine-tuning for {named} diverged at step {step}; nothing was changed.",
        "Lower the learning rate.",
    )
