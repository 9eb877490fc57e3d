"""Arrays in, Plotly figures out. Nothing is computed here that a user would call a result.

No background or text colour is set, so the figures take them from Streamlit's light or dark theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from dashboard.binning import KINDS
from dashboard.tokens_html import visible

KIND_COLOURS: Mapping[str, str] = {
    "none": "#DDDDDD",
    "general": "#0072B2",
    "specific": "#D55E00",
    "both": "#CC79A7",
}
ORIGINAL, EDITED = "#999999", "#009E73"
RAISED, LOWERED = "#B2182B", "#2166AC"
PLAIN = "#7F7F7F"
CLEAR = "rgba(0,0,0,0)"
DIVERGING = "RdBu_r"

CONFIG: dict[str, object] = {
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg", "scale": 2},
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}
"""How every chart is shown: the camera icon saves an SVG."""


def finish(figure: go.Figure, *, height: int, legend: bool = True) -> go.Figure:
    """The look all figures share: tight margins, legend above, see-through background."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 34 if legend else 8, "b": 8},
        modebar={"bgcolor": CLEAR},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left", "title": None},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    return figure


def drawn(spec: dict[str, Any]) -> go.Figure:
    """The figure of a kept specification; it was checked when it was drawn, and checking is most of the time."""
    return go.Figure(spec, _validate=False)


