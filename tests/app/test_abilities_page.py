"""The Abilities page: states to compare, benchmarks answered by a quick stand-in and for real, bad input."""

import hashlib
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard import abilities_charts as drawing
from dashboard import abilities_panels, abilities_questions, ablation_results
from dashboard import abilities_tables as tables
from dashboard import abilities_work as work
from nmke.ability import TASKS, TITLES, AbilityConfig, AbilityReport, TaskScore
from nmke.ability.harness import load_harness
from nmke.ability.results import SAMPLE_COLUMNS
from nmke.ablation import AblationConfig, by_hand, run_ablation, save_set
from nmke.answers import AnswersConfig
from nmke.edit import Edit, WeightPatch
from nmke.errors import Cancelled, ResourceError
from nmke.intervals import wilson
from nmke.lifelong.saved import saved_runs
from nmke.progress import Progress, Silent
from nmke.questions import Question, QuestionSet
from nmke.session import EditSession
from nmke.sites import MLP_OUT, POST
from nmke.tokens import encode_batch
from tests.app.working_app import FACTS, open_page, said, state_of, wait
from tests.tiny import make_tiny_llama

QUESTIONS = 8
NEURONS = {1: (3, 5), 2: (7,)}
OFF = ["without 3 neurons (by hand, k = 3)", "without 3 neurons (by hand, k = 3, random 0)"]
Judge = Callable[..., AbilityReport]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("abilities") / "llama")


@pytest.fixture(autouse=True)
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The harness is taken to be there, also where it is not installed."""
    monkeypatch.setattr("nmke.ability.harness.harness_version", lambda: "0.0")
    yield
    load_harness.cache_clear()  # else the stand-in's version would stay for all later tests


def _right(state: str, number: int) -> bool:
    """As loaded questions 0 to 3 are right; every other state loses 0 and 1 and gains 4."""
    return number in (range(4) if state == "" else (2, 3, 4))


def _report(weight_hash: str, state: str, config: AbilityConfig, model_name: str = "tiny") -> AbilityReport:
    """What a measurement of made-up questions gives; the limit decides which are asked."""
    scores, rows = [], []
    for task in config.tasks:
        n = min(config.limit or QUESTIONS, QUESTIONS)
        asked = [_right(state, number) for number in range(n)]
        for number, right in enumerate(asked):
            prompt = f"Instructions.\n\nWhat is the colour number {number} of {task}?\nAnswer:"
            said_ = "blue" if right else f"green {state[:4]}"
            rows.append([task, task, number, f"{task}-{number}", prompt, "blue", said_, right, None, ""])
        score = TaskScore(
            task=task,
            metric="acc",
            formula="share of right answers",
            interval=wilson(sum(asked), n),
            parts={task: (sum(asked) / n, n)},
            others={},
            source="made-up questions",
            sha256=hashlib.sha256(f"{task} {n}".encode()).hexdigest(),
            limit=config.limit,
            seed=config.seed,
            fewshot=config.fewshot(task),
            truncated=0,
            harness_version="0.0",
            seconds=2.0,
            cached=False,
            details={},
        )
        scores.append(score)
    samples = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
    return AbilityReport(model_name, weight_hash, state, tuple(scores), samples)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Path | None, AbilityConfig]]:
    """A quick judge in place of the engine's; what it was asked: task, state, data, settings."""
    calls: list[tuple[str, str, Path | None, AbilityConfig]] = []

    def judge(
        model: Any, config: AbilityConfig, state: str = "", data: Path | None = None, progress: Any = None
    ) -> AbilityReport:
        calls.append((config.tasks[0], state, data, config))
        progress.update("asking", 0, QUESTIONS)
        return _report(model.weight_hash, state, config)

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    return calls


def _edit(size: float = 0.01, subject: int = 0) -> Edit:
    patch = WeightPatch(0, torch.full((64, 1), size), torch.ones(1, 32))
    return Edit("rome", {}, (FACTS[subject],), (patch,), {}, seconds={"total": 0.0})


def _session(page: AppTest) -> EditSession:
    """The tab's session, made when the page has not asked for it yet."""
    session = state_of(page).edit_session
    assert session is not None
    return session


