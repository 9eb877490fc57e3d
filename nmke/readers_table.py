"""Tables of facts: CSV with commas, semicolons, tabs or bars, and the way back.

The columns are ``prompt``, ``subject``, ``target_new`` and, where wanted, ``target_true``, ``paraphrase_1``,
``paraphrase_2``... (or ``paraphrases``, split at ``|``), ``neighborhood_1``, ``neighborhood_answer_1``...,
``portability_1``, ``portability_answer_1``..., ``case_id``, ``relation``, ``subject_start``. A table may also use the
names of EasyEdit or of ZsRE.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator

from nmke.errors import FactError
from nmke.facts import Fact
from nmke.readers_forms import PLAIN_COLUMNS

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_REQUIRED = ({"prompt", "subject", "target_new"}, {"src", "subject", "alt"})
_QUESTIONS = ("neighborhood", "portability")
_REMEDY = "Its first line must name the columns, at least: prompt, subject, target_new."
_TOLD = re.compile(r"\s*sep=(.)\s*?\r?\n", re.IGNORECASE)


def table_rows(text: str, label: str) -> tuple[str, Iterator[tuple[int, dict[str, str] | FactError]]]:
    """Split a table into its rows.

    Returns:
        what the table is, in words, and for each row its number (the first row under the header is 1)
        with its cells by column name, or with what is wrong with it.

    Raises:
        FactError: when no separator makes the first line a header of facts.
    """
    text = _TOLD.sub("", text, count=1) if _TOLD.match(text) else text
    text = text.lstrip("\r\n")
    headers = {separator: _header(text, separator) for separator in SEPARATORS}
    for separator, names in headers.items():
        if any(required <= set(names) for required in _REQUIRED):
            _refuse_repeated(names, label)
            return f"table with {SEPARATORS[separator]}", _rows(text, separator, names)
    raise _no_header(text, headers, label)


def facts_to_csv(facts: Iterable[Fact]) -> str:
    """A table with commas that :func:`~nmke.readers.read_facts` reads back to the same facts."""
    rows = [_row(fact) for fact in facts]
    used = {name for row in rows for name, cell in row.items() if cell}
    counts = {
        kind: max(
            (int(name.rpartition("_")[2]) for name in used if name.rpartition("_")[0] == kind), default=0
        )
        for kind in ("paraphrase", *_QUESTIONS)
    }
    columns = [*PLAIN_COLUMNS[:4], *(f"paraphrase_{i}" for i in range(1, counts["paraphrase"] + 1))]
    for kind in _QUESTIONS:
        for i in range(1, counts[kind] + 1):
            columns += [f"{kind}_{i}", f"{kind}_answer_{i}"]
    columns += [name for name in ("case_id", "relation", "subject_start") if name in used]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(fact: Fact) -> dict[str, str]:
    prompt, start = _prompt_cells(fact)
    row = {
        "prompt": prompt,
        "subject": fact.subject,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "case_id": fact.case_id,
        "relation": fact.relation,
        "subject_start": start,
    }
    for i, text in enumerate(fact.paraphrases, start=1):
        row[f"paraphrase_{i}"] = text
    for kind in _QUESTIONS:
        for i, question in enumerate(getattr(fact, kind), start=1):
            row[f"{kind}_{i}"], row[f"{kind}_answer_{i}"] = question.prompt, question.answer
    return row


def _prompt_cells(fact: Fact) -> tuple[str, str]:
    """The plainest prompt that is read back alike: full text, else a template, else text and offset."""
    for prompt in (fact.prompt, fact.template):
        try:
            again = Fact(prompt, fact.subject, fact.target_new)
        except FactError:
            continue
        if (again.prompt, again.subject_start) == (fact.prompt, fact.subject_start):
            return prompt, ""
    return fact.prompt, str(fact.subject_start)


def _header(text: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [])
    except csv.Error:
        return []
    names = [re.sub(r"\s+", "_", cell.strip().lower()).replace("neighbour", "neighbor") for cell in cells]
    while names and not names[-1]:
        names.pop()
    return names


def _refuse_repeated(names: list[str], label: str) -> None:
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise FactError(
            f"{label} has the column {repeated[0]} {names.count(repeated[0])} times.",
            "Rename or remove the others.",
            repeated[0],
        )


def _rows(text: str, separator: str, names: list[str]) -> Iterator[tuple[int, dict[str, str] | FactError]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    next(reader)
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, _broken(error)
            continue
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) == 1 < len(names):
            yield (
                number,
                FactError(
                    "The row is not split into columns.",
                    f"Separate its cells with {SEPARATORS[separator]}, as in the first line.",
                ),
            )
        elif len(cells) > len(names):
            yield (
                number,
                FactError(
                    f"The row has {len(cells)} cells for {len(names)} columns.",
                    f"Put double quotes around each text that contains {separator!r}.",
                ),
            )
        else:
            cells += [""] * (len(names) - len(cells))
            yield number, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _broken(error: csv.Error) -> FactError:
    if "unexpected end" in str(error):
        return FactError(
            "A double quote opens in this row and is never closed, so the rest of the file is one cell.",
            'Close it, or write a quote inside a text as two: "".',
        )
    return FactError(f"The row cannot be split into cells: {error}.", "Check its double quotes.")


def _no_header(text: str, headers: dict[str, list[str]], label: str) -> FactError:
    columns = _REQUIRED[0]
    separator, names = max(headers.items(), key=lambda item: len(columns & set(item[1])))
    first = text.split("\n", 1)[0].strip()
    missing = [name for name in PLAIN_COLUMNS if name in columns and name not in names]
    if columns & set(names) and len(names) > 1:
        return FactError(
            f"The table {label} (separated by {SEPARATORS[separator]}) lacks the column {missing[0]}.",
            _REMEDY,
            missing[0],
        )
    if all(name in first.lower() for name in columns):
        return FactError(
            f"The columns of {label} are not separated by commas, semicolons, tabs or bars.",
            "Save it again as CSV with commas.",
        )
    shown = first if len(first) <= 60 else first[:57] + "..."
    return FactError(f"{label} is neither JSON nor a table of facts: it begins with {shown!r}.", _REMEDY)
