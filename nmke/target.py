"""The z optimisation: which residual at the subject's last token makes the model say the new answer.

``z = h + delta``, ``h`` the output of the last edited layer at the subject's last token of the bare prompt. ``delta``
minimises (ROME, section 3.2; MEMIT, section 4.2; with AlphaEdit's settings)::

    mean over contexts of -log p(target_new)            per token of the target
    + kl_factor * KL(p || p_start) on "{subject} is a"  at the subject's last token
    + weight_decay * |delta| / |h|^2

by Adam, after each step clamped to ``|delta| <= clamp_norm_factor * |h|``.

Plainly (``plain=True``, the twin in tests) every step runs whole prompts through the whole model. But delta enters
after the edited layer, at one position: what lies before that position, and up to that layer, is the same in all steps.
So the keys and values before it are computed once, its residual too, and a step runs only the later layers on the later
positions (:mod:`nmke.replay`). Several facts are optimised side by side; they share the reading of the weights, which
is most of a step's cost on few tokens, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.past import Past
from nmke.progress import Progress, Silent
from nmke.replay import Replay
from nmke.sites import FINAL, RESID_POST
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
#: So many facts share a forward pass; more would only wait for the slowest.
FACTS_TOGETHER = 8


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
        ran: what each step ran: the later layers on the later positions, whole layers on the later positions
            (where the later layers alone do not reproduce the model), or whole prompts.
    """

    z: Float[Tensor, " d_model"]
    start: Float[Tensor, " d_model"]
    losses: tuple[tuple[float, float, float, float], ...]
    probabilities: tuple[float, ...]
    ran: Literal["later layers", "later positions", "whole prompts"] = "whole prompts"


@dataclass(frozen=True)
class _Problem:
    """Facts side by side: each one's contexts with the target teacher-forced, then its essence prompt.

    Attributes:
        batch: all rows, facts outermost.
        subject: each row's position of the subject's last token, where delta is added.
        owner: each row's fact.
        rows, places, tokens: where each token of the targets is predicted, and which it is.
        contexts: which context (counted over all facts) it belongs to.
        essence: each fact's essence row.
        n_contexts: contexts of one fact.
    """

    batch: Batch
    subject: Int[Tensor, " row"]
    owner: Int[Tensor, " row"]
    rows: Int[Tensor, " token"]
    places: Int[Tensor, " token"]
    tokens: Int[Tensor, " token"]
    contexts: Int[Tensor, " token"]
    essence: Int[Tensor, " fact"]
    n_contexts: int

    @property
    def bare(self) -> Int[Tensor, " fact"]:
        """Each fact's row without a context in front."""
        return self.essence - self.n_contexts


def optimise_targets(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    templates: Sequence[str],
    config: TargetConfig | None = None,
    progress: Progress | None = None,
    plain: bool = False,
) -> list[Target]:
    """Find z for every fact, each as if alone, with whatever weights are active.

    Args:
        plain: run whole prompts through the whole model in every step; the results are the same up to rounding.

    Raises:
        EditError: when a loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    config, progress = config or TargetConfig(), progress or Silent()
    found: list[Target] = []
    for start in range(0, len(facts), FACTS_TOGETHER):
        group = facts[start : start + FACTS_TOGETHER]
        with model.lock:
            forward = _Forward.prepare(model, _pose(model, group, templates), layer, plain)
            found += _optimise(forward, group, config, progress)
    return found


def optimise_target(
    model: EditableModel,
    fact: Fact,
    layer: int,
    templates: Sequence[str],
    config: TargetConfig | None = None,
    progress: Progress | None = None,
    plain: bool = False,
) -> Target:
    """:func:`optimise_targets` for one fact."""
    return optimise_targets(model, [fact], layer, templates, config, progress, plain)[0]


def _optimise(
    forward: "_Forward", facts: Sequence[Fact], config: TargetConfig, progress: Progress
) -> list[Target]:
    """Adam on all facts' deltas; a fact whose loss is small enough keeps its delta while others go on."""
    start = forward.start
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    essence: Tensor | None = None
    running = torch.ones(len(facts), dtype=torch.bool, device=start.device)
    losses: list[list[tuple[float, ...]]] = [[] for _ in facts]
    probabilities: list[list[float]] = [[] for _ in facts]
    named = ", ".join(fact.subject for fact in facts)
    for step in range(config.steps):
        progress.update("optimising z", step, config.steps, named)
        with torch.enable_grad():
            nll, now = forward(delta)
            essence = now.detach() if essence is None else essence
            kl, decay = _kl(essence, now, config.kl_factor), _decay(delta, start, config.weight_decay)
            loss = nll.mean(1) + kl + decay
        _require_finite(loss, facts, step)
        terms = torch.stack([loss, nll.mean(1), kl, decay], dim=1).detach().tolist()
        likely = (-nll.detach()).exp().mean(1).tolist()
        for index in running.nonzero()[:, 0].tolist():
            losses[index].append(tuple(terms[index]))
            probabilities[index].append(likely[index])
        running &= loss.detach() >= config.stop_loss
        if step == config.steps - 1 or not running.any():
            break
        optimiser.zero_grad()
        loss.sum().backward()
        _step(optimiser, delta, running, config.clamp_norm_factor * start.norm(dim=1))
    progress.update("optimising z", config.steps, config.steps, named)
    z = (start + delta).detach()
    return [
        Target(z[index], start[index], tuple(losses[index]), tuple(probabilities[index]), forward.ran)  # type: ignore[arg-type]
        for index in range(len(facts))
    ]