@pytest.fixture
def page(folder: Path, cache: Path, judged: list[Any]) -> AppTest:
    """The page on a loaded model without edits."""
    return open_page("abilities", folder)


@pytest.fixture
def edited(page: AppTest) -> AppTest:
    """The page with one edit in force."""
    _session(page).apply(_edit())
    page.session_state["abilities.compared"] = [f"session:{_session(page).digest}"]
    return page.run()


def measure(page: AppTest) -> AppTest:
    page.button(key="abilities.start").click().run()
    return wait(page)


def table(page: AppTest, column: str) -> pd.DataFrame:
    return next(shown.value for shown in page.dataframe if column in shown.value)


# ---- nothing there ----------------------------------------------------------------------------------------------


def test_without_a_model_the_page_says_so(cache: Path) -> None:
    page = open_page("abilities", None)
    assert page.header[0].value == "What else changed?"
    assert "No model is loaded" in said(page)


def test_without_edits_the_model_can_be_measured_alone(page: AppTest) -> None:
    assert "Nothing is measured yet" in said(page)
    assert "There are no edits yet" in said(page)
    assert page.button(key="abilities.start").label == "Measure"
    measure(page)
    assert not page.error
    assert "Only one state is measured" in said(page)
    assert table(page, "formula")["model"].tolist() == ["the model as loaded"]


def test_every_control_has_help(edited: AppTest) -> None:
    measure(edited)
    kinds = ("text_input", "number_input", "selectbox", "multiselect", "checkbox", "segmented_control")
    boxes = [box for kind in kinds for box in edited.get(kind) if str(box.key).startswith("abilities.")]
    assert [box.key for box in boxes if not box.help] == []
    assert len(boxes) > 10


# ---- before and after -------------------------------------------------------------------------------------------


def test_edits_in_force_are_compared_with_the_model_as_loaded(edited: AppTest, judged: list[Any]) -> None:
    edited.multiselect(key="abilities.tasks").set_value(["mmlu", "gsm8k"]).run()
    measure(edited)
    assert not edited.error
    digest = _session(edited).digest
    assert [(task, bool(state)) for task, state, _, _ in judged] == [
        ("mmlu", False),
        ("mmlu", True),
        ("gsm8k", False),
        ("gsm8k", True),
    ]
    assert all(digest in state for _, state, _, _ in judged if state)
    changes = table(edited, "McNemar p")
    assert changes["benchmark"].tolist() == ["MMLU", "GSM8K"]
    assert changes[["gained", "lost", "n"]].to_numpy().tolist() == [[1, 2, 8], [1, 2, 8]]
    assert changes["change"][0].startswith("-0.12 [")
    assert "Measured: 4 scores" in said(edited)


def test_the_model_computes_as_chosen_while_it_is_judged(
    edited: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, torch.Tensor] = {}

    def judge(
        model: Any, config: AbilityConfig, state: str = "", data: Any = None, progress: Any = None
    ) -> AbilityReport:
        seen[bool(state)] = model.W_out(0).clone()
        return _report(model.weight_hash, state, config)

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    measure(edited)
    assert torch.equal(seen[True], _session(edited).master(0))
    assert not torch.equal(seen[True], seen[False])
    assert torch.equal(seen[False], _session(edited).model.W_out(0))


def test_an_edit_undone_while_it_waits_is_still_measured_as_it_was(page: AppTest) -> None:
    session = _session(page)
    session.apply(_edit())
    choice, digest = work.of_session(session), session.digest
    assert choice is not None
    expected = session.master(0)
    session.undo()
    with work.opened(session.model, choice, Silent()) as state:
        assert digest in state
        assert torch.equal(session.model.W_out(0), expected)


