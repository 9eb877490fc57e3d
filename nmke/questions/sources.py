"""Which questions: MMLU, the built-in ones, or a file; of which subjects, and how many of each."""

import difflib
import random
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from nmke.errors import QuestionError
from nmke.progress import Progress
from nmke.questions.items import DEFAULT_SUBJECTS, Question, QuestionSet
from nmke.questions.mmlu import MMLU_SOURCE, MMLU_SUBJECTS, read_mmlu
from nmke.questions.readers import QuestionTable, normalise_subject, read_questions

_SHOWN = 5


def load_questions(
    source: str = "mmlu",
    subjects: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> QuestionSet:
    """Questions by subject, in the order in which the subjects are asked for.

    Args:
        source: "mmlu", "builtin", or a file (:func:`~nmke.questions.readers.read_questions` says of which form).
        subjects: which; without any, all of a file's and of the built-in ones, and MMLU's four default subjects.
        limit: at most so many of each subject, drawn with ``seed`` and kept in the file's order. A smaller draw with
            the same seed is part of a larger one.

    Raises:
        QuestionError: a row of the wanted subjects is bad (each is named), a subject is unknown (the closest known
            ones are named), the limit is no count, or no question is left.
        ResourceError: MMLU cannot be fetched.
        Cancelled: when the progress says so.
    """
    if limit is not None and limit < 1:
        raise QuestionError(f"The limit is {limit}.", "Ask for at least 1 question of each subject.", "limit")
    asked = tuple(dict.fromkeys(normalise_subject(subject) for subject in subjects))
    if source == "mmlu":
        asked = asked or DEFAULT_SUBJECTS
        _require_known(asked, MMLU_SUBJECTS, "MMLU")
        found, name = read_mmlu(asked, progress), MMLU_SOURCE
    else:
        table, name = _table_of(source)
        known = _subjects_of(table)
        _require_known(asked, known, name)
        table = table.of(asked or known)
        _refuse_problems(table, name)
        found, asked = table.questions, asked or known
    kept = [question for subject in asked for question in draw(_of(found, subject), limit, seed)]
    return QuestionSet(tuple(kept), f"{name}{_limit_words(limit, seed)}")


def known_subjects(source: str = "mmlu") -> tuple[str, ...]:
    """The subjects that a source has questions for; MMLU's are known without fetching it.

    A bad row's subject is among them: asking for it is what tells of the row.

    Raises:
        QuestionError: the file cannot be read, or no row of it tells its subject.
    """
    if source == "mmlu":
        return MMLU_SUBJECTS
    table, name = _table_of(source)
    known = _subjects_of(table)
    if not known:
        _refuse_problems(table, name)
    return known


def draw(questions: Sequence[Question], limit: int | None, seed: int) -> tuple[Question, ...]:
    """``limit`` questions drawn with a seed, in their own order; all where there are no more."""
    if limit is None or len(questions) <= limit:
        return tuple(questions)
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)
    return tuple(questions[index] for index in sorted(order[:limit]))


@cache
def _builtin() -> QuestionTable:
    data = files("nmke").joinpath("data", "questions.jsonl").read_bytes()
    return read_questions(data, name="The built-in questions")


def _table_of(source: str) -> tuple[QuestionTable, str]:
    if source == "builtin":
        return _builtin(), "The built-in questions"
    path = Path(source).expanduser()
    if not path.exists():
        raise QuestionError(
            f"There are no questions {source!r}.", "Give mmlu, builtin, or the name of a file of questions."
        )
    return read_questions(path), path.name


def _subjects_of(table: QuestionTable) -> tuple[str, ...]:
    """A table's subjects. Those of bad rows are known too, so that the row is named and not the subject."""
    named = [subject for subject in table.subject_of.values() if subject]
    return tuple(dict.fromkeys([question.subject for question in table.questions] + named))


def _of(questions: Sequence[Question], subject: str) -> tuple[Question, ...]:
    return tuple(question for question in questions if question.subject == subject)


def _require_known(asked: Sequence[str], known: Sequence[str], name: str) -> None:
    for subject in asked:
        if subject not in known:
            close = difflib.get_close_matches(subject, known, n=3, cutoff=0.5) or sorted(known)[:_SHOWN]
            raise QuestionError(
                f"{name} has no subject {subject!r}.",
                f"Did you mean {_either(close)}? There are {len(known)} subjects."
                if close
                else "Choose another file.",
                "subject",
            )


def _refuse_problems(table: QuestionTable, name: str) -> None:
    if not table.problems:
        return
    told = [
        f"Row {one.row}, {one.field or 'whole row'}: {one.problem} {one.remedy}"
        for one in table.problems[:_SHOWN]
    ]
    more = len(table.problems) - len(told)
    count = f"{len(table.problems)} bad row{'s' * (len(table.problems) != 1)}"
    raise QuestionError(
        f"{name} has {count}. {' '.join(told)}{f' And {more} more.' if more else ''}",
        "Repair or remove them; nothing was read.",
        table.problems[0].field,
    )


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _limit_words(limit: int | None, seed: int) -> str:
    return "" if limit is None else f", at most {limit} of each subject drawn with seed {seed}"
