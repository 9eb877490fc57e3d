"""The Benchmark page's results: status, curves, the paper's table, cost, radar, raw predictions, files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard import benchmark_balance as balance
from dashboard import benchmark_charts as drawing
from dashboard import benchmark_files as files
from dashboard import benchmark_looks, frame, state
from dashboard import benchmark_predictions as predictions
from dashboard import benchmark_tables as tables
from dashboard import benchmark_work as work
from dashboard.benchmark_predictions import POINT, Point, clickable, keep_point, named, points_of
from dashboard.benchmark_report import Figure

LAST = 0
"""Stands for the largest T that was measured, which grows while a run works."""


def show(runs: Sequence[work.Run], live: bool) -> None:
    """Everything the runs hold; while one is at work its status is open."""
    if not runs:
        return
    with frame.guard("Showing the status"):
        _status(runs, live)
    table = tables.side_by_side(unique(runs))
    if table.empty:
        st.info("Nothing has been measured yet. The curves appear with the first mark.")
        return
    points = points_of(table)
    keep_point(points)
    key = tuple((run.name, str(run.folder), run.numbers) for run in runs)
    look = benchmark_looks.used_lines(table, method_names())
    shown: list[Figure] = []
    with frame.guard("Drawing the curves"):
        shown += _curves(runs, table, look, key)
    with frame.guard("Showing the raw predictions"):
        predictions.show(runs, points)
    with frame.guard("Showing the table"):
        paper, chosen = _paper(table)
    mark = _mark(table)
    left, right = st.columns(2, gap="medium")
    with left, frame.guard("Drawing the radar"):
        shown += _radar(runs, table, mark, look, key)
    with right, frame.guard("Drawing the costs"):
        shown += _cost(table, mark, look, key)
    with frame.guard("Showing the files"):
        files.show(runs, table, paper, chosen, shown)


def unique(runs: Sequence[work.Run]) -> dict[str, pd.DataFrame]:
    """The runs' tables by name; two runs of one name are told apart by their folder."""
    return {name: run.table for name, run in named(runs).items()}


def method_names() -> tuple[str, ...]:
    """All methods in their fixed order, which gives each its colour."""
    from nmke.methods import methods

    return tuple(methods())


# ---- status -----------------------------------------------------------------------------------------------------


def _status(runs: Sequence[work.Run], live: bool) -> None:
    parts = [work.say_status(run, edits_of(run)) for run in runs]
    status = pd.concat(parts, ignore_index=True)
    if len(runs) == 1:
        status = status.drop(columns="run")
    seeds = sorted({str(seed) for seed in status["seed"]}) if "seed" in status else []
    with st.expander(say_states(status, seeds), expanded=live):
        st.dataframe(
            status,
            hide_index=True,
            key="benchmark.status",
            column_config={
                "progress": st.column_config.ProgressColumn(min_value=0, max_value=1, format="percent"),
                "left": st.column_config.TextColumn(
                    "time left", help="For the remaining edits at this editor's pace; measuring comes on top."
                ),
            },
        )
        st.caption(
            "Collapsed: the run stopped this editor because it no longer kept what it wrote, or because the model "
            "lost its language; its last numbers stay. That an editor collapses within some tens of edits is known of "
            "the early ones and would be surprising for the later ones."
        )


def say_states(status: pd.DataFrame, seeds: Sequence[str]) -> str:
    """One line over the status table."""
    if status.empty:
        return "No editor has started"
    counts = status["state"].value_counts(sort=False)
    states = ", ".join(f"{count} {name}" for name, count in counts.items())
    word = "Seed" if len(seeds) == 1 else "Seeds"
    return f"Editors and seeds: {states}. {word}: {', '.join(seeds)}."


def edits_of(run: work.Run) -> int:
    """How many edits the run is to write."""
    config = run.spec.get("config", run.spec)
    edits = config.get("edits") if isinstance(config, Mapping) else None
    done = [int(entry.get("edits_done") or 0) for entry in run.results.status]
    return int(edits or max(done, default=0))


# ---- curves -----------------------------------------------------------------------------------------------------


