"""What the model says about a fact, before and after: every score with the formula it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.facts import Fact
from nmke.fronts import Fronts
from nmke.model import EditableModel, Past
from nmke.tokens import Batch, encode, encode_continuation, pad, pad_id, token_texts

#: Score name -> how it is computed, in words a reader of the field understands.
FORMULAS: Mapping[str, str] = {
    "reliability": "share of target_new's tokens that are the argmax under teacher forcing on the edit prompt",
    "reliability_probability": "1 if P(target_new) > P(target_true) on the edit prompt (CounterFact's "
    "efficacy; P of the whole answer, where the published code compares means per token)",
    "generalization": "share of target_new's tokens that are the argmax under teacher forcing, mean over paraphrases",
    "generalization_probability": "share of paraphrases with P(target_new) > P(target_true) (CounterFact)",
    "locality": "share of argmax tokens on neighbourhood prompts, teacher-forced with their own answer, that are the "
    "same as before the edit",
    "locality_probability": "share of neighbourhood prompts with P(answer) > P(target_new) (CounterFact)",
    "portability": "share of the answer's tokens that are the argmax under teacher forcing, mean over the questions "
    "that follow from the edit",
    "target_probability": "probability of target_new's first token after the edit prompt",
}


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


@dataclass(frozen=True)
class FactMeasure:
    """What the model, as it now is, says about one fact.

    Attributes:
        new, true: answers to the edit prompt with target_new and target_true forced (true is None without one).
        paraphrases_new, paraphrases_true: the same for each paraphrase.
        neighbors_own, neighbors_new: answers to each neighbourhood prompt with its own answer (or none: only the
            next token) and with target_new.
        portability: answers to each portability question with its own answer forced.
        continuation, paraphrase_continuations, neighbor_continuations, portability_continuations: greedy text,
            empty when not asked for.
    """

    new: Answer
    true: Answer | None
    paraphrases_new: tuple[Answer, ...]
    paraphrases_true: tuple[Answer, ...]
    neighbors_own: tuple[Answer, ...]
    neighbors_new: tuple[Answer, ...]
    portability: tuple[Answer, ...] = ()
    continuation: str = ""
    paraphrase_continuations: tuple[str, ...] = ()
    neighbor_continuations: tuple[str, ...] = ()
    portability_continuations: tuple[str, ...] = ()

    @property
    def target_probability(self) -> float:
        return self.new.first_probability

    @property
    def true_probability(self) -> float | None:
        return None if self.true is None else self.true.first_probability


@dataclass(frozen=True)
class FactReport:
    """One fact before and after. Scores that the fact has no prompts for are None; ``FORMULAS`` explains each."""

    fact: Fact
    before: FactMeasure
    after: FactMeasure
    reliability: float
    reliability_probability: float | None
    generalization: float | None
    generalization_probability: float | None
    locality: float | None
    locality_probability: float | None
    portability: float | None

    @property
    def scores(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in FORMULAS if name != "target_probability"}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON report."""
        return {
            "fact": self.fact.to_dict(),
            **self.scores,
            "target_probability": {
                "before": self.before.target_probability,
                "after": self.after.target_probability,
            },
            "true_probability": {
                "before": self.before.true_probability,
                "after": self.after.true_probability,
            },
            "continuation": {"before": self.before.continuation, "after": self.after.continuation},
            "before": asdict(self.before),
            "after": asdict(self.after),
        }


def measure_fact(model: EditableModel, fact: Fact, generate_tokens: int = 0) -> FactMeasure:
    """Measure one fact with whatever weights are active; see :func:`measure_facts`."""
    return measure_facts(model, [fact], generate_tokens)[0]


def measure_facts(model: EditableModel, facts: Sequence[Fact], generate_tokens: int = 0) -> list[FactMeasure]:
    """Measure facts with whatever weights are active, in one batched forward pass per fact.

    Args:
        generate_tokens: length of the greedy continuations; 0 writes none.
    """
    return [_measure(model, fact, generate_tokens) for fact in facts]


def compare(fact: Fact, before: FactMeasure, after: FactMeasure) -> FactReport:
    """The scores of one fact from what the model said before and says now."""
    return FactReport(
        fact=fact,
        before=before,
        after=after,
        reliability=after.new.share,
        reliability_probability=_prefers(after.new, after.true),
        generalization=_mean([answer.share for answer in after.paraphrases_new]),
        generalization_probability=_mean(
            [
                _prefers(new, true)
                for new, true in zip(after.paraphrases_new, after.paraphrases_true, strict=False)
            ]
        ),
        locality=_kept_share(before.neighbors_own, after.neighbors_own),
        locality_probability=_mean(
            [
                _prefers(own, new)
                for own, new in zip(after.neighbors_own, after.neighbors_new, strict=True)
                if own.target
            ]
        ),
        portability=_mean([answer.share for answer in after.portability]),
    )


