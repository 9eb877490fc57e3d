"""What the model answers to prompts with targets teacher-forced: the raw material of every score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.fronts import Fronts
from nmke.model import EditableModel
from nmke.past import Past
from nmke.sites import FINAL
from nmke.tokens import encode, encode_continuation, pad, pad_id, token_texts

#: Positions whose next-token distributions are held at once.
POSITIONS_AT_ONCE = 128


@dataclass(frozen=True)
class Answer:
    """The model's answer to one prompt, with a target teacher-forced.

    Attributes:
        target: the answer that was forced.
        argmax: the most likely token at each of the target's places.
        hits: at which places that is the target's own token.
        first_probability: probability of the target's first token.
        log_probability: of the whole target.
    """

    prompt: str
    target: str
    argmax: tuple[int, ...]
    hits: tuple[bool, ...]
    first_probability: float
    log_probability: float

    @property
    def share(self) -> float:
        """Share of the target's tokens that are the argmax."""
        return sum(self.hits) / len(self.hits)


@torch.no_grad()
def next_token_table(model: EditableModel, prompt: str, k: int = 5) -> list[tuple[str, float]]:
    """The ``k`` most likely next tokens with their probabilities."""
    final = _final(model, [encode(model.tokenizer, prompt)])
    probabilities, tokens = model.logits(final[0, -1]).softmax(-1).topk(k)
    return list(zip(token_texts(model.tokenizer, tokens.tolist()), probabilities.tolist(), strict=True))


@torch.no_grad()
def answer_all(model: EditableModel, asked: Sequence[tuple[str, str]]) -> list[Answer]:
    """Teacher-force each (prompt, target) pair in one forward pass; an empty target asks for the next token only.

    What one pair's tokens say is also read for pairs that begin like it: nothing depends on later tokens. Where
    something stands in front of texts, the prompt alone decides what, never the target that is forced.
    """
    if not asked:
        return []
    with model.lock:
        if model.fronts is None:
            return _answer_all(model, asked)
        fronts = model.fronts
        answers: dict[int, Answer] = {}
        for indices, front in fronts.groups([prompt for prompt, _ in asked]):
            with model.without_fronts():
                found = _answer_all(model, [asked[index] for index in indices], fronts, front)
            for index, answer in zip(indices, found, strict=True):
                answers[index] = answer
        return [answers[index] for index in range(len(asked))]


def _answer_all(
    model: EditableModel,
    asked: Sequence[tuple[str, str]],
    fronts: Fronts | None = None,
    front: tuple[int, ...] = (),
) -> list[Answer]:
    prompts = [encode(model.tokenizer, prompt) for prompt, _ in asked]
    targets = [
        encode_continuation(model.tokenizer, prompt, target) if target else [] for prompt, target in asked
    ]
    if fronts is not None and front:
        prompts = [fronts.own(ids, front) for ids in prompts]
    texts = [tuple(p + t[:-1]) for p, t in zip(prompts, targets, strict=True)]
    if fronts is not None:
        fronts.require_fits(front, max(map(len, texts)))
    row_of = longest_of(texts)
    rows = list(dict.fromkeys(row_of.values()))
    past = fronts.past_of(front, len(rows)) if fronts is not None else None
    states = dict(zip(rows, _final(model, rows, past), strict=True))
    asked_at = [
        states[row_of[text]][len(ids) - 1 : len(ids) - 1 + max(1, len(forced))]
        for text, ids, forced in zip(texts, prompts, targets, strict=True)
    ]
    argmax, own = _read_out(model, asked_at, targets)
    answers = []
    for (prompt, target), forced, best, log_p in zip(asked, targets, argmax, own, strict=True):
        hits = tuple(a == b for a, b in zip(best, forced or best, strict=True))
        answers.append(Answer(prompt, target, best, hits, math.exp(log_p[0]), sum(log_p)))
    return answers


def _read_out(
    model: EditableModel, states: Sequence[Float[Tensor, "_ d_model"]], forced: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], list[list[float]]]:
    """Per pair, of so many places each: the likeliest token of a place, and log P of the forced one (or the likeliest).

    The unembedding is read once for many places: it is by far the largest matrix of a small model.
    """
    places = torch.cat(list(states))
    wanted = torch.tensor([token for ids in forced for token in (ids or [-1])], device=places.device)
    best, own = [], []
    for some, tokens in zip(places.split(POSITIONS_AT_ONCE), wanted.split(POSITIONS_AT_ONCE), strict=True):
        log_p = model.logits(some).log_softmax(-1)
        likeliest = log_p.argmax(-1)
        best.append(likeliest)
        asked = torch.where(tokens < 0, likeliest, tokens)
        own.append(log_p.gather(-1, asked[:, None])[:, 0])
    counts = [len(one) for one in states]
    return (
        [tuple(one.tolist()) for one in torch.cat(best).cpu().split(counts)],
        [one.tolist() for one in torch.cat(own).cpu().split(counts)],
    )


def longest_of(texts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Each text's longest extension among the texts; itself where none begins with it."""
    ordered = sorted(set(texts))
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    # In this order a text stands right before its extensions, so it has one exactly if the next begins with it.
    for text, following in zip(reversed(ordered), [(), *reversed(ordered)], strict=False):
        found[text] = found[following] if text and following[: len(text)] == text else text
    return found


def _final(
    model: EditableModel, rows: Sequence[Sequence[int]], past: Past | None = None
) -> Float[Tensor, "row position d_model"]:
    batch = pad(rows, pad_id(model.tokenizer))
    return model.run(batch, [FINAL], past=past)[FINAL]