def _curves(
    runs: Sequence[work.Run], table: pd.DataFrame, look: Mapping[str, drawing.Look], key: Any
) -> list[Figure]:
    known = tables.known_measures(table)
    if not known:
        st.info("None of the measures has a number yet.")
        return []
    by_name = {measure.column: measure for measure in known}
    usual = [name for name in tables.CURVES if name in by_name]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        opening: dict[str, Any] = {} if "benchmark.measures" in st.session_state else {"default": usual}
        picked = st.multiselect(
            "Panels",
            list(by_name),
            format_func=lambda name: by_name[name].title,
            key="benchmark.measures",
            persist_state="session",
            help="One panel a measure. "
            + " ".join(f"{by_name[name].title.capitalize()}: {by_name[name].meaning}" for name in usual),
            width="stretch",
            **opening,
        )
        axis = st.segmented_control(
            "T axis",
            ("logarithmic", "linear"),
            default=None if "benchmark.axis" in st.session_state else "logarithmic",
            key="benchmark.axis",
            required=True,
            persist_state="session",
            help="T is the number of edits so far. Logarithmic shows the first edits and the last ones alike.",
        )
    measures = [by_name[name] for name in picked if name in by_name]
    if not measures:
        st.info("Choose at least one panel.")
        return []
    log = axis == "logarithmic"
    before = unedited_numbers(runs)
    chosen: Point | None = st.session_state.get(POINT)
    figure = state.get().kept.figure(
        "benchmark.curves",
        (key, tuple(picked), log, chosen),
        lambda: drawing.curves(table, measures, look, log=log, unedited=before, chosen=chosen),
    )
    clickable(figure, "benchmark.curves", "Curves of every measure over the number of edits")
    seeds = ", ".join(map(str, tables.seeds_of(table)))
    caption = (
        "Each point measures all facts written so far, not only the last one. A line is the mean over the seeds "
        f"(seeds: {seeds}), its band {tables.INTERVALS}. The dotted grey line is the unedited model. A good editor's "
        "lines stay flat; a line that rises again after a fall would be surprising. Click a point to read the answers "
        f"behind it.{drawing.say_ceiling(table) if 'perplexity' in picked else ''}{say_uneven(table)}"
    )
    files.caption(caption, figure, "benchmark-curves", key="benchmark.file.curves")
    return [Figure("Curves", figure, caption)]


def say_uneven(table: pd.DataFrame) -> str:
    """Which lines' means are over fewer seeds at some T."""
    uneven = tables.uneven_lines(table)
    return f" Means over those seeds alone that got so far: {', '.join(uneven)}." if uneven else ""


def unedited_numbers(runs: Sequence[work.Run]) -> dict[str, list[float]]:
    """Each measure of the unedited models, as far as the runs tell it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in dict(run.results.unedited or {}).items():
            if name in tables.MEASURES and isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return found


# ---- the paper's table ------------------------------------------------------------------------------------------


def _paper(table: pd.DataFrame) -> tuple[pd.DataFrame, list[int]]:
    marks = tables.marks_of(table)
    known = [measure.column for measure in tables.known_measures(table)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _drop_unknown("benchmark.table_marks", marks)
        opening: dict[str, Any] = (
            {} if "benchmark.table_marks" in st.session_state else {"default": tables.last_marks(marks)}
        )
        chosen = st.multiselect(
            "Table at T =",
            marks,
            key="benchmark.table_marks",
            persist_state="session",
            help="Numbers of edits that the table has columns for.",
            width="stretch",
            **opening,
        )
        _drop_unknown("benchmark.table_measures", known)
        opening = (
            {}
            if "benchmark.table_measures" in st.session_state
            else {"default": [name for name in tables.TABLED if name in known]}
        )
        columns = st.multiselect(
            "Measures",
            known,
            format_func=lambda name: tables.MEASURES[name].title,
            key="benchmark.table_measures",
            persist_state="session",
            help="The table's columns at each T.",
            width="stretch",
            **opening,
        )
    paper = tables.paper_table(table, columns, sorted(chosen))
    if not chosen or not columns:
        st.info("Choose at least one T and one measure for the table.")
        return paper, []
    st.dataframe(
        tables.one_heading(paper),
        hide_index=True,
        key="benchmark.paper",
        column_config={"method": st.column_config.TextColumn(pinned=True, width="medium")},
    )
    st.caption(
        f"The mean over the seeds, and in brackets {tables.INTERVALS}. Bootstrap intervals that do not overlap are a "
        "difference to believe. – was not reached, has no prompts, or was no number."
    )
    return paper, sorted(chosen)


def _drop_unknown(key: str, options: Sequence[Any]) -> None:
    """Choices that another run had and this one has not."""
    if key in st.session_state and any(choice not in options for choice in st.session_state[key]):
        st.session_state[key] = [choice for choice in st.session_state[key] if choice in options]


# ---- cost and radar ---------------------------------------------------------------------------------------------


def _mark(table: pd.DataFrame) -> int:
    """The T of radar and cost."""
    marks = tables.marks_of(table)
    if st.session_state.get("benchmark.mark", LAST) not in (LAST, *marks):
        st.session_state["benchmark.mark"] = LAST
    mark = st.selectbox(
        "Balance and cost at T =",
        (LAST, *reversed(marks)),
        format_func=lambda mark: "the last" if mark == LAST else f"{mark:,}",
        key="benchmark.mark",
        persist_state="session",
        width=260,
        help="The number of edits after which the two charts below look at the editors.",
    )
    return marks[-1] if mark == LAST else int(mark)


def first_points(table: pd.DataFrame, mark: int) -> dict[str, Point]:
    """What a click on a line's bar or corner means: its first seed at that T."""
    here = table[table["T"] == mark].sort_values("seed").drop_duplicates("line")
    return {
        str(line): (str(line), int(seed), mark) for line, seed in zip(here["line"], here["seed"], strict=True)
    }