def _require_finite(loss: Tensor, facts: Sequence[Fact], step: int) -> None:
    diverged = [
        fact.subject for fact, value in zip(facts, loss.tolist(), strict=True) if not _is_finite(value)
    ]
    if diverged:
        named = ", ".join(map(repr, diverged))
        raise EditError(
            f"The z optimisation for {named} diverged at step {step + 1}; nothing was changed.",
            "Lower the learning rate or the clamp factor.",
        )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


@torch.no_grad()
def _step(
    optimiser: torch.optim.Optimizer,
    delta: Float[Tensor, "fact d_model"],
    running: Bool[Tensor, " fact"],
    largest: Float[Tensor, " fact"],
) -> None:
    """One step, clamped; facts that are done stay where they were."""
    before = delta.clone()
    optimiser.step()
    norm = delta.norm(dim=1)
    delta.mul_(torch.where(norm > largest, largest / norm, 1.0)[:, None])
    delta.copy_(torch.where(running[:, None], delta, before))


def _pose(model: EditableModel, facts: Sequence[Fact], templates: Sequence[str]) -> _Problem:
    tokenizer = model.tokenizer
    texts: list[list[int]] = []
    subject, owner, essences = [], [], []
    answers: list[tuple[int, int, int, int]] = []
    for number, fact in enumerate(facts):
        answer = encode_continuation(tokenizer, fact.prompt, fact.target_new)
        for count, template in enumerate(templates):
            prompt = encode(tokenizer, fill_template(template, fact.prompt))
            context = number * len(templates) + count
            answers += [
                (len(texts), len(prompt) - 1 + offset, token, context) for offset, token in enumerate(answer)
            ]
            texts.append(prompt + answer[:-1])
            subject.append(find_subject_last(tokenizer, fact, template))
        essence = fill_template(ESSENCE, fact.subject)
        essences.append(len(texts))
        texts.append(encode(tokenizer, essence))
        subject.append(find_token_at(tokenizer, essence, len(fact.subject.rstrip()) - 1))
        owner += [number] * (len(templates) + 1)
    rows, places, tokens, contexts = zip(*answers, strict=True)
    return _Problem(
        batch=pad(texts, pad_id(tokenizer)),
        subject=torch.tensor(subject),
        owner=torch.tensor(owner),
        rows=torch.tensor(rows),
        places=torch.tensor(places),
        tokens=torch.tensor(tokens),
        contexts=torch.tensor(contexts),
        essence=torch.tensor(essences),
        n_contexts=len(templates),
    )


