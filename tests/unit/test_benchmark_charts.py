"""The Benchmark page's figures and tables, on tables made by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dashboard import benchmark_balance as balance
from dashboard import benchmark_charts as drawing
from dashboard import benchmark_labels, benchmark_looks
from dashboard import benchmark_tables as tables
from dashboard.edit_charts import SEQUENCE

MARKS = (1, 10, 100)
METHODS = ("rome", "memit", "nmke")


def run_table(labels: tuple[str, ...] = ("NMKE", "ROME"), seeds: tuple[int, ...] = (0,)) -> pd.DataFrame:
    """A run in which NMKE lasts and everything else breaks after ten edits."""
    rows = []
    for label in labels:
        lasts = label == "NMKE"
        for seed in seeds:
            for mark in MARKS if lasts else MARKS[:2]:
                value = 0.9 if lasts else 0.9 / mark
                rows.append(
                    {
                        "label": label,
                        "method": label.lower(),
                        "seed": seed,
                        "T": mark,
                        "reliability": value + 0.01 * seed,
                        "reliability_low": value - 0.1,
                        "reliability_high": value + 0.1 + 0.01 * seed,
                        "generalization": value / 2,
                        "locality": 1.0,
                        "portability": None,
                        "perplexity": 20.0 if lasts else 20.0 * 10**mark,
                        "drift": 0.01 * mark,
                        "drift_cosine": 0.99,
                        "seconds_per_edit": 1.0 + seed,
                        "peak_memory_mb": 900.0,
                        "n": mark,
                    }
                )
    return pd.DataFrame(rows)


def one_run(**options: Any) -> pd.DataFrame:
    return tables.side_by_side({"a": run_table(**options)})


def curves(table: pd.DataFrame, **options: Any) -> Any:
    measures = drawing.measures_named(tables.CURVES)
    return drawing.curves(
        table, measures, benchmark_looks.used_lines(table, METHODS), **{"log": True, **options}
    )


def points_of(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.mode == "markers"]


# ---- tables -----------------------------------------------------------------------------------------------------


def test_labels_carry_their_runs_name_only_when_there_are_several_runs() -> None:
    assert set(one_run()["line"]) == {"NMKE", "ROME"}
    both = tables.side_by_side({"a": run_table(), "b": run_table()})
    assert set(both["line"]) == {"NMKE · a", "NMKE · b", "ROME · a", "ROME · b"}


def test_runs_without_a_measured_mark_give_an_empty_table_with_its_columns() -> None:
    empty = tables.side_by_side({"a": pd.DataFrame()})
    assert empty.empty
    assert tables.lines_of(empty) == []
    assert tables.marks_of(empty) == []


def test_the_mean_is_over_seeds_and_the_band_is_their_widest_interval() -> None:
    found = tables.over_seeds(one_run(seeds=(0, 2)), "reliability")
    row = found[(found["line"] == "NMKE") & (found["T"] == 10)].iloc[0]
    assert row["value"] == pytest.approx(0.91)
    assert (row["low"], row["high"]) == (pytest.approx(0.8), pytest.approx(1.02))
    assert row["seeds"] == 2


def test_a_measure_without_intervals_has_its_lowest_and_highest_seed() -> None:
    found = tables.over_seeds(one_run(seeds=(0, 2)), "seconds_per_edit")
    assert found["low"].tolist() == [1.0] * 5
    assert found["high"].tolist() == [3.0] * 5


def test_a_score_that_was_not_measured_has_no_rows() -> None:
    assert tables.over_seeds(one_run(), "portability").empty
    assert "portability" not in [measure.column for measure in tables.known_measures(one_run())]


@pytest.mark.parametrize(
    ("value", "share", "shown"),
    [
        (None, True, "–"),
        (float("nan"), False, "–"),
        (math.inf, False, "∞"),
        (0.944, True, "0.94"),
        (12.345, False, "12.3"),
        (12345.6, False, "12,346"),
        (4.78e27, False, "4.8e27"),
        (0.00123, False, "0.00123"),
    ],
)
def test_numbers_have_the_digits_they_deserve(value: Any, share: bool, shown: str) -> None:
    assert tables.say_number(value, share) == shown


def test_the_papers_table_has_a_row_a_method_and_a_column_a_measure_at_each_mark() -> None:
    paper = tables.paper_table(one_run(), ["reliability", "perplexity"], [1, 100])
    assert paper.index.tolist() == ["NMKE", "ROME"]
    assert tables.headings(paper) == [
        ("T = 1", "reliability"),
        ("T = 1", "perplexity"),
        ("T = 100", "reliability"),
        ("T = 100", "perplexity"),
    ]
    assert paper.loc["NMKE"].tolist() == ["0.90 [0.80, 1.00]", "20", "0.90 [0.80, 1.00]", "20"]
    assert paper.loc["ROME"].tolist()[2:] == ["–", "–"], "ROME had ended before"


def test_the_balance_goes_from_bad_to_good_on_every_axis() -> None:
    table = tables.side_by_side({"a": run_table()})
    axes, values = tables.radar_at(table, 10, {"a": {"perplexity": 10.0}})
    assert axes == ["reliability", "generalization", "locality", "1 - drift", "perplexity kept"]
    nmke = values[values["line"] == "NMKE"].iloc[0]
    assert nmke["1 - drift"] == pytest.approx(0.9)
    assert nmke["perplexity kept"] == pytest.approx(0.5)
    assert values[axes].to_numpy().min() >= 0
    assert values[axes].to_numpy().max() <= 1


def test_the_balance_takes_abilities_where_they_were_measured() -> None:
    table = one_run().assign(ability_gsm8k=0.4, ability_gsm8k_low=0.3)
    axes, _ = tables.radar_at(table, 10, {})
    assert axes == ["reliability", "generalization", "gsm8k"]


def test_portability_is_drawn_tabled_and_an_axis_where_it_was_measured() -> None:
    table = one_run().assign(portability=0.25, portability_low=0.2, portability_high=0.5)
    assert "portability" in [measure.column for measure in tables.known_measures(table)]
    assert tables.paper_table(table, tables.TABLED, [1]).loc["NMKE", ("T = 1", "portability")] == (
        "0.25 [0.20, 0.50]"
    )
    assert tables.over_seeds(table, "portability")["low"].unique().tolist() == [0.2]
    assert "portability" in tables.radar_at(table, 1, {})[0]
    assert len(points_of(curves(table))) == len(points_of(curves(one_run()))) + 2


def test_abilities_come_from_the_marks_they_were_measured_at() -> None:
    table = tables.with_abilities(run_table(), {("NMKE", 0, 10): {"gsm8k": 0.4}})
    found = table.set_index(["label", "T"])["ability_gsm8k"]
    assert found["NMKE", 10] == 0.4
    assert found.notna().sum() == 1


def test_the_balance_leaves_out_what_nothing_is_known_of() -> None:
    axes, _ = tables.radar_at(one_run(), 10, {})
    assert "perplexity kept" not in axes


def test_predictions_are_found_by_kind_and_by_words_anywhere() -> None:
    found = pd.DataFrame(
        {
            "kind": ["prompt", "paraphrase", "neighborhood"],
            "prompt": ["The capital of France is", "France's capital is", "The capital of Italy (old) is"],
            "predicted": [" Rome", " Paris", None],
            "share": [1.0, 0.0, 1.0],
        }
    )
    assert len(tables.find_texts(found, [], "")) == 3
    assert tables.find_texts(found, ["prompt", "neighborhood"], "")["kind"].tolist() == [
        "prompt",
        "neighborhood",
    ]
    assert tables.find_texts(found, [], "rome")["kind"].tolist() == ["prompt"]
    assert tables.find_texts(found, [], "(old)")["kind"].tolist() == ["neighborhood"], "no pattern is meant"
    assert tables.find_texts(found, ["prompt"], "italy").empty


@pytest.mark.parametrize(
    ("event", "point"),
    [
        ({"selection": {"points": [{"customdata": ["NMKE", 0, 10]}]}}, ("NMKE", 0, 10)),
        ({"selection": {"points": [{"customdata": {"0": "NMKE", "1": 1, "2": 10}}]}}, ("NMKE", 1, 10)),
        ({"selection": {"points": [{"x": 1}, {"customdata": ["ROME", "0", "1"]}]}}, ("ROME", 0, 1)),
        ({"selection": {"points": [{"customdata": ["NMKE", None, 10]}]}}, None),
        ({"selection": {"points": []}}, None),
        (None, None),
    ],
)
def test_a_click_hands_back_line_seed_and_mark(event: Any, point: Any) -> None:
    assert tables.picked_point(event) == point


# ---- curves -----------------------------------------------------------------------------------------------------


def test_there_is_one_panel_a_measure_and_one_point_a_seed_and_mark() -> None:
    figure = curves(one_run(seeds=(0, 1)))
    titles = [note.text for note in figure.layout.annotations if note.xref == "paper"]
    assert titles == [
        f"{tables.MEASURES[name].title} ({way})"
        for name, way in zip(
            tables.CURVES,
            (
                "higher is better",
                "higher is better",
                "higher is better",
                "lower is better",
                "lower is better",
                "higher is better",
            ),
            strict=True,
        )
    ]
    points = points_of(figure)
    assert len(points) == 5 * 2
    assert [list(data) for data in points[0].customdata][:2] == [["NMKE", 0, 1], ["NMKE", 1, 1]]


def test_only_measures_with_intervals_or_several_seeds_have_bands() -> None:
    banded = [trace for trace in curves(one_run()).data if trace.fill == "toself"]
    assert len(banded) == 2, "reliability of both lines"


def test_every_line_carries_its_name_at_its_end() -> None:
    figure = curves(one_run())
    named = [note for note in figure.layout.annotations if note.xref == "x"]
    ends = {note.text.split("</span> ")[1]: note.x for note in named}
    assert ends == {"NMKE": pytest.approx(2.0), "ROME": pytest.approx(1.0)}, "log10 of the last T"


def test_a_linear_axis_ends_where_the_labels_have_room() -> None:
    figure = curves(one_run(), log=False)
    assert figure.layout.xaxis.type == "linear"
    low, high = figure.layout.xaxis.range
    assert low < 0
    assert high > 110


def test_a_perplexity_that_explodes_is_drawn_in_powers_of_ten() -> None:
    figure = curves(one_run())
    assert figure.layout.yaxis4.type == "log"
    assert figure.layout.yaxis5.type != "log"
    calm = curves(one_run(labels=("NMKE",)))
    assert calm.layout.yaxis4.type != "log"


@pytest.mark.parametrize("worst", [4.78e27, math.inf])
def test_a_ruined_models_perplexity_ends_at_the_ceiling_and_is_told_in_full(worst: float) -> None:
    table = one_run(labels=("NMKE",))
    assert drawing.say_ceiling(table) == ""
    table.loc[table.index[-1], "perplexity"] = worst
    figure = curves(table)
    assert figure.layout.yaxis4.type == "log"
    assert 6 < figure.layout.yaxis4.range[1] < 7
    points = next(trace for trace in figure.data if trace.mode == "markers" and trace.yaxis == "y4")
    assert points.y[-1] == drawing.CEILING
    assert points.text[-1] == tables.say_number(worst, False)
    assert "drawn at a million" in drawing.say_ceiling(table)


def test_infinite_perplexity_does_not_break_the_axis() -> None:
    table = one_run()
    table.loc[table["label"] == "ROME", "perplexity"] = math.inf
    low, high = curves(table).layout.yaxis4.range
    assert math.isfinite(low)
    assert math.isfinite(high)


def test_the_unedited_model_is_a_grey_line() -> None:
    shapes = curves(one_run(), unedited={"perplexity": [19.5]}).layout.shapes
    assert [(shape.yref, shape.y0) for shape in shapes] == [("y4", 19.5)]


def test_the_chosen_point_is_larger() -> None:
    figure = curves(one_run(), chosen=("NMKE", 0, 10))
    assert list(points_of(figure)[0].marker.size) == [8, 13, 8]


def test_text_that_looks_like_markup_is_drawn_as_text() -> None:
    table = one_run(labels=("<b>NMKE",))
    assert all("<b>" not in note.text for note in curves(table).layout.annotations)


def test_a_method_keeps_its_colour_whatever_else_is_drawn() -> None:
    alone = benchmark_looks.looks([("NMKE", "nmke")], METHODS)["NMKE"]
    beside = benchmark_looks.looks([("ROME", "rome"), ("NMKE", "nmke")], METHODS)["NMKE"]
    assert alone == beside
    assert alone.colour == SEQUENCE[2]


def test_two_lines_of_one_method_differ_in_their_dash() -> None:
    found = benchmark_looks.looks([("NMKE · a", "nmke"), ("NMKE · b", "nmke")], METHODS)
    assert found["NMKE · a"].colour == found["NMKE · b"].colour
    assert found["NMKE · a"].dash != found["NMKE · b"].dash


def test_twenty_methods_are_all_told_apart() -> None:
    found = benchmark_looks.looks([(f"m{n}", f"m{n}") for n in range(20)])
    assert len({(look.colour, look.symbol) for look in found.values()}) == 20


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([0.0, 100.0], [0.0, 100.0]),
        ([10.0, 10.0], [5.0, 15.0]),
        ([12.0, 8.0], [15.0, 5.0]),
        ([0.0, 0.0, 0.0], [-10.0, 0.0, 10.0]),
    ],
)
def test_labels_move_apart_as_little_as_needed(places: list[float], moved: list[float]) -> None:
    assert sorted(benchmark_labels.spread(places, 10.0)) == pytest.approx(sorted(moved))
    if len(set(places)) == len(places):
        assert benchmark_labels.spread(places, 10.0) == pytest.approx(moved)


def test_spread_labels_never_lie_on_each_other_and_keep_their_order() -> None:
    places = np.random.default_rng(0).uniform(0, 60, 12).tolist()
    moved = benchmark_labels.spread(places, 10.0)
    assert np.diff(sorted(moved)).min() >= 10.0 - 1e-9
    assert np.argsort(moved).tolist() == np.argsort(places).tolist()
    assert np.mean(moved) == pytest.approx(np.mean(places)), (
        "the least-squares answer keeps the mean of a group"
    )


@pytest.mark.parametrize(
    ("marks", "log", "ticks"),
    [
        ((1, 10, 100, 500, 1000, 1500, 2000), True, [1, 10, 100, 2000]),
        ((1, 10, 100, 500, 1000, 1500, 2000), False, [0, 500, 1000, 1500, 2000]),
        ((1, 2), True, [1, 2]),
        ((5,), True, [5]),
        ((1, 2), False, [0, 1, 2]),
        ((1,), False, [0, 1]),
        ((), True, []),
    ],
)
def test_ticks_are_round_and_never_beyond_the_last_mark(marks: Any, log: bool, ticks: list[int]) -> None:
    assert drawing.x_ticks(marks, log) == ticks


def test_labels_stay_within_their_panel() -> None:
    assert benchmark_labels.within([-10.0, 4.0], 100) == [4.0, 18.0]
    assert benchmark_labels.within([90.0, 110.0], 100) == [80.0, 100.0]
    assert benchmark_labels.within([], 100) == []


def test_a_name_at_a_panels_upper_edge_does_not_reach_into_its_title() -> None:
    table = one_run(labels=("NMKE", "AlphaEdit", "ROME")).assign(locality=1.0)
    figure = drawing.curves(
        table, drawing.measures_named(("locality",)), benchmark_looks.used_lines(table, METHODS), log=True
    )
    low, high = figure.layout.yaxis.range
    notes = [note for note in figure.layout.annotations if note.xref == "x"]
    highest = max((note.y - low) / (high - low) * benchmark_labels.PANEL - note.ay for note in notes)
    assert highest <= benchmark_labels.PANEL - 8
    assert len(notes) == 3


def test_many_lines_have_a_legend_instead_of_names_at_their_ends() -> None:
    figure = curves(one_run(labels=tuple(f"M{n}" for n in range(benchmark_labels.LABELLED + 1))))
    assert figure.layout.showlegend
    assert sum(bool(trace.showlegend) for trace in figure.data) == benchmark_labels.LABELLED + 1
    assert [note for note in figure.layout.annotations if note.xref == "x"] == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_names_at_the_lines_ends_stay_in_their_panel_on_a_narrow_screen(count: int) -> None:
    table = one_run(labels=("NMKE", "AlphaEdit", "MEMIT"))
    measures = drawing.measures_named(tables.CURVES[:count])
    figure = drawing.curves(table, measures, benchmark_looks.used_lines(table, METHODS), log=True)
    notes = [note for note in figure.layout.annotations if note.xref == "x"]
    assert len(notes) == 3
    low, high = figure.layout.xaxis.range
    panel = 205 * 3 / min(count, 3)
    for note in notes:
        name = note.text.split("</span> ")[1]
        # A stub of 16, the symbol, and letters of 12 pixels' size: capitals are about 8 wide, others 6.5.
        text = sum(8.0 if letter.isupper() else 6.5 for letter in name)
        assert (note.x - low) / (high - low) * panel + 16 + 12 + text <= panel + 1


def test_names_too_long_for_a_narrow_panel_stand_in_a_legend() -> None:
    table = tables.side_by_side({"first-try": run_table(), "second-try": run_table()})
    figure = curves(table)
    assert [note for note in figure.layout.annotations if note.xref == "x"] == []
    assert {trace.name for trace in figure.data if trace.showlegend} == set(table["line"])
    assert (
        benchmark_labels.label_room("NMKE · first-try")
        > benchmark_labels.MOST_ROOM
        >= benchmark_labels.label_room("NMKE · run-1")
    )


def test_titles_of_panels_stay_in_their_panel() -> None:
    shown = drawing.curves(
        one_run().assign(generalization_probability=0.5),
        drawing.measures_named(("generalization_probability",)),
        benchmark_looks.used_lines(one_run(), METHODS),
        log=True,
    )
    assert shown.layout.annotations[0].text == "generalization (probability), ↑ better"


def test_lines_whose_seeds_ended_at_different_t_are_told() -> None:
    table = one_run(seeds=(0, 1))
    assert tables.uneven_lines(table) == [], "ROME ended early, but with both seeds"
    cut = table[~((table["line"] == "NMKE") & (table["seed"] == 1) & (table["T"] == 100))]
    assert tables.uneven_lines(cut) == ["NMKE"]


# ---- cost and balance -------------------------------------------------------------------------------------------


def test_costs_are_bars_with_whiskers_over_the_seeds() -> None:
    table = one_run(seeds=(0, 2))
    found = tables.cost_at(table, 10)
    look = benchmark_looks.used_lines(table, METHODS)
    figure = balance.cost(found, look, {line: (line, 0, 10) for line in look})
    seconds, memory = figure.data
    assert list(seconds.x) == [2.0, 2.0]
    assert list(seconds.error_x.array) == [1.0, 1.0]
    assert not memory.error_x.visible
    assert list(seconds.customdata[0]) == ["NMKE", 0, 10]


def test_the_balance_closes_every_line_and_each_corner_can_be_clicked() -> None:
    table = one_run()
    axes, values = tables.radar_at(table, 10, {"a": {"perplexity": 10.0}})
    look = benchmark_looks.used_lines(table, METHODS)
    figure = balance.radar(axes, values, look, {line: (line, 0, 10) for line in look})
    first = figure.data[0]
    assert first.theta[0] == first.theta[-1] == "reliability"
    assert first.r[0] == first.r[-1]
    assert tables.picked_point({"selection": {"points": [{"customdata": first.customdata[2]}]}}) == (
        "NMKE",
        0,
        10,
    )