def test_two_edit_versions_are_shown_side_by_side(edited: AppTest, judged: list[Any]) -> None:
    measure(edited)
    _session(edited).apply(_edit(0.02, 1))
    edited.run()
    edited.multiselect(key="abilities.compared").set_value([f"session:{_session(edited).digest}"]).run()
    measure(edited)
    assert len(table(edited, "McNemar p")) == 2
    names = ["the model as loaded", "edit version 1 (1 fact)", "edit version 2 (2 facts)"]
    assert edited.multiselect(key="abilities.after").options == names[1:]
    first = edited.multiselect(key="abilities.after").value[0]
    edited.selectbox(key="abilities.before").set_value(first).run()
    changes = table(edited, "McNemar p").set_index("after")["lost"].to_dict()
    assert changes == {names[2]: 0, names[0]: 1}, "the two edits answer alike"


def test_two_different_edits_of_the_same_version_have_names_of_their_own(edited: AppTest) -> None:
    measure(edited)
    _session(edited).undo()
    _session(edited).apply(_edit(0.05))
    edited.run()
    edited.multiselect(key="abilities.compared").set_value([f"session:{_session(edited).digest}"]).run()
    measure(edited)
    names = edited.multiselect(key="abilities.after").options
    assert len(set(names)) == 2
    assert all(name.startswith("edit version 1 (1 fact) #") for name in names)


def test_scores_of_other_questions_are_not_compared(edited: AppTest) -> None:
    measure(edited)
    edited.multiselect(key="abilities.compared").set_value([]).run()
    edited.number_input(key="abilities.limit").set_value(5).run()
    measure(edited)
    assert "2 earlier scores are not shown" in said(edited)
    assert table(edited, "formula")["n"].tolist() == [5]


def test_the_questions_whose_answer_changed_are_listed_with_both_answers(edited: AppTest) -> None:
    measure(edited)
    assert len(table(edited, "right answer")) == 6, "the wrong ones are wrong in other words"
    edited.segmented_control(key="abilities.which").set_value("lost").run()
    lost = table(edited, "right answer")
    assert lost["question"].str.contains("colour number [01] of").all()
    assert lost["before"].tolist() == ["✓ blue", "✓ blue"]
    assert lost["after"].str.startswith("✗ green").all()
    edited.selectbox(key="abilities.question").set_value(1).run()
    assert any("colour number 1 of mmlu" in shown.value for shown in edited.code)
    edited.text_input(key="abilities.words").set_value("Number 0").run()
    assert len(table(edited, "right answer")) == 1
    edited.text_input(key="abilities.words").set_value("[nowhere(").run()
    assert "No question of MMLU is of that kind" in said(edited)


def test_questions_per_benchmark_are_told_before_the_start(edited: AppTest) -> None:
    assert "570 of MMLU, for each of 2 states" in said(edited)
    measure(edited)
    assert "at the pace measured here" in said(edited)


# ---- saved edits, neurons, reports ------------------------------------------------------------------------------


@pytest.fixture
def saved(page: AppTest, tmp_path: Path) -> Path:
    """A folder with one saved edit of the page's model."""
    session = EditSession(_session(page).model)
    session.apply(_edit(0.03))
    return session.save(tmp_path / "mine")


def _add(page: AppTest, path: Path | str) -> str:
    page.text_input(key="abilities.bundle").set_value(str(path)).run()
    page.button(key="abilities.add").click().run()
    return page.error[0].value if page.error else ""


def test_saved_edits_are_compared(page: AppTest, saved: Path, judged: list[Any]) -> None:
    assert _add(page, saved) == ""
    assert page.multiselect(key="abilities.compared").options == ["mine (1 fact)"]
    assert len(page.multiselect(key="abilities.compared").value) == 1
    measure(page)
    record = json.loads((saved / "session.json").read_text())
    assert record["digest"] in judged[1][1]
    assert table(page, "McNemar p")["after"].tolist() == ["mine (1 fact)"]


