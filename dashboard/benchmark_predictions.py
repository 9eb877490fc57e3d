"""From a point of a chart to what the model said there: clicks, the box of points, the raw predictions."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import benchmark_files as files
from dashboard import benchmark_tables as tables
from dashboard import benchmark_work as work
from dashboard import charts, downloads

POINT = "benchmark.point"
#: Rows that are sent to the browser; two thousand facts have some tens of thousands.
MOST_ROWS = 2000
Point = tuple[str, int, int]


def named(runs: Sequence[work.Run]) -> dict[str, work.Run]:
    """The runs by names that are unique."""
    found: dict[str, work.Run] = {}
    for run in runs:
        name = run.name if run.name not in found else str(run.folder)
        found[name] = run
    return found


def clickable(figure: dict[str, Any], key: str, alt: str) -> None:
    """Draw a chart whose points, when clicked, are chosen in the box of points."""
    st.plotly_chart(
        charts.drawn(figure),
        key=key,
        on_select=lambda: _on_click(key),
        selection_mode="points",
        config=files.chart_config(),
        alt=alt,
    )


def _on_click(key: str) -> None:
    """Take a click on a chart into the box of points."""
    point = tables.picked_point(st.session_state.get(key))
    if point is not None:
        st.session_state[POINT] = point


def points_of(table: pd.DataFrame) -> list[Point]:
    """Every measured point, by line, seed and T."""
    found = table[list(tables.IDENTITY)].drop_duplicates()
    order = {line: place for place, (line, _) in enumerate(tables.lines_of(table))}
    points = [(str(line), int(seed), int(mark)) for line, seed, mark in found.itertuples(index=False)]
    return sorted(points, key=lambda point: (order[point[0]], point[1], point[2]))


def keep_point(points: Sequence[Point]) -> None:
    """The chosen point, or nothing when it is not among those that can be shown (any more)."""
    if st.session_state.get(POINT) not in points:
        st.session_state[POINT] = None


def show(runs: Sequence[work.Run], points: Sequence[Point]) -> None:
    """The box of points, and under it every prompt and answer behind the chosen one."""
    point: Point | None = st.selectbox(
        "Raw predictions behind a point",
        points,
        index=None,
        format_func=lambda point: f"{point[0]}, seed {point[1]}, T = {point[2]:,}",
        key=POINT,
        persist_state="session",
        placeholder="Click a point above, or choose one here",
        help="What the model said to every prompt at that moment: the answers that the scores are made of.",
    )
    if point is None:
        return
    run, label = run_of(runs, point[0])
    found = work.predictions_of(run, label, point[1], point[2])
    if found.empty:
        st.info("No predictions were kept for this point.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kinds = st.pills(
            "Kind of prompt",
            sorted(found["kind"].unique()),
            selection_mode="multi",
            key="benchmark.kinds",
            persist_state="session",
            help="None chosen shows all. Neighborhood prompts are about other subjects and should keep their answers; "
            "portability prompts ask what follows from the new answer.",
        )
        words = st.text_input(
            "Words",
            key="benchmark.words",
            persist_state="session",
            placeholder="in any prompt or answer",
            help="Shows the rows in which these words occur anywhere.",
        )
    shown = tables.find_texts(found, kinds or (), words)
    st.dataframe(
        shown.head(MOST_ROWS),
        hide_index=True,
        key="benchmark.predictions",
        height=min(80 + 35 * max(len(shown), 1), 330),
        column_config={
            "share": st.column_config.NumberColumn(
                "right tokens", format="percent", help="Share of the answer's tokens that are the likeliest."
            ),
            "log_p_new": st.column_config.NumberColumn("log P(new)", format="%.2f"),
            "log_p_true": st.column_config.NumberColumn("log P(true)", format="%.2f"),
        },
    )
    st.caption(
        f"{len(shown):,} of {len(found):,} prompts of {point[0]}, seed {point[1]}, "
        f"after {point[2]:,} edit{'s' if point[2] != 1 else ''}"
        + (f"; the first {MOST_ROWS:,} are shown, the files hold all" if len(shown) > MOST_ROWS else "")
        + ". Low positions were written first, and an editor forgets those first; the same answer to every prompt "
        "would mean that the model broke."
    )
    with st.container(horizontal=True):
        name = f"predictions-{label}-seed{point[1]}-{point[2]}"
        downloads.table_files(lambda: shown, name, key="benchmark.file.predictions")


def run_of(runs: Sequence[work.Run], line: str) -> tuple[work.Run, str]:
    """The run and the label that a line stands for."""
    by_name = named(runs)
    for name, run in by_name.items():
        for label in run.table["label"].unique() if not run.table.empty else ():
            if tables.line_name(str(label), name, len(by_name) > 1) == line:
                return run, str(label)
    raise KeyError(line)
