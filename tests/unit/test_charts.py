"""Charts, their binning, clicks on them and their files: arrays in, figures out."""

import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dashboard import charts, downloads, edit_charts
from dashboard.binning import bin_layer, bins_for, strongest_first, thin
from dashboard.selection import Pick, clamp, layers_text, parse_layers, picked

RNG = np.random.default_rng(0)


def _overview(
    layers: int = 3, neurons: int = 100, cells: int = 10, chosen: tuple[int, int] | None = None
) -> go.Figure:
    binned = [
        bin_layer(RNG.integers(0, 4, neurons), RNG.normal(size=neurons), cells, ranked=True)
        for _ in range(layers)
    ]
    counts = np.stack([layer.counts for layer in binned])
    strongest = np.stack([layer.strongest for layer in binned])
    return charts.overview(range(layers), counts, strongest, ranked=True, neurons=neurons, chosen=chosen)


def test_binning_loses_no_neuron_and_keeps_the_strongest_first() -> None:
    kinds, strength = RNG.integers(0, 4, 103), RNG.normal(size=103)
    binned = bin_layer(kinds, strength, 10, ranked=True)
    assert sorted(np.concatenate(binned.members).tolist()) == list(range(103))
    assert binned.counts.sum(0).tolist() == np.bincount(kinds, minlength=4).tolist()
    assert binned.strongest[0] == strength.argmax()
    assert binned.bin_of(int(strength.argmin())) == 9


def test_binning_by_index_keeps_neighbours_together() -> None:
    binned = bin_layer(np.zeros(20, dtype=int), RNG.normal(size=20), 4, ranked=False)
    assert binned.members[1].tolist() == [5, 6, 7, 8, 9]


def test_bins_stay_within_what_a_browser_can_draw() -> None:
    assert bins_for(30, 1536) * 30 <= 4000
    assert bins_for(4, 16) == 16
    assert bins_for(80, 28672) >= 1


def test_the_overview_uses_the_fixed_colours_and_hands_back_layer_and_neuron() -> None:
    figure = _overview(chosen=(1, 2))
    heat, touch = figure.data[0], figure.data[1]
    assert {colour for _, colour in heat.colorscale} == set(charts.KIND_COLOURS.values())
    assert len(touch.customdata) == 30
    assert touch.customdata[0][0] == 0
    assert len(figure.layout.shapes) == 2  # a light and a dark frame, for both themes


def test_figures_bring_no_background_or_text_colour_of_their_own() -> None:
    figure = _overview()
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.font.color is None


@pytest.mark.parametrize("values", [RNG.normal(size=(4, 6)), np.zeros((4, 6)), np.full((4, 6), np.nan)])
def test_the_prompt_heatmap_is_centred_on_zero_whatever_the_scores(values: np.ndarray) -> None:
    figure = charts.prompt_heatmap(
        values, range(6), ["a", "a", "b", "c"], RNG.integers(0, 4, 6), layer=2, unit="score", chosen=3
    )
    heat = figure.data[1]
    assert heat.zmid == 0
    assert heat.zmin == -heat.zmax
    assert len(figure.layout.yaxis2.ticktext) == 4


@pytest.mark.parametrize(
    "figure",
    [
        _overview(),
        charts.prompt_heatmap(
            RNG.normal(size=(2, 3)), range(3), ["a", "b"], np.zeros(3, int), layer=0, unit="nats"
        ),
        charts.ratios(
            [1, 2],
            {"general": [0.3, 0.3], "specific": [0.38, 0.37]},
            {"general": [0.1, 0.1], "specific": [0.9, 0.9]},
            [0.5, 0.5],
            {"general": (0.3, 0.4), "specific": (0.3, 0.4)},
        ),
        charts.token_bars([(" a", 1.0)], [("b\n", -1.0)]),
        edit_charts.dumbbells(["x"], {"new": ([0.1], [0.9]), "true": ([None], [None])}),
        edit_charts.layer_changes([4, 5], [700, 800], [0.01, 0.02]),
        edit_charts.spectrum({4: np.array([5.0, 1.0, -1e-9])}, 0.02, {4: 0.33}),
        edit_charts.stage_seconds({"target": 3.0, "solve": 0.2, "total": 3.2}),
    ],
)
def test_every_figure_names_its_axes(figure: go.Figure) -> None:
    axes = [axis for axis in figure.select_xaxes()]
    assert any(axis.title.text for axis in axes)
    assert figure.layout.height >= 100


def test_the_spectrum_shows_rounding_below_zero_on_its_logarithmic_axis() -> None:
    figure = edit_charts.spectrum({4: np.array([-1e-9, 5.0, 1.0])}, 0.02, {4: 0.33})
    assert min(figure.data[0].y) > 0
    assert figure.data[0].y[0] == 5.0


def test_labels_are_shortened_in_the_middle() -> None:
    long = "The mother tongue of Danielle Darrieux, the actress, is"
    assert len(charts.shorten(long, 30)) <= 30
    assert charts.shorten(long, 30).endswith("is")


def test_strongest_first_ranks_by_magnitude_and_survives_not_a_number() -> None:
    assert strongest_first(np.array([[1.0, -5.0, np.nan]]), 2).tolist() == [1, 0]
    assert strongest_first(np.empty((0, 0)), 5).tolist() == []


def test_thinning_keeps_both_ends() -> None:
    share, values = thin(np.arange(1000.0), 50)
    assert len(values) == 50
    assert (share[0], share[-1], values[0], values[-1]) == (0.0, 1.0, 0.0, 999.0)
    assert len(thin(np.empty(0))[1]) == 0


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"selection": {"points": [{"customdata": [7, 42, 0]}]}}, Pick(7, 42)),
        ({"selection": {"points": [{"customdata": {"1": 42, "0": 7}}]}}, Pick(7, 42)),
        ({"selection": {"points": [{"customdata": ["7", "42"]}]}}, Pick(7, 42)),
        ({"selection": {"points": [{}, {"customdata": [1, 2]}]}}, Pick(1, 2)),
        ({"selection": {"points": [{"customdata": ["x", "y"]}]}}, None),
        ({"selection": {"points": []}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_click_becomes_a_layer_and_a_neuron(event: object, expected: Pick | None) -> None:
    assert picked(event) == expected


def test_a_pick_outside_what_was_scored_moves_to_the_nearest() -> None:
    assert clamp(Pick(20, 9999), (4, 5, 8), 1536) == Pick(8, 1535)


def test_layers_are_read_and_written_as_ranges() -> None:
    assert parse_layers("4-6, 10", 30) == (4, 5, 6, 10)
    assert parse_layers("all", 3) == (0, 1, 2)
    assert layers_text((4, 5, 6, 10)) == "4-6, 10"


@pytest.mark.parametrize("text", ["4-99", "x", "8-4", "1-2-3", "-1", "4,,5"])
def test_layers_that_do_not_exist_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"layer"):
        parse_layers(text, 30)


def test_tables_come_back_from_their_files_as_they_were() -> None:
    table = pd.DataFrame({"layer": [4, 5], "token": ["a,b", "é"]})
    pd.testing.assert_frame_equal(
        pd.read_csv(io.BytesIO(downloads.csv_bytes(table))), table, check_dtype=False
    )
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(downloads.parquet_bytes(table))), table)


def test_a_figure_becomes_one_html_file_that_needs_no_network() -> None:
    page = downloads.html_bytes(_overview()).decode()
    assert "<html>" in page
    assert 'src="http' not in page
