"""Facts as the rows of an editable table, and back: bad rows are reported, good ones stay."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmke.errors import FactError
from nmke.facts import Consequence, Fact, Neighbor, is_blank

#: The table's columns, in order; the last two are kept but not shown.
COLUMNS = (
    "prompt",
    "subject",
    "target_new",
    "target_true",
    "paraphrases",
    "neighborhood",
    "portability",
    "relation",
    "case_id",
)
LISTS = ("paraphrases", "neighborhood", "portability")
#: Stands between a neighbourhood prompt or a portability question and its answer.
ARROW = "→"

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why one row of the table is not a fact yet."""

    row: int
    field: str
    problem: str
    remedy: str


def to_row(fact: Fact) -> Row:
    """The fact as a row; a prompt in which the subject is not found by itself is shown with ``{}``."""
    return {
        "prompt": fact.prompt if _finds_itself(fact) else fact.template,
        "subject": fact.subject,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "paraphrases": list(fact.paraphrases),
        "neighborhood": [
            f"{n.prompt} {ARROW} {n.answer}" if n.answer else n.prompt for n in fact.neighborhood
        ],
        "portability": [f"{one.prompt} {ARROW} {one.answer}" for one in fact.portability],
        "relation": fact.relation,
        "case_id": fact.case_id,
    }


def to_fact(row: Mapping[str, Any]) -> Fact:
    """The fact of one row.

    Raises:
        FactError: naming the column, its problem and the remedy.
    """
    texts: dict[str, Any] = {name: _text(row.get(name)) for name in COLUMNS if name not in LISTS}
    return Fact(
        **texts,
        paraphrases=tuple(text for text in _texts(row.get("paraphrases")) if not is_blank(text)),
        neighborhood=tuple(_neighbor(text) for text in _texts(row.get("neighborhood")) if not is_blank(text)),
        portability=tuple(
            _consequence(text) for text in _texts(row.get("portability")) if not is_blank(text)
        ),
    )


def read_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[Fact, ...], tuple[Problem, ...]]:
    """The facts of the good rows and the problems of the others; rows without any text are passed over."""
    facts, problems = [], []
    for number, row in enumerate(rows, start=1):
        if is_empty(row):
            continue
        try:
            facts.append(to_fact(row))
        except FactError as problem:
            problems.append(Problem(number, problem.field, problem.what, problem.remedy))
    return tuple(facts), tuple(problems)


def is_empty(row: Mapping[str, Any]) -> bool:
    """Whether nothing was written into the row."""
    return not any(_texts(row.get(name)) if name in LISTS else _text(row.get(name)) for name in COLUMNS)


def _text(value: Any) -> str:
    # an empty cell of a table arrives as None or as a float nan
    return value if isinstance(value, str) else "" if value is None or value != value else str(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [_text(item) for item in value] if isinstance(value, Iterable) else []


def _neighbor(text: str) -> Neighbor:
    prompt, arrow, answer = text.rpartition(ARROW)
    return Neighbor(prompt, answer) if arrow else Neighbor(answer)


def _consequence(text: str) -> Consequence:
    prompt, arrow, answer = text.rpartition(ARROW)
    if not arrow:
        raise FactError(
            f"The conclusion {text.strip()!r} has no answer.",
            f"Write it as: prompt {ARROW} answer.",
            "portability",
        )
    return Consequence(prompt, answer)


def _finds_itself(fact: Fact) -> bool:
    try:
        return Fact(fact.prompt, fact.subject, fact.target_new).subject_start == fact.subject_start
    except FactError:
        return False
