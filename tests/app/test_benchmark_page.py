"""The Benchmark page: without a model, on a finished run, started and cancelled on a tiny model, on bad folders."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import benchmark_balance, benchmark_charts, benchmark_predictions, libraries
from dashboard import benchmark_work as work
from dashboard.state import AppState
from nmke import presets
from nmke.errors import ConfigError, FactError
from nmke.lifelong import read
from nmke.lifelong.files import held
from nmke.methods.ft import FTM
from tests.app.working_app import FACTS, open_page, said, state_of, wait
from tests.finished_run import EDITORS, finish_run
from tests.tiny import make_tiny_llama

POINT = "benchmark.point"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("benchmark") / "llama")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two editors, two seeds and marks at 1 and 2; not to be changed."""
    return finish_run(tmp_path_factory.mktemp("runs") / "finished", folder)


@pytest.fixture
def kept(finished: Path, cache: Path) -> Path:
    """A copy of the finished run among the page's own."""
    return Path(shutil.copytree(finished, work.runs_folder() / "first"))


@pytest.fixture
def page(kept: Path) -> AppTest:
    """The page without a model, on the finished run."""
    libraries.warm_up().join()
    return open_page("benchmark", None)


@pytest.fixture
def form(folder: Path, cache: Path) -> AppTest:
    """The form with a model and three facts, FT-M chosen, two edits, no perplexity."""
    page = open_page("benchmark", folder)
    page.multiselect(key="benchmark.methods").set_value(["ft-m"])
    page.number_input(key="benchmark.form.edits").set_value(2)
    page.text_input(key="benchmark.form.marks").set_value("1, 2")
    page.number_input(key="benchmark.form.perplexity_tokens").set_value(0)
    page.run()
    assert not page.error
    return page


def tables(page: AppTest, column: str) -> list[Any]:
    return [shown.value for shown in page.dataframe if column in shown.value]


def titles(page: AppTest, name: str) -> list[str]:
    """The titles of the panels of a chart that the page keeps."""
    figure = state_of(page).kept.newest(name)
    return [note["text"] for note in figure["layout"]["annotations"] if note.get("xref") == "paper"]


# ---- nothing there ----------------------------------------------------------------------------------------------


def test_without_a_model_and_without_runs_the_form_asks_for_a_model(cache: Path) -> None:
    page = open_page("benchmark", None)
    assert page.header[0].value == "Which editor lasts?"
    assert "No model is loaded" in said(page)
    page.segmented_control(key="benchmark.view").set_value("Results").run()
    assert "There are no runs yet" in said(page)
    assert not page.error


def test_without_facts_the_built_in_examples_are_offered(folder: Path, cache: Path) -> None:
    page = open_page("benchmark", folder, ())
    assert page.selectbox(key="benchmark.source").value == "examples"
    assert "80 facts" in said(page)
    assert not page.button(key="benchmark.start").disabled
    page.selectbox(key="benchmark.source").set_value("page").run()
    assert "There are no facts on the Facts page yet" in said(page)
    assert page.button(key="benchmark.start").disabled


# ---- the form ---------------------------------------------------------------------------------------------------


def test_every_method_of_the_registry_is_offered_and_says_whether_its_preset_was_measured(
    form: AppTest,
) -> None:
    from nmke.methods import methods

    offered = form.multiselect(key="benchmark.methods")
    assert offered.options == [method.title for method in methods().values()]
    assert any("preset guessed" in str(box.label) for box in form.expander)


def test_every_control_of_the_form_has_help(form: AppTest) -> None:
    kinds = ("text_input", "number_input", "selectbox", "multiselect", "checkbox", "segmented_control")
    boxes = [box for kind in kinds for box in form.get(kind) if str(box.key).startswith("benchmark.")]
    assert [box.key for box in boxes if not box.help] == []
    assert len(boxes) > 10


