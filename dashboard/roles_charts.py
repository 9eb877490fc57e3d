"""The Roles page's figures: tables in, Plotly figures out."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.charts import KIND_COLOURS, PLAIN, finish, shorten

#: Fixed colours of the roles, safe for colour-blind eyes; the ones without a role are as grey as those without a kind.
ROLE_COLOURS: Mapping[str, str] = {
    "general": KIND_COLOURS["general"],
    "mixed": "#CC79A7",
    "domain": "#009E73",
    "task": "#D55E00",
    "inactive": KIND_COLOURS["none"],
}
#: In this order they are stacked and listed.
ORDER = tuple(ROLE_COLOURS)
#: Combinations of tasks in the picture of overlaps.
MOST_COMBINATIONS = 16


def stacked(counts: pd.DataFrame, *, whole: bool) -> go.Figure:
    """Roles of each layer as stacked bars.

    Args:
        counts: layer, role, count, and low and high where known.
        whole: whether inactive neurons are drawn too.
    """
    figure = go.Figure()
    for role in ORDER if whole else ORDER[:-1]:
        rows = counts[counts["role"] == role]
        known = "low" in rows and bool(rows["low"].notna().all())
        ends = rows[["low", "high"]].round().to_numpy() if known else np.zeros((len(rows), 2))
        between = ", %{customdata[0]:.0f} to %{customdata[1]:.0f} by resampling" if known else ""
        figure.add_bar(
            x=rows["layer"],
            y=rows["count"],
            name=role,
            marker={"color": ROLE_COLOURS[role], "line": {"width": 0}},
            customdata=ends,
            hovertemplate=f"layer %{{x}}: %{{y}} {role}{between}<extra></extra>",
        )
    # The page lists roles and colours above; a figure saved alone gets its legend back.
    finish(figure, height=320, legend=False)
    figure.update_layout(barmode="stack", bargap=0.15, margin={"t": 28})
    figure.update_xaxes(title="layer", showgrid=False, nticks=16)
    figure.update_yaxes(title="neurons", rangemode="tozero")
    return figure


def upset(
    overlaps: pd.DataFrame, tasks: Sequence[str], titles: Mapping[str, str], *, log: bool = False
) -> go.Figure:
    """How many neurons are active in exactly which combination of tasks: bars above, the combination below.

    Args:
        overlaps: tasks, role, count, low, high; commonest first. The empty combination is left out.
        tasks: the rows of dots, top down.
        titles: what each task is called.
        log: a logarithmic axis for the counts, where one combination dwarfs the others.
    """
    shown = overlaps[overlaps["tasks"].map(len) > 0].head(MOST_COMBINATIONS).reset_index(drop=True)
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.64, 0.36], vertical_spacing=0.03)
    x = np.arange(len(shown))
    known = bool(shown["low"].notna().all())
    error = {
        "type": "data",
        "symmetric": False,
        "array": (shown["high"] - shown["count"]).to_numpy(),
        "arrayminus": (shown["count"] - shown["low"]).to_numpy(),
        "color": PLAIN,
        "thickness": 1.5,
        "width": 3,
    }
    named = [" and ".join(titles[task] for task in row) for row in shown["tasks"]]
    ends = [
        f", {low:.0f} to {high:.0f} by resampling" if known else ""
        for low, high in zip(shown["low"], shown["high"], strict=True)
    ]
    figure.add_trace(
        go.Bar(
            x=x,
            y=shown["count"],
            marker={"color": [ROLE_COLOURS[role] for role in shown["role"]]},
            error_y=error if known else None,
            customdata=list(zip(named, shown["role"], ends, strict=True)),
            hovertemplate="%{customdata[0]}:<br>%{y} neurons (%{customdata[1]})%{customdata[2]}<extra></extra>",
            showlegend=False,
        ),
        1,
        1,
    )
    rows = {task: place for place, task in enumerate(tasks)}
    grid_x, grid_y = np.meshgrid(x, np.arange(len(tasks)))
    dots = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    figure.add_trace(
        go.Scatter(
            x=grid_x.ravel(), y=grid_y.ravel(), marker={"size": 9, "color": KIND_COLOURS["none"]}, **dots
        ),
        2,
        1,
    )
    for place, (combination, role) in enumerate(zip(shown["tasks"], shown["role"], strict=True)):
        places = sorted(rows[task] for task in combination)
        figure.add_trace(
            go.Scatter(
                x=[place] * len(places),
                y=places,
                **{**dots, "mode": "lines+markers"},
                marker={"size": 10, "color": ROLE_COLOURS[role]},
                line={"width": 2, "color": ROLE_COLOURS[role]},
            ),
            2,
            1,
        )
    for role in ORDER[:-1]:
        marker = {"symbol": "square", "size": 11, "color": ROLE_COLOURS[role]}
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=role, hoverinfo="skip"), 1, 1
        )
    finish(figure, height=320 if len(tasks) <= 6 else 220 + 22 * len(tasks), legend=False)
    figure.update_layout(bargap=0.3, margin={"t": 28})
    figure.update_xaxes(
        showticklabels=False, showgrid=False, ticks="", range=[-0.6, max(len(shown), 1) - 0.4]
    )
    scale = {"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}
    figure.update_yaxes(title="neurons", row=1, col=1, **scale)
    figure.update_yaxes(
        tickvals=list(range(len(tasks))),
        ticktext=[shorten(titles[task], 24) for task in tasks],
        range=[len(tasks) - 0.5, -0.5],
        showgrid=False,
        row=2,
        col=1,
    )
    return figure


def sweep(swept: pd.DataFrame, *, title: str, now: float, log: bool = False) -> go.Figure:
    """Neurons per role as one setting of the rule moves; a line marks the setting in force.

    Args:
        swept: value, role, count.
        title: what the setting is called.
        now: its value in force.
        log: a logarithmic axis for the setting.
    """
    figure = go.Figure()
    for role in ORDER[:-1]:
        rows = swept[swept["role"] == role]
        figure.add_scatter(
            x=rows["value"],
            y=rows["count"],
            name=role,
            mode="lines+markers",
            line={"color": ROLE_COLOURS[role]},
            marker={"size": 6},
            hovertemplate=f"{title} %{{x:g}}: %{{y}} {role}<extra></extra>",
        )
    finish(figure, height=300)
    figure.add_vline(x=now, line={"dash": "dot", "color": PLAIN})
    figure.update_xaxes(title=title, type="log" if log else "linear")
    figure.update_yaxes(title="neurons", rangemode="tozero")
    return figure