@dataclass(frozen=True)
class _Forward:
    """From deltas to each context's mean negative log-likelihood and the essence prompts' distributions."""

    model: EditableModel
    problem: _Problem
    layer: int
    start: Float[Tensor, "fact d_model"]
    past: Past | None
    tail: Replay | None
    ran: Literal["later layers", "later positions", "whole prompts"]

    @classmethod
    def prepare(cls, model: EditableModel, problem: _Problem, layer: int, plain: bool) -> "_Forward":
        if plain:
            return cls(model, problem, layer, _start(model, problem, layer), None, None, "whole prompts")
        past = None
        if int(problem.subject.max()) > 0:
            problem, past = _split(model, problem)
        tail = None
        if layer < model.n_layers - 1:
            tail = Replay.record(model, problem.batch, layer + 1, model.n_layers - 1, past)
        if tail is None:
            return cls(
                model, problem, layer, _start(model, problem, layer, past), past, None, "later positions"
            )
        start = tail.entry[problem.bare, problem.subject[problem.bare]].float().to(model.device)
        return cls(model, problem, layer, start, past, tail, "later layers")

    def __call__(
        self, delta: Float[Tensor, "fact d_model"]
    ) -> tuple[Float[Tensor, "fact context"], Float[Tensor, "fact d_vocab"]]:
        problem = self.problem
        final = self._final(delta)
        last = problem.subject[problem.essence]
        needed = torch.cat([final[problem.rows, problem.places], final[problem.essence, last]])
        log_p = (self.tail or self.model).logits(needed).log_softmax(-1)
        answers, essence = log_p.split([len(problem.tokens), len(problem.essence)])
        token = -answers.gather(1, problem.tokens.to(answers.device)[:, None])[:, 0]
        contexts = problem.contexts.to(token.device)
        totals = token.new_zeros(len(problem.essence) * problem.n_contexts)
        counts = totals.index_add(0, contexts, torch.ones_like(token))
        return (totals.index_add(0, contexts, token) / counts).view(-1, problem.n_contexts), essence

    def _final(self, delta: Tensor) -> Float[Tensor, "row position d_model"]:
        if self.tail is not None:
            return self.tail.final(self.tail.run(self._added(self.tail.entry, delta)))
        hooks = {(RESID_POST, self.layer): lambda resid: self._added(resid, delta)}
        site = FINAL
        return self.model.run(self.problem.batch, [site], hooks=hooks, past=self.past)[site]

    def _added(self, resid: Tensor, delta: Tensor) -> Tensor:
        rows = torch.arange(len(self.problem.subject), device=resid.device)
        places = (rows, self.problem.subject.to(resid.device))
        added = delta.to(device=resid.device, dtype=resid.dtype)[self.problem.owner.to(resid.device)]
        return resid.index_put(places, added, accumulate=True)


def _split(model: EditableModel, problem: _Problem) -> tuple[_Problem, Past]:
    """Remember every row up to the subject's last token; what is left starts at that token.

    Of the essence prompts nothing is read after that token, so nothing after it is kept.
    """
    fill, essence = pad_id(model.tokenizer), set(problem.essence.tolist())
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(problem.batch.ids, problem.batch.mask, strict=True)
    ]
    cuts = problem.subject.tolist()
    before = pad([row[:cut] for row, cut in zip(rows, cuts, strict=True)], fill)
    past = model.remember(before, model.unhooked.network if model.unhooked else None)
    rest = [
        row[cut : cut + 1] if number in essence else row[cut:]
        for number, (row, cut) in enumerate(zip(rows, cuts, strict=True))
    ]
    shifted = replace(
        problem,
        batch=pad(rest, fill),
        subject=torch.zeros_like(problem.subject),
        places=problem.places - problem.subject[problem.rows],
    )
    return shifted, past


@torch.no_grad()
def _start(
    model: EditableModel, problem: _Problem, layer: int, past: Past | None = None
) -> Float[Tensor, "fact d_model"]:
    """``h``: the layer's output at the subject's last token of the bare prompts."""
    site = (RESID_POST, layer)
    resid = model.run(problem.batch, [site], stop_after=layer, past=past)[site]
    return resid[problem.bare, problem.subject[problem.bare]].float().to(model.device)


def _kl(
    start: Float[Tensor, "fact d_vocab"], now: Float[Tensor, "fact d_vocab"], factor: float
) -> Float[Tensor, " fact"]:
    """``KL(p || p_start)``, the direction the published code takes (torch's first argument is the reference)."""
    return factor * torch.nn.functional.kl_div(start, now, log_target=True, reduction="none").sum(-1)


def _decay(
    delta: Float[Tensor, "fact d_model"], start: Float[Tensor, "fact d_model"], factor: float
) -> Float[Tensor, " fact"]:
    return factor * delta.norm(dim=1) / start.norm(dim=1) ** 2