def test_the_run_is_cut_to_the_facts_that_there_are(folder: Path, cache: Path) -> None:
    page = open_page("benchmark", folder)
    assert page.number_input(key="benchmark.form.edits").value == len(FACTS)
    assert page.text_input(key="benchmark.form.marks").value == "1, 3"
    assert not page.error


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ("1, 10", "lies after the last of 2 edits"),
        ("", "there is no number"),
        ("one", "'one' is not a whole number"),
        ("0, 1", "'0' is not a whole number from 1 on"),
        ("99999999999999999999", "is not a whole number"),
    ],
)
def test_bad_marks_are_one_sentence_and_nothing_can_be_started(form: AppTest, marks: str, words: str) -> None:
    form.text_input(key="benchmark.form.marks").set_value(marks).run()
    assert words in form.error[0].value
    assert form.button(key="benchmark.start").disabled


def test_too_few_facts_are_said_with_their_number(form: AppTest) -> None:
    form.number_input(key="benchmark.form.edits").set_value(50).run()
    assert "50 edits, but there are only 3 facts" in form.error[0].value
    assert form.button(key="benchmark.start").disabled


def test_no_method_is_said(form: AppTest) -> None:
    form.multiselect(key="benchmark.methods").set_value([]).run()
    assert "Choose at least one method" in said(form)
    assert form.button(key="benchmark.start").disabled


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 80])
def test_a_name_that_cannot_name_a_folder_is_refused(form: AppTest, name: str) -> None:
    form.text_input(key="benchmark.name").set_value(name).run()
    form.button(key="benchmark.start").click().run()
    assert "cannot be called" in form.error[0].value
    assert not state_of(form).job_ids


def test_a_file_that_is_missing_or_of_another_form_is_one_sentence(form: AppTest, tmp_path: Path) -> None:
    form.selectbox(key="benchmark.source").set_value("file").run()
    assert "No file of facts is named yet" in said(form)
    form.text_input(key="benchmark.file").set_value("counterfact:/nowhere.json").run()
    assert "There is no file" in form.error[0].value
    lines = tmp_path / "facts.jsonl"
    lines.write_text("".join(json.dumps(fact.to_dict()) + "\n" for fact in FACTS), encoding="utf-8")
    form.text_input(key="benchmark.file").set_value(str(lines)).run()
    assert "3 facts" in said(form)
    assert not form.error


def test_zsre_records_under_the_name_of_counterfact_are_refused(form: AppTest, tmp_path: Path) -> None:
    record = {"subject": "France", "src": "The capital of France is", "alt": "Rome", "answers": ["Paris"]}
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([{**record, "rephrase": "France's capital is", "loc": "x", "loc_ans": "y"}]))
    form.selectbox(key="benchmark.source").set_value("file").run()
    form.text_input(key="benchmark.file").set_value(f"counterfact:{path}").run()
    assert "is called counterfact, but its records are ZsRE" in form.error[0].value
    form.text_input(key="benchmark.file").set_value(f"zsre:{path}").run()
    assert "1 fact (ZsRE" in said(form)


# ---- a run from start to end ------------------------------------------------------------------------------------


def test_the_yes_for_running_code_counts_for_one_run(form: AppTest) -> None:
    form.checkbox(key="benchmark.form.ability_run_code").set_value(True).run()
    form.button(key="benchmark.start").click().run()
    wait(form)
    form.segmented_control(key="benchmark.view").set_value("Start a run").run()
    assert form.checkbox(key="benchmark.form.ability_run_code").value is False


def test_a_run_is_started_watched_and_its_results_are_shown(form: AppTest) -> None:
    form.button(key="benchmark.start").click().run()
    assert form.segmented_control(key="benchmark.view").value == "Results"
    wait(form)
    assert "Benchmark run-1 has ended" in said(form)
    assert work.list_runs() == ["run-1"]
    assert tables(form, "state")[0]["state"].tolist() == ["done"]
    assert titles(form, "benchmark.curves")[0].startswith("reliability")
    assert not form.error
    form.segmented_control(key="benchmark.view").set_value("Start a run").run()
    assert form.text_input(key="benchmark.name").placeholder == "run-2"