def _radar(
    runs: Sequence[work.Run],
    table: pd.DataFrame,
    mark: int,
    look: Mapping[str, drawing.Look],
    key: Any,
) -> list[Figure]:
    before = {name: dict(run.results.unedited or {}) for name, run in named(runs).items()}
    axes, values = tables.radar_at(table, mark, before)
    if len(axes) < 3:
        st.info("A balance needs at least three measures; this run has fewer at this T.")
        return []
    caption = (
        f"Edit quality against what was kept, after {mark:,} edit{'s' if mark != 1 else ''}, 0 in the middle to 1 "
        f"outside. Axes: "
        f"{say_axes(axes)}. A larger area is better; an editor that is far out on the one side and in the "
        f"middle on the other paid for its edits.{say_absent(table, mark)}"
    )
    _small(
        "benchmark.radar",
        (key, mark),
        lambda: balance.radar(axes, values, look, first_points(table, mark)),
        caption,
        "Edit quality against what was kept",
    )
    return [Figure("Balance", state.get().kept.newest("benchmark.radar"), caption)]


def say_axes(axes: Sequence[str]) -> str:
    """What each axis of the radar is."""
    meaning = {
        "1 - drift": "1 - drift (1 is weights that did not move, also where modules were put beside them)",
        "perplexity kept": "perplexity kept (the unedited model's perplexity over the edited one's)",
    }
    return ", ".join(meaning.get(axis, axis) for axis in axes)


def say_absent(table: pd.DataFrame, mark: int) -> str:
    """Which lines ended before that T."""
    there = set(table.loc[table["T"] == mark, "line"])
    absent = [line for line, _ in tables.lines_of(table) if line not in there]
    return f" Not measured at this T: {', '.join(absent)}." if absent else ""


def _cost(table: pd.DataFrame, mark: int, look: Mapping[str, drawing.Look], key: Any) -> list[Figure]:
    found = tables.cost_at(table, mark)
    if found.empty or not found[["seconds_per_edit", "peak_memory_mb"]].notna().any(axis=None):
        st.info("This run has no times yet.")
        return []
    caption = (
        f"Median seconds per edit before T = {mark:,}, and the most memory the program held until then (without a GPU "
        "of the whole program, so an editor that ran later cannot show less than one before it); whiskers are the "
        "fastest and the slowest seed. A time that grows with T would be surprising for methods that keep no memory of "
        f"earlier edits.{say_absent(table, mark)}"
    )
    _small(
        "benchmark.cost",
        (key, mark),
        lambda: balance.cost(found, look, first_points(table, mark)),
        caption,
        "Seconds and memory per edit",
    )
    return [Figure("Cost", state.get().kept.newest("benchmark.cost"), caption)]


def _small(name: str, key: Any, draw: Callable[[], go.Figure], caption: str, alt: str) -> None:
    figure = state.get().kept.figure(name, key, draw)
    clickable(figure, name, alt)
    file = name.replace(".", "-")
    files.caption(caption, figure, file, key=f"benchmark.file.{file}")
