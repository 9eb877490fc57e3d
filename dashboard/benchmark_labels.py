"""The names of the lines of the Benchmark page: at the lines' ends where there is room, else in a legend."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.benchmark_looks import Look, escape, see_through
from dashboard.charts import shorten

#: Panels in a row.
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


def label_room(line: str, columns: int = COLUMNS) -> float:
    """The share of a panel, on a narrow screen, that a line's name at its end takes."""
    signs = shorten(line, 18)
    text = sum(
        _NARROW if sign in _SLIM else _BROAD if sign.isupper() or sign in "mw…" else 6.6 for sign in signs
    )
    return (_BESIDE + text) / (_WIDE * COLUMNS / columns)


def name_at_ends(
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
            arrowcolor=see_through(look_.colour, 0.6),
            standoff=4,
            xanchor="left",
            font={"size": _LABEL},
            row=row,
            col=col,
        )


def name_in_legend(figure: go.Figure, look: Mapping[str, Look]) -> None:
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
