"""The lesson's own figures: numbers in, Plotly figures out. The others are those of the Roles and Ablation pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.ablation_charts import colour_of
from dashboard.charts import EDITED, ORIGINAL, PLAIN, RAISED, finish, shorten
from dashboard.tokens_html import visible

#: Bars that fit one chart; more neurons are drawn as the extreme of each cell.
_MOST_BARS = 768
BEFORE, AFTER = ORIGINAL, "#0072B2"


def activations(values: NDArray[np.floating], chosen: int) -> go.Figure:
    """Every neuron's activation in one layer by index; the chosen one stands out."""
    cell = -(-len(values) // _MOST_BARS)
    index = np.array(
        [start + int(np.abs(values[start : start + cell]).argmax()) for start in range(0, len(values), cell)]
    )
    figure = go.Figure()
    figure.add_bar(
        x=index,
        y=values[index],
        width=cell,
        marker={"color": PLAIN, "line": {"width": 0}},
        hovertemplate="neuron %{x}: %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    figure.add_scatter(
        x=[chosen],
        y=[float(values[chosen])],
        mode="markers+text",
        text=[f"neuron {chosen}"],
        textposition="middle left" if chosen > 0.8 * len(values) else "middle right",
        marker={"color": RAISED, "size": 11},
        hovertemplate="neuron %{x}: %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    finish(figure, height=240, legend=False)
    figure.update_layout(margin={"t": 20}, bargap=0)
    figure.update_xaxes(
        title="neuron (index)", showgrid=False, range=[-0.01 * len(values), 1.01 * len(values)]
    )
    figure.update_yaxes(title="activation")
    return figure


def accuracies(told: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Share of right answers of each way of asking, with intervals and what guessing gives."""
    names = list(told)
    values = [told[name]["value"] for name in names]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=names,
            orientation="h",
            marker={"color": [EDITED if told[name]["beats"] else ORIGINAL for name in names]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [told[name]["high"] - told[name]["value"] for name in names],
                "arrayminus": [told[name]["value"] - told[name]["low"] for name in names],
                "color": PLAIN,
                "thickness": 1.5,
            },
            text=[f"{told[name]['right']} of {told[name]['n']}" for name in names],
            textposition="inside",
            insidetextanchor="start",
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    chance = told[names[0]]["chance"]
    figure.add_vline(
        x=chance,
        line={"dash": "dot", "color": PLAIN, "width": 1.5},
        annotation={"text": "guessing", "font": {"size": 12, "color": PLAIN}},
    )
    finish(figure, height=190, legend=False)
    figure.update_layout(margin={"t": 26}, bargap=0.3)
    figure.update_xaxes(title="right answers (%)", range=[0, 1], tickformat=".0%")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def token_losses(tokens: Sequence[str], before: Sequence[float], after: Sequence[float]) -> go.Figure:
    """The loss of each token of a text before and after; the first token has none.

    Args:
        tokens: one more than there are losses.
    """
    figure = go.Figure()
    places = list(range(len(before)))
    shown = [visible(token) for token in tokens[1:]]
    for name, values, colour in (("everything on", before, BEFORE), ("switched off", after, AFTER)):
        figure.add_bar(
            x=places,
            y=list(values),
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            customdata=shown,
            hovertemplate=f"%{{customdata}}: %{{y:.2f}} nats<extra>{name}</extra>",
        )
    finish(figure, height=240)
    figure.update_layout(barmode="group", bargap=0.2, bargroupgap=0)
    figure.update_xaxes(
        tickvals=places, ticktext=[shorten(token, 14) for token in shown], tickangle=-45, showgrid=False
    )
    figure.update_yaxes(title="loss (nats)", rangemode="tozero")
    return figure


def changes(rows: Sequence[Mapping[str, Any]], title: str, *, share: bool) -> go.Figure:
    """The paired change of each condition against everything on, with its interval; zero is no change.

    Args:
        rows: name, kind, label, value, low, high of each condition.
        share: whether the change is one of a share, drawn in points.
    """
    unit = 100.0 if share else 1.0
    figure = go.Figure()
    for place, row in enumerate(rows):
        colour, value = colour_of(row["kind"], row["label"]), unit * row["value"]
        figure.add_scatter(
            x=[value],
            y=[place],
            mode="markers",
            marker={
                "color": colour,
                "size": 11,
                "symbol": "circle-open" if row["kind"] == "random" else "circle",
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [unit * row["high"] - value],
                "arrayminus": [value - unit * row["low"]],
                "color": colour,
                "thickness": 2,
            },
            hovertemplate=f"{row['name']}: %{{x:+.3f}}<extra></extra>",
            showlegend=False,
        )
    figure.add_vline(x=0, line={"color": PLAIN, "width": 1})
    finish(figure, height=330, legend=False)
    figure.update_layout(margin={"t": 26})
    figure.update_xaxes(title=title)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[shorten(str(row["name"]), 24) for row in rows],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
    return figure


def mark_dose(figure: go.Figure, ks: Sequence[int], k: int) -> go.Figure:
    """The dose-response curve with the chosen k marked.

    Args:
        ks: the axis' places, rising, as ``ablation_charts.dose`` draws them.
    """
    if k in ks:
        figure.add_vline(x=list(ks).index(k), line={"color": PLAIN, "width": 2})
    return figure
