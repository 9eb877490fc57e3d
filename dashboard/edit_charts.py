"""The figures of the Edit page: arrays in, Plotly figures out."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboard.binning import thin
from dashboard.charts import EDITED, ORIGINAL, PLAIN, finish, shorten

SEQUENCE = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#7F7F7F", "#8C6D31")
"""Lines of one chart that have no fixed meaning, safe for colour-blind eyes."""


def dumbbells(
    labels: Sequence[str], panels: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]]
) -> go.Figure:
    """Probability before and after per fact, one panel a target.

    Args:
        labels: one per fact.
        panels: title to (before, after); a missing value leaves its row empty.
    """
    figure = make_subplots(
        1, len(panels), subplot_titles=list(panels), shared_yaxes=True, horizontal_spacing=0.04
    )
    y = np.arange(len(labels))
    for column, (before, after) in enumerate(panels.values(), start=1):
        lines_x: list[float | None] = []
        lines_y: list[float | None] = []
        for row, (start, end) in enumerate(zip(before, after, strict=True)):
            lines_x += [start, end, None]
            lines_y += [row, row, None]
        figure.add_scatter(
            x=lines_x,
            y=lines_y,
            mode="lines",
            line={"color": PLAIN, "width": 3},
            opacity=0.5,
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=column,
        )
        for name, values, colour in (("before", before, ORIGINAL), ("after", after, EDITED)):
            figure.add_scatter(
                x=list(values),
                y=y,
                mode="markers",
                marker={"size": 12, "color": colour},
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                customdata=list(labels),
                row=1,
                col=column,
                hovertemplate=f"%{{customdata}}<br>{name}: %{{x:.4f}}<extra></extra>",
            )
    finish(figure, height=int(np.clip(88 + 26 * len(labels), 126, 620)), legend=False)
    figure.update_layout(margin={"t": 26})
    figure.update_annotations(font={"size": 13})
    figure.update_traces(cliponaxis=False)
    figure.update_xaxes(title="probability", title_standoff=8, range=[-0.04, 1.04], dtick=0.25)
    figure.update_yaxes(
        tickvals=list(y), ticktext=[shorten(label, 44) for label in labels], range=[len(labels) - 0.5, -0.5]
    )
    return figure


def layer_changes(layers: Sequence[int], neurons: Sequence[int], relative: Sequence[float]) -> go.Figure:
    """How many neurons changed in each layer, and how large the change is against the matrix."""
    figure = make_subplots(
        1, 2, subplot_titles=("neurons changed", "size of the change"), horizontal_spacing=0.16
    )
    names = [str(layer) for layer in layers]
    figure.add_bar(
        x=names,
        y=list(neurons),
        marker={"color": EDITED},
        row=1,
        col=1,
        text=list(neurons),
        textposition="auto",
        hovertemplate="layer %{x}: %{y} neurons<extra></extra>",
    )
    figure.add_bar(
        x=names,
        y=[100 * value for value in relative],
        marker={"color": EDITED},
        row=1,
        col=2,
        hovertemplate="layer %{x}: %{y:.3f}% of the matrix's norm<extra></extra>",
    )
    finish(figure, height=240, legend=False)
    figure.update_layout(margin={"t": 36})
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(title="neurons", row=1, col=1)
    figure.update_yaxes(title="% of the norm", row=1, col=2)
    return figure


def spectrum(
    eigenvalues: Mapping[int, NDArray[np.floating]], threshold: float, kept: Mapping[int, float]
) -> go.Figure:
    """Eigenvalues of the keys' second moment per layer, largest first, with the null space's threshold."""
    figure = go.Figure()
    for spot, (layer, values) in enumerate(sorted(eigenvalues.items())):
        ordered = np.sort(np.asarray(values, dtype=float))[::-1]
        share, sampled = thin(ordered)
        # Rounding makes the smallest eigenvalues zero or negative; a logarithmic axis cannot show those.
        floor = max(float(ordered.max(initial=0.0)) * 1e-10, 1e-12)
        figure.add_scatter(
            x=100 * share,
            y=np.maximum(sampled, floor),
            mode="lines",
            name=f"layer {layer}: {kept[layer]:.0%} kept",
            line={
                "color": SEQUENCE[spot % len(SEQUENCE)],
                "dash": "solid" if spot < len(SEQUENCE) else "dash",
            },
            hovertemplate=f"layer {layer}: %{{y:.3g}}<extra></extra>",
        )
    figure.add_hline(y=threshold, line={"dash": "dash", "color": PLAIN})
    figure.add_annotation(  # Plotly wants the exponent where an annotation stands on a logarithmic axis
        x=1,
        xref="paper",
        y=float(np.log10(threshold)),
        text=f"threshold {threshold:g}",
        showarrow=False,
        xanchor="right",
        yanchor="bottom",
    )
    finish(figure, height=320)
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"}, margin={"t": 16})
    figure.update_xaxes(title="directions, largest eigenvalue first (%)")
    figure.update_yaxes(title="eigenvalue", type="log", exponentformat="power", dtick=1)
    return figure


def stage_seconds(seconds: Mapping[str, float]) -> go.Figure:
    """Seconds of each stage of an edit, one bar each."""
    stages = [stage for stage in seconds if stage != "total"]
    figure = go.Figure(
        go.Bar(
            x=[seconds[stage] for stage in stages],
            y=stages,
            orientation="h",
            marker={"color": PLAIN},
            hovertemplate="%{y}: %{x:.2f} s<extra></extra>",
        )
    )
    finish(figure, height=90 + 24 * len(stages), legend=False)
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(title="stage", autorange="reversed")
    return figure
