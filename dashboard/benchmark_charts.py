"""The figures of the Benchmark page: tables in, Plotly figures out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.benchmark_labels import (
    COLUMNS,
    LABELLED,
    MOST_ROOM,
    PANEL,
    label_room,
    name_at_ends,
    name_in_legend,
)
from dashboard.benchmark_looks import Look, see_through
from dashboard.benchmark_tables import MEASURES, Measure, over_seeds, say_number
from dashboard.charts import PLAIN, finish

#: Perplexities are drawn up to here: past a million a model says nothing, and other lines would be pressed flat.
CEILING = 1e6


def curves(
    table: pd.DataFrame,
    measures: Sequence[Measure],
    look: Mapping[str, Look],
    *,
    log: bool,
    unedited: Mapping[str, Sequence[float]] | None = None,
    chosen: tuple[str, int, int] | None = None,
) -> go.Figure:
    """One panel a measure, a line a method over the number of edits T, its label at its end.

    Args:
        table: the runs side by side (``line``, ``seed``, ``T`` and the measures).
        log: whether T is drawn in powers of ten.
        unedited: measure to the unedited models' numbers, drawn as grey lines.
        chosen: (line, seed, T) to frame.
    """
    columns = min(COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_titled(measure) for measure in measures],
        horizontal_spacing=0.055,
        vertical_spacing=min(0.3, 75 / (rows * (PANEL + 60))) if rows > 1 else 0,
    )
    room = max((label_room(line, columns) for line in look), default=0.0)
    labelled = len(look) <= LABELLED and room <= MOST_ROOM
    for place, measure in enumerate(measures):
        row, col = place // columns + 1, place % columns + 1
        means = over_seeds(table, measure.column)
        for column in ("value", "low", "high"):
            means[column] = _drawn(means[column], measure)
        before = [value for value in (unedited or {}).get(measure.column, ()) if math.isfinite(value)]
        y_log = _is_steep(means, measure)
        y_range = _y_range(means, before, measure, y_log)
        for line in look:
            mine = means[means["line"] == line]
            if not mine.empty:
                band = 0.14 if len(look) <= 4 else 0.07
                _line(figure, table, mine, measure, line, look[line], (row, col), chosen, band)
        # After the lines: Plotly leaves empty panels without shapes.
        for value in sorted({round(value, 6) for value in before}):
            grey = {"dash": "dot", "color": PLAIN, "width": 1.5}
            figure.add_hline(y=value, line=grey, row=row, col=col)
        if labelled:
            name_at_ends(figure, means, look, log, y_log, y_range, row, col)
        axis = {"type": "log", "exponentformat": "power", "dtick": 1} if y_log else {}
        figure.update_yaxes(range=y_range, row=row, col=col, tickfont={"size": 12}, **axis)
    finish(figure, height=rows * (PANEL + 60) + 24, legend=False)
    figure.update_layout(margin={"t": 36}, clickmode="event+select", hovermode="closest")
    if not labelled:
        name_in_legend(figure, look)
    figure.for_each_annotation(_smaller_title)
    figure.update_xaxes(
        title={"text": "edits so far (T)", "standoff": 4, "font": {"size": 12}},
        type="log" if log else "linear",
        range=_x_range(table, log, room if labelled else 0.05),
        tickvals=(ticks := x_ticks(table["T"], log)),
        ticktext=[f"{tick:,}" for tick in ticks],
        tickfont={"size": 12},
        showgrid=False,
    )
    return figure


def x_ticks(marks: Iterable[float], log: bool) -> list[int]:
    """Numbers of edits that are written on the axis: none beyond the last mark, none too close to the next."""
    found = sorted({int(mark) for mark in marks if mark > 0})
    if not found:
        return []
    if log:
        ticks = [found[-1]]
        least = 0.2 * math.log10(found[-1] / found[0])  # about the width of a number
        for mark in reversed(found):
            if math.log10(ticks[0] / mark) > least:
                ticks.insert(0, mark)
        return ticks
    unit = 10 ** max(math.floor(math.log10(found[-1] / 5)), 0)
    step = next(unit * times for times in (1, 2, 5, 10) if found[-1] / (unit * times) <= 5)
    return list(range(0, found[-1] + 1, step))


def _titled(measure: Measure) -> str:
    if len(measure.title) > 20:  # in full it would reach into the next panel
        return f"{measure.title}, {'↑' if measure.better == 'higher' else '↓'} better"
    return f"{measure.title} ({measure.better} is better)"


def _smaller_title(note: Any) -> None:
    if note.xref == "paper":
        note.update(font={"size": 13})


def _x_range(table: pd.DataFrame, log: bool, room: float) -> list[float]:
    """The marks, and the share of the panel that is left for the labels at the lines' ends."""
    marks = [mark for mark in table["T"] if mark > 0] or [1]
    low, high = (math.log10(min(marks)), math.log10(max(marks))) if log else (0.0, float(max(marks)))
    if log and high == low:
        low, high = low - 0.5, high + 0.5
    span = (high - low) / (1 - room - 0.05)
    return [low - 0.05 * span, high + room * span]


