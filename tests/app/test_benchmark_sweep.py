"""The Benchmark page's view of a sweep, on one that was made with tiny models."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import libraries, sweep_charts
from dashboard import sweep_work as work
from dashboard.benchmark_looks import looks
from nmke.lifelong.files import held
from nmke.sweep import plan, read, read_spec, run_sweep
from tests.app.working_app import open_page, said, state_of
from tests.sweeping import write_sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of three runs; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMKE_HOME", str(folder / "home"))
        run_sweep(folder / "out", plan(read_spec(write_sweep(folder))))
    return folder / "out"


@pytest.fixture
def kept(finished: Path, cache: Path) -> Path:
    """A copy of it where the page looks."""
    return Path(shutil.copytree(finished, work.sweeps_folder() / "first"))


def open_sweeps() -> AppTest:
    libraries.warm_up().join()
    page = open_page("benchmark", None)
    page.segmented_control(key="benchmark.view").set_value("Sweeps").run()
    assert not page.exception
    return page


@pytest.fixture
def page(kept: Path) -> AppTest:
    return open_sweeps()


def table(page: AppTest, column: str) -> pd.DataFrame:
    return next(shown.value for shown in page.dataframe if column in shown.value)


def test_without_sweeps_the_view_says_how_one_is_made(cache: Path) -> None:
    page = open_sweeps()
    assert "There is no sweep yet" in said(page) and "nmke sweep SPEC.yaml" in said(page)
    assert not page.error


def test_every_run_shows_how_far_it_is(page: AppTest) -> None:
    assert not page.error
    shown = table(page, "progress")
    assert list(shown["configuration"]) == ["nmke ridge 1.0 layers 1-2", "nmke ridge 20.0 layers 1-2", "ft-m"]
    assert list(shown["progress"]) == [1.0] * 3 and list(shown["state"]) == ["done"] * 3
    assert list(shown["T"]) == [4] * 3


def test_the_best_of_each_method_and_how_it_was_chosen_are_told(page: AppTest, kept: Path) -> None:
    shown = table(page, "best configuration")
    assert list(shown["method"]) == ["nmke", "ft-m"] and list(shown["of"]) == [2, 1]
    assert "mean of reliability, generalisation and locality" in said(page)
    best = {one["method"]: one["label"] for one in json.loads((kept / "summary.json").read_text())["best"]}
    assert list(shown["best configuration"]) == [best["nmke"], best["ft-m"]]


def test_the_picture_sets_quality_against_what_was_kept_and_seconds(page: AppTest) -> None:
    figure = state_of(page).kept.newest("benchmark.sweep.pareto")
    titles = [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "xaxis2")]
    assert titles == ["perplexity kept (unedited / edited)  better →", "seconds per edit  ← better"]
    page.selectbox(key="benchmark.sweep.kept").set_value("locality").run()
    figure = state_of(page).kept.newest("benchmark.sweep.pareto")
    assert figure["layout"]["xaxis"]["title"]["text"] == "locality  better →"
    page.selectbox(key="benchmark.sweep.mark").set_value(1).run()
    assert "after 1 edits" in said(page) and not page.error


def test_the_command_of_every_run_can_be_copied(page: AppTest, kept: Path) -> None:
    for run in read(kept).runs:
        page.selectbox(key="benchmark.sweep.run").set_value(run["name"]).run()
        assert page.code[0].value == run["command"]


def test_a_run_opens_among_the_results(page: AppTest, kept: Path) -> None:
    page.button(key="benchmark.sweep.show").click().run()
    assert page.segmented_control(key="benchmark.view").value == "Results"
    first = read(kept).runs[0]["name"]
    assert page.multiselect(key="benchmark.chosen").value == [str(kept / "runs" / first)]
    assert not page.error and not page.exception


def test_a_sweep_that_is_at_work_says_what_runs_and_what_waits(kept: Path) -> None:
    results = read(kept)
    last = kept / "runs" / results.runs[2]["name"]
    shutil.rmtree(last)
    middle = next((kept / "runs" / results.runs[1]["name"]).glob("runs/*/events.jsonl"))
    lines = middle.read_text().splitlines(keepends=True)
    middle.write_text("".join(line for line in lines[:4] if '"done"' not in line))
    with held(kept), held(kept / "runs" / results.runs[1]["name"]):
        page = open_sweeps()
        assert list(table(page, "progress")["state"]) == ["done", "running", "waiting"]
        assert "3 runs: 1 running, 1 waiting, 1 done" in page.get("progress")[0].proto.text
    assert not page.error


def test_a_failed_run_says_why(kept: Path) -> None:
    results = read(kept)
    name = results.runs[2]["name"]
    shutil.rmtree(kept / "runs" / name)
    summary = json.loads((kept / "summary.json").read_text())
    summary["runs"][name] |= {"state": "failed", "message": "The model has no layer 99."}
    (kept / "summary.json").write_text(json.dumps(summary))
    page = open_sweeps()
    shown = table(page, "message")
    assert list(shown["message"]) == ["", "", "The model has no layer 99."]
    assert "Nobody works on it now" in said(page)


def test_a_folder_is_opened_by_its_path_also_from_the_results(finished: Path, cache: Path) -> None:
    page = open_sweeps()
    page.text_input(key="benchmark.sweep.path").set_value("/no/such/folder").run()
    page.button(key="benchmark.sweep.open").click().run()
    assert "is no sweep" in page.error[0].value
    page.segmented_control(key="benchmark.view").set_value("Results").run()
    page.text_input(key="benchmark.path").set_value(str(finished)).run()
    page.button(key="benchmark.open").click().run()
    assert page.segmented_control(key="benchmark.view").value == "Sweeps"
    assert page.selectbox(key="benchmark.sweep").value == str(finished)
    assert not page.error


def test_a_damaged_manifest_is_one_sentence(kept: Path) -> None:
    (kept / "sweep.json").write_text("{")
    page = open_sweeps()
    assert "sweep.json is damaged" in page.error[0].value


def test_every_control_has_help(page: AppTest) -> None:
    kinds = ("text_input", "selectbox", "segmented_control")
    boxes = [box for kind in kinds for box in page.get(kind) if str(box.key).startswith("benchmark.sweep")]
    assert len(boxes) >= 5
    assert [box.key for box in boxes if not box.help] == []


# ---- the numbers ------------------------------------------------------------------------------------------------


def frame_of(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["label", "x", "y"])


def test_the_front_is_what_no_other_one_beats_in_both() -> None:
    points = frame_of(
        ("a", 1.0, 0.2), ("b", 0.5, 0.9), ("c", 0.5, 0.5), ("d", 0.9, 0.2), ("e", float("nan"), 1.0)
    )
    assert work.front_of(points, "x", "y", lower_x=False) == ["a", "b"]
    assert work.front_of(points, "x", "y", lower_x=True) == ["b"]
    twins = frame_of(("a", 1.0, 1.0), ("b", 1.0, 1.0))
    assert work.front_of(twins, "x", "y", lower_x=False) == ["a", "b"]


def test_configurations_are_means_over_their_seeds(kept: Path) -> None:
    table = read(kept).table()
    twice = pd.concat([table, table.assign(seed=9, reliability=1.0, run=table["run"] + "-9")])
    points = work.points_of(twice, 4)
    assert list(points["seeds"]) == [2, 2, 2]
    own = table[table["T"] == 4].set_index("label")
    row = points.set_index("label").loc["ft-m"]
    expected = (own.loc["ft-m", "reliability"] + 1.0 + 2 * own.loc["ft-m", "generalization"]) / 4
    assert abs(row[work.QUALITY] - expected) < 1e-12


def test_the_picture_draws_every_configuration_once_a_panel() -> None:
    points = pd.DataFrame(
        {
            "label": ["a<b", "c"],
            "method": ["rome", "memit"],
            "seeds": [1, 2],
            "x": [0.5, 1.0],
            "s": [2.0, 1.0],
            "y": [0.1, 0.9],
        }
    )
    panels = [sweep_charts.Panel("x", "kept", False, ["c"]), sweep_charts.Panel("s", "seconds", True, ["c"])]
    look = looks([("rome", "rome"), ("memit", "memit")])
    figure = sweep_charts.pareto(points, "y", "quality", panels, look)
    drawn = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(trace.x) for trace in drawn] == [1, 1, 1, 1]
    assert drawn[0].customdata[0][0] == "a&lt;b"
    # To keep more than the left point means the right point's quality; to take longer than it means the left one's.
    assert [trace.line.shape for trace in figure.data if trace.mode == "lines"] == ["vh", "hv"]
    assert figure.layout.xaxis2.type == "log" and figure.layout.xaxis.type is None
