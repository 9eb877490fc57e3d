"""What was answered under each condition, with intervals and paired changes; also while it is still being answered."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from nmke.ablation.conditions import NONE, Condition
from nmke.ablation.files import read_answers
from nmke.answers import FORMULAS, Answered, beats_chance, summarise
from nmke.answers.summary import ACCURACIES
from nmke.errors import ResourceError
from nmke.intervals import Interval, bootstrap_mean, mcnemar_p, paired_change, wilson
from nmke.questions import Question, QuestionSet
from nmke.storage import writing
from nmke.store import content_key, write_json, written_atomically

SUMMARY, ANSWERS = "summary.json", "answers.parquet"


@dataclass(frozen=True)
class AblationResults:
    """Answers to the same questions under several conditions.

    Attributes:
        questions: what was asked.
        conditions: in the order they were answered.
        answers: per condition's name its answers, in the questions' order; fewer while the work goes on.
        about: model, session, settings, where questions are from, versions: what it takes to make it again.
        seconds: per condition's name how long answering took; none where answers were kept from before.
    """

    questions: QuestionSet
    conditions: tuple[Condition, ...]
    answers: Mapping[str, Sequence[Answered]]
    about: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Equal for results that only differ in how much is answered yet."""
        told = self.about
        return content_key(
            questions=self.questions.sha256,
            conditions=[[one.name, one.key] for one in self.conditions],
            about=[told.get("model"), told.get("session"), told.get("config")],
        )

    @property
    def complete(self) -> bool:
        """Whether every condition's questions are all answered."""
        wanted = len(self.questions)
        return all(len(self.answers.get(one.name, ())) == wanted for one in self.conditions)

    @property
    def answered(self) -> int:
        """Answers there are, under all conditions together."""
        return sum(map(len, self.answers.values()))

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that were taken, in their fixed order."""
        taken = self.about["config"]["answers"]["scores"]
        return tuple(name for name in FORMULAS if name in taken or (name == "text_loss" and "loss" in taken))

    def condition(self, name: str) -> Condition:
        """The condition of that name."""
        return next(one for one in self.conditions if one.name == name)

    def of(self, name: str, subject: str | None = None) -> list[Answered]:
        """One condition's answers, of one subject or of all."""
        found = self.answers.get(name, ())
        return [one for one in found if subject is None or one.subject == subject]

    def controls(self, name: str) -> tuple[Condition, ...]:
        """The random conditions beside a set's."""
        return tuple(one for one in self.conditions if one.kind == "random" and one.beside == name)

    def question(self, id: str) -> Question:
        """The question of that id."""
        return next(one for one in self.questions.questions if one.id == id)

    # ---- numbers ----------------------------------------------------------------------------------------

    def estimate(self, name: str, score: str, subject: str | None = None) -> Interval | None:
        """A condition's accuracy (Wilson's interval) or mean loss (bootstrap); None where nothing is answered."""
        values = _values(self.of(name, subject), score)
        if not values:
            return None
        if score in ACCURACIES:
            return wilson(int(sum(values.values())), len(values))
        return bootstrap_mean(list(values.values()))

    def random_estimate(self, name: str, score: str, subject: str | None = None) -> Interval | None:
        """The mean over the random sets beside a condition, with a bootstrap over questions."""
        values = self._random_values(name, score, subject)
        return bootstrap_mean(list(values.values())) if values else None

    def change(self, name: str, score: str, subject: str | None = None) -> dict[str, Any] | None:
        """The paired change against no ablation, over the questions both have answered.

        Returns:
            Interval of the mean change; ``lost`` and ``gained`` questions and McNemar's exact ``p_value`` where the
            score is right or wrong.
        """
        before = _values(self.of(NONE, subject), score)
        after = _values(self.of(name, subject), score)
        pairs = [(before[id], after[id]) for id in before if id in after]
        if not pairs:
            return None
        old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found = paired_change(old, new).to_dict()
        if score in ACCURACIES:
            found["lost"] = sum(a > b for a, b in pairs)
            found["gained"] = sum(b > a for a, b in pairs)
            found["p_value"] = mcnemar_p([bool(a) for a in old], [bool(b) for b in new])
        return found

    def against_random(self, name: str, score: str, subject: str | None = None) -> Interval | None:
        """The paired change from the mean of the random sets to this set: what is due to which neurons they are."""
        random = self._random_values(name, score, subject)
        own = _values(self.of(name, subject), score)
        pairs = [(random[id], own[id]) for id in own if id in random]
        return paired_change([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None

    def _random_values(self, name: str, score: str, subject: str | None) -> dict[str, float]:
        """Per question the mean over the random sets that have answered it all alike."""
        each = [_values(self.of(one.name, subject), score) for one in self.controls(name)]
        each = [values for values in each if values]
        common = set.intersection(*map(set, each)) if each else set()
        return {
            id: float(np.mean([values[id] for values in each]))
            for id in (each[0] if each else ())
            if id in common
        }

    # ---- tables -----------------------------------------------------------------------------------------

    def table(self, score: str, subject: str | None = None) -> pd.DataFrame:
        """What a bar chart shows: none, each set, and the mean of the random sets beside it.

        Columns: name, kind, label, k, subject ("" for all), value, low, high, n, and ``seeds``, the random sets' own
        values. Conditions without an answer yet are left out.
        """
        rows: list[dict[str, Any]] = []
        for one in self.conditions:
            if one.kind == "random":
                continue
            self._add(rows, one, one.kind, self.estimate(one.name, score, subject), subject)
            if self.controls(one.name):
                found = self.random_estimate(one.name, score, subject)
                each = [self.estimate(control.name, score, subject) for control in self.controls(one.name)]
                self._add(rows, one, "random", found, subject, [e.value for e in each if e is not None])
        columns = ["name", "kind", "label", "k", "subject", "value", "low", "high", "n", "seeds"]
        return pd.DataFrame(rows, columns=columns)

    @staticmethod
    def _add(
        rows: list[dict[str, Any]],
        one: Condition,
        kind: str,
        found: Interval | None,
        subject: str | None,
        seeds: Sequence[float] = (),
    ) -> None:
        if found is None:
            return
        name = f"random like {one.name}" if kind == "random" else one.name
        ends = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        rows.append(
            {
                "name": name,
                "kind": kind,
                "label": one.label,
                "k": one.k,
                "subject": subject or "",
                **ends,
                "seeds": list(seeds),
            }
        )

    def curve(self, score: str, subject: str | None = None) -> pd.DataFrame:
        """What a dose-response chart shows: per label its values over k, from k = 0, and those of its random sets."""
        table = self.table(score, subject)
        none = table[table["kind"] == "none"]
        parts = []
        for label in dict.fromkeys(one.label for one in self.conditions if one.kind == "set"):
            for kind in ("set", "random"):
                found = table[(table["label"] == label) & (table["kind"] == kind)]
                if len(found):
                    parts.append(pd.concat([none, found]).assign(label=label, kind=kind).sort_values("k"))
        return pd.concat(parts, ignore_index=True) if parts else table.iloc[:0]

    def frame(self) -> pd.DataFrame:
        """Long table: one row a condition and question, with every score and the written text."""
        rows = [
            {
                "condition": one.name,
                "kind": one.kind,
                "label": one.label,
                "k": one.k,
                "seed": one.seed,
                **answered.to_row(),
                **{f"{score}_right": answered.right(score) for score in ACCURACIES},
            }
            for one in self.conditions
            for answered in self.answers.get(one.name, ())
        ]
        table = pd.DataFrame(rows)
        for name in ("seed", "letters", "cloze", "written_choice"):
            if name in table:
                table[name] = table[name].astype("Int64")
        for score in ACCURACIES:
            if f"{score}_right" in table:
                table[f"{score}_right"] = table[f"{score}_right"].astype("boolean")
        return table

    def changed_questions(self, name: str, score: str) -> pd.DataFrame:
        """One row a question both have answered: its value without and with the ablation, and the change."""
        before, after = _values(self.of(NONE), score), _values(self.of(name), score)
        rows = [
            {
                "question": one.id,
                "subject": one.subject,
                "text": one.text,
                "before": before[one.id],
                "after": after[one.id],
                "change": after[one.id] - before[one.id],
            }
            for one in self.questions.questions
            if one.id in before and one.id in after
        ]
        return pd.DataFrame(rows, columns=["question", "subject", "text", "before", "after", "change"])

    def chance(self, score: str) -> dict[str, Any] | None:
        """Whether the unablated model's accuracy beats guessing; None for losses and before anything is answered."""
        asked = [one for one in self.of(NONE) if one.value(score) is not None]
        return beats_chance(asked, score) if asked and score in ACCURACIES else None

    def summary(self) -> dict[str, Any]:
        """Plain values for ``summary.json``: per condition every score with its interval and the paired change against
        none, in all and per subject; for sets also the change against their random sets, in all."""
        return {
            **self.about,
            "questions": {
                "source": self.questions.source,
                "sha256": self.questions.sha256,
                "count": len(self.questions),
                "subjects": {subject: len(self.questions.of(subject)) for subject in self.questions.subjects},
            },
            "formulas": {score: FORMULAS[score] for score in self.scores},
            "complete": self.complete,
            "conditions": [self._summary_of(one) for one in self.conditions],
        }

    def _summary_of(self, one: Condition) -> dict[str, Any]:
        answered = self.of(one.name)
        found: dict[str, Any] = {**one.to_dict(), "seconds": self.seconds.get(one.name)}
        told = summarise(answered) if answered else {}
        found |= {name: told[name] for name in ("n", "scores", "subjects") if name in told}
        if one.kind != "none":
            found["change"] = {score: self.change(one.name, score) for score in self.scores}
            found["change_by_subject"] = {
                subject: {score: self.change(one.name, score, subject) for score in self.scores}
                for subject in self.questions.subjects
            }
        if one.kind == "set" and self.controls(one.name):
            for name, ask in (("random", self.random_estimate), ("against_random", self.against_random)):
                each = {score: ask(one.name, score) for score in self.scores}
                found[name] = {score: value and value.to_dict() for score, value in each.items()}
        return found

    # ---- files ------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``summary.json`` and ``answers.parquet``, each whole or not at all.

        Raises:
            ResourceError: the folder cannot be written.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(folder / ANSWERS) as path:
            self.frame().to_parquet(path, index=False)
        asked = [question.to_dict() for question in self.questions.questions]
        write_json(folder / SUMMARY, {**self.summary(), "asked": asked})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The results that :meth:`save` wrote.

        Raises:
            ResourceError: there are none, or they are damaged.
        """
        remedy = "Choose a folder that an ablation wrote, or run it again."
        try:
            told = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            conditions = tuple(map(Condition.from_dict, told["conditions"]))
            questions = QuestionSet(
                tuple(map(Question.from_dict, told["asked"])), told["questions"]["source"]
            )
            table = pd.read_parquet(folder / ANSWERS)
            answers = {str(name): read_answers(rows) for name, rows in table.groupby("condition", sort=False)}
            seconds = {
                one["name"]: one["seconds"] for one in told["conditions"] if one["seconds"] is not None
            }
            about = {name: told[name] for name in ("model", "session", "config", "versions", "means")}
        except OSError as error:
            raise ResourceError(
                f"No ablation can be read from {folder} ({error.strerror}).", remedy
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ResourceError(f"The ablation in {folder} is damaged ({error}).", remedy) from None
        return cls(questions, conditions, answers, about, seconds)


def _values(answered: Sequence[Answered], score: str) -> dict[str, float]:
    found = {one.question: one.value(score) for one in answered}
    return {id: value for id, value in found.items() if value is not None}
