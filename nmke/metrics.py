"""What the model says about a fact, before and after: every score with the formula it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nmke.facts import Fact
from nmke.forcing import Answer, answer_all
from nmke.model import EditableModel

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

    Never in one for several facts: what a fact is compared with was computed beside the same texts, so where no weight
    changed no bit does, in no dtype.

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
