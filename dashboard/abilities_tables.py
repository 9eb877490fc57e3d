"""The Abilities page's numbers: results side by side, paired changes, questions whose answer changed. No Streamlit."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pandas as pd

from nmke.ability import TASKS, TITLES

if TYPE_CHECKING:
    from nmke.ability import AbilityReport, TaskScore

ABOUT: Mapping[str, str] = {
    "mmlu": "school and college knowledge in 57 subjects, four choices",
    "gsm8k": "grade-school mathematics, a number as the answer",
    "commonsense_qa": "everyday knowledge, five choices",
    "bbh": "27 hard tasks of reasoning, the answer in words",
    "humaneval": "short Python functions, tested by running them",
}
GUESSING: Mapping[str, float] = {"mmlu": 0.25, "commonsense_qa": 0.2}
"""What guessing gives where every question has the same number of choices."""

LOADED = ""
"""The state of a model without edits and ablation."""
CHANGES = ("answer changed", "lost", "gained", "all questions")
"""What the list of questions can show; lost: right before, wrong after."""


@dataclass(frozen=True)
class Result:
    """One benchmark, measured on one state of the model.

    Attributes:
        label: what the page calls that state.
        report: the engine's report with the score of this one benchmark.
    """

    label: str
    report: "AbilityReport"

    @property
    def score(self) -> "TaskScore":
        return self.report.scores[0]

    @property
    def state(self) -> str:
        """Identifies what computed: equal states compute the same."""
        return self.report.state

    @property
    def task(self) -> str:
        return self.score.task

    @property
    def title(self) -> str:
        return TITLES.get(self.task, self.task)

    @property
    def setting(self) -> tuple[Any, ...]:
        """Results of equal settings answered the same questions in the same way and may be compared."""
        score = self.score
        return (
            score.task,
            score.metric,
            score.sha256,
            score.fewshot,
            score.harness_version,
            score.details.get("longest_answer"),
        )


def split(report: "AbilityReport", label: str) -> list[Result]:
    """A report's benchmarks one by one."""
    return [
        Result(
            label,
            replace(report, scores=(score,), samples=report.samples[report.samples["task"] == score.task]),
        )
        for score in report.scores
    ]


