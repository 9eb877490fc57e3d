"""Files of facts, read by what is in them and never by their name.

Known are CounterFact (ROME form), EasyEdit's form, ZsRE (MEND form), KnowEdit and plain facts
(:mod:`nmke.readers_forms` lists the fields), as a JSON array, an object around one, JSON Lines, or a table
(:mod:`nmke.readers_table`). A bad row becomes a :class:`RowProblem`; the good rows stay, also repeated ones.

ZsRE is edited to ``alt``, as EasyEdit and the papers after it do; ROME and MEMIT edit to the first of
``answers``, which ``zsre_target="answers"`` does here. Its portability questions follow from ``alt``: edited to
``answers``, a fact has none.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nmke.errors import FactError
from nmke.facts import Fact
from nmke.readers_forms import Form, ZsreTarget, form_of
from nmke.readers_table import facts_to_csv, table_rows

__all__ = ["FactTable", "RowProblem", "facts_to_csv", "facts_to_jsonl", "read_facts"]

MIB = 2**20
_FORMS_HELP = (
    "Give records with prompt, subject and target_new, or files of CounterFact, EasyEdit, ZsRE or KnowEdit."
)


@dataclass(frozen=True)
class RowProblem:
    """Why one row was left out.

    Attributes:
        row: its number from 1: the line in JSON Lines, the element of an array, the row under a header.
        field: the field at fault, by its name in the file; empty when it is the whole row.
        problem: what is wrong, in one sentence.
        remedy: what to do about it, in one sentence.
    """

    row: int
    field: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class FactTable:
    """The good facts of a file, the problems of the others, and what the file was taken for."""

    facts: tuple[Fact, ...]
    problems: tuple[RowProblem, ...]
    format: str


def read_facts(
    source: Path | str | bytes,
    *,
    name: str = "",
    limit: int | None = None,
    max_bytes: int = 50 * MIB,
    zsre_target: ZsreTarget = "alt",
) -> FactTable:
    """Read a file of facts.

    Args:
        source: the file, or its bytes (an upload).
        name: what to call it in messages; the file's name by default.
        limit: stop after so many good facts.
        max_bytes: refuse anything larger.
        zsre_target: which field of ZsRE is the new target: "alt" or (the first of) "answers".

    Raises:
        FactError: when the file as a whole cannot be used; single bad rows are in ``problems`` instead.
    """
    if limit is not None and limit < 1:
        raise FactError(f"The limit is {limit}.", "Ask for at least 1 fact.", "limit")
    if zsre_target not in ("alt", "answers"):
        raise FactError(f"zsre_target is {zsre_target!r}.", 'Use "alt" or "answers".', "zsre_target")
    label = name or ("The upload" if isinstance(source, bytes) else Path(source).name)
    text = _decode(_load(source, label, max_bytes), label)
    if not text.strip():
        raise FactError(f"{label} is empty.", _FORMS_HELP)
    if text.lstrip()[0] in "[{":
        container, rows = _json_rows(text, label)
    else:
        _refuse_json_scalar(text, label)
        container, rows = table_rows(text, label)
    return _collect(rows, container, label, limit, zsre_target)


def facts_to_jsonl(facts: Iterable[Fact]) -> str:
    """JSON Lines, one fact each, that :func:`read_facts` reads back to the same facts."""
    return "".join(json.dumps(fact.to_dict(), ensure_ascii=False) + "\n" for fact in facts)


Row = tuple[int, Mapping[str, Any] | FactError]


def _collect(
    rows: Iterable[Row], container: str, label: str, limit: int | None, zsre_target: ZsreTarget
) -> FactTable:
    rows = iter(rows)
    # Rows before the first fact wait until it tells what the file is.
    waiting: list[Row] = []
    first = None
    for number, row in rows:
        waiting.append((number, row))
        first = None if isinstance(row, FactError) else form_of(row)
        if first is not None:
            break
    if first is None:
        raise _no_facts(waiting, label)
    facts: list[Fact] = []
    problems: list[RowProblem] = []
    forms: dict[str, None] = {}
    unused: dict[str, None] = {}
    for number, row in chain(waiting, rows):
        own = None if isinstance(row, FactError) else form_of(row)
        # A row that has no form of its own lacks a field: read like the first, it says which one.
        form = own or first
        try:
            if isinstance(row, FactError):
                raise row
            facts.append(_parse(row, form, zsre_target))
        except FactError as error:
            problems.append(
                RowProblem(number, form.names.get(error.field, error.field), error.what, error.remedy)
            )
        if own is not None and not isinstance(row, FactError):
            forms[own.title] = None
            unused.update(dict.fromkeys(key for key in row if not own.known(key)))
        if limit is not None and len(facts) >= limit:
            break
    return FactTable(tuple(facts), tuple(problems), _describe(forms, container, unused, zsre_target))


def _parse(row: Mapping[str, Any], form: Form, zsre_target: ZsreTarget) -> Fact:
    try:
        return form.parse(row, zsre_target)
    except KeyError as error:
        raise FactError(f"The {error.args[0]} is missing.", "Add it.", str(error.args[0])) from None


def _describe(forms: Iterable[str], container: str, unused: Iterable[str], zsre_target: str) -> str:
    text = f"{' and '.join(forms)}, {container}"
    if any(title.startswith("ZsRE") for title in forms):
        field, other = ("alt", "answers") if zsre_target == "alt" else ("answers", "alt")
        text += f"; target_new is {field}, not {other}"
    names = sorted(unused)
    if names:
        text += f"; not used: {', '.join(names[:8])}" + (" and more" if len(names) > 8 else "")
    return text


def _no_facts(rows: list[Row], label: str) -> FactError:
    for _, row in rows:
        if not isinstance(row, FactError):
            keys = ", ".join(list(map(str, row))[:6]) or "nothing"
            return FactError(f"{label} holds no facts: its records have the fields {keys}.", _FORMS_HELP)
    for _, row in rows:
        if isinstance(row, FactError):
            return FactError(f"{label} holds no facts: {row.what[:1].lower()}{row.what[1:]}", row.remedy)
    return FactError(f"{label} holds no facts.", _FORMS_HELP)


def _load(source: Path | str | bytes, label: str, max_bytes: int) -> bytes:
    if isinstance(source, bytes):
        size = len(source)
    else:
        path = Path(source)
        if path.is_dir():
            raise FactError(f"{label} is a folder.", "Name a file of facts.")
        try:
            size = path.stat().st_size
        except OSError as error:
            raise FactError(f"{label} cannot be read: {error.strerror}.", "Check the file's name.") from None
    if size > max_bytes:
        raise FactError(
            f"{label} has {size / MIB:.1f} MB; at most {max_bytes / MIB:g} MB are read.",
            "Split it, or keep only the facts that you want.",
        )
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise FactError(f"{label} cannot be read: {error.strerror}.", "Check its permissions.") from None


def _decode(data: bytes, label: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FactError(f"{label} is UTF-16 text, not UTF-8.", 'Save it with the encoding "UTF-8".')
    if data.startswith(b"PK\x03\x04"):
        raise FactError(
            f"{label} is a spreadsheet or zip file, not text.", "Export it as CSV, or unzip it first."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FactError(
            f"{label} is not UTF-8 text (line {line}).", 'Save it with the encoding "UTF-8".'
        ) from None


def _refuse_json_scalar(text: str, label: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    raise FactError(f"{label} is JSON, but not facts: it is one {type(value).__name__}.", _FORMS_HELP)


def _json_rows(text: str, label: str) -> tuple[str, Iterable[Row]]:
    try:
        document = json.loads(text)
    except RecursionError:
        raise FactError(f"{label} is JSON nested too deep to be facts.", _FORMS_HELP) from None
    except ValueError as error:
        if text.lstrip().startswith("{") and any(isinstance(row, dict) for _, row in _json_lines(text)):
            return "JSON Lines", _json_lines(text)
        raise FactError(
            f"{label} is broken JSON: {error}.", "Repair it there, or save the file again."
        ) from None
    if isinstance(document, list):
        return "JSON array", _elements(document)
    if form_of(document) is not None:
        # One line of JSON Lines and a single object look the same.
        return "JSON Lines", [(1, document)]
    return "JSON object", _unwrapped(document, label)


def _json_lines(text: str) -> Iterator[Row]:
    # Not splitlines(): JSON may hold U+2028 and its like inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, _object(json.loads(line))
        except (ValueError, RecursionError) as error:
            yield number, FactError(f"The line is not JSON: {error}.", "Repair or remove the line.")


def _object(value: object) -> Mapping[str, Any] | FactError:
    if isinstance(value, dict):
        return value
    return FactError(f"The row is a {type(value).__name__}, not an object.", "Write it as an object.")


def _elements(values: Iterable[object]) -> Iterator[Row]:
    return ((number, _object(value)) for number, value in enumerate(values, start=1))


def _unwrapped(document: dict[str, Any], label: str) -> Iterable[Row]:
    """The records inside an object: under its only list of objects, or as its values."""
    lists = {
        key: value
        for key, value in document.items()
        if isinstance(value, list) and any(isinstance(item, dict) for item in value)
    }
    facts = {
        key: value
        for key, value in lists.items()
        if any(isinstance(item, dict) and form_of(item) is not None for item in value)
    }
    if len(facts) > 1:
        raise FactError(
            f"{label} holds several lists of facts: {', '.join(facts)}.", "Save the one you want by itself."
        )
    if facts or lists:
        return _elements(next(iter((facts or lists).values())))
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values) and any(map(form_of, values)):
        return _elements(values)
    return [(1, document)]
