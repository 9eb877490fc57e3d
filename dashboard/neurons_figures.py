"""The Neurons page's figures from scores and masks, reduced to what a screen shows; no Streamlit here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard import charts
from dashboard.binning import BinnedLayer, bin_rows, strongest_first
from dashboard.neurons_data import SCORE_UNITS, as_array, row_labels
from dashboard.selection import Pick

if TYPE_CHECKING:
    from nmke.attribution import Attribution
    from nmke.masks import LayerMask, MaskConfig

COLUMNS = 60
"""Neurons of the prompts' heatmap: the strongest ones."""

ROWS = 48
"""Rows of the prompts' heatmap; more prompts than that share rows."""


def overview(bins: Mapping[int, BinnedLayer], *, ranked: bool, neurons: int, pick: Pick) -> go.Figure:
    """Layers by neurons in cells, the picked one framed."""
    layers = list(bins)
    return charts.overview(
        layers,
        np.stack([bins[layer].counts for layer in layers]),
        np.stack([bins[layer].strongest for layer in layers]),
        ranked=ranked,
        neurons=neurons,
        chosen=(layers.index(pick.layer), bins[pick.layer].bin_of(pick.neuron)),
    )


def prompts(attribution: "Attribution", mask: "LayerMask", pick: Pick) -> go.Figure:
    """Prompts by the strongest neurons of the picked layer; many prompts share rows, extremes stay visible."""
    scores = as_array(attribution.scores[pick.layer])
    columns = strongest_first(scores, COLUMNS)
    values, rows = bin_rows(scores[:, columns], ROWS)
    return charts.prompt_heatmap(
        values,
        columns.tolist(),
        row_labels(attribution, rows),
        as_array(mask.kinds)[columns],
        layer=pick.layer,
        unit=SCORE_UNITS[attribution.config.kind],
        chosen=pick.neuron,
    )


def ratios(table: pd.DataFrame, config: "MaskConfig") -> go.Figure:
    """Ratios and entropies of each layer, from the table of layers."""
    kinds = ("general", "specific")
    return charts.ratios(
        table["layer"].tolist(),
        {kind: table[f"ratio {kind}"].tolist() for kind in kinds},
        {kind: table[f"entropy {kind}"].tolist() for kind in kinds},
        table["share in the mask"].tolist(),
        {kind: (getattr(config, f"{kind}_low"), getattr(config, f"{kind}_high")) for kind in kinds},
    )
