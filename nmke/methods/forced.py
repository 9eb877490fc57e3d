"""The loss of teacher-forced answers as a function of a change of one layer's down projection, and its gradient.

A down projection changes nothing before its own layer, and what enters it stays as it is. So the layer's output and its
inputs ``post`` are computed once; with the change ``delta`` the output is ``out + post @ delta``, and a step runs only
the later layers (:mod:`nmke.replay`). The weights themselves need no gradient; only ``delta`` has one.

Where the later layers cannot be replayed, and in tests (``plain=True``), the changed matrix is put in the layer's place
and whole prompts run through the whole model, whose own parameter then gathers the gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.replay import Replay
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import Batch, encode, encode_continuation, pad, pad_id

#: Where the answer's tokens are predicted: each after the ones before it, or all of them at the prompt's last token.
Objective = Literal["last token", "target"]


@dataclass(frozen=True)
class Answers:
    """Facts' answers in one batch.

    Attributes:
        batch: a row a fact.
        rows, places, tokens: where each token of the answers is predicted, and which it is.
    """

    batch: Batch
    rows: Int[Tensor, " token"]
    places: Int[Tensor, " token"]
    tokens: Int[Tensor, " token"]

    @classmethod
    def of(cls, tokenizer: object, facts: Sequence[Fact], objective: Objective) -> "Answers":
        texts: list[list[int]] = []
        read: list[tuple[int, int, int]] = []
        for row, fact in enumerate(facts):
            prompt = encode(tokenizer, fact.prompt)
            answer = encode_continuation(tokenizer, fact.prompt, fact.target_new)
            last = len(prompt) - 1
            if objective == "target":
                texts.append(prompt + answer[:-1])
                read += [(row, last + offset, token) for offset, token in enumerate(answer)]
            else:
                texts.append(prompt)
                read += [(row, last, token) for token in answer]
        rows, places, tokens = (torch.tensor(part) for part in zip(*read, strict=True))
        return cls(pad(texts, pad_id(tokenizer)), rows, places, tokens)

    def losses(self, logits: Float[Tensor, "token d_vocab"]) -> Float[Tensor, " fact"]:
        """Each fact's mean negative log-likelihood over its answer's tokens.

        Args:
            logits: at the tokens' rows and places.
        """
        chosen = logits.log_softmax(-1).gather(1, self.tokens.to(logits.device)[:, None])[:, 0]
        rows = self.rows.to(logits.device)
        totals = chosen.new_zeros(len(self.batch.ids))
        return -totals.index_add(0, rows, chosen) / totals.index_add(0, rows, torch.ones_like(chosen))


class ForcedLoss(ABC):
    """From a change of the down projection to the facts' losses; made inside the session's ``active`` block.

    Attributes:
        ran: what each evaluation runs.
    """

    ran: Literal["later layers", "whole prompts"]

    @abstractmethod
    def losses(self, delta: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, " fact"]:
        """Each fact's loss, without a gradient."""

    @abstractmethod
    def gradient(
        self, delta: Float[Tensor, "d_mlp d_model"]
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, "d_mlp d_model"]]:
        """Each fact's loss, and the gradient of their mean with respect to ``delta``."""


def forced_loss(session: EditSession, answers: Answers, layer: int, plain: bool = False) -> ForcedLoss:
    """The quickest form that reproduces the model; the caller is inside ``session.active()``."""
    model = session.model
    replay = None if plain else Replay.record(model, answers.batch, layer, model.n_layers - 1)
    if replay is None:
        return _WholePrompts(session, answers, layer)
    with torch.no_grad():
        post, out = replay.keys(replay.entry, layer)
    return _LaterLayers(answers, layer, replay, post, out)


@dataclass(frozen=True)
class _LaterLayers(ForcedLoss):
    """Replays what follows the layer."""

    answers: Answers
    layer: int
    replay: Replay
    post: Float[Tensor, "fact position d_mlp"]
    out: Float[Tensor, "fact position d_model"]
    ran: Literal["later layers", "whole prompts"] = "later layers"

    @torch.no_grad()
    def losses(self, delta: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, " fact"]:
        return self._losses(delta)

    def gradient(
        self, delta: Float[Tensor, "d_mlp d_model"]
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, "d_mlp d_model"]]:
        leaf = delta.detach().requires_grad_(True)
        with torch.enable_grad():
            losses = self._losses(leaf)
            (found,) = torch.autograd.grad(losses.mean(), leaf)
        return losses.detach(), found

    def _losses(self, delta: Tensor) -> Tensor:
        resid = self.out + self.post @ delta.to(device=self.post.device, dtype=self.post.dtype)
        if self.layer < self.replay.last:
            resid = self.replay.run(resid, self.layer + 1)
        final = self.replay.final(resid)
        return self.answers.losses(self.replay.logits(final[self.answers.rows, self.answers.places]))


@dataclass(frozen=True)
class _WholePrompts(ForcedLoss):
    """Puts the changed matrix in place and runs everything; the gradient is the stored parameter's own."""

    session: EditSession
    answers: Answers
    layer: int
    ran: Literal["later layers", "whole prompts"] = "whole prompts"

    @torch.no_grad()
    def losses(self, delta: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, " fact"]:
        with self.session.active(instead={self.layer: self._changed(delta)}):
            return self._losses(self.session.model)

    def gradient(
        self, delta: Float[Tensor, "d_mlp d_model"]
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, "d_mlp d_model"]]:
        model = self.session.model
        with self.session.active(instead={self.layer: self._changed(delta)}), torch.enable_grad():
            parameter = model.down_projection(self.layer)
            parameter.requires_grad_(True)
            try:
                losses = self._losses(model)
                (found,) = torch.autograd.grad(losses.mean(), parameter)
            finally:
                parameter.requires_grad_(False)
        return losses.detach(), (found.T if model.is_transposed(self.layer) else found).to(delta)

    def _changed(self, delta: Tensor) -> Tensor:
        return self.session.master(self.layer) + delta

    def _losses(self, model: EditableModel) -> Tensor:
        site = FINAL
        final = model.run(self.answers.batch, [site])[site]
        return self.answers.losses(model.logits(final[self.answers.rows, self.answers.places]))
