"""What judging abilities gives: a score with its interval and origin per task, and every single answer."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from nmke.errors import ResourceError
from nmke.intervals import Interval, mcnemar_p, paired_change
from nmke.store import write_json, written_atomically
from nmke.versions import library_versions

FORMAT = 1
SUMMARY, ANSWERS = "summary.json", "answers.parquet"
#: What :func:`compare_abilities` says of each task.
CHANGE_COLUMNS = (
    "task",
    "n",
    "before",
    "after",
    "change",
    "low",
    "high",
    "p_value",
    "lost",
    "gained",
    "same_questions",
)

#: One row per question. ``part`` is the MMLU subject or BBH task; ``number`` the place in the source, from 0;
#: ``question`` identifies the question by its content; ``choices_logp`` the log-probabilities of the letters.
SAMPLE_COLUMNS = (
    "task",
    "part",
    "number",
    "question",
    "prompt",
    "target",
    "answer",
    "right",
    "choices_logp",
    "note",
)


@dataclass(frozen=True)
class TaskScore:
    """How well one task was done.

    Attributes:
        task: one of TASKS.
        metric: the harness's name of the metric, for example ``acc`` or ``exact_match,flexible-extract``.
        formula: one sentence.
        interval: value with its 95% Wilson interval over the questions.
        parts: value and number of questions per MMLU subject or BBH task; the task itself where it has no parts.
        others: further metrics of the harness on the same answers, for example ``exact_match,strict-match``.
        source: a sentence saying where the questions came from.
        sha256: of the questions asked, in order.
        limit, seed, fewshot: as asked.
        truncated: questions whose prompt was too long for the model and lost its beginning.
        harness_version: of lm-eval.
        seconds: spent computing the answers, also where they are cached now.
        cached: nothing was computed this time.
        details: what else decides the figure: ``longest_answer``, how many tokens could be written, and the
            ``isolation`` of the code that was run.
    """

    task: str
    metric: str
    formula: str
    interval: Interval
    parts: Mapping[str, tuple[float, int]]
    others: Mapping[str, float]
    source: str
    sha256: str
    limit: int | None
    seed: int
    fewshot: int
    truncated: int
    harness_version: str
    seconds: float
    cached: bool
    details: Mapping[str, Any]

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.interval.value

    @property
    def n(self) -> int:
        return self.interval.n

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "value": self.value, "n": self.n, "interval": asdict(self.interval)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        kept = {name: value for name, value in values.items() if name not in ("value", "n")}
        parts = {name: (float(value), int(count)) for name, (value, count) in values["parts"].items()}
        return cls(**{**kept, "parts": parts, "interval": Interval(**values["interval"])})


@dataclass(frozen=True)
class AbilityReport:
    """The scores of one state of one model, in the order the tasks were asked, and all answers.

    Attributes:
        model_name, weight_hash: the model as loaded.
        state: which edits or ablation were in force; "" for the model as loaded.
        samples: one row per question, columns SAMPLE_COLUMNS.
    """

    model_name: str
    weight_hash: str
    state: str
    scores: tuple[TaskScore, ...]
    samples: pd.DataFrame

    def score(self, task: str) -> TaskScore:
        """The task's score.

        Raises:
            KeyError: it was not asked.
        """
        return {score.task: score for score in self.scores}[task]

    def figures(self) -> dict[str, float]:
        """Value by task: what a lifelong run writes at a mark."""
        return {score.task: score.value for score in self.scores}


def compare_abilities(before: AbilityReport, after: AbilityReport, seed: int = 0) -> pd.DataFrame:
    """What changed, per task asked in both, over the questions asked in both.

    Returns:
        One row per task: task, n, before, after, change, low, high (paired bootstrap over questions), p_value
        (McNemar), lost and gained (questions that became wrong and right), same_questions (False where one of the
        two was asked others as well).
    """
    rows = []
    key = ["part", "number", "question"]
    for task in (score.task for score in before.scores):
        if task not in {score.task for score in after.scores}:
            continue
        one, other = (report.samples[report.samples["task"] == task] for report in (before, after))
        both = one[[*key, "right"]].merge(other[[*key, "right"]], on=key, suffixes=("_before", "_after"))
        if both.empty:
            continue
        was, now = both["right_before"].astype(bool).tolist(), both["right_after"].astype(bool).tolist()
        change = paired_change([float(one) for one in was], [float(one) for one in now], seed)
        rows.append(
            {
                "task": task,
                "n": len(both),
                "before": sum(was) / len(was),
                "after": sum(now) / len(now),
                "change": change.value,
                "low": change.low,
                "high": change.high,
                "p_value": mcnemar_p(was, now),
                "lost": sum(a and not b for a, b in zip(was, now, strict=True)),
                "gained": sum(b and not a for a, b in zip(was, now, strict=True)),
                "same_questions": len(both) == len(one) == len(other),
            }
        )
    return pd.DataFrame(rows, columns=list(CHANGE_COLUMNS))


def save_report(report: AbilityReport, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write ``summary.json`` and ``answers.parquet``.

    Args:
        about: more entries for the summary: model, edits, settings.

    Raises:
        ResourceError: the folder cannot be written.
    """
    with written_atomically(folder / ANSWERS) as temporary:
        report.samples.to_parquet(temporary, index=False)
    write_json(
        folder / SUMMARY,
        {
            "format": FORMAT,
            "model": {"name": report.model_name, "weight_hash": report.weight_hash},
            **(about or {}),
            "state": report.state,
            "tasks": {score.task: score.to_dict() for score in report.scores},
            "versions": library_versions(),
        },
    )
    return folder


def load_report(folder: Path) -> AbilityReport:
    """What :func:`save_report` wrote.

    Raises:
        ResourceError: nothing there, or damaged.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        scores = tuple(TaskScore.from_dict(entry) for entry in summary["tasks"].values())
        samples = pd.read_parquet(folder / ANSWERS, columns=list(SAMPLE_COLUMNS))
        model = summary["model"]
        return AbilityReport(model["name"], model["weight_hash"], summary["state"], scores, samples)
    except OSError as problem:
        raise ResourceError(
            f"{folder.name} holds no abilities ({problem.strerror or type(problem).__name__}).",
            "Choose a folder that nmke ability wrote.",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ResourceError(
            f"The abilities in {folder.name} are damaged ({type(problem).__name__}).", "Judge them again."
        ) from problem