def keep(known: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """The results with the new ones at the end; an equal measurement of the same state is replaced."""
    added = {(result.report.weight_hash, result.state, result.setting): result for result in new}
    kept = [each for each in known if (each.report.weight_hash, each.state, each.setting) not in added]
    return [*kept, *added.values()]


def newest(results: Sequence[Result]) -> list[Result]:
    """Of each task the results that may be compared with the one measured last, in the order of the tasks."""
    settings = {result.task: result.setting for result in results}
    order: dict[str, int] = {task: place for place, task in enumerate(TASKS)}
    found = [result for result in results if result.setting == settings[result.task]]
    return sorted(found, key=lambda result: order.get(result.task, len(order)))


def states_of(results: Iterable[Result]) -> dict[str, str]:
    """Each measured state with its label; states of one label are told apart by a part of their digest."""
    labels = {result.state: result.label for result in results}
    shared = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    return {
        state: f"{label} #{sha256(state.encode()).hexdigest()[:4]}" if label in shared else label
        for state, label in labels.items()
    }


def relabelled(results: Sequence[Result]) -> list[Result]:
    """The results with labels that name one state each."""
    labels = states_of(results)
    return [replace(result, label=labels[result.state]) for result in results]


@dataclass(frozen=True)
class Pair:
    """One benchmark before and after, over the questions that both answered.

    Attributes:
        change: (mean, low, high) of after - before.
        p: of McNemar's test.
        gained, lost: questions that only one of the two answered rightly.
    """

    before: Result
    after: Result
    change: tuple[float, float, float]
    p: float
    gained: int
    lost: int
    n: int


def pairs(results: Sequence[Result], before: str, afters: Sequence[str]) -> list[Pair]:
    """Every task that was measured on ``before`` and on one of ``afters``, task by task."""
    measured = newest(results)
    found = []
    for first in (result for result in measured if result.state == before):
        for state in (state for state in afters if state != before):
            found += [
                pair(first, each) for each in measured if (each.task, each.state) == (first.task, state)
            ]
    return found


def pair(before: Result, after: Result) -> Pair:
    """The change over the questions that both answered."""
    from nmke.ability import compare_abilities

    row = compare_abilities(before.report, after.report).to_dict("records")[0]
    change = (float(row["change"]), float(row["low"]), float(row["high"]))
    return Pair(
        before, after, change, float(row["p_value"]), int(row["gained"]), int(row["lost"]), int(row["n"])
    )


def side_by_side(before: Result, after: Result) -> pd.DataFrame:
    """The questions that both answered: what was asked, what is right, what each said and whether it counts."""
    left = before.report.samples[["part", "number", "question", "prompt", "target", "answer", "right"]]
    right = after.report.samples[["part", "number", "question", "answer", "right"]]
    found = left.merge(right, on=["part", "number", "question"], suffixes=(" before", " after"))
    return found.drop(columns="question")


def changed(both: pd.DataFrame, which: str, words: str = "") -> pd.DataFrame:
    """The questions of one kind of change in which the words occur, whatever their case."""
    before, after = both["right before"].astype(bool), both["right after"].astype(bool)
    masks = {
        "answer changed": both["answer before"] != both["answer after"],
        "lost": before & ~after,
        "gained": after & ~before,
    }
    found = both[masks[which]] if which in masks else both
    words = words.strip().lower()
    if words:
        texts = found[["part", "prompt", "target", "answer before", "answer after"]].astype(str)
        there = texts.apply(lambda column: column.str.lower().str.contains(words, regex=False)).any(axis=1)
        found = found[there]
    return found.reset_index(drop=True)


def measured_table(results: Sequence[Result]) -> pd.DataFrame:
    """How every number was measured: one row a task and state."""
    return pd.DataFrame(
        [
            {
                "benchmark": result.title,
                "model": result.label,
                "score": say_score(score),
                "n": score.n,
                "seconds": score.seconds,
                "cached": score.cached,
                "metric": score.metric,
                "few-shot": score.fewshot,
                "seed": score.seed,
                "limit": "all" if score.limit is None else str(score.limit),
                "source of the questions": score.source,
                "lm-eval": score.harness_version,
                "formula": score.formula,
                "interval": score.interval.method,
                "cut prompts": score.truncated,
            }
            for result in results
            for score in [result.score]
        ]
    )


def paired_table(found: Sequence[Pair]) -> pd.DataFrame:
    """Before and after in numbers: one row a task and state."""
    return pd.DataFrame(
        [
            {
                "benchmark": each.before.title,
                "after": each.after.label,
                "n": each.n,
                "score before": say_score(each.before.score),
                "score after": say_score(each.after.score),
                "change": say_interval(*each.change, digits_for(each.n), signed=True),
                "McNemar p": each.p,
                "gained": each.gained,
                "lost": each.lost,
            }
            for each in found
        ]
    )


def parts_table(results: Sequence[Result]) -> pd.DataFrame:
    """The scores of MMLU's subjects and BIG-Bench Hard's tasks, one row a part and state."""
    return pd.DataFrame(
        [
            {"benchmark": result.title, "part": part, "model": result.label, "score": value, "n": count}
            for result in results
            if len(result.score.parts) > 1
            for part, (value, count) in result.score.parts.items()
        ]
    )


def numbers_table(results: Sequence[Result], found: Sequence[Pair]) -> pd.DataFrame:
    """Everything in full digits, for a file."""
    changes = {(each.after.task, each.after.state): each for each in found}
    rows = []
    for result in results:
        told = result.score.to_dict()
        interval = told.pop("interval")
        nested = {name: _as_json(told.pop(name)) for name in ("parts", "others", "details")}
        row = {"model": result.label, "state": result.state, "weight_hash": result.report.weight_hash, **told}
        row |= {"low": interval["low"], "high": interval["high"], "interval": interval["method"], **nested}
        each = changes.get((result.task, result.state))
        if each is not None:
            row |= dict(zip(("change", "change_low", "change_high"), each.change, strict=True))
            row |= {"compared_with": each.before.label, "mcnemar_p": each.p, "compared_n": each.n}
            row |= {"gained": each.gained, "lost": each.lost}
        rows.append(row)
    return pd.DataFrame(rows)


def answers_table(results: Sequence[Result]) -> pd.DataFrame:
    """Every single answer of every state, for a file."""
    parts = [result.report.samples.assign(model=result.label, state=result.state) for result in results]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if "choices_logp" in found:
        found["choices_logp"] = [_as_json(each) for each in found["choices_logp"]]
    return found


def _as_json(value: Any) -> str:
    return "" if value is None else json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return (
        value.tolist()
        if hasattr(value, "tolist")
        else dict(value)
        if isinstance(value, Mapping)
        else str(value)
    )


def say_score(score: "TaskScore") -> str:
    """A score with its interval."""
    interval = score.interval
    return say_interval(interval.value, interval.low, interval.high, digits_for(interval.n))


def digits_for(n: int) -> int:
    """The digits that a share of ``n`` questions deserves."""
    return 2 if n < 1000 else 3


def say_interval(value: float, low: float, high: float, digits: int, *, signed: bool = False) -> str:
    """``0.31 [0.18, 0.44]``; with signs where it is a change."""
    sign = "+" if signed else ""
    return " ".join([f"{value:{sign}.{digits}f}", f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"])


def say_p(p: float) -> str:
    """A p value with the digits it deserves."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