def test_saved_edits_come_as_a_zip_file_too(page: AppTest, saved: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in saved.iterdir():
            archive.write(path, path.name)
    (tmp_path / "mine.zip").write_bytes(buffer.getvalue())
    assert _add(page, tmp_path / "mine.zip") == ""
    assert page.multiselect(key="abilities.compared").options == ["mine (1 fact)"]


def test_every_entrant_of_a_lifelong_run_is_offered_and_computes_as_its_checkpoint(
    page: AppTest, folder: Path, tmp_path: Path, judged: list[Any]
) -> None:
    from tests.finished_run import finish_run

    run = finish_run(tmp_path / "mine", folder, seeds=(0,))
    assert _add(page, run) == ""
    offered = page.multiselect(key="abilities.compared").options
    assert offered == ["ROME, 2 facts (run mine)", "FT-M, 2 facts (run mine)"]
    digests = [one.digest for one in saved_runs(_session(page).model, run)]
    page.session_state["abilities.compared"] = [f"run:{digest}" for digest in digests]
    measure(page.run())
    assert [state for _, state, _, _ in judged] == ["", *digests]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("missing", "There is no folder or file"),
        ("empty", "is no edit bundle"),
        ("text", "no readable zip file"),
        ("damaged", "is damaged"),
        ("foreign", "whose weights are not those of"),
    ],
)
def test_edits_that_cannot_be_compared_are_one_sentence(
    page: AppTest, saved: Path, tmp_path: Path, make: str, words: str
) -> None:
    path = tmp_path / make
    if make == "empty":
        path.mkdir()
    elif make == "text":
        path.write_text("no zip")
    elif make == "damaged":
        (saved / "session.json").write_text("{")
        path = saved
    elif make == "foreign":
        record = json.loads((saved / "session.json").read_text())
        record["model"] |= {"name": "big-model", "weight_hash": "another"}
        (saved / "session.json").write_text(json.dumps(record))
        path = saved
    assert words in _add(page, path)
    assert page.multiselect(key="abilities.compared").options == []


def test_neurons_switched_off_on_the_ablation_page_are_offered_and_zero(
    page: AppTest, ablated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ablated, ablation_results.results_folder() / "first")
    model = _session(page).model
    page.run()
    offered = page.multiselect(key="abilities.compared")
    assert offered.options == OFF
    offered.set_value([f"neurons:{by_hand(model, NEURONS).digest}"]).run()
    seen: dict[bool, torch.Tensor] = {}
    post: dict[bool, torch.Tensor] = {}

    def judge(
        model: Any, config: AbilityConfig, state: str = "", data: Any = None, progress: Any = None
    ) -> AbilityReport:
        batch = encode_batch(model.tokenizer, ["The capital of France is"])
        found = model.run(batch, [(POST, 1), (MLP_OUT, 1)])
        seen[bool(state)] = found[(MLP_OUT, 1)][0, -1]
        post[bool(state)] = found[(POST, 1)][0, -1]
        return _report(model.weight_hash, state, config)

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    measure(page)
    assert not page.error
    theirs = post[False][[3, 5]] @ model.W_out(1)[[3, 5]]
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(seen[True], seen[False] - theirs)
    assert len(table(page, "McNemar p")) == 1


def test_neurons_that_an_ablation_held_at_their_mean_are_said_to_be_zero_here(
    page: AppTest, tmp_path: Path
) -> None:
    _ablate(page, "mean", tmp_path / "off")
    shutil.copytree(tmp_path / "off", ablation_results.results_folder() / "first")
    page.run()
    offered = page.multiselect(key="abilities.compared")
    assert offered.options == [label.replace(")", "; by mean there, zero here)") for label in OFF]
    assert "also where that ablation held them at their mean" in offered.help
    _ablate(page, "zero", ablation_results.results_folder() / "second")
    page.run()
    assert page.multiselect(key="abilities.compared").options == OFF


@pytest.fixture
def ablated(page: AppTest, tmp_path: Path) -> Path:
    """The folder of an ablation of three neurons with two random controls, on one question."""
    return _ablate(page, "zero", tmp_path / "off")


def _ablate(page: AppTest, how: Any, folder: Path) -> Path:
    asked = QuestionSet((Question("1", "history", "Which is it?", ("this", "that"), 0),), "made-up")
    model = _session(page).model
    config = AblationConfig(controls=2, how=how, answers=AnswersConfig(scores=("cloze",)))
    run_ablation(EditSession(model), asked, [by_hand(model, NEURONS)], config).save(folder)
    return folder


