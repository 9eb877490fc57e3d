"""What MEND's training steps are made of: which fact, paraphrase and text, and the losses of an edit on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nmke.facts import Fact
from nmke.methods.forced import Answers
from nmke.methods.mend_passes import (
    Outcome,
    Passes,
    kl_divergence,
    nothing_added,
    passes_of,
    read_factors,
    with_updates,
)
from nmke.methods.mend_transform import GradientTransform
from nmke.methods.side_memory import mixed_seed
from nmke.model import EditableModel
from nmke.tokens import encode, encode_continuation

LIKE, LIKE_AMONG = 10, 2000  #: a hard text is one of so many prompts, the likest among so many facts


@dataclass(frozen=True)
class Draw:
    """What one step is about."""

    fact: Fact
    prompt: str
    text: tuple[int, ...]


class Curriculum:
    """Which fact a step takes, which paraphrase and which text: a function of seed and step."""

    def __init__(self, tokenizer: Any, facts: Sequence[Fact], seed: int, hard_share: float = 0.0) -> None:
        self.tokenizer, self.facts, self.seed, self.hard_share = tokenizer, facts, seed, hard_share
        self._words = [frozenset(fact.template.lower().split()) for fact in facts]
        self._epoch, self._order = -1, torch.empty(0)

    def draw(self, step: int) -> Draw:
        epoch, place = divmod(step, len(self.facts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.facts), generator=generator)
        number = int(self._order[place])
        fact = self.facts[number]
        chance = torch.rand(3, generator=torch.Generator().manual_seed(mixed_seed(self.seed + 1, step)))
        a, b, c = chance.tolist()
        prompts = fact.paraphrases or (fact.prompt,)
        return Draw(fact, prompts[int(a * len(prompts))], self._text(number, b, c < self.hard_share))

    def _text(self, number: int, share: float, hard: bool) -> tuple[int, ...]:
        fact = self.facts[number]
        if hard:
            like = self._like(number)
            other = self.facts[like[int(share * len(like))]]
            prompt, answer = other.prompt, other.target_true
        elif fact.neighborhood:
            chosen = fact.neighborhood[int(share * len(fact.neighborhood))]
            prompt, answer = chosen.prompt, chosen.answer
        else:
            other = self.facts[(number + 1 + int(share * (len(self.facts) - 1))) % len(self.facts)]
            prompt, answer = other.prompt, other.target_true
        ids = encode(self.tokenizer, prompt)
        return tuple(ids + (encode_continuation(self.tokenizer, prompt, answer) if answer else []))

    def _like(self, number: int) -> list[int]:
        """The facts about other subjects whose prompts share the most words with this one's, subjects apart."""
        own, count = self._words[number], len(self.facts)
        others = [(number + step) % count for step in range(1, min(count, LIKE_AMONG + 1))]
        others = [at for at in others if self.facts[at].subject != self.facts[number].subject] or others
        others.sort(key=lambda at: -len(own & self._words[at]) / len(own | self._words[at]))
        return others[:LIKE]


@dataclass(frozen=True)
class Lesson:
    """One draw ready to run.

    Attributes:
        answers, inner: the fact's own prompt, whose gradient is read.
        outcome, outer: what the edited model is asked.
        before: the unedited final-norm output on the text [token, d_model].
    """

    answers: Answers
    inner: Passes
    outcome: Outcome
    outer: Passes
    before: Tensor

    @classmethod
    def of(cls, model: EditableModel, draw: Draw, layers: Sequence[int], plain_: bool) -> "Lesson":
        answers = Answers.of(model.tokenizer, [draw.fact], "target")
        outcome = Outcome.of(model.tokenizer, draw.prompt, draw.fact.target_new, draw.text)
        inner = passes_of(model, answers.batch, layers, plain_)
        outer = passes_of(model, outcome.batch, layers, plain_)
        with torch.no_grad():
            before = outer.final(nothing_added(model.d_model))[1, : outcome.outside].clone()
        return cls(answers, inner, outcome, outer, before)

    @property
    def bytes(self) -> int:
        """About what keeping it costs."""
        tokens = self.answers.batch.ids.numel() + self.outcome.batch.ids.numel() + len(self.before)
        return tokens * self.before.shape[-1] * self.before.element_size()

    def losses(
        self, transform: GradientTransform, d_model: int, training: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``L_e`` and ``L_loc`` after the edit, and the logits they were read from: of the answer, of the text."""
        factors, _ = read_factors(self.inner, self.answers, transform.layers, d_model)
        final = self.outer.final(with_updates(transform.updates(factors, training)))
        answer = self.outer.logits(final[0, self.outcome.places])
        text = self.outer.logits(final[1, : self.outcome.outside])
        with torch.no_grad():
            before = self.outer.logits(self.before)
        return self.outcome.loss(answer), kl_divergence(before, text), answer, text
