"""The Benchmark page's figures at one number of edits: what an edit costs, and edit quality against what was kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.benchmark_looks import Look, escape
from dashboard.benchmark_tables import say_number
from dashboard.charts import PLAIN, finish, shorten


def cost(table: pd.DataFrame, look: Mapping[str, Look], data: Mapping[str, Sequence[Any]]) -> go.Figure:
    """Seconds per edit and peak memory, one bar a line.

    Args:
        table: one row a line, from ``benchmark_tables.cost_at``.
        data: what a click on a line's bar hands back.
    """
    panels = (("seconds_per_edit", "seconds per edit"), ("peak_memory_mb", "peak memory (MB)"))
    figure = make_subplots(
        1, 2, subplot_titles=[title for _, title in panels], shared_yaxes=True, horizontal_spacing=0.06
    )
    names = [escape(shorten(line, 24)) for line in table["line"]]
    for col, (name, title) in enumerate(panels, start=1):
        values, low, high = table[name], table[f"{name}_low"], table[f"{name}_high"]
        figure.add_bar(
            x=values.tolist(),
            y=list(range(len(table))),
            orientation="h",
            marker={"color": [look[line].colour for line in table["line"]]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (high - values).tolist(),
                "arrayminus": (values - low).tolist(),
                "visible": bool((high > low).any()),
                "color": PLAIN,
            },
            text=[say_number(float(value), False) for value in values],
            textposition="inside",
            insidetextanchor="start",
            customdata=[list(data[line]) for line in table["line"]],
            hovertemplate=f"%{{customdata[0]}}: %{{text}} {title}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
            row=1,
            col=col,
        )
    finish(figure, height=100 + 30 * max(len(table), 2), legend=False)
    figure.update_layout(margin={"t": 36}, bargap=0.3, clickmode="event+select")
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(rangemode="tozero", title={"text": "seconds", "standoff": 4}, row=1, col=1)
    figure.update_xaxes(rangemode="tozero", title={"text": "MB", "standoff": 4}, row=1, col=2)
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False
    )
    return figure


def radar(
    axes: Sequence[str], values: pd.DataFrame, look: Mapping[str, Look], data: Mapping[str, Sequence[Any]]
) -> go.Figure:
    """One closed line a method over axes from 0 in the middle (bad) to 1 outside (good).

    Args:
        values: column ``line`` and a column an axis; a missing number leaves a gap.
        data: what a click on a line's point hands back.
    """
    figure = go.Figure()
    for row in values.to_dict("records"):
        line = str(row["line"])
        numbers = [float(row[axis]) for axis in axes]
        shown = [say_number(number, True) for number in numbers]
        figure.add_scatterpolar(
            r=[*numbers, numbers[0]],
            theta=[*axes, axes[0]],
            mode="lines+markers",
            name=escape(shorten(line, 28)),
            line={"color": look[line].colour, "dash": look[line].dash, "width": 2},
            marker={"color": look[line].colour, "symbol": look[line].symbol, "size": 8},
            customdata=[list(data[line])] * (len(axes) + 1),
            text=[*shown, shown[0]],
            hovertemplate="%{customdata[0]}<br>%{theta}: %{text}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )
    finish(figure, height=370 + 11 * len(values))
    figure.update_layout(
        margin={"t": 30, "b": 56 + 11 * len(values), "l": 96, "r": 96},
        clickmode="event+select",
        legend={
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
        polar={
            "bgcolor": "rgba(0,0,0,0)",
            "radialaxis": {"range": [0, 1.02], "tickvals": [0.25, 0.5, 0.75, 1], "tickfont": {"size": 11}},
            "angularaxis": {"rotation": 90, "direction": "clockwise"},
        },
    )
    return figure
