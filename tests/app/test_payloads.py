"""What a chart sends to the browser stays small, however large the model, and no extreme cell is lost."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.io
import pytest
import torch
from streamlit.dataframe_util import convert_pandas_df_to_arrow_bytes

from dashboard import neurons_figures
from dashboard.binning import bin_layer, bin_rows, bins_for
from dashboard.neurons_data import neuron_table, say_reduction
from dashboard.selection import Pick, picked
from nmke.attribution import Attribution, AttributionConfig, Prompt
from nmke.masks import MaskConfig

SIZES = ((30, 1536, 8), (32, 14336, 48), (80, 28672, 300))
"""Layers, neurons, prompts: the default model, an 8B model with contexts, and more than anybody asks for."""

ALLOWED, USUAL = 1_000_000, 500_000
RNG = np.random.default_rng(0)


def _attribution(scores: np.ndarray[Any, Any], text: str = "日本の首都は何という都市ですか、") -> Attribution:
    """Scores of one layer on prompts whose texts take many bytes."""
    prompts = tuple(Prompt(f"{text}{row} {text * 3}", "", "", row) for row in range(len(scores)))
    both = {0: torch.from_numpy(scores.astype(np.float32))}
    tokens = (" Tōkyō",) * len(scores)
    config, bounds = AttributionConfig(kind="lps"), {0: torch.zeros_like(both[0])}
    return Attribution((0,), both, both, prompts, (0,) * len(scores), tokens, {0: 0.0}, config, bounds)


def _mask(neurons: int) -> Any:
    """What the figures read of a layer's mask."""
    return SimpleNamespace(
        kinds=torch.from_numpy(RNG.integers(0, 4, neurons)),
        weights=torch.ones(neurons),
        general_score=torch.ones(neurons),
        specific_score=torch.rand(neurons),
    )


def _sent(figure: Any) -> int:
    return len(plotly.io.to_json(figure, validate=False).encode())


def _overview(layers: int, neurons: int, ranked: bool) -> Any:
    bins = bins_for(layers, neurons)
    binned = {
        layer: bin_layer(RNG.integers(0, 4, neurons), RNG.normal(size=neurons), bins, ranked=ranked)
        for layer in range(layers)
    }
    return neurons_figures.overview(binned, ranked=ranked, neurons=neurons, pick=Pick(layers - 1, 7))


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize(("layers", "neurons", "prompts"), SIZES)
def test_the_overview_stays_small(layers: int, neurons: int, prompts: int, ranked: bool) -> None:
    assert _sent(_overview(layers, neurons, ranked)) < USUAL


@pytest.mark.parametrize(("layers", "neurons", "prompts"), SIZES)
def test_the_heatmap_of_prompts_stays_small(layers: int, neurons: int, prompts: int) -> None:
    scores = RNG.normal(size=(prompts, neurons))
    figure = neurons_figures.prompts(_attribution(scores), _mask(neurons), Pick(0, 7))
    assert _sent(figure) < USUAL


@pytest.mark.parametrize(("layers", "neurons", "prompts"), SIZES)
def test_the_ratios_stay_small(layers: int, neurons: int, prompts: int) -> None:
    names = ("ratio general", "ratio specific", "entropy general", "entropy specific", "share in the mask")
    table = pd.DataFrame({"layer": range(layers), **{name: RNG.random(layers) for name in names}})
    assert _sent(neurons_figures.ratios(table, MaskConfig())) < USUAL


def test_the_table_of_neurons_stays_small() -> None:
    table = neuron_table(_mask(28672), 0, RNG.normal(size=(48, 28672)).astype(np.float32))
    assert len(convert_pandas_df_to_arrow_bytes(table)) < ALLOWED


@pytest.mark.parametrize("value", [1000.0, -1000.0])
@pytest.mark.parametrize(("prompt", "neuron"), [(0, 0), (299, 28671), (137, 20000)])
def test_a_lone_extreme_cell_is_drawn_with_its_sign_and_its_neuron(
    prompt: int, neuron: int, value: float
) -> None:
    scores = RNG.normal(size=(300, 28672))
    scores[prompt, neuron] = value
    figure = neurons_figures.prompts(_attribution(scores), _mask(28672), Pick(0, neuron))
    heat, touch = figure.data[1], figure.data[2]
    row, column = np.unravel_index(np.abs(heat.z).argmax(), heat.z.shape)
    assert heat.z[row, column] == value
    touched = list(touch.customdata[row * heat.z.shape[1] + column])
    assert picked({"selection": {"points": [{"customdata": touched}]}}) == Pick(0, neuron)
    assert touched[2] == f"{value:.4g}"


def test_joined_rows_keep_the_value_furthest_from_zero() -> None:
    values = np.array([[1.0, -5.0, np.nan], [-2.0, 4.0, 1.0], [0.0, 0.0, 0.0]])
    joined, members = bin_rows(values, 2)
    np.testing.assert_array_equal(joined, [[-2.0, -5.0, 1.0], [0.0, 0.0, 0.0]])
    assert [rows.tolist() for rows in members] == [[0, 1], [2]]


def test_few_rows_are_not_joined() -> None:
    values = RNG.normal(size=(5, 3))
    joined, members = bin_rows(values, 48)
    assert joined is values
    assert [rows.tolist() for rows in members] == [[0], [1], [2], [3], [4]]


def test_the_caption_says_what_is_drawn_and_how_it_was_reduced() -> None:
    assert say_reduction(8, 40, 48, 60) == "Every one of the 40 neurons."
    assert say_reduction(8, 1536, 48, 60).startswith("The 60 of 1536 neurons with the largest scores in size")
    text = say_reduction(300, 14336, 48, 60)
    assert "300 prompts are drawn in 48 rows: each joins up to 7" in text
    assert "furthest from zero" in text


def test_binning_cells_agrees_with_binning_each_cell_by_itself() -> None:
    for ranked in (True, False):
        kinds, strength = RNG.integers(0, 4, 1000), RNG.normal(size=1000).round(1)  # rounded, so with ties
        binned = bin_layer(kinds, strength, 7, ranked=ranked)
        for cell, members in enumerate(binned.members):
            assert binned.counts[cell].tolist() == np.bincount(kinds[members], minlength=4).tolist()
            assert binned.strongest[cell] == members[strength[members].argmax()]
