"""The figure of the Abilities page: arrays in, a Plotly figure out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.charts import EDITED, ORIGINAL, PLAIN, finish, shorten
from dashboard.edit_charts import SEQUENCE

Estimate = tuple[float, float, float]
"""A value with the ends of its interval."""

_COLOURS = (EDITED, *(colour for colour in SEQUENCE if colour not in (EDITED, "#7F7F7F")))
_APART = 0.15
"""How far before and after stand from the middle of their row, so that their intervals do not hide each other."""
_LEGEND = 3
"""Lines of the legend on a narrow screen, where its entries stand one under the other."""
ROW, HEAD = 46, 0.62
"""Pixels: a row's height. Rows: the height of a heading."""


@dataclass(frozen=True)
class Row:
    """One benchmark on one state of the model.

    Attributes:
        task: the benchmark's title.
        n: how many questions.
        label: the state after; empty when only the state before was measured.
        guess: what guessing gives, where that is known.
    """

    task: str
    n: int
    label: str
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None = None
    p: str = ""
    guess: float | None = None


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for every state after; a lone one has that of edited models."""
    return {label: _COLOURS[place % len(_COLOURS)] for place, label in enumerate(dict.fromkeys(labels))}


def dumbbells(rows: Sequence[Row], before: str) -> go.Figure:
    """Scores before and after with intervals per benchmark; beside them the paired change, where there is one.

    Args:
        rows: in the order they are drawn, those of one benchmark next to each other.
        before: what the state before is called.
    """
    paired = any(row.change is not None for row in rows)
    columns = 2 if paired else 1
    figure = make_subplots(
        1,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        column_widths=[0.62, 0.38] if paired else None,
    )
    places, ticks = _places(rows)
    look = colours([row.label for row in rows if row.after is not None])
    _guesses(figure, rows, places)
    _connect(figure, rows, places)
    _points(
        figure,
        before,
        ORIGINAL,
        [(y - _apart(row), row, row.before) for y, row in _with(places, rows)],
    )
    for label, colour in look.items():
        mine = [(y, row) for y, row in _with(places, rows) if row.label == label]
        after = [(y + _apart(row), row, row.after) for y, row in mine]
        _points(figure, label, colour, after, legend=len(look) == 1)  # several are named on the axis
        if paired:
            _changes(figure, colour, mine)
    if paired:
        figure.add_vline(x=0, line={"color": PLAIN, "dash": "dot", "width": 1.5}, row=1, col=2)
    last = max(places, default=0.0)
    finish(figure, height=int(78 + 19 * _LEGEND + ROW * (last + 0.6)))
    figure.update_layout(
        margin={"t": 24 + 19 * _LEGEND}, legend={"y": 1.0, "yref": "container", "yanchor": "top"}
    )
    figure.update_traces(cliponaxis=False)
    figure.update_xaxes(title_standoff=8)
    figure.update_xaxes(
        title="share of right answers",
        range=[-0.02, _reach(rows) + 0.02],
        nticks=6,
        row=1,
        col=1,
    )
    figure.update_yaxes(range=[last + 0.55, -0.55], showgrid=False)
    figure.update_yaxes(tickvals=list(ticks), ticktext=list(ticks.values()), row=1, col=1)
    if paired:
        figure.update_xaxes(title="change: after − before", range=_symmetric(rows), row=1, col=2)
    return figure


def _places(rows: Sequence[Row]) -> tuple[list[float], dict[float, str]]:
    """Where each row stands, and the words on the axis: a heading per benchmark where it has several rows."""
    several = len({row.label for row in rows}) > 1
    places: list[float] = []
    ticks: dict[float, str] = {}
    y = -1.0
    for number, row in enumerate(rows):
        first = number == 0 or rows[number - 1].task != row.task
        if several and first:
            y += 1.0
            ticks[y] = f"<b>{escape(row.task)}</b>, n = {row.n:,}"
            y += HEAD
        else:
            y += 1.0 if not several else 0.9
        places.append(y)
        ticks[y] = escape(shorten(row.label, 30)) if several else f"{escape(row.task)}<br>n = {row.n:,}"
    return places, ticks


def _apart(row: Row) -> float:
    return _APART if row.before is not None and row.after is not None else 0.0


def _reach(rows: Sequence[Row]) -> float:
    """The score axis goes from 0 to 0.5 where that holds every interval, else to 1."""
    highs = [ends[2] for row in rows for ends in (row.before, row.after) if ends is not None]
    return 0.5 if max(highs, default=1.0) <= 0.5 else 1.0


def _with(places: Sequence[float], rows: Sequence[Row]) -> list[tuple[float, Row]]:
    return list(zip(places, rows, strict=True))


def _connect(figure: go.Figure, rows: Sequence[Row], places: Sequence[float]) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for place, row in _with(places, rows):
        if row.before is not None and row.after is not None:
            x += [row.before[0], row.after[0], None]
            y += [place - _APART, place + _APART, None]
    line = {"color": PLAIN, "width": 3}
    figure.add_scatter(
        x=x, y=y, mode="lines", line=line, opacity=0.5, hoverinfo="skip", showlegend=False, row=1, col=1
    )


def _points(
    figure: go.Figure,
    name: str,
    colour: str,
    points: Sequence[tuple[float, Row, Estimate | None]],
    *,
    legend: bool = True,
) -> None:
    found = [(y, row, value) for y, row, value in points if value is not None]
    if not found:
        return
    data = [[row.task, f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"] for _, row, value in found]
    figure.add_scatter(
        x=[value[0] for _, _, value in found],
        y=[y for y, _, _ in found],
        mode="markers",
        marker={"size": 12, "color": colour},
        error_x=_bars([value for _, _, value in found], colour),
        name=shorten(name, 44),
        showlegend=legend,
        customdata=data,
        hovertemplate=f"%{{customdata[0]}}<br>{escape(name)}<br>%{{customdata[1]}}<extra></extra>",
        row=1,
        col=1,
    )


def _changes(figure: go.Figure, colour: str, rows: Sequence[tuple[float, Row]]) -> None:
    found = [(y, row, row.change) for y, row in rows if row.change is not None]
    if not found:
        return
    data = [
        [row.task, f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}], {row.p}"] for _, row, value in found
    ]
    figure.add_scatter(
        x=[value[0] for _, _, value in found],
        y=[y for y, _, _ in found],
        mode="markers+text",
        text=[row.p for _, row, _ in found],
        textposition="top center",
        textfont={"size": 11},
        marker={"size": 11, "color": colour, "symbol": "diamond"},
        error_x=_bars([value for _, _, value in found], colour),
        showlegend=False,
        customdata=data,
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        row=1,
        col=2,
    )


def _bars(values: Sequence[Estimate], colour: str) -> Mapping[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in values],
        "arrayminus": [value - low for value, low, _ in values],
        "color": colour,
        "thickness": 1.6,
        "width": 4,
    }


def _guesses(figure: go.Figure, rows: Sequence[Row], places: Sequence[float]) -> None:
    found = [(place, row.guess, row.task) for place, row in _with(places, rows) if row.guess is not None]
    if not found:
        return
    figure.add_scatter(
        x=[guess for _, guess, _ in found],
        y=[y for y, _, _ in found],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 22, "color": PLAIN, "line": {"width": 2, "color": PLAIN}},
        name="guessing",
        customdata=[task for _, _, task in found],
        hovertemplate="%{customdata}<br>guessing: %{x:.2f}<extra></extra>",
        row=1,
        col=1,
    )


def _symmetric(rows: Sequence[Row]) -> list[float]:
    """A range around zero that holds every interval."""
    ends = [abs(end) for row in rows if row.change is not None for end in row.change]
    reach = max([0.05, *ends]) * 1.15
    return [-reach, reach]
