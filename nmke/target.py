"""The z optimisation: which residual at the subject's last token makes the model say the new answer.

``z = h + delta``, ``h`` the output of the last edited layer at the subject's last token of the bare prompt. ``delta``
minimises (ROME, section 3.2; MEMIT, section 4.2; with AlphaEdit's settings)::

    mean over contexts of -log p(target_new)            per token of the target
    + kl_factor * KL(p || p_start) on "{subject} is a"  at the subject's last token
    + weight_decay * |delta| / |h|^2

by Adam, after each step clamped to ``|delta| <= clamp_norm_factor * |h|``.

All steps share what lies before the subject's last token, so its keys and values are computed once and each step runs
only the tokens from there on; ``reuse_prefix=False`` runs whole prompts in each step and is the plain twin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.model import RESID_POST, EditableModel, Past
from nmke.progress import Progress, Silent
from nmke.tokens import (
    Batch,
    encode,
    encode_continuation,
    fill_template,
    find_subject_last,
    find_token_at,
    pad,
    pad_id,
)

ESSENCE = "{} is a"


class TargetConfig(Config):
    """How z is optimised; defaults are AlphaEdit's."""

    steps: int = Field(25, ge=1, le=500, title="Steps", description="Most optimisation steps per fact.")
    learning_rate: float = Field(
        0.5, gt=0, le=10, title="Learning rate", description="Adam's step size for delta."
    )
    kl_factor: float = Field(
        0.0625, ge=0, title="KL factor", description="How strongly the subject's essence ('X is a') is kept."
    )
    weight_decay: float = Field(0.5, ge=0, title="Weight decay", description="Penalty on |delta| / |h|^2.")
    clamp_norm_factor: float = Field(
        0.75, gt=0, le=100, title="Clamp factor", description="delta is held to this multiple of |h|."
    )
    stop_loss: float = Field(
        0.05, ge=0, title="Stop loss", description="Stops once the whole loss is under this."
    )


