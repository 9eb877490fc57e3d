"""Files of questions: JSON Lines, a JSON array, or a table (CSV with commas, semicolons or tabs).

A record has ``subject``, ``question``, ``choices`` (a list) and ``answer`` (the right choice's number counted from 0,
or its letter), and may have an ``id``. In a table the choices stand in the columns ``A``, ``B``, ``C``... or
``choice_a``, ``choice_b``..., or in one column ``choices`` with bars between them.

A bad row becomes a :class:`~nmke.readers.RowProblem` that names row, field and remedy; the good rows stay. Two equal
choices are a problem where one of them is the right one: nobody could tell them apart. (MMLU has four such questions;
they are kept where MMLU itself is read, as everywhere else.)
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmke.errors import QuestionError
from nmke.questions.items import LETTERS, Question
from nmke.readers import RowProblem

MIB = 2**20
_HELP = (
    'Give one record a line: {"subject": "...", "question": "...", "choices": ["...", "..."], "answer": 0}, or a '
    "table with the columns subject, question, A, B, C, D, answer."
)
_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "subject": ("subject", "topic"),
    "text": ("question", "text"),
    "choices": ("choices", "options"),
    "answer": ("answer", "correct_answer"),
}
_COLUMN = re.compile(r"(?:choice_|option_|answer_)?([a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class QuestionTable:
    """The good questions of a file, the problems of the other rows, and what the file was taken for.

    ``subject_of`` tells for each problem's row which subject it named; "" where it named none.
    """

    questions: tuple[Question, ...]
    problems: tuple[RowProblem, ...]
    format: str
    subject_of: Mapping[int, str]

    def of(self, subjects: Iterable[str]) -> "QuestionTable":
        """Only these subjects; problems of rows that name no subject stay."""
        wanted = set(subjects)
        return QuestionTable(
            tuple(question for question in self.questions if question.subject in wanted),
            tuple(one for one in self.problems if self.subject_of.get(one.row, "") in {"", *wanted}),
            self.format,
            self.subject_of,
        )


def read_questions(source: Path | str | bytes, *, name: str = "", max_bytes: int = 50 * MIB) -> QuestionTable:
    """Read a file of questions.

    Args:
        source: the file, or its bytes (an upload).
        name: what to call it in messages; the file's name by default.

    Raises:
        QuestionError: when the file as a whole cannot be used; single bad rows are in ``problems`` instead.
    """
    label = name or ("The upload" if isinstance(source, bytes) else Path(source).name)
    text = _decode(_load(source, label, max_bytes), label)
    if not text.strip():
        raise QuestionError(f"{label} is empty.", _HELP)
    kind, rows = _json_rows(text, label) if text.lstrip()[0] in "[{" else _table_rows(text, label)
    questions: list[Question] = []
    problems: list[RowProblem] = []
    subject_of: dict[int, str] = {}
    ids: dict[str, int] = {}
    counts: dict[str, int] = {}
    for number, row in rows:
        try:
            if isinstance(row, QuestionError):
                raise row
            question = _question(row, counts)
            if question.id in ids:
                raise QuestionError(
                    f"The id {question.id!r} is that of row {ids[question.id]} already.",
                    "Give each question its own id, or none.",
                    "id",
                )
            ids[question.id] = number
            questions.append(question)
        except QuestionError as error:
            field = _NAMES[error.field][0] if error.field in _NAMES else error.field
            problems.append(RowProblem(number, field, error.what, error.remedy))
            subject_of[number] = "" if isinstance(row, QuestionError) else _subject(row)
    if not questions and not problems:
        raise QuestionError(f"{label} holds no questions.", _HELP)
    return QuestionTable(tuple(questions), tuple(problems), kind, subject_of)


def questions_to_jsonl(questions: Iterable[Question]) -> str:
    """JSON Lines, one question each, that :func:`read_questions` reads back to the same questions."""
    return "".join(json.dumps(question.to_dict(), ensure_ascii=False) + "\n" for question in questions)


def normalise_subject(text: str) -> str:
    """MMLU's spelling of a subject: lower case, underscores for spaces and hyphens."""
    return re.sub(r"[\s_-]+", "_", text.strip().lower())


Row = tuple[int, Mapping[str, Any] | QuestionError]


def _question(row: Mapping[str, Any], counts: dict[str, int]) -> Question:
    subject = _subject(row)
    if not subject:
        raise QuestionError("The subject is missing.", "Name it, as high_school_biology.", "subject")
    number = counts[subject] = counts.get(subject, -1) + 1
    text = _value(row, "text")
    if not isinstance(text, str) or not text.strip():
        raise QuestionError("The question's text is missing.", "Write it, or remove the row.", "text")
    choices = _choices(row)
    name = _value(row, "id")
    named = str(name).strip() if name is not None else ""
    question = Question(named or f"{subject}/{number}", subject, text, choices, _answer(row, len(choices)))
    right = choices[question.answer].strip()
    twin = [LETTERS[i] for i, choice in enumerate(choices) if choice.strip() == right]
    if len(twin) > 1:
        raise QuestionError(
            f"The choices {' and '.join(twin)} are the same and one of them is the right one.",
            "Make each choice different.",
            "choices",
        )
    return question