def shorten(text: str, limit: int = 36) -> str:
    """``text`` on one line with its middle left out when it is too long for an axis."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    tail = text[-(limit // 3) :]
    head = text[: limit - len(tail) - 1]
    # At word ends where there are any, so that no half words are read.
    head = head.rsplit(" ", 1)[0] if " " in head else head
    tail = tail.split(" ", 1)[1] if " " in tail else tail
    return f"{head.rstrip()}…{tail.lstrip()}"


def _layer_axis(layers: Sequence[int], most: int = 16) -> dict[str, object]:
    step = max(1, -(-len(layers) // most))
    shown = range(0, len(layers), step)
    return {
        "tickvals": list(shown),
        "ticktext": [str(layers[i]) for i in shown],
        "range": [-0.5, len(layers) - 0.5],
    }


def _kind_scale() -> list[list[object]]:
    """Four flat steps, so that code k is drawn in the colour of kind k."""
    colours = [KIND_COLOURS[kind] for kind in KINDS]
    return [[edge, colour] for k, colour in enumerate(colours) for edge in (k / 4, (k + 1) / 4)]


def _kind_legend(figure: go.Figure) -> None:
    for kind in ("general", "specific", "both", "none"):
        marker = {"symbol": "square", "size": 11, "color": KIND_COLOURS[kind]}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=kind, hoverinfo="skip")


def _outline(
    figure: go.Figure, box: tuple[float, float, float, float], *, row: int = 1, col: int = 1
) -> None:
    """A frame that stands out on light and on dark cells alike."""
    x0, y0, x1, y1 = box
    for colour, width in (("#FFFFFF", 4), ("#000000", 2)):
        line = {"color": colour, "width": width}
        figure.add_shape(
            type="rect", x0=x0, y0=y0, x1=x1, y1=y1, line=line, fillcolor=CLEAR, row=row, col=col
        )


def _touch(
    x: NDArray[np.floating], y: NDArray[np.floating], data: NDArray[np.generic], hover: str, size: int = 14
) -> go.Scatter:
    """Invisible markers over a heatmap: Streamlit reports clicks on points, never on heatmap cells."""
    marker = {"symbol": "square", "size": size, "color": CLEAR, "line": {"width": 0}}
    return go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker=marker,
        customdata=data,
        hovertemplate=hover + "<extra></extra>",
        showlegend=False,
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
    )


def overview(
    layers: Sequence[int],
    counts: NDArray[np.int64],
    strongest: NDArray[np.int64],
    *,
    ranked: bool,
    neurons: int,
    chosen: tuple[int, int] | None = None,
) -> go.Figure:
    """Layers by neurons coloured by the commonest kind of each cell, beside each layer's shares.

    Args:
        layers: the layer of each row.
        counts: neurons per [row, cell, kind].
        strongest: the strongest neuron per [row, cell]; a click hands it back with the layer.
        ranked: whether the neurons stand strongest first (else by index).
        neurons: neurons per layer.
        chosen: (row, cell) to frame.
    """
    rows, cells = counts.shape[:2]
    full = 100.0 if ranked else float(neurons)
    x = (np.arange(cells) + 0.5) * full / cells
    figure = make_subplots(1, 2, column_widths=[0.74, 0.26], shared_yaxes=True, horizontal_spacing=0.03)
    majority = counts.argmax(-1)
    heat = go.Heatmap(
        z=majority,
        x=x,
        y=np.arange(rows),
        zmin=-0.5,
        zmax=3.5,
        colorscale=_kind_scale(),
        showscale=False,
        hoverinfo="skip",
    )
    figure.add_trace(heat, 1, 1)
    grid_y, grid_x = np.meshgrid(np.arange(rows), np.arange(cells), indexing="ij")
    data = np.column_stack(
        [
            np.asarray(layers)[grid_y.ravel()],
            strongest.ravel(),
            grid_x.ravel(),
            counts.reshape(-1, len(KINDS)),
        ]
    )
    hover = (
        "layer %{customdata[0]}, cell %{customdata[2]}<br>general %{customdata[4]}, "
        "specific %{customdata[5]}, both %{customdata[6]}, none %{customdata[3]}<br>strongest: neuron %{customdata[1]}"
    )
    figure.add_trace(_touch(x[grid_x.ravel()], grid_y.ravel().astype(float), data, hover), 1, 1)
    totals = counts.sum(1)
    for code, kind in sorted(enumerate(KINDS), key=lambda pair: (pair[1] == "none", pair[0])):
        share = 100 * totals[:, code] / np.maximum(totals.sum(1), 1)
        bar = go.Bar(
            x=share,
            y=np.arange(rows),
            orientation="h",
            marker={"color": KIND_COLOURS[kind], "line": {"width": 0}},
            name=kind,
            customdata=np.column_stack([layers, strongest[:, 0], totals[:, code]]),
            showlegend=False,
            hovertemplate=f"layer %{{customdata[0]}}: %{{customdata[2]}} {kind} (%{{x:.1f}}%)<extra></extra>",
        )
        figure.add_trace(bar, 1, 2)
    _kind_legend(figure)
    if chosen is not None:
        row, cell = chosen
        width = full / cells
        _outline(figure, (cell * width, row - 0.5, (cell + 1) * width, row + 0.5))
    finish(figure, height=int(np.clip(90 + 24 * rows, 170, 360)), legend=False)
    title = "neurons, strongest first (%)" if ranked else "neuron (index)"
    steps = [full * quarter / 4 for quarter in range(4)]
    # The margin leaves room for Plotly's buttons, which would lie on the topmost layer and catch its clicks.
    figure.update_layout(barmode="stack", bargap=0.12, margin={"t": 28})
    figure.update_xaxes(ticks="", title_standoff=6)
    figure.update_xaxes(
        title=title, range=[0, full], tickvals=steps, tickformat=".0f", showgrid=False, row=1, col=1
    )
    figure.update_xaxes(title="share (%)", range=[0, 100], tickvals=[0, 50, 100], row=1, col=2)
    figure.update_yaxes(showgrid=False, **_layer_axis(layers))
    figure.update_yaxes(title="layer", row=1, col=1)
    return figure


def prompt_heatmap(
    values: NDArray[np.floating],
    neurons: Sequence[int],
    labels: Sequence[str],
    kinds: NDArray[np.integer],
    *,
    layer: int,
    unit: str,
    chosen: int | None = None,
) -> go.Figure:
    """Prompts by neurons of one layer, a strip with the kinds above; colours centred on zero.

    Args:
        values: scores [prompt, neuron], the columns already ranked.
        neurons: the index of each column.
        labels: the prompt of each row.
        kinds: the kind code of each column.
        unit: name and unit of the score.
        chosen: the neuron to frame.
    """
    rows, columns = values.shape
    x = np.arange(columns, dtype=float)
    extreme = np.abs(values[np.isfinite(values)])
    limit = float(np.quantile(extreme, 0.98)) if extreme.size else 0.0
    height = int(np.clip(112 + 22 * rows, 166, 580))
    strip = min(0.12, 14 / max(height - 96, 60))
    figure = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[strip, 1 - strip], vertical_spacing=min(0.02, 4 / height)
    )
    figure.add_trace(
        go.Heatmap(
            z=kinds[None, :],
            x=x,
            y=[0],
            zmin=-0.5,
            zmax=3.5,
            colorscale=_kind_scale(),
            showscale=False,
            customdata=np.array([[[n, KINDS[k]] for n, k in zip(neurons, kinds, strict=True)]], dtype=object),
            hovertemplate="neuron %{customdata[0]}: %{customdata[1]}<extra></extra>",
            xgap=1,
        ),
        1,
        1,
    )
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "len": 1.0}
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=x,
            y=np.arange(rows),
            zmin=-limit or -1.0,
            zmax=limit or 1.0,
            zmid=0,
            colorscale=DIVERGING,
            colorbar=bar,
            hoverinfo="skip",
        ),
        2,
        1,
    )
    grid_y, grid_x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    data = np.empty((rows * columns, 4), dtype=object)
    data[:, 0] = layer
    data[:, 1] = np.tile(np.asarray(neurons), rows)
    data[:, 2] = [f"{value:.4g}" for value in values.ravel().tolist()]
    data[:, 3] = np.tile([KINDS[int(kind)] for kind in kinds], rows)
    # The prompt comes from the axis: written into every cell it would be most of what is sent.
    hover = "%{y}<br>layer %{customdata[0]}, neuron %{customdata[1]} (%{customdata[3]}): %{customdata[2]}"
    figure.add_trace(_touch(grid_x.ravel().astype(float), grid_y.ravel().astype(float), data, hover), 2, 1)
    _kind_legend(figure)
    if chosen is not None and chosen in list(neurons):
        spot = list(neurons).index(chosen)
        _outline(figure, (spot - 0.5, -0.5, spot + 0.5, rows - 0.5), row=2)
    finish(figure, height=height, legend=False)
    figure.update_layout(margin={"t": 28})
    named = columns <= 48
    ticks = {"tickvals": list(x), "ticktext": [str(n) for n in neurons], "tickangle": -90} if named else {}
    figure.update_xaxes(showgrid=False, showticklabels=False, range=[-0.5, columns - 0.5])
    figure.update_xaxes(
        title=f"neurons of layer {layer}, strongest first", showticklabels=named, row=2, col=1, **ticks
    )
    figure.update_xaxes(ticks="", row=1, col=1)
    figure.update_yaxes(showticklabels=False, showgrid=False, ticks="", row=1, col=1)
    figure.update_yaxes(
        tickvals=list(range(rows)),
        ticktext=[shorten(label, 44) for label in labels],
        autorange="reversed",
        showgrid=False,
        row=2,
        col=1,
    )
    return figure


def ratios(
    layers: Sequence[int],
    ratio: Mapping[str, Sequence[float]],
    entropy: Mapping[str, Sequence[float]],
    masked: Sequence[float],
    bounds: Mapping[str, tuple[float, float]],
) -> go.Figure:
    """Ratios of both kinds and the mask's share per layer, beside the entropies that steer them."""
    titles = ("share of the neurons (%)", "entropy (0 to 1)")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for kind in ("general", "specific"):
        look = {"color": KIND_COLOURS[kind]}
        for column, source in ((1, ratio[kind]), (2, entropy[kind])):
            figure.add_scatter(
                x=list(layers),
                y=list(source),
                mode="lines+markers",
                line=look,
                marker={"size": 7, **look},
                name=kind,
                legendgroup=kind,
                showlegend=column == 1,
                row=1,
                col=column,
                hovertemplate=f"layer %{{x}}, {kind}: %{{y:.5f}}<extra></extra>",
            )
    figure.add_scatter(
        x=list(layers),
        y=list(masked),
        mode="lines+markers",
        line={"color": PLAIN, "dash": "dot"},
        marker={"size": 6, "color": PLAIN},
        name="in the mask",
        row=1,
        col=1,
        hovertemplate="layer %{x}, in the mask: %{y:.1%}<extra></extra>",
    )
    for low, high in set(bounds.values()):
        figure.add_hrect(y0=low, y1=high, fillcolor=PLAIN, opacity=0.12, line_width=0, row=1, col=1)
    finish(figure, height=260)
    figure.update_layout(margin={"t": 58}, legend={"y": 1.0, "yref": "container", "yanchor": "top"})
    figure.update_annotations(font={"size": 13})
    whole = {"dtick": 1} if len(layers) <= 16 else {}
    figure.update_xaxes(title="layer", **whole)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[0, 1.05], row=1, col=2)
    return figure


def token_bars(promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]]) -> go.Figure:
    """Tokens that a neuron's value vector pushes up and down: the most promoted at the top."""
    pairs = [*promoted, *reversed(suppressed)]
    names = [visible(token) for token, _ in pairs]
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in pairs],
            y=list(range(len(pairs))),
            orientation="h",
            marker={"color": [RAISED if value >= 0 else LOWERED for _, value in pairs]},
            customdata=names,
            hovertemplate="%{customdata}: %{x:.3f}<extra></extra>",
        )
    )
    finish(figure, height=56 + 17 * max(len(pairs), 4), legend=False)
    ticks = {"tickvals": list(range(len(names))), "ticktext": [shorten(name, 16) for name in names]}
    figure.update_yaxes(title="token", autorange="reversed", showgrid=False, tickfont={"size": 11}, **ticks)
    figure.update_xaxes(title="change of the logit", nticks=5)
    figure.update_layout(bargap=0.25, margin={"t": 6})
    return figure
