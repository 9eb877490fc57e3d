"""The figures of the Benchmark page: tables in, Plotly figures out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.benchmark_tables import MEASURES, Measure, lines_of, over_seeds, say_number
from dashboard.charts import PLAIN, finish, shorten
from dashboard.edit_charts import SEQUENCE

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
#: Plotly's symbols, and the characters that stand for them in a label.
SYMBOLS = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("cross", "✚"),
    ("x", "✖"),
    ("star", "★"),
    ("hexagon", "⬢"),
)
COLUMNS = 3
#: Pixels: a panel's height.
PANEL = 190
#: So many lines carry their names at their ends; more of them have a legend.
LABELLED = 8
_LABEL = 12
_GAP = 14.0
_WIDE = 205.0
"""Pixels: a label's letters, the least distance of two labels, and the width of one of three panels on a narrow
screen (1024). On a wider one labels have more room than they need."""
_BESIDE = 34.0
_SLIM, _NARROW, _BROAD = ".,:'|()[]ijltfr-1· ", 4.2, 8.8
"""Pixels: the stub and the symbol before a label; the letters that are slim, their width, and that of capitals."""
MOST_ROOM = 0.55
"""The largest share of a panel that labels may take; longer ones stand in a legend."""
#: Perplexities are drawn up to here: past a million a model says nothing, and other lines would be pressed flat.
CEILING = 1e6


@dataclass(frozen=True)
class Look:
    """How one line is drawn: colour and symbol say the method, the dash tells its lines apart."""

    colour: str
    dash: str
    symbol: str
    sign: str


def looks(lines: Sequence[tuple[str, str]], methods: Sequence[str] = ()) -> dict[str, Look]:
    """The look of every line; a method keeps its colour and symbol whatever else is drawn.

    Args:
        lines: (line, method) of each line.
        methods: all methods in their fixed order; others follow in the order they come.
    """
    order = list(dict.fromkeys([*methods, *(method for _, method in lines)]))
    found, seen = {}, dict.fromkeys(order, 0)
    for line, method in lines:
        place = order.index(method)
        symbol, sign = SYMBOLS[place % len(SYMBOLS)]
        found[line] = Look(SEQUENCE[place % len(SEQUENCE)], DASHES[seen[method] % len(DASHES)], symbol, sign)
        seen[method] += 1
    return found


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
            _labels(figure, means, look, log, y_log, y_range, row, col)
        axis = {"type": "log", "exponentformat": "power", "dtick": 1} if y_log else {}
        figure.update_yaxes(range=y_range, row=row, col=col, tickfont={"size": 12}, **axis)
    finish(figure, height=rows * (PANEL + 60) + 24, legend=False)
    figure.update_layout(margin={"t": 36}, clickmode="event+select", hovermode="closest")
    if not labelled:
        _legend(figure, look)
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


def _legend(figure: go.Figure, look: Mapping[str, Look]) -> None:
    """A legend under the panels, for lines that are too many or too long to be named at their ends; hiding one there
    hides it everywhere."""
    for line, look_ in look.items():
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            line={"color": look_.colour, "dash": look_.dash, "width": 2},
            marker={"color": look_.colour, "symbol": look_.symbol, "size": 8},
            name=escape(shorten(line, 34)),
            legendgroup=line,
            showlegend=True,
            hoverinfo="skip",
        )
    rows = -(-len(look) // 3)
    height = figure.layout.height + 24 * rows
    place = {"y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "entrywidth": 230}
    figure.update_layout(
        showlegend=True, height=height, margin={"b": 60 + 24 * rows}, legend={"orientation": "h", **place}
    )


def _titled(measure: Measure) -> str:
    if len(measure.title) > 20:  # in full it would reach into the next panel
        return f"{measure.title}, {'↑' if measure.better == 'higher' else '↓'} better"
    return f"{measure.title} ({measure.better} is better)"


def _smaller_title(note: Any) -> None:
    if note.xref == "paper":
        note.update(font={"size": 13})


def label_room(line: str, columns: int = COLUMNS) -> float:
    """The share of a panel, on a narrow screen, that a line's name at its end takes."""
    signs = shorten(line, 18)
    text = sum(
        _NARROW if sign in _SLIM else _BROAD if sign.isupper() or sign in "mw…" else 6.6 for sign in signs
    )
    return (_BESIDE + text) / (_WIDE * COLUMNS / columns)


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
            fillcolor=_see_through(look.colour, band),
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


def _labels(
    figure: go.Figure,
    means: pd.DataFrame,
    look: Mapping[str, Look],
    log: bool,
    y_log: bool,
    y_range: Sequence[float],
    row: int,
    col: int,
) -> None:
    """Each line's name at its end; names that would lie on each other are moved apart, a thin line leads back."""
    finite = means[np.isfinite(means["value"]) & (means["T"] > 0)]
    ends = finite.sort_values("T").groupby("line", sort=False).tail(1)
    per_pixel = (y_range[1] - y_range[0]) / PANEL
    heights = [math.log10(value) if y_log else float(value) for value in ends["value"]]
    pixels = [(height - y_range[0]) / per_pixel for height in heights]
    moved = within(spread(pixels, _GAP), PANEL - 0.75 * _LABEL)  # half a name high, to clear the title
    for line, mark, height, pixel, place in zip(ends["line"], ends["T"], heights, pixels, moved, strict=True):
        look_ = look[line]
        figure.add_annotation(
            x=math.log10(mark) if log else mark,
            y=height,
            ax=16,
            ay=pixel - place,
            text=f'<span style="color:{look_.colour}">{look_.sign}</span> {escape(shorten(line, 18))}',
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=_see_through(look_.colour, 0.6),
            standoff=4,
            xanchor="left",
            font={"size": _LABEL},
            row=row,
            col=col,
        )


def within(places: Sequence[float], height: float) -> list[float]:
    """The places moved together so that the highest and the lowest lie in a panel, as far as they fit."""
    if not places:
        return []
    up = max(0.0, 4 - min(places))
    down = max(0.0, max(places) + up - height)
    return [place + up - down for place in places]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as needed so that no two are closer than ``gap``; their order stays.

    Neighbours that are too close form a group around their common middle, which is the least-squares answer
    (pool adjacent violators).
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[tuple[float, int]] = []  # (mean of place - rank * gap, members)
    for rank, index in enumerate(order):
        mean, count = places[index] - rank * gap, 1
        while groups and groups[-1][0] > mean:
            other, members = groups.pop()
            mean, count = (other * members + mean * count) / (members + count), members + count
        groups.append((mean, count))
    moved = [0.0] * len(places)
    levels = [mean for mean, count in groups for _ in range(count)]
    for rank, index in enumerate(order):
        moved[index] = levels[rank] + rank * gap
    return moved


def used_lines(table: pd.DataFrame, methods: Sequence[str]) -> dict[str, Look]:
    """The looks of the table's lines."""
    return looks(lines_of(table), methods)


def measures_named(columns: Sequence[str]) -> list[Measure]:
    """The measures of these columns."""
    return [MEASURES[name] for name in columns]


def _see_through(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def escape(text: str) -> str:
    """Text that Plotly must not read as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