def _add_neurons(page: AppTest, path: Path | str) -> str:
    page.text_input(key="abilities.neurons").set_value(str(path)).run()
    page.button(key="abilities.add_neurons").click().run()
    return page.error[0].value if page.error else ""


def test_the_neurons_of_an_ablation_on_disk_are_offered_with_the_first_random_ones(
    page: AppTest, ablated: Path
) -> None:
    assert _add_neurons(page, ablated) == ""
    offered = page.multiselect(key="abilities.compared")
    assert offered.options == OFF
    assert len(offered.value) == 1
    measure(page)
    assert len(table(page, "McNemar p")) == 1


def test_a_saved_set_of_neurons_is_offered(page: AppTest, tmp_path: Path) -> None:
    save_set(by_hand(_session(page).model, {1: (3,)}), tmp_path / "set.json")
    assert _add_neurons(page, tmp_path / "set.json") == ""
    assert page.multiselect(key="abilities.compared").options == ["without 1 neuron (by hand)"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: None, "cannot be read"),
        (lambda told: "[]", "no set of neurons"),
        (lambda told: {**told, "model_hash": "another"}, "were chosen on another model"),
        (lambda told: {**told, "ranked": [[1, 99999]]}, "names neuron 99999"),
    ],
)
def test_neurons_that_cannot_be_switched_off_are_one_sentence(
    page: AppTest, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    told = change(by_hand(_session(page).model, {1: (3,)}).to_json())
    if told is not None:
        (tmp_path / "set.json").write_text(json.dumps(told))
    assert words in _add_neurons(page, tmp_path / "set.json")
    assert page.multiselect(key="abilities.compared").options == []


def test_a_folder_without_an_ablation_is_one_sentence(page: AppTest, tmp_path: Path) -> None:
    assert "No ablation can be read" in _add_neurons(page, tmp_path)


def test_a_report_of_the_command_line_is_shown_beside_what_is_measured_here(
    page: AppTest, tmp_path: Path
) -> None:
    from nmke.ability import save_report

    measure(page)
    config = AbilityConfig(tasks=("mmlu",), limit=10)
    save_report(_report(_session(page).model.weight_hash, "edits 1", config), tmp_path / "abroad")
    page.text_input(key="abilities.report").set_value(str(tmp_path / "abroad")).run()
    page.button(key="abilities.open").click().run()
    assert not page.error
    assert table(page, "McNemar p")["after"].tolist() == ["report abroad"]


def test_a_report_of_another_model_or_none_is_one_sentence(page: AppTest, tmp_path: Path) -> None:
    from nmke.ability import save_report

    save_report(_report("another", "", AbilityConfig(), "big-model"), tmp_path / "abroad")
    for name, words in (("abroad", "was measured on big-model"), ("nowhere", "nowhere")):
        page.text_input(key="abilities.report").set_value(str(tmp_path / name)).run()
        page.button(key="abilities.open").click().run()
        assert words in page.error[0].value
        assert not page.exception


# ---- code that the model writes ---------------------------------------------------------------------------------


def test_humaneval_waits_for_a_yes_which_counts_for_one_run(page: AppTest, judged: list[Any]) -> None:
    page.multiselect(key="abilities.tasks").set_value(["humaneval"]).run()
    assert "runs program code that the model writes" in said(page)
    assert page.button(key="abilities.start").disabled
    page.checkbox(key="abilities.yes").check().run()
    assert not page.button(key="abilities.start").disabled
    measure(page)
    assert judged[0][3].run_code is True
    assert page.checkbox(key="abilities.yes").value is False
    assert page.button(key="abilities.start").disabled


def test_without_humaneval_no_code_is_run(page: AppTest, judged: list[Any]) -> None:
    page.multiselect(key="abilities.tasks").set_value(["humaneval"]).run()
    page.checkbox(key="abilities.yes").check().run()
    page.multiselect(key="abilities.tasks").set_value(["gsm8k"]).run()
    measure(page)
    assert judged[0][3].run_code is False


def test_a_machine_that_cannot_keep_code_in_says_so(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    from nmke.ability import Isolation

    refused = Isolation(False, False, False, "Code is not run: no filter here.")
    monkeypatch.setattr("nmke.ability.sandbox.find_isolation", lambda: refused)
    page.multiselect(key="abilities.tasks").set_value(["humaneval"]).run()
    assert "cannot be measured here. Code is not run: no filter here." in page.error[0].value
    assert page.button(key="abilities.start").disabled


# ---- what goes wrong --------------------------------------------------------------------------------------------


def test_a_missing_harness_is_one_sentence_with_its_remedy(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise ResourceError("lm-eval is not installed.", "Install it with pip install lm-eval.")

    monkeypatch.setattr("nmke.ability.harness.harness_version", missing)
    page.run()
    assert page.error[0].value == "lm-eval is not installed. Install it with pip install lm-eval."
    assert page.button(key="abilities.start").disabled


def test_a_folder_that_is_not_there_is_one_sentence(page: AppTest) -> None:
    for path in ("/nowhere/at/all", "~nobody-has-this-name/x"):
        page.text_input(key="abilities.data").set_value(path).run()
        assert "There is no folder" in page.error[0].value
        assert page.button(key="abilities.start").disabled


def test_questions_that_cannot_be_found_leave_the_other_benchmarks_alone(
    edited: AppTest, judged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.ability import running

    quick = running.judge_abilities

    def judge(model: Any, config: AbilityConfig, *rest: Any) -> AbilityReport:
        if config.tasks == ("gsm8k",):
            raise ResourceError("The questions of GSM8K are nowhere.", "Name a folder with gsm8k_test.jsonl.")
        return quick(model, config, *rest)

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    edited.multiselect(key="abilities.tasks").set_value(["gsm8k", "commonsense_qa"]).run()
    measure(edited)
    assert [shown.value for shown in edited.error] == [
        "GSM8K on the model as loaded: The questions of GSM8K are nowhere. Name a folder with gsm8k\\_test.jsonl."
    ]
    assert table(edited, "McNemar p")["benchmark"].tolist() == ["CommonsenseQA"]


def test_an_unforeseen_failure_is_a_sentence_too(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*_: Any) -> AbilityReport:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    measure(page)
    assert "deep inside" in page.error[0].value
    assert not page.exception


def test_no_benchmark_is_said(page: AppTest) -> None:
    page.multiselect(key="abilities.tasks").set_value([]).run()
    assert "Choose at least one benchmark" in said(page)
    assert page.button(key="abilities.start").disabled


def test_an_unknown_subject_is_one_sentence(folder: Path, cache: Path, questions: Path) -> None:
    page = open_page("abilities", folder)
    page.text_input(key="abilities.data").set_value(str(questions)).run()
    page.text_area(key="abilities.form.subjects").set_value("alchemy").run()
    measure(page)
    assert "alchemy" in page.error[0].value
    assert "Nothing is measured yet" in said(page)


def test_a_cancelled_measurement_keeps_what_it_finished(
    edited: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def judge(
        model: Any, config: AbilityConfig, state: str = "", data: Any = None, progress: Progress | None = None
    ) -> AbilityReport:
        assert progress is not None
        if state:
            reached.set()
            assert go_on.wait(20)
            progress.update("asking", 1, QUESTIONS)
        return _report(model.weight_hash, state, config)

    monkeypatch.setattr("nmke.ability.running.judge_abilities", judge)
    edited.button(key="abilities.start").click().run()
    assert reached.wait(20)
    edited.run()
    assert table(edited, "formula")["model"].tolist() == ["the model as loaded"], "shown while it works"
    assert edited.button(key="abilities.start").disabled
    edited.button(key="cancel.here.abilities").click().run()
    go_on.set()
    wait(edited)
    assert "was cancelled. What it finished is kept" in said(edited)
    assert table(edited, "formula")["model"].tolist() == ["the model as loaded"]


def test_another_model_does_not_show_these_scores(page: AppTest, tmp_path: Path) -> None:
    from tests.tiny import make_tiny

    measure(page)
    before = state_of(page).settings
    other = open_page("abilities", make_tiny("llama", tmp_path / "other", seed=1))
    state_of(other).settings.update(before)
    other.run()
    assert "Nothing is measured yet" in said(other)


# ---- the real thing ---------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder with made-up questions of two benchmarks."""
    folder = tmp_path / "questions"
    folder.mkdir()
    mmlu = [
        {
            "subject": subject,
            "question": f"Which of these is the number {number}?",
            "choices": [str(number + step) for step in range(4)],
            "answer": 0,
        }
        for subject in ("high_school_biology", "college_chemistry")
        for number in range(6)
    ]
    common = [
        {
            "question": f"Where would one put {number} cups?",
            "choices": {"label": list("ABCDE"), "text": ["shelf", "sky", "sea", "song", "storm"]},
            "answerKey": "A",
        }
        for number in range(5)
    ]
    for name, records in (("mmlu_test", mmlu), ("mmlu_dev", mmlu[:1]), ("commonsense_qa_dev", common)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_real_benchmarks_of_a_folder_are_answered_before_and_after_and_then_taken_from_the_cache(
    folder: Path, cache: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.undo()
    monkeypatch.setenv("NMKE_HOME", str(cache))
    page = open_page("abilities", folder)
    _session(page).apply(_edit(0.5))
    page.run()
    page.multiselect(key="abilities.compared").set_value([f"session:{_session(page).digest}"])
    page.multiselect(key="abilities.tasks").set_value(["mmlu", "commonsense_qa"])
    page.text_input(key="abilities.data").set_value(str(questions))
    page.number_input(key="abilities.limit").set_value(4).run()
    page.button(key="abilities.start").click().run()
    wait(page, 240)
    assert not page.error
    changes, how = table(page, "McNemar p"), table(page, "formula")
    assert changes["benchmark"].tolist() == ["MMLU", "CommonsenseQA"]
    assert changes["n"].tolist() == [8, 4]
    assert how["cached"].tolist() == [False] * 4
    assert how["source of the questions"].str.contains("local folder").all()
    page.segmented_control(key="abilities.which").set_value("all questions").run()
    assert table(page, "right answer")["question"].str.contains("Which of these is the number").all()
    page.button(key="abilities.start").click().run()
    wait(page, 240)
    assert table(page, "formula")["cached"].tolist() == [True] * 4
    assert table(page, "McNemar p").equals(changes)


# ---- without a page ---------------------------------------------------------------------------------------------


def _results(
    state: str, label: str, tasks: tuple[str, ...] = ("mmlu",), limit: int = 8
) -> list[tables.Result]:
    return tables.split(_report("w", state, AbilityConfig(tasks=tasks, limit=limit)), label)


def test_the_change_is_that_of_the_questions_both_answered() -> None:
    before, after = _results("", "a")[0], _results("s", "b", limit=5)[0]
    found = tables.pair(before, after)
    assert (found.n, found.gained, found.lost) == (5, 1, 2)
    assert found.change[0] == pytest.approx(-0.2)
    assert found.change[1] <= found.change[0] <= found.change[2]


def test_a_state_measured_again_replaces_its_earlier_score() -> None:
    known = tables.keep([], _results("", "a"))
    known = tables.keep(known, _results("s", "b"))
    known = tables.keep(known, _results("", "a again"))
    assert [result.label for result in known] == ["b", "a again"]


def test_a_score_of_another_model_is_kept_beside() -> None:
    other = tables.split(_report("v", "", AbilityConfig()), "of another model")
    known = tables.keep(tables.keep([], other), _results("", "a"))
    assert [result.label for result in known] == ["of another model", "a"]


def test_answers_that_could_become_longer_are_not_compared() -> None:
    """Wherever they come from: measured here, or in a report of the command line."""
    plain, longer = (
        _report("w", "", AbilityConfig(tasks=("gsm8k",))),
        _report("w", "s", AbilityConfig(tasks=("gsm8k",))),
    )
    longer = replace(longer, scores=(replace(longer.scores[0], details={"longest_answer": 512}),))
    known = [*tables.split(plain, "a"), *tables.split(longer, "b")]
    assert [result.label for result in tables.newest(known)] == ["b"]


def test_benchmarks_keep_their_order_whatever_was_measured_first() -> None:
    known = [*_results("", "a", ("humaneval",)), *_results("", "a", ("gsm8k", "mmlu"))]
    assert [result.task for result in tables.newest(known)] == ["mmlu", "gsm8k", "humaneval"]


def test_files_hold_every_number_and_every_answer() -> None:
    known = [*_results("", "a"), *_results("s", "b")]
    found = tables.pairs(known, "", ["s"])
    numbers = tables.numbers_table(known, found)
    assert numbers["n"].tolist() == [8, 8]
    assert numbers["lost"].tolist()[1] == 2
    assert numbers["source"].tolist() == ["made-up questions"] * 2
    assert len(tables.answers_table(known)) == 16


def _rows(afters: int, tasks: int) -> list[drawing.Row]:
    ends = (0.3, 0.2, 0.4)
    return [
        drawing.Row(f"task {task}", 10, f"after {after}", ends, ends, (0.0, -0.1, 0.1), "p = 1.00", 0.25)
        for task in range(tasks)
        for after in range(afters)
    ]


@pytest.mark.parametrize(("afters", "tasks"), [(1, 1), (1, 5), (3, 5)])
def test_every_row_of_the_figure_has_a_place_of_its_own(afters: int, tasks: int) -> None:
    figure = drawing.dumbbells(_rows(afters, tasks), "as loaded")
    before = next(trace for trace in figure.data if trace.name == "as loaded")
    assert len(set(before.y)) == afters * tasks
    assert (
        min(abs(a - b) for a in before.y for b in before.y if a is not b and a != b) > 0.8
        if tasks > 1
        else True
    )
    named = [text for text in figure.layout.yaxis.ticktext]
    assert len(named) == (tasks * (afters + 1) if afters > 1 else tasks)


def test_a_benchmark_measured_on_one_state_alone_is_drawn_without_a_partner() -> None:
    known = [*_results("", "a", ("mmlu", "gsm8k")), *_results("s", "b")]
    found = tables.pairs(known, "", ["s"])
    rows = abilities_panels.rows_of(known, found, "")
    assert [(row.before is not None, row.after is not None) for row in rows] == [(True, True), (True, False)]
    assert len(drawing.dumbbells(rows, "a").data) > 0


def test_names_with_markup_are_drawn_as_they_are() -> None:
    rows = [
        drawing.Row("<b>x</b> & y", 10, "<i>z</i>", (0.3, 0.2, 0.4), (0.3, 0.2, 0.4), (0, 0, 0), "p = 1.00")
    ]
    figure = drawing.dumbbells(rows, "as loaded")
    assert figure.layout.yaxis.ticktext == ("&lt;b&gt;x&lt;/b&gt; &amp; y<br>n = 10",)


@pytest.mark.parametrize(
    ("event", "row"), [({"selection": {"rows": [3]}}, 3), ({"selection": {"rows": []}}, None), (None, None)]
)
def test_a_click_on_the_table_names_its_row(event: Any, row: int | None) -> None:
    assert abilities_questions.picked_row(event) == row


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"tasks": ("mmlu",), "limit": 10}, {"mmlu": 570}),
        ({"tasks": ("mmlu",), "limit": 10, "subjects": ("anatomy", "virology")}, {"mmlu": 20}),
        ({"tasks": ("bbh", "humaneval"), "limit": 200}, {"bbh": 5400, "humaneval": 164}),
        ({"tasks": ("gsm8k",)}, {"gsm8k": 1319}),
    ],
)
def test_questions_are_counted_before_they_are_asked(
    settings: dict[str, Any], counts: dict[str, int]
) -> None:
    assert work.questions_asked(AbilityConfig.make(**settings)) == counts


def test_every_benchmark_is_explained() -> None:
    assert set(tables.ABOUT) == set(TASKS) == set(TITLES) == set(work.SIZES)


def test_cancelling_between_states_is_passed_on(page: AppTest, judged: list[Any]) -> None:
    class Stop(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            raise Cancelled

    watched = work.Watched()
    with pytest.raises(Cancelled):
        work.measure(_session(page).model, [work.loaded()], AbilityConfig(), None, Stop(), watched)
    assert watched.results == []