def test_a_run_with_a_further_preset_is_called_by_it(form: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    real = presets.presets_for

    def with_another(model: Any, method: str) -> Any:
        known = real(model, method)
        return {**known, "careful": replace(known[presets.STANDARD], name="careful")}

    monkeypatch.setattr(presets, "presets_for", with_another)
    form.run()
    (choice,) = [box for box in form.selectbox if box.label == "Preset"]
    choice.set_value("careful").run()
    form.button(key="benchmark.start").click().run()
    wait(form)
    assert tables(form, "state")[0].iloc[0].astype(str).str.contains("FT-M careful").any()


def test_a_cancelled_run_keeps_what_it_measured_and_is_resumed(
    form: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first = FTM._plan, threading.Event()

    def slow(self: Any, session: Any, facts: Any, config: Any, progress: Any) -> Any:
        while first.is_set():
            progress.update("waiting", 0, 1)
            threading.Event().wait(0.02)
        first.set()
        return real(self, session, facts, config, progress)

    monkeypatch.setattr(FTM, "_plan", slow)
    form.button(key="benchmark.start").click().run()
    assert first.wait(60)
    form.run()
    next(button for button in form.button if str(button.key).startswith("cancel.")).click().run()
    text = said(form)
    wait(form)
    assert "was cancelled" in text + said(form)
    monkeypatch.setattr(FTM, "_plan", real)
    next(button for button in form.button if str(button.key).startswith("benchmark.resume")).click().run()
    wait(form)
    assert tables(form, "state")[0]["state"].tolist() == ["done"]
    assert read(work.runs_folder() / "run-1").complete
    assert not form.error


def test_what_the_engine_refuses_is_said_with_its_remedy(form: AppTest, kept: Path) -> None:
    form.text_input(key="benchmark.name").set_value("first").run()
    form.button(key="benchmark.start").click().run()
    wait(form)
    assert "holds another run" in "\n".join(error.value for error in form.error)


# ---- results ----------------------------------------------------------------------------------------------------


def test_a_finished_run_shows_curves_table_cost_and_balance_without_a_model(page: AppTest) -> None:
    assert [title.split(" (")[0] for title in titles(page, "benchmark.curves")] == [
        "reliability",
        "generalization",
        "locality",
        "drift",
        "portability",
    ]
    paper = tables(page, "method")[-1]
    assert paper["method"].tolist() == [label for label, _ in EDITORS]
    assert {"reliability, T = 2", "portability, T = 2"} <= set(paper)
    assert "seeds: 0, 1" in said(page)
    assert state_of(page).kept.newest("benchmark.cost")["data"]
    assert state_of(page).kept.newest("benchmark.radar")["data"]
    assert not page.error


def test_the_select_box_shows_the_raw_predictions_and_they_can_be_filtered(page: AppTest) -> None:
    assert not tables(page, "log_p_new")
    page.selectbox(key=POINT).set_value(("ROME", 1, 2)).run()
    shown = tables(page, "log_p_new")[0]
    assert sorted(shown["kind"].unique()) == ["neighborhood", "paraphrase", "portability", "prompt"]
    page.text_input(key="benchmark.words").set_value("spain").run()
    assert tables(page, "log_p_new")[0]["subject"].tolist() == ["Spain"]
    page.text_input(key="benchmark.words").set_value("nothing like this").run()
    assert tables(page, "log_p_new")[0].empty
    assert not page.error


def test_more_rows_than_a_browser_holds_are_cut_and_said_and_the_files_hold_all(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_predictions, "MOST_ROWS", 2)
    page.selectbox(key=POINT).set_value(("ROME", 1, 2)).run()
    assert len(tables(page, "log_p_new")[0]) == 2
    assert "prompts of ROME, seed 1, after 2 edits; the first 2 are shown" in said(page)
    assert "benchmark.file.predictions_csv" in [button.key for button in page.get("download_button")]
    assert not page.error


def test_predictions_are_not_read_again_while_the_run_goes_on(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = AppState()
    monkeypatch.setattr("dashboard.state.get", lambda: mine)
    first = work.predictions_of(work.open_run("first"), "ROME", 0, 1)
    with (kept / "runs" / "FT-M-seed1" / "events.jsonl").open("a") as file:
        file.write('{"event": "resume", "position": 2}\n')
    assert work.predictions_of(work.open_run("first"), "ROME", 0, 1) is first
    path = kept / "runs" / "ROME-seed0" / "predictions-1.parquet"
    path.write_bytes((kept / "runs" / "ROME-seed0" / "predictions-2.parquet").read_bytes())
    assert len(work.predictions_of(work.open_run("first"), "ROME", 0, 1)) > len(first)


def test_a_run_is_read_again_as_far_as_it_changed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nmke.lifelong.files import EventLog

    mine, real, logs = AppState(), EventLog.read, []
    monkeypatch.setattr("dashboard.state.get", lambda: mine)
    monkeypatch.setattr(EventLog, "read", lambda log: (logs.append(log.path.parent.name), real(log))[1])
    assert work.open_run("first").complete
    assert len(logs) == 4
    with (kept / "runs" / "FT-M-seed1" / "events.jsonl").open("a") as file:
        file.write('{"event": "resume", "position": 2}\n')
    assert not work.open_run("first").complete
    assert logs[4:] == ["FT-M-seed1"]


def test_what_is_being_written_does_not_count_as_a_change(kept: Path) -> None:
    before = work.fingerprint(kept)
    assert "summary.json" in [name for name, _, _ in before]
    (kept / ".partial-x").mkdir()
    (kept / ".partial-x" / "summary.json").write_text("{")
    assert work.fingerprint(kept) == before


def test_a_run_at_work_elsewhere_is_watched_and_cannot_be_resumed(folder: Path, kept: Path) -> None:
    shutil.rmtree(kept / "runs" / "FT-M-seed1")
    libraries.warm_up().join()
    with held(kept):
        page = open_page("benchmark", folder)
        page.segmented_control(key="benchmark.view").set_value("Results").run()
        assert "at work in another window or program" in said(page)
        assert not [button for button in page.button if str(button.key).startswith("benchmark.resume")]
    page.run()
    assert [button for button in page.button if str(button.key).startswith("benchmark.resume")]
    assert not page.error


def test_a_point_that_is_no_longer_there_is_forgotten(page: AppTest, kept: Path) -> None:
    page.selectbox(key=POINT).set_value(("ROME", 1, 2)).run()
    shutil.rmtree(kept / "runs" / "ROME-seed1")
    page.run()
    assert page.selectbox(key=POINT).value is None
    assert not page.error


def test_several_runs_are_drawn_side_by_side_under_their_names(page: AppTest, kept: Path) -> None:
    shutil.copytree(kept, kept.parent / "second")
    page.run()
    page.multiselect(key="benchmark.chosen").set_value(["first", "second"]).run()
    paper = tables(page, "reliability, T = 2")[0]
    assert paper["method"].tolist() == ["ROME · first", "FT-M · first", "ROME · second", "FT-M · second"]
    page.selectbox(key=POINT).set_value(("ROME · second", 0, 1)).run()
    assert not tables(page, "log_p_new")[0].empty
    assert not page.error


def test_an_unchanged_rerun_makes_nothing_again(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(module: Any, name: str) -> Callable[..., Any]:
        real = getattr(module, name)
        return lambda *args, **kwargs: (made.append(name), real(*args, **kwargs))[1]

    for module, name in (
        (benchmark_charts, "curves"),
        (benchmark_balance, "radar"),
        (benchmark_balance, "cost"),
    ):
        monkeypatch.setattr(module, name, counted(module, name))
    monkeypatch.setattr("dashboard.benchmark_work._read", lambda *args: made.append("read"))
    page.run()
    assert made == []
    page.segmented_control(key="benchmark.axis").set_value("linear").run()
    assert made == ["curves"]


def test_every_file_is_made_of_what_is_shown(page: AppTest, kept: Path) -> None:
    from dashboard import benchmark_files, benchmark_tables
    from dashboard.benchmark_report import html_report

    labels = [button.label for button in page.get("download_button")]
    assert {"CSV", "LaTeX table", "HTML report"} <= set(labels)
    run = work._read("first", kept, ())
    table = benchmark_tables.side_by_side({"first": run.table})
    paper = benchmark_tables.paper_table(table, ["reliability"], [2])
    text = html_report(benchmark_files.make_report("first", [run], table, paper, []))
    assert "teacher forcing" in text, "the formulas"
    assert "weight_hash" in text, "the specification"
    assert "transformer-lens" in text, "the versions"


# ---- runs of others, and bad folders ----------------------------------------------------------------------------


def _open(page: AppTest, path: Path | str) -> str:
    page.text_input(key="benchmark.path").set_value(str(path)).run()
    page.button(key="benchmark.open").click().run()
    return "\n".join(error.value for error in page.error)


def test_a_folder_given_by_its_path_is_shown_and_the_own_runs_can_be_added(
    page: AppTest, finished: Path
) -> None:
    assert _open(page, finished) == ""
    assert page.multiselect(key="benchmark.chosen").value == [str(finished)]
    assert page.multiselect(key="benchmark.chosen").options == ["first", "finished"]


def test_a_home_that_nobody_has_is_one_sentence(page: AppTest) -> None:
    assert "Opening the folder failed" in _open(page, "~nobody-has-this-name/run")
    assert not page.exception


def test_nothing_is_opened_without_a_path(page: AppTest) -> None:
    assert _open(page, "") == ""
    assert "Write the path" in said(page)


@pytest.mark.parametrize(
    ("make", "words"), [("missing", "There is no folder"), ("empty", "holds no spec.json")]
)
def test_a_folder_without_a_run_is_one_sentence(page: AppTest, tmp_path: Path, make: str, words: str) -> None:
    if make == "empty":
        (tmp_path / "empty").mkdir()
    told = _open(page, tmp_path / make)
    assert words in told
    assert "Name the folder that a run wrote" in told


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"entrants": 3, "config": {"seeds": [0]}}', '"x"'])
def test_a_damaged_run_is_one_sentence_and_the_others_are_shown(
    page: AppTest, kept: Path, content: str
) -> None:
    bad = Path(shutil.copytree(kept, kept.parent / "bad"))
    (bad / "spec.json").write_text(content)
    page.run()
    page.multiselect(key="benchmark.chosen").set_value(["bad", "first"]).run()
    told = "\n".join(error.value for error in page.error)
    assert "damaged" in told
    assert tables(page, "reliability, T = 2"), "the other run is there"


def test_predictions_that_are_gone_are_one_sentence(page: AppTest, kept: Path) -> None:
    for path in kept.glob("runs/ROME-seed0/predictions-2.parquet"):
        path.write_bytes(b"no parquet")
    page.selectbox(key=POINT).set_value(("ROME", 0, 2)).run()
    assert "damaged" in page.error[0].value
    assert tables(page, "reliability, T = 2"), "the rest of the page is there"


def test_another_models_run_can_be_read_but_not_resumed(folder: Path, kept: Path) -> None:
    spec = json.loads((kept / "spec.json").read_text())
    spec["model"] |= {"weight_hash": "another", "name": "big-model"}
    (kept / "spec.json").write_text(json.dumps(spec))
    page = open_page("benchmark", folder)
    assert "made on another model (big-model)" in said(page)
    assert "to go on with it" not in said(page), "it is finished"
    assert not [button for button in page.button if str(button.key).startswith("benchmark.resume")]
    assert tables(page, "reliability, T = 2")


def test_an_unfinished_run_without_a_model_says_which_one_to_load(kept: Path, page: AppTest) -> None:
    shutil.rmtree(kept / "runs" / "FT-M-seed1")
    page.run()
    assert "is not finished. Load its model" in said(page)
    assert "waiting" in tables(page, "state")[0]["state"].tolist()


# ---- without a page ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "numbers"), [("1, 10; 5", (1, 5, 10)), (" 3 3\n2 ", (2, 3))])
def test_numbers_are_read_in_order_and_once(text: str, numbers: tuple[int, ...]) -> None:
    assert work.parse_numbers(text, "Marks", 1) == numbers


def test_a_bad_number_is_named() -> None:
    with pytest.raises(ConfigError, match="'-1' is not a whole number from 0 on"):
        work.parse_numbers("0, -1", "Seeds", 0)


def test_a_path_without_a_file_is_no_source_of_facts(cache: Path) -> None:
    with pytest.raises(FactError, match="There is no file"):
        work.facts_from("zsre:nothing.json")
