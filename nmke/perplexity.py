"""Perplexity on text that no statistics read: how well the model still predicts ordinary English after edits.

``exp`` of the mean negative log-likelihood per token, over windows that do not overlap. A window starts with the
tokenizer's own start token where it has one, else its first token is not predicted. Perplexities are comparable
between models with one tokenizer only, and here are meant to be: before and after edits.

The held-out tokens are the last of the text whose paragraphs none of the given statistics settings read; paragraphs
are compared by their content, so that a copy of the statistics text does not count as held out either.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nmke.errors import EditError
from nmke.model import EditableModel
from nmke.moments import StatisticsConfig
from nmke.progress import Progress, Silent
from nmke.sites import FINAL
from nmke.texts import paragraph_tokens, paragraphs_read, read_paragraphs
from nmke.tokens import pad, pad_id

#: Tokens read at once, where the model's context allows it.
WINDOW = 512


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows of tokens.

    Attributes:
        text: the name of the text they are from.
        start: what stands before every window: the tokenizer's start token, or nothing.
        windows: token ids; the last window may be shorter.
    """

    text: str
    start: tuple[int, ...]
    windows: tuple[tuple[int, ...], ...]

    @property
    def predicted(self) -> int:
        """How many tokens are predicted: all, less each window's first where nothing stands before it."""
        return sum(len(window) - (not self.start) for window in self.windows)

    @property
    def sha256(self) -> str:
        """Of the token ids."""
        return hashlib.sha256(json.dumps([self.start, self.windows]).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "text": self.text,
            "slice": "the last paragraphs that no statistics read",
            "tokens": sum(map(len, self.windows)),
            "predicted": self.predicted,
            "window": max(map(len, self.windows)) + len(self.start),
            "sha256": self.sha256,
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.about(), "start": list(self.start), "windows": [list(one) for one in self.windows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeldOut":
        return cls(values["text"], tuple(values["start"]), tuple(map(tuple, values["windows"])))


def hold_out(
    model: EditableModel,
    text: str,
    tokens: int,
    statistics: Sequence[StatisticsConfig],
    progress: Progress | None = None,
    window: int = WINDOW,
) -> HeldOut:
    """The last ``tokens`` tokens of a text's paragraphs that none of the statistics read, in the text's order.

    Args:
        text: as in :class:`StatisticsConfig`: 'wikipedia', a file, or hf:NAME.

    Raises:
        ResourceError: a text cannot be read.
        EditError: too little of the text is left.
    """
    progress = progress or Silent()
    read: set[str] = set()
    for config in dict.fromkeys(one for one in statistics if one.text != "none"):
        read.update(paragraphs_read(model, config.text, config.tokens, config.seed, progress))
    taken: list[list[int]] = []
    count = 0
    for paragraph in reversed(read_paragraphs(text, progress)):
        if count >= tokens:
            break
        if paragraph not in read:
            taken.append(paragraph_tokens(model, paragraph))
            count += len(taken[-1])
            progress.update("choosing held-out text", min(count, tokens), tokens)
    if count < tokens:
        raise EditError(
            f"The text {text!r} has {count} tokens that the statistics do not read; {tokens} are wanted for the "
            "perplexity.",
            f"Ask for at most {count}, give another perplexity text, or let the statistics read less.",
        )
    ids = [token for paragraph in reversed(taken) for token in paragraph][-tokens:]
    start = _start_of(model)
    width = min(window, model.context_length) - len(start)
    return HeldOut(text, start, tuple(tuple(ids[at : at + width]) for at in range(0, len(ids), width)))


@torch.no_grad()
def mean_nll(
    model: EditableModel, held_out: HeldOut, progress: Progress | None = None, stage: str = ""
) -> float:
    """Mean negative log-likelihood per predicted token, in nats, with whatever weights are active.

    Args:
        stage: the progress stage's name.

    Raises:
        Cancelled: from ``progress``, between windows.
    """
    progress, stage = progress or Silent(), stage or "measuring perplexity"
    total = 0.0
    for done, window in enumerate(held_out.windows):
        progress.update(stage, done, len(held_out.windows), "perplexity")
        ids = [*held_out.start, *window]
        batch = pad([ids], pad_id(model.tokenizer))
        final = model.run(batch, [FINAL])[FINAL]
        log_p = model.logits(final[0, :-1]).log_softmax(-1)
        forced = torch.tensor(ids[1:], device=log_p.device)
        total -= float(log_p.gather(1, forced[:, None]).cpu().double().sum())
    return total / held_out.predicted


def perplexity(nll: float) -> float:
    """``exp`` of a mean negative log-likelihood; infinite where float64 ends."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def _start_of(model: EditableModel) -> tuple[int, ...]:
    ids = model.tokenizer("").input_ids
    return tuple(ids[:1]) if ids and ids[0] == model.tokenizer.bos_token_id else ()
