"""The Pareto picture of a sweep: tables in, Plotly figures out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.benchmark_looks import Look, escape
from dashboard.benchmark_tables import say_number
from dashboard.charts import PLAIN, finish, shorten

HEIGHT = 400
#: So many points on the front are named beside them.
NAMED = 6
_PADDING = "\u00a0" * 3


@dataclass(frozen=True)
class Panel:
    """One panel: what lies along x.

    Attributes:
        x: its column.
        title: of the axis.
        lower: whether lower is better.
        front: labels that no other one beats in both.
    """

    x: str
    title: str
    lower: bool
    front: Sequence[str]


def pareto(
    points: pd.DataFrame, y: str, y_title: str, panels: Sequence[Panel], look: Mapping[str, Look]
) -> go.Figure:
    """One panel a pair of measures; a point a configuration, a line through those that no other one beats.

    Args:
        points: ``label``, ``method``, ``seeds`` and the measures.
        look: of each method.
    """
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.04)
    named: set[str] = set()
    for place, panel in enumerate(panels, 1):
        known = points[points[panel.x].notna() & points[y].notna()]
        front = known[known["label"].isin(panel.front)].sort_values(panel.x)
        figure.add_scatter(
            x=front[panel.x].tolist(),
            y=front[y].tolist(),
            mode="lines",
            line={"color": PLAIN, "width": 1.5, "dash": "dot", "shape": "hv" if panel.lower else "vh"},
            name="none is better in both",
            showlegend=place == 1,
            hoverinfo="skip",
            row=1,
            col=place,
        )
        for method, mine in known.groupby("method", sort=False):
            own = look[str(method)]
            better = mine["label"].isin(panel.front)
            figure.add_scatter(
                x=mine[panel.x].tolist(),
                y=mine[y].tolist(),
                mode="markers",
                name=escape(str(method)),
                legendgroup=str(method),
                showlegend=method not in named,
                marker={
                    "color": own.colour,
                    "symbol": own.symbol,
                    "size": [13 if one else 9 for one in better],
                    "opacity": [1.0 if one else 0.55 for one in better],
                },
                customdata=[
                    [escape(str(label)), say_number(float(x), False), say_number(float(value), True), seeds]
                    for label, x, value, seeds in zip(
                        mine["label"], mine[panel.x], mine[y], mine["seeds"], strict=True
                    )
                ],
                hovertemplate=(
                    "%{customdata[0]}<br>"
                    + f"{escape(panel.title)}: %{{customdata[1]}}<br>{escape(y_title)}: %{{customdata[2]}}"
                    + "<br>seeds: %{customdata[3]}<extra></extra>"
                ),
                row=1,
                col=place,
            )
            named.add(str(method))
        if 0 < len(front) <= NAMED:
            _name(figure, front, panel, y, place)
        towards = "← better" if panel.lower else "better →"
        figure.update_xaxes(title={"text": f"{escape(panel.title)}  {towards}"}, row=1, col=place)
        if panel.lower and (known[panel.x] > 0).all() and len(known):
            figure.update_xaxes(
                type="log", row=1, col=place, nticks=6, tickformat="~g", minor={"showgrid": False}
            )
    figure.update_yaxes(range=[-0.04, 1.1], tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title={"text": escape(y_title)}, row=1, col=1)
    return finish(figure, height=HEIGHT)


def _name(figure: go.Figure, front: pd.DataFrame, panel: Panel, y: str, place: int) -> None:
    """Names beside the points of the front: towards the middle of the panel, the next one on the other side."""
    low, high = float(front[panel.x].min()), float(front[panel.x].max())
    for number, row in enumerate(front.to_dict("records")):
        left = float(row[panel.x]) > (low + high) / 2
        side = "left" if left else "right"
        height = "bottom" if number % 2 else "top"
        figure.add_scatter(
            x=[row[panel.x]],
            y=[row[y]],
            mode="text",
            text=[_PADDING + escape(shorten(str(row["label"]), 30)) + _PADDING],  # clear of the symbol
            textposition=f"{height} {side}",
            textfont={"size": 12},
            cliponaxis=False,
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=place,
        )
