"""Text to token ids: batching, padding, and where the subject ends. Nowhere else in the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nmke.errors import FactError
from nmke.facts import Fact


@dataclass(frozen=True)
class Batch:
    """Token ids padded on the right; ``mask`` is 1 on real tokens and 0 on pads."""

    ids: Int[Tensor, "prompt position"]
    mask: Int[Tensor, "prompt position"]

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """Position of each prompt's last real token."""
        return self.mask.sum(dim=1) - 1

    def left_padded(self, fill: int) -> "Batch":
        """The same rows padded on the left, as generation needs them."""
        rows = [ids[mask.bool()] for ids, mask in zip(self.ids, self.mask, strict=True)]
        width = self.ids.shape[1]
        ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=fill) for row in rows])
        return Batch(ids, self.mask.flip(1))

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True)
class TokenPreview:
    """What the tokenizer makes of a fact.

    Attributes:
        tokens: the prompt's tokens as text.
        subject_last: index in ``tokens`` of the subject's last token, where the edit writes.
        target_tokens: the tokens of ``target_new`` as they follow the prompt.
        too_long: prompt and target together exceed the model's context.
        note: one sentence about anything unusual, or "".
    """

    tokens: tuple[str, ...]
    subject_last: int
    target_tokens: tuple[str, ...]
    too_long: bool
    note: str = ""


def pad_id(tokenizer: Any) -> int:
    """The id used to fill short rows: the tokenizer's pad, else its end-of-text, else 0."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def pad(rows: Sequence[Sequence[int]], fill: int) -> Batch:
    """Stack rows of token ids, padding on the right with ``fill``."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return Batch(ids, mask)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt, with the beginning-of-text token where the tokenizer adds one.

    A text of no tokens at all becomes a single beginning-of-text (or pad) token, so that a model always
    has one position to read.
    """
    ids = tokenizer(text).input_ids
    if ids:
        return list(ids)
    return [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else pad_id(tokenizer)]


def encode_batch(tokenizer: Any, texts: Sequence[str]) -> Batch:
    """Encode prompts and pad them on the right."""
    return pad([encode(tokenizer, text) for text in texts], pad_id(tokenizer))


def encode_continuation(tokenizer: Any, prompt: str, target: str) -> list[int]:
    """Token ids of ``target`` as it follows ``prompt``, one space between them.

    The two are encoded together, so that tokenizers which mark word starts differently at the start of a
    text (SentencePiece) give the ids that really follow; where the joint encoding does not begin with the
    prompt's own ids, the target is encoded alone with its leading space.
    """
    start = encode(tokenizer, prompt)
    joint = encode(tokenizer, f"{prompt.rstrip()} {target}")
    if joint[: len(start)] == start and len(joint) > len(start):
        return joint[len(start) :]
    alone = tokenizer(f" {target}", add_special_tokens=False).input_ids
    return list(alone)


def fill_template(template: str, prompt: str) -> str:
    """Put a prompt in the place of ``{}`` in a context template."""
    return template.replace("{}", prompt, 1)


def find_subject_last(tokenizer: Any, fact: Fact, template: str = "{}") -> int:
    """Index of the subject's last token in ``template`` filled with the fact's prompt.

    Raises:
        FactError: when the tokenizer gives no token for the subject's last character.
    """
    text = fill_template(template, fact.prompt)
    start = template.index("{}") + (fact.subject_start or 0)
    return find_token_at(tokenizer, text, start + len(fact.subject.rstrip()) - 1)


def find_token_at(tokenizer: Any, text: str, character: int) -> int:
    """Index of the last token that covers ``text[character]``.

    Raises:
        FactError: when no token covers it (a tokenizer that drops the character).
    """
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    covering = [index for index, (start, end) in enumerate(offsets) if start <= character < end]
    if not covering:
        raise FactError(
            f"The tokenizer gives no token for {text[character]!r} at the end of the subject.",
            "Shorten the subject by that character.",
            field="subject",
        )
    return covering[-1]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each id as readable text."""
    return [tokenizer.decode([int(token)]) for token in ids]


def preview_fact(tokenizer: Any, fact: Fact, context_length: int | None = None) -> TokenPreview:
    """Show how a fact is tokenized: its prompt, the subject's last token and the target.

    Raises:
        FactError: when the subject's last character has no token.
    """
    ids = encode(tokenizer, fact.prompt)
    target_ids = encode_continuation(tokenizer, fact.prompt, fact.target_new)
    total = len(ids) + len(target_ids)
    too_long = context_length is not None and total > context_length
    note = ""
    if too_long:
        note = f"Prompt and target are {total} tokens; the model reads at most {context_length}."
    elif len(target_ids) > 1:
        note = (
            f"The target is {len(target_ids)} tokens; its first token is the one whose probability is shown."
        )
    return TokenPreview(
        tuple(token_texts(tokenizer, ids)),
        find_subject_last(tokenizer, fact),
        tuple(token_texts(tokenizer, target_ids)),
        too_long,
        note,
    )


def require_fits(tokenizer: Any, fact: Fact, context_length: int, templates: Sequence[str] = ("{}",)) -> None:
    """Refuse a fact whose prompt, context and target do not fit the model's context.

    Raises:
        FactError: naming the lengths.
    """
    target = len(encode_continuation(tokenizer, fact.prompt, fact.target_new))
    longest = max(len(encode(tokenizer, fill_template(template, fact.prompt))) for template in templates)
    if longest + target > context_length:
        raise FactError(
            f"The prompt about {fact.subject!r} needs {longest + target} tokens with its context and target; "
            f"this model reads at most {context_length}.",
            "Shorten the prompt.",
            field="prompt",
        )