def mean_scores(reports: Sequence[FactReport]) -> dict[str, float | None]:
    """Mean of every score over the facts that have it."""
    names = [name for name in FORMULAS if name != "target_probability"]
    means = {name: _mean([report.scores[name] for report in reports]) for name in names}
    return {**means, "target_probability": _mean([report.after.target_probability for report in reports])}


@torch.no_grad()
def next_token_table(model: EditableModel, prompt: str, k: int = 5) -> list[tuple[str, float]]:
    """The ``k`` most likely next tokens with their probabilities."""
    batch = pad([encode(model.tokenizer, prompt)], pad_id(model.tokenizer))
    final = model.run(batch, [("final", -1)])[("final", -1)]
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
    final = _final(model, pad([list(row) for row in rows], pad_id(model.tokenizer)), past)
    answers = []
    for text, (prompt, target), ids, forced in zip(texts, asked, prompts, targets, strict=True):
        row = rows.index(row_of[text])
        places = slice(len(ids) - 1, len(ids) - 1 + max(1, len(forced)))
        log_p = model.logits(final[row, places]).log_softmax(-1).cpu()
        argmax = tuple(log_p.argmax(-1).tolist())
        own = [float(log_p[place, token]) for place, token in enumerate(forced)] or [float(log_p[0].max())]
        hits = tuple(a == b for a, b in zip(argmax, forced or argmax, strict=True))
        answers.append(Answer(prompt, target, argmax, hits, float(torch.tensor(own[0]).exp()), sum(own)))
    return answers


def longest_of(texts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Each text's longest extension among the texts; itself where none begins with it."""
    ordered = sorted(set(texts))
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    # In this order a text stands right before its extensions, so it has one exactly if the next begins with it.
    for text, following in zip(reversed(ordered), [(), *reversed(ordered)], strict=False):
        found[text] = found[following] if text and following[: len(text)] == text else text
    return found


def _final(model: EditableModel, batch: Batch, past: Past | None) -> Float[Tensor, "prompt position d_model"]:
    return model.run(batch, [("final", -1)], past=past)[("final", -1)]


def _measure(model: EditableModel, fact: Fact, generate_tokens: int) -> FactMeasure:
    new, true = fact.target_new, fact.target_true
    neighbors = fact.neighborhood
    groups: dict[str, list[tuple[str, str]]] = {
        "new": [(fact.prompt, new)],
        "true": [(fact.prompt, true)] if true else [],
        "paraphrases_new": [(text, new) for text in fact.paraphrases],
        "paraphrases_true": [(text, true) for text in fact.paraphrases] if true else [],
        "neighbors_own": [(neighbor.prompt, neighbor.answer) for neighbor in neighbors],
        "neighbors_new": [(neighbor.prompt, new) for neighbor in neighbors],
        "portability": [(one.prompt, one.answer) for one in fact.portability],
    }
    answers = iter(answer_all(model, [pair for pairs in groups.values() for pair in pairs]))
    found = {name: tuple(next(answers) for _ in pairs) for name, pairs in groups.items()}
    texts = [
        fact.prompt,
        *fact.paraphrases,
        *(prompt for prompt, _ in groups["neighbors_own"] + groups["portability"]),
    ]
    written = model.generate(texts, generate_tokens)
    split = 1 + len(fact.paraphrases)
    last = split + len(neighbors)
    return FactMeasure(
        new=found["new"][0],
        true=found["true"][0] if true else None,
        paraphrases_new=found["paraphrases_new"],
        paraphrases_true=found["paraphrases_true"],
        neighbors_own=found["neighbors_own"],
        neighbors_new=found["neighbors_new"],
        portability=found["portability"],
        continuation=written[0],
        paraphrase_continuations=tuple(written[1:split]),
        neighbor_continuations=tuple(written[split:last]),
        portability_continuations=tuple(written[last:]),
    )


def _kept_share(before: Sequence[Answer], after: Sequence[Answer]) -> float | None:
    same = [
        a == b
        for old, new in zip(before, after, strict=True)
        for a, b in zip(old.argmax, new.argmax, strict=True)
    ]
    return sum(same) / len(same) if same else None


def _prefers(first: Answer, second: Answer | None) -> float | None:
    return None if second is None else float(first.log_probability > second.log_probability)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