@dataclass(frozen=True)
class Target:
    """The result of one z optimisation.

    Attributes:
        z: wanted output of the layer at the subject's last token [d_model], float32.
        start: the output there before (``h``) [d_model].
        losses: per step (total, target, KL, weight decay).
        probabilities: per step the target's mean probability over contexts.
    """

    z: Float[Tensor, " d_model"]
    start: Float[Tensor, " d_model"]
    losses: tuple[tuple[float, float, float, float], ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class _Problem:
    """Contexts with the target teacher-forced, and the essence prompt as the last row."""

    batch: Batch
    subject: Int[Tensor, " row"]
    answer_rows: Int[Tensor, "context token"]
    answer_places: Int[Tensor, "context token"]
    answer: Int[Tensor, " token"]


def optimise_target(
    model: EditableModel,
    fact: Fact,
    layer: int,
    templates: Sequence[str],
    config: TargetConfig | None = None,
    progress: Progress | None = None,
    reuse_prefix: bool = True,
) -> Target:
    """Find z for one fact, with whatever weights are active.

    Args:
        reuse_prefix: compute what lies before the subject's last token once; the result is the same up to rounding.

    Raises:
        EditError: when the loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    config, progress = config or TargetConfig(), progress or Silent()
    problem = _pose(model, fact, templates)
    start = _resid_at_subject(model, problem, layer)
    past = None
    if reuse_prefix and int(problem.subject.max()) > 0:
        problem, past = _split(model, problem)
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    essence: Tensor | None = None
    losses, probabilities = [], []
    for step in range(config.steps):
        progress.update("optimising z", step, config.steps, fact.subject)
        with torch.enable_grad():
            log_p, now = _forward(model, problem, past, layer, delta)
            essence = now.detach() if essence is None else essence
            per_context = -log_p.mean(1)
            terms = (
                per_context.mean(),
                _kl(essence, now, config.kl_factor),
                _decay(delta, start, config.weight_decay),
            )
            loss = terms[0] + terms[1] + terms[2]
        if not torch.isfinite(loss):
            raise EditError(
                f"The z optimisation for {fact.subject!r} diverged at step {step + 1}; nothing was changed.",
                "Lower the learning rate or the clamp factor.",
            )
        losses.append(tuple(float(term.detach()) for term in (loss, *terms)))
        probabilities.append(float((-per_context.detach()).exp().mean()))
        if float(loss.detach()) < config.stop_loss or step == config.steps - 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _clamp(delta, config.clamp_norm_factor * float(start.norm()))
    progress.update("optimising z", config.steps, config.steps, fact.subject)
    return Target((start + delta).detach(), start, tuple(losses), tuple(probabilities))  # type: ignore[arg-type]


def _pose(model: EditableModel, fact: Fact, templates: Sequence[str]) -> _Problem:
    tokenizer = model.tokenizer
    rows, subject, rows_of, places_of = [], [], [], []
    answer = encode_continuation(tokenizer, fact.prompt, fact.target_new)
    for number, template in enumerate(templates):
        prompt = encode(tokenizer, fill_template(template, fact.prompt))
        rows.append(prompt + answer[:-1])
        subject.append(find_subject_last(tokenizer, fact, template))
        rows_of.append([number] * len(answer))
        places_of.append([len(prompt) - 1 + offset for offset in range(len(answer))])
    essence = fill_template(ESSENCE, fact.subject)
    rows.append(encode(tokenizer, essence))
    subject.append(find_token_at(tokenizer, essence, len(fact.subject.rstrip()) - 1))
    return _Problem(
        pad(rows, pad_id(tokenizer)),
        torch.tensor(subject),
        torch.tensor(rows_of),
        torch.tensor(places_of),
        torch.tensor(answer, device=model.device),
    )


def _split(model: EditableModel, problem: _Problem) -> tuple[_Problem, Past]:
    """Remember every row up to the subject's last token; what is left starts at that token."""
    fill = pad_id(model.tokenizer)
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(problem.batch.ids, problem.batch.mask, strict=True)
    ]
    cuts = problem.subject.tolist()
    past = model.remember(pad([row[:cut] for row, cut in zip(rows, cuts, strict=True)], fill))
    rest = pad([row[cut:] for row, cut in zip(rows, cuts, strict=True)], fill)
    places = problem.answer_places - problem.subject[:-1, None]
    return _Problem(
        rest, torch.zeros_like(problem.subject), problem.answer_rows, places, problem.answer
    ), past


@torch.no_grad()
def _resid_at_subject(model: EditableModel, problem: _Problem, layer: int) -> Float[Tensor, " d_model"]:
    site = (RESID_POST, layer)
    return model.run(problem.batch, [site], stop_after=layer)[site][0, problem.subject[0]].float()


def _forward(
    model: EditableModel, problem: _Problem, past: Past | None, layer: int, delta: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "context token"], Float[Tensor, " d_vocab"]]:
    """Log-probabilities of the target's tokens, and the essence prompt's distribution, with delta added."""
    rows = torch.arange(len(problem.subject))

    def add_delta(resid: Tensor) -> Tensor:
        places = (rows.to(resid.device), problem.subject.to(resid.device))
        added = delta.to(device=resid.device, dtype=resid.dtype).expand(len(rows), -1)
        return resid.index_put(places, added, accumulate=True)

    hooks = {(RESID_POST, layer): add_delta}
    final = model.run(problem.batch, [("final", -1)], hooks=hooks, past=past)[("final", -1)]
    log_p = model.logits(final[problem.answer_rows, problem.answer_places]).log_softmax(-1)
    index = problem.answer.to(log_p.device).expand(len(log_p), -1)[..., None]
    essence = model.logits(final[-1, problem.subject[-1]]).log_softmax(-1)
    return log_p.gather(-1, index)[..., 0], essence


def _kl(start: Tensor, now: Tensor, factor: float) -> Tensor:
    """``KL(p || p_start)``, the direction the published code takes (torch's first argument is the reference)."""
    return factor * torch.nn.functional.kl_div(start, now, log_target=True, reduction="sum")


def _decay(delta: Tensor, start: Tensor, factor: float) -> Tensor:
    return factor * delta.norm() / start.norm() ** 2


@torch.no_grad()
def _clamp(delta: Tensor, largest: float) -> None:
    norm = delta.norm()
    if norm > largest:
        delta.mul_(largest / norm)