def _value(row: Mapping[str, Any], field: str) -> Any:
    return next((row[name] for name in _NAMES[field] if row.get(name) is not None), None)


def _subject(row: Mapping[str, Any]) -> str:
    value = _value(row, "subject")
    return normalise_subject(value) if isinstance(value, str) else ""


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = _value(row, "choices")
    if isinstance(value, str):
        value = [part.strip() for part in value.split("|")]
    if value is None:
        value = _lettered(row)
    if not isinstance(value, list) or not value:
        raise QuestionError(
            "The choices are missing.", "Give a list of texts, or the columns A, B, C, D.", "choices"
        )
    # Numbers are texts to a reader of the question, so they are taken as they are written.
    return tuple(
        str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in value
    )


def _lettered(row: Mapping[str, Any]) -> list[Any] | None:
    """The columns A, B, C... up to the last one that is filled."""
    found = {match[1].upper(): row[key] for key in row if (match := _COLUMN.fullmatch(key.strip()))}
    filled = [letter for letter, value in found.items() if value is not None and str(value).strip()]
    if not filled:
        return None
    return [found.get(letter, "") or "" for letter in LETTERS[: LETTERS.index(max(filled)) + 1]]


def _answer(row: Mapping[str, Any], count: int) -> int:
    value = _value(row, "answer")
    if value is None or value == "":
        raise QuestionError("The answer is missing.", "Give the right choice's number or letter.", "answer")
    text = str(value).strip()
    if isinstance(value, bool) or not (re.fullmatch(r"-?\d+", text) or re.fullmatch(r"[A-Za-z]", text)):
        raise QuestionError(
            f"The answer is {value!r}.",
            "Give the right choice's number, counted from 0, or its letter.",
            "answer",
        )
    index = LETTERS.index(text.upper()) if text.isalpha() else int(text)
    if not 0 <= index < count:
        raise QuestionError(
            f"The answer {text} is out of range: the question has {count} choices.",
            f"Give a number from 0 to {count - 1} or a letter from A to {LETTERS[min(count, 26) - 1]}.",
            "answer",
        )
    return index


def _load(source: Path | str | bytes, label: str, max_bytes: int) -> bytes:
    if not isinstance(source, bytes):
        try:
            size = Path(source).stat().st_size
            source = Path(source).read_bytes() if size <= max_bytes else b" " * (max_bytes + 1)
        except IsADirectoryError:
            raise QuestionError(f"{label} is a folder.", "Name a file of questions.") from None
        except OSError as error:
            raise QuestionError(
                f"{label} cannot be read: {error.strerror}.", "Check the file's name."
            ) from None
    if len(source) > max_bytes:
        raise QuestionError(
            f"{label} has more than {max_bytes / MIB:g} MB.",
            "Split it, or keep only the questions that you want.",
        )
    return source


def _decode(data: bytes, label: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise QuestionError(
            f"{label} is not UTF-8 text.", "Save it as UTF-8 text (JSON Lines or CSV)."
        ) from None


def _json_rows(text: str, label: str) -> tuple[str, Iterable[Row]]:
    if not text.lstrip().startswith("["):
        return "JSON Lines", _json_lines(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QuestionError(
            f"{label} is broken JSON: {error}.", "Repair it, or save the file again."
        ) from None
    return "JSON array", ((number, _object(value)) for number, value in enumerate(values, start=1))


def _json_lines(text: str) -> Iterator[Row]:
    # Not splitlines(): JSON may hold U+2028 and its like inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(json.loads(line))
        except (ValueError, RecursionError) as error:
            yield (
                number,
                QuestionError(
                    f"The line is not JSON: {error}.", "Write one record a line, or repair the line."
                ),
            )


def _object(value: object) -> Mapping[str, Any] | QuestionError:
    if isinstance(value, dict):
        return value
    return QuestionError(f"The row is a {type(value).__name__}, not an object.", "Write it as an object.")


def _table_rows(text: str, label: str) -> tuple[str, Iterator[Row]]:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    for separator, words in ((",", "commas"), (";", "semicolons"), ("\t", "tabs")):
        names = [cell.strip().strip('"').strip().lower() for cell in first.split(separator)]
        if {"subject", "topic"} & set(names) and {"question", "text"} & set(names):
            return f"table with {words}", _cells(text.lstrip("\r\n"), separator, names)
    raise QuestionError(f"{label} holds no questions: it is neither JSON nor a table with a header.", _HELP)


def _cells(text: str, separator: str, names: list[str]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = -1
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, QuestionError(f"The row is broken: {error}.", "Check its quotation marks.")
            return
        if number == 0 or not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(names):
            what = f"The row has {len(cells)} cells under {len(names)} columns."
            yield number, QuestionError(what, "Put texts with a separator in them into quotation marks.")
            continue
        yield number, {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
