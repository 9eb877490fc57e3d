"""The figures of a drift view: arrays in, Plotly figures out. No torch and no Streamlit here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    from nmke.drift.embedding import DriftMap
    from nmke.drift.results import LayerDrift

ORIGINAL, EDITED, PLAIN = "#999999", "#009E73", "#7F7F7F"
KINDS = {"general": "#0072B2", "specific": "#D55E00", "both": "#CC79A7", "none": "#DDDDDD"}
#: Versions in their order, safe for colour-blind eyes and none of the kinds' colours; the first is a lone one's.
METHODS = (EDITED, "#E69F00", "#56B4E9", "#8C6D31", "#882255", "#44AA99")
IN_MASK, NO_MASK = "#332288", "#DDCC77"
#: More points than this are drawn by the graphics card.
MOST_SVG = 6000
#: More arrows than this hide the points; the neurons that moved farthest keep theirs.
MOST_ARROWS = 3000
CLEAR = "rgba(0,0,0,0)"


def colours(labels: Sequence[str]) -> dict[str, str]:
    """The colour of each edited version."""
    return {label: METHODS[number % len(METHODS)] for number, label in enumerate(dict.fromkeys(labels))}


def mask_groups(mask: NDArray[np.float32]) -> NDArray[Any]:
    """Whether each neuron is in the mask of some edit, as the map colours it."""
    return np.where(mask > 0, "in a mask", "in no mask")


def joint_map(
    drawn: "DriftMap",
    changes: Mapping[str, "LayerDrift"],
    *,
    palette: Mapping[str, str] | None = None,
    groups: Mapping[str, NDArray[Any]] | None = None,
    arrows: bool = True,
    share: float = 1.0,
    height: int = 460,
) -> go.Figure:
    """The original and each edited version in panels of one embedding, on the same axes.

    Args:
        drawn: the embedding.
        changes: each version's numbers of this layer, for arrows and for what a point says.
        palette: the colour of each version.
        groups: per version the group of every neuron of the layer ("general", "in a mask", ...), which then colours
            its edited points.
        arrows: a line from each moved neuron's original point to its edited one.
        share: where on the straight way from original (0) to edited (1) the edited points are drawn.
    """
    palette = palette or colours(drawn.labels)
    figure = make_subplots(
        1,
        len(drawn.labels),
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=list(drawn.labels) if len(drawn.labels) > 1 else None,
    )
    scatter: Any = go.Scattergl if drawn.positions[:, :, 0].size > MOST_SVG else go.Scatter
    size = float(np.clip(120 / np.sqrt(len(drawn.neurons)), 2.5, 7))
    named: set[str] = set()
    for column, label in enumerate(drawn.labels, start=1):
        for trace in _panel(drawn, column, changes[label], palette, groups, arrows, share, scatter, size):
            # Panels of several versions carry their names as titles.
            titled = len(drawn.labels) > 1 and trace.name == label
            trace.showlegend, trace.legendgroup = trace.name not in named and not titled, trace.name
            named.add(trace.name)
            figure.add_trace(trace, 1, column)
    _finish(figure, height)
    low, high = drawn.positions.min((0, 1)), drawn.positions.max((0, 1))
    room = 0.04 * (high - low)
    common = {"showgrid": False, "showticklabels": False, "ticks": "", "zeroline": False}
    figure.update_xaxes(title="t-SNE 1 (no unit)", range=[low[0] - room[0], high[0] + room[0]], **common)
    figure.update_yaxes(range=[low[1] - room[1], high[1] + room[1]], **common)
    figure.update_yaxes(title="t-SNE 2 (no unit)", col=1)
    if len(drawn.labels) > 1:
        figure.update_layout(margin={"t": 62}, legend={"y": 1.0, "yref": "container", "yanchor": "top"})
        figure.update_annotations(font={"size": 13})
    return figure


def _panel(
    drawn: "DriftMap",
    column: int,
    change: "LayerDrift",
    palette: Mapping[str, str],
    groups: Mapping[str, NDArray[Any]] | None,
    arrows: bool,
    share: float,
    scatter: Any,
    size: float,
) -> list[Any]:
    label, neurons = drawn.labels[column - 1], drawn.neurons
    start, end = drawn.positions[0], drawn.positions[column]
    end = start + np.float32(share) * (end - start)
    moved = ~drawn.untouched[column - 1]
    shown = np.ones_like(moved) if drawn.config.copies == "each" else moved
    group = np.full(len(neurons), label)
    tone = dict(palette)
    if groups is not None and label in groups:
        group = groups[label][neurons]
        tone = {**KINDS, "in a mask": IN_MASK, "in no mask": NO_MASK}
    traces = [_points(start, np.ones_like(moved), "original", ORIGINAL, neurons, change, scatter, size)]
    if arrows and moved.any():
        traces.append(_arrows(start, end, moved, change.step[neurons]))
    for name in dict.fromkeys(sorted(set(group.tolist()), key=lambda each: list(tone).index(each))):
        chosen = shown & (group == name)
        if chosen.any():
            title = "edited" if name == label and len(drawn.labels) == 1 else str(name)
            traces.append(_points(end, chosen, title, tone[name], neurons, change, scatter, size))
    return traces


def _points(
    places: NDArray[np.float32],
    chosen: NDArray[np.bool_],
    name: str,
    colour: str,
    neurons: NDArray[np.int64],
    change: "LayerDrift",
    scatter: Any,
    size: float,
) -> Any:
    told = neurons[chosen]
    values = np.column_stack([told, change.cosine[told], 100 * change.norm_change[told]]).round(4)
    return scatter(
        x=places[chosen, 0].round(3),
        y=places[chosen, 1].round(3),
        mode="markers",
        name=name,
        # Larger and paler, so that an original shows around the edited point that hardly left it.
        marker={"size": size * 1.7, "color": colour, "opacity": 0.5}
        if name == "original"
        else {"size": size, "color": colour, "opacity": 0.9},
        customdata=values,
        hovertemplate=f"{name}, neuron %{{customdata[0]:.0f}}<br>cosine %{{customdata[1]:.4f}}, "
        "length %{customdata[2]:+.2f}%<extra></extra>",
    )


def _arrows(
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    moved: NDArray[np.bool_],
    step: NDArray[np.float64],
) -> go.Scatter:
    chosen = np.flatnonzero(moved)
    if len(chosen) > MOST_ARROWS:
        chosen = chosen[np.argsort(-np.nan_to_num(step[chosen]), kind="stable")[:MOST_ARROWS]]
    lines = np.full((len(chosen), 3, 2), np.nan, dtype=np.float64)
    lines[:, 0], lines[:, 1] = start[chosen], end[chosen]
    flat = lines.reshape(-1, 2).round(3)
    return go.Scatter(
        x=flat[:, 0],
        y=flat[:, 1],
        mode="lines",
        name="from original to edited",
        line={"color": PLAIN, "width": 0.8},
        opacity=0.6,
        hoverinfo="skip",
    )


def neuron_histograms(
    changes: Sequence["LayerDrift"], *, palette: Mapping[str, str] | None = None, height: int = 330
) -> go.Figure:
    """How far neurons turned (degrees) and how their length changed (%), as shares of all neurons."""
    palette = palette or colours([change.label for change in changes])
    panels = (
        ("turn of the vector (°)", [np.degrees(np.arccos(change.cosine)) for change in changes]),
        ("change of its length (%)", [100 * change.norm_change for change in changes]),
    )
    figure = make_subplots(2, 1, vertical_spacing=0.28)
    for row, (title, values) in enumerate(panels, start=1):
        edges = shared_edges(values)
        middle = (edges[:-1] + edges[1:]) / 2
        for change, value in zip(changes, values, strict=True):
            known = value[np.isfinite(value)]
            count, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
            figure.add_scatter(
                x=np.repeat(edges, 2)[1:-1],
                y=np.repeat(100 * count / max(len(known), 1), 2),
                mode="lines",
                name=change.label,
                legendgroup=change.label,
                showlegend=row == 1 and len(changes) > 1,
                line={"color": palette[change.label], "width": 1.5},
                fill="tozeroy" if len(changes) == 1 else None,
                customdata=np.repeat(count, 2),
                hovertemplate=f"{change.label}: %{{customdata}} neurons (%{{y:.1f}}%)<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_xaxes(title=title, row=row, col=1, range=[middle[0] - 1e-9, edges[-1]])
        if title.startswith("change"):
            figure.update_xaxes(range=[edges[0], edges[-1]], row=row, col=1)
    figure.update_yaxes(title="neurons (%)", rangemode="tozero")
    _finish(figure, height)
    # Anchored to the figure's own top: above the panels, however the page sets the margins.
    figure.update_layout(
        margin={"t": 20 + 20 * min(len(changes), 3)}, legend={"y": 1.0, "yref": "container", "yanchor": "top"}
    )
    if len(changes) == 1:
        figure.update_layout(showlegend=False, margin={"t": 10})
    return figure


def shared_edges(values: Sequence[NDArray[np.float64]], bins: int = 40) -> NDArray[np.float64]:
    """Edges of bins that all arrays share, up to their 0.5 and 99.5% quantiles; the outer bins take the rest."""
    known = np.concatenate([value[np.isfinite(value)] for value in values])
    if not len(known):
        return np.linspace(0, 1, bins + 1)
    low, high = np.quantile(known, [0.005, 0.995])
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges: NDArray[np.float64] = np.linspace(low, high, bins + 1)
    return edges


def change_spectra(
    changes: Sequence["LayerDrift"], *, palette: Mapping[str, str] | None = None, height: int = 300
) -> go.Figure:
    """Singular values of each version's change, largest first, and the principal angles of the leading subspaces."""
    palette = palette or colours([change.label for change in changes])
    titles = ("singular values of the change", "principal angles of the leading directions")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    for change in changes:
        look = {"color": palette[change.label]}
        for column, values in ((1, change.singular[:100]), (2, change.angles)):
            figure.add_scatter(
                x=np.arange(1, len(values) + 1),
                y=values,
                mode="lines+markers",
                line=look,
                marker={"size": 6, **look},
                name=change.label,
                legendgroup=change.label,
                showlegend=column == 1,
                hovertemplate=f"{change.label}: %{{y:.4g}}<extra></extra>",
                row=1,
                col=column,
            )
    _finish(figure, height)
    figure.update_layout(margin={"t": 62}, legend={"y": 1.0, "yref": "container", "yanchor": "top"})
    figure.update_annotations(font={"size": 13})
    figure.update_yaxes(title="singular value", type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(title="angle (°)", range=[0, 92], dtick=30, row=1, col=2)
    figure.update_xaxes(title="direction, strongest first", row=1, col=1)
    figure.update_xaxes(title="angle, smallest first", row=1, col=2)
    return figure


def layer_norms(
    rows: Sequence[tuple[str, int, float]], *, palette: Mapping[str, str] | None = None, height: int = 240
) -> go.Figure:
    """The relative norm of the change in each edited layer, one line a version.

    Args:
        rows: (version, layer, relative norm).
    """
    labels = list(dict.fromkeys(label for label, _, _ in rows))
    palette = palette or colours(labels)
    figure = go.Figure()
    for label in labels:
        own = [(layer, norm) for name, layer, norm in rows if name == label]
        figure.add_scatter(
            x=[layer for layer, _ in own],
            y=[100 * norm for _, norm in own],
            mode="lines+markers",
            name=label,
            line={"color": palette[label]},
            marker={"size": 8, "color": palette[label]},
            hovertemplate=f"{label}, layer %{{x}}: %{{y:.3f}}%<extra></extra>",
        )
    _finish(figure, height)
    whole = {"dtick": 1} if len({layer for _, layer, _ in rows}) <= 16 else {}
    figure.update_xaxes(title="layer", **whole)
    figure.update_yaxes(title="change (% of the norm)", rangemode="tozero")
    return figure


def _finish(figure: go.Figure, height: int) -> None:
    """See-through backgrounds, so that light and dark pages both work; the legend above."""
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 34, "b": 8},
        modebar={"bgcolor": CLEAR},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left", "title": None},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