def _drawn(values: "pd.Series[float]", measure: Measure) -> "pd.Series[float]":
    """The values as far as the panel goes."""
    return values.clip(upper=CEILING) if measure.column == "perplexity" else values


def say_ceiling(table: pd.DataFrame) -> str:
    """That some perplexities are drawn lower than they are; empty where none is."""
    if "perplexity" not in table or not (table["perplexity"] > CEILING).any():
        return ""
    return " Perplexities over a million are drawn at a million; the mouse over a point tells their value."


def _is_steep(means: pd.DataFrame, measure: Measure) -> bool:
    """Whether perplexity spans more than a factor of twenty, as it does when a model breaks."""
    values = means["value"][np.isfinite(means["value"])]
    return (
        measure.column == "perplexity"
        and len(values) > 0
        and values.min() > 0
        and values.max() / values.min() > 20
    )


def _y_range(means: pd.DataFrame, before: Sequence[float], measure: Measure, log: bool) -> list[float]:
    if measure.share:
        return [-0.04, 1.06]
    ends = [*means["value"], *means["low"], *means["high"], *before]
    found = [value for value in ends if math.isfinite(value) and (value > 0 or not log)]
    if not found:
        return [0.0, 1.0]
    if log:
        low, high = math.log10(min(found)), math.log10(max(found))
        return [low - 0.06 * (high - low), high + 0.08 * (high - low)]
    low, high = min(0.0, *found), max(found)
    if measure.column in ("perplexity", "drift_cosine"):
        low = min(found)
    span = (high - low) or abs(high) or 1.0
    return [low - 0.06 * span, high + 0.1 * span]


def _line(
    figure: go.Figure,
    table: pd.DataFrame,
    mine: pd.DataFrame,
    measure: Measure,
    line: str,
    look: Look,
    place: tuple[int, int],
    chosen: tuple[str, int, int] | None,
    band: float,
) -> None:
    """Band, mean and one point a seed, in the panel at ``place`` (row, column)."""
    row, col = place
    banded = mine[mine["low"].notna() & mine["high"].notna() & np.isfinite(mine["high"])]
    if len(banded) > 1 and (banded["high"] > banded["low"]).any():
        figure.add_scatter(
            x=[*banded["T"], *banded["T"][::-1]],
            y=[*banded["high"], *banded["low"][::-1]],
            fill="toself",
            mode="lines",
            line={"width": 0, "color": look.colour},
            fillcolor=see_through(look.colour, band),
            hoverinfo="skip",
            legendgroup=line,
            showlegend=False,
            row=row,
            col=col,
        )
    figure.add_scatter(
        x=mine["T"].tolist(),
        y=mine["value"].tolist(),
        mode="lines",
        line={"color": look.colour, "dash": look.dash, "width": 2},
        name=line,
        hoverinfo="skip",
        legendgroup=line,
        showlegend=False,
        row=row,
        col=col,
    )
    points = table[(table["line"] == line) & table[measure.column].notna()]
    data = [[line, int(seed), int(mark)] for seed, mark in zip(points["seed"], points["T"], strict=True)]
    framed = [chosen == tuple(entry) for entry in data]
    shown = [say_number(float(value), measure.share) for value in points[measure.column]]
    figure.add_scatter(
        x=points["T"].tolist(),
        y=_drawn(points[measure.column], measure).tolist(),
        mode="markers",
        marker={
            "color": look.colour,
            "symbol": look.symbol,
            "size": [13 if frame else 8 for frame in framed],
            "line": {"color": PLAIN, "width": [2 if frame else 0 for frame in framed]},
        },
        name=line,
        customdata=data,
        text=shown,
        hovertemplate=f"%{{customdata[0]}}, seed %{{customdata[1]}}<br>{measure.title} after %{{customdata[2]}} "
        "edits: %{text}<extra></extra>",
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
        legendgroup=line,
        showlegend=False,
        row=row,
        col=col,
    )


def measures_named(columns: Sequence[str]) -> list[Measure]:
    """The measures of these columns."""
    return [MEASURES[name] for name in columns]
