"""Questions with choices, and sets of them by subject.

A subject is a task in the paper's sense; subjects of one field at different levels are one domain: high school
and college biology are both "biology".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from nmke.errors import QuestionError

#: The paper's four tasks of two domains.
DEFAULT_SUBJECTS = (
    "high_school_biology",
    "college_biology",
    "high_school_chemistry",
    "college_chemistry",
)
#: Names for choices, as in MMLU.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LEVELS = (
    "high_school_",
    "middle_school_",
    "college_",
    "elementary_",
    "professional_",
    "conceptual_",
    "advanced_",
)
_UPPER = {"us": "US"}


@dataclass(frozen=True)
class Question:
    """One question with its choices.

    Args:
        id: the question's name, unique in its set.
        subject: its task, in MMLU's spelling, as ``high_school_biology``.
        text: the question, as its source has it.
        choices: what may be answered, 2 to 26 texts.
        answer: index of the right choice.

    Raises:
        QuestionError: naming the field, its problem and the remedy.
    """

    id: str
    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        for field, named in (("id", self.id), ("subject", self.subject), ("text", self.text)):
            if not isinstance(named, str) or not named.strip():
                raise QuestionError(f"The {_shown(field)} is empty.", "Write it.", field)
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise QuestionError(
                f"The question has {len(self.choices)} choice{'s' * (len(self.choices) != 1)}.",
                f"Give 2 to {len(LETTERS)} choices.",
                "choices",
            )
        for letter, choice in zip(LETTERS, self.choices, strict=False):
            if not isinstance(choice, str) or not choice.strip():
                raise QuestionError(f"Choice {letter} is missing.", "Write its text.", "choices")
        if isinstance(self.answer, bool) or not isinstance(self.answer, int):
            raise QuestionError(
                f"The answer is {self.answer!r}.", "Give the right choice's number.", "answer"
            )
        if not 0 <= self.answer < len(self.choices):
            last = len(self.choices) - 1
            raise QuestionError(
                f"The answer {self.answer} is out of range.",
                f"With {len(self.choices)} choices, give a number from 0 to {last} or a letter from A to "
                f"{LETTERS[last]}.",
                "answer",
            )

    @property
    def letter(self) -> str:
        """The right choice's letter."""
        return LETTERS[self.answer]

    def to_dict(self) -> dict[str, Any]:
        """As one line of a question file."""
        return {
            "id": self.id,
            "subject": self.subject,
            "question": self.text,
            "choices": list(self.choices),
            "answer": self.answer,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from :meth:`to_dict`."""
        return cls(
            values["id"], values["subject"], values["question"], tuple(values["choices"]), values["answer"]
        )


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and in one sentence where they are from.

    Raises:
        QuestionError: there are none, or two have one id.
    """

    questions: tuple[Question, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.questions:
            raise QuestionError("There are no questions.", "Choose other subjects or another file.")
        seen: set[str] = set()
        for question in self.questions:
            if question.id in seen:
                raise QuestionError(
                    f"Two questions are named {question.id!r}.", "Give each its own id, or none.", "id"
                )
            seen.add(question.id)

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def subjects(self) -> tuple[str, ...]:
        """In the order in which they first appear."""
        return tuple(dict.fromkeys(question.subject for question in self.questions))

    def of(self, subject: str) -> tuple[Question, ...]:
        """One subject's questions."""
        return tuple(question for question in self.questions if question.subject == subject)

    @cached_property
    def sha256(self) -> str:
        """Of the questions' content: names, subjects, texts, choices and answers, in order."""
        return digest_of(self.questions)


def digest_of(questions: Sequence[Question]) -> str:
    """SHA-256 of the questions' content, in order."""
    rows = [question.to_dict() for question in questions]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def domain_of(subject: str) -> str:
    """The field a subject belongs to: ``high_school_biology`` and ``college_biology`` are both ``biology``."""
    for level in _LEVELS:
        if subject.startswith(level) and len(subject) > len(level):
            return subject.removeprefix(level)
    return subject


def title_of(subject: str) -> str:
    """A subject for people: ``high_school_biology`` is "High school biology"."""
    words = [_UPPER.get(word, word) for word in subject.replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _shown(field: str) -> str:
    return "question's text" if field == "text" else field
