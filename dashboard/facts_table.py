"""The Facts page's table: examples, files and typing all end in it, and its good rows are the facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import jobs, rows, state
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.progress import Progress
from nmke.readers import FactTable, RowProblem, facts_to_csv, facts_to_jsonl, read_facts

_BASE, _ROWS, _TURN, _REPORT = "facts.base", "facts.rows", "facts.turn", "facts.report"
_READ = "facts.read"
_SHOWN = tuple(name for name in rows.COLUMNS if name != "case_id")
_ROW_HEIGHT = 35


@dataclass(frozen=True)
class Report:
    """What the last file gave."""

    name: str
    added: int
    problems: tuple[RowProblem, ...]


@st.cache_data(show_spinner=False)
def _examples() -> tuple[Fact, ...]:
    return builtin_facts()


def _rows() -> list[rows.Row]:
    kept: list[rows.Row] = state.get().settings.setdefault(_ROWS, [])
    return kept


def any_rows() -> bool:
    """Whether there is anything to clear."""
    return bool(_rows())


def replace(facts: Sequence[Fact]) -> None:
    """Start the table anew with these facts."""
    _set_rows([rows.to_row(fact) for fact in facts])
    state.get().settings.pop(_REPORT, None)


def add(facts: Sequence[Fact]) -> None:
    """Put facts under those the table has, leaving out the ones that are there already."""
    have = _rows()
    known = set(state.get().facts)
    _set_rows([*have, *(rows.to_row(fact) for fact in facts if fact not in known)])


def _set_rows(new: list[rows.Row]) -> None:
    mine = state.get()
    mine.settings[_ROWS] = mine.settings[_BASE] = new
    # another key makes the editor forget the edits that are in the rows now
    mine.settings[_TURN] = mine.settings.get(_TURN, 0) + 1
    mine.set_facts(rows.read_rows(new)[0])


def edit(columns: Mapping[str, Any]) -> tuple[rows.Problem, ...]:
    """Show the editor, take over its good rows as the facts and return the problems of the others."""
    mine = state.get()
    key = f"facts.table.{mine.settings.get(_TURN, 0)}"
    if key not in st.session_state:
        # first drawn, or drawn again after a visit to another page, where the editor forgot its edits
        mine.settings[_BASE] = _rows()
    base: list[rows.Row] = mine.settings[_BASE]
    frame = pd.DataFrame(base, columns=list(rows.COLUMNS), index=pd.RangeIndex(1, len(base) + 1))
    edited = st.data_editor(
        frame,
        key=key,
        num_rows="dynamic",
        hide_index=False,
        placeholder=" ",
        column_order=_SHOWN,
        column_config=dict(columns),
        height=_ROW_HEIGHT * (min(max(len(base), 2), 5) + 2) + 3,
        row_height=_ROW_HEIGHT,
        width="stretch",
    )
    typed = repr(st.session_state[key])

    def read() -> tuple[list[rows.Row], tuple[Fact, ...], tuple[rows.Problem, ...]]:
        now: list[rows.Row] = [dict(zip(rows.COLUMNS, cells, strict=True)) for cells in edited.to_numpy()]
        return ([row for row in now if not rows.is_empty(row)], *rows.read_rows(now))

    # What was typed says it all, as long as it is typed into the same rows.
    kept = mine.settings.get(_READ)
    if kept is None or kept[0] is not base or kept[1] != typed:
        kept = mine.settings[_READ] = (base, typed, read())
    mine.settings[_ROWS], facts, problems = kept[2]
    mine.set_facts(facts)
    return problems


def pick_examples() -> tuple[Fact, ...]:
    """Controls that choose among the built-in examples; returns the chosen ones."""
    every = _examples()
    relations = sorted({fact.relation for fact in every})
    wanted = st.multiselect(
        "Relations",
        relations,
        key="facts.relations",
        persist_state="session",
        placeholder="All relations",
        format_func=lambda name: name.replace("_", " "),
        help="Which kinds of facts to take; all when nothing is chosen.",
    )
    count = st.number_input(
        "How many",
        1,
        len(every),
        6,
        key="facts.count",
        persist_state="session",
        help="Taken from every relation.",
    )
    return take_turns([fact for fact in every if not wanted or fact.relation in wanted], int(count))


def take_turns(facts: Sequence[Fact], count: int) -> tuple[Fact, ...]:
    """The first ``count`` facts, one relation after the other, so that few facts still cover many relations."""
    places: dict[str, int] = {}
    ranked: list[tuple[int, int, Fact]] = []
    for fact in facts:
        places[fact.relation] = places.get(fact.relation, 0) + 1
        ranked.append((places[fact.relation], len(ranked), fact))
    return tuple(fact for _, _, fact in sorted(ranked, key=lambda item: item[:2])[:count])


def upload() -> None:
    """Controls that read a file as a job."""
    mine = state.get()
    limit = st.number_input(
        "Read at most",
        1,
        100_000,
        200,
        key="facts.limit",
        persist_state="session",
        help="Facts taken from the file.",
    )
    given = st.file_uploader(
        "CSV, JSON or JSONL",
        key=f"facts.file.{mine.settings.get('facts.file_turn', 0)}",
        help="CounterFact, EasyEdit, ZsRE or KnowEdit files, or a plain table with the columns prompt, subject and "
        "target_new; recognised by what is in them. At most 50 MB.",
    )
    if given is None or jobs.running("upload"):
        return
    name, content = given.name, given.getvalue()
    # a new key empties the uploader, so the same file can be given again
    mine.settings["facts.file_turn"] = mine.settings.get("facts.file_turn", 0) + 1

    def read(progress: Progress) -> tuple[str, FactTable]:
        progress.update("reading the file", 0, None)
        return name, read_facts(content, name=name, limit=int(limit))

    jobs.start("upload", f"Reading {name}", read, lane="files")
    st.rerun()


def take_upload() -> str | None:
    """Put the facts of a file that was read into the table; returns why it could not be read, if so."""
    outcome = jobs.take("upload")
    if outcome is None:
        return None
    if outcome.state != jobs.JobState.DONE:
        return outcome.error
    name, found = outcome.value
    before = len(_rows())
    add(found.facts)
    state.get().settings[_REPORT] = Report(name, len(_rows()) - before, found.problems)
    return None


def show_report() -> None:
    """What the last file gave: how many facts, and each bad row with its remedy."""
    mine = state.get()
    report: Report | None = mine.settings.get(_REPORT)
    if report is None:
        return
    facts = "1 fact" if report.added == 1 else f"{report.added} facts"
    if not report.problems:
        st.toast(f"{facts} added from {report.name}.")
        del mine.settings[_REPORT]
        return
    bad = "1 row" if len(report.problems) == 1 else f"{len(report.problems)} rows"
    st.warning(f"{facts} added from {report.name}; {bad} could not be used:")
    show_problems([(item.row, item.field, item.problem, item.remedy) for item in report.problems])
    if st.button("Close this list", key="facts.close"):
        del mine.settings[_REPORT]
        st.rerun()


def show_problems(listed: Sequence[tuple[int, str, str, str]]) -> None:
    """Bad rows as a table: row, column, problem, remedy."""
    st.dataframe(
        pd.DataFrame(listed, columns=["Row", "Column", "Problem", "What to do"]),
        hide_index=True,
        width="stretch",
        column_config={"Row": st.column_config.NumberColumn(width=60)},
        height=min(_ROW_HEIGHT * (len(listed) + 1) + 3, 180),
    )


def download(label: str, ending: str, mime: str) -> None:
    """A button that saves the good rows."""
    facts = state.get().facts
    write = facts_to_csv if ending == "csv" else facts_to_jsonl
    st.download_button(
        label,
        lambda: write(facts) if facts else "",  # written when somebody clicks, not on every rerun
        file_name=f"facts.{ending}",
        mime=mime,
        key=f"facts.download.{ending}",
        disabled=not facts,
        icon=":material/download:",
        on_click="ignore",
        help=f"Save the facts as {label}.",
    )
