"""The Ablation page on a tiny real model."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import ablation_charts as drawing
from dashboard import ablation_results, ablation_tables, ablation_work, roles_work
from nmke.ablation import AblationResults, Condition, by_hand, save_set
from nmke.answers import Answered
from nmke.loading import load_model
from tests.app.working_app import open_page, said, state_of, wait
from tests.tiny import make_tiny, make_tiny_llama
from tests.unit.test_ablation import QUESTIONS, STRENGTHS, roles_with


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("ablation") / "llama")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(question.to_dict()) for question in QUESTIONS.questions))
    return file


@pytest.fixture
def open_ablation(folder: Path, cache: Path, questions: Path) -> Callable[[], AppTest]:
    """Opens the page, asking the short questions of a file."""

    def opened() -> AppTest:
        page = open_page("ablation", folder)
        state_of(page).settings["ablation.upload"] = str(questions)
        page.selectbox(key="ablation.questions").set_value("file").run()
        page.number_input(key="ablation.answers.written_tokens").set_value(2)
        page.number_input(key="ablation.config.controls").set_value(2)
        return page.run()

    return opened


@pytest.fixture
def page(open_ablation: Callable[[], AppTest]) -> AppTest:
    return open_ablation()


@pytest.fixture
def ablated(page: AppTest) -> AppTest:
    """The page after one ablation."""
    return press(page)


def press(page: AppTest) -> AppTest:
    page.button(key="ablation.start").click().run()
    wait(page)
    assert not page.error, [error.value for error in page.error]
    return page


def results_of(page: AppTest) -> AblationResults:
    """The newest kept results."""
    return AblationResults.load(ablation_results.results_folder() / ablation_results.list_results()[0])


def test_without_a_model_the_page_says_so_and_offers_the_way() -> None:
    page = open_page("ablation", None)
    assert any("No model" in info.value for info in page.info)
    assert page.button(key="go.model")


def test_before_pressing_the_page_says_what_will_be_done_and_how_long_it_takes(page: AppTest) -> None:
    assert "4 conditions × 50 questions: " in said(page)
    assert "Nothing is ablated yet" in said(page)
    assert "What breaks without them?" in page.header[0].value


def test_an_ablation_fills_bars_changes_question_and_files(ablated: AppTest) -> None:
    results = results_of(ablated)
    assert [one.name for one in results.conditions] == [
        "none",
        "general, k = 10",
        "general, k = 10, random 0",
        "general, k = 10, random 1",
    ]
    assert results.complete
    text = said(ablated)
    assert "Without ablation:" in text and "chance (25.0%, exact binomial p = " in text
    assert "**general, k = 10**:" in text and "against random neurons" in text
    assert "Done: general · k = 10" in text
    assert "the 10 strongest general neurons" in text.lower()
    assert ablated.selectbox(key="ablation.one.question").options
    for score in ("letters", "cloze", "written", "loss", "text_loss"):
        ablated.segmented_control(key="ablation.score").set_value(score).run()
        assert not ablated.exception and not ablated.error


def test_the_unablated_model_is_told_for_every_score_with_its_formula(ablated: AppTest) -> None:
    table = pd.DataFrame(ablated.table[0].value)
    assert list(table.index) == list(ablation_work.SCORE_TITLES.values())
    assert set(table.loc[["Letters", "Cloze", "Written"], "beats chance"]) <= {"yes", "no"}
    assert table["formula"].str.len().min() > 40


def test_any_question_is_shown_with_and_without_the_neurons(ablated: AppTest) -> None:
    results = results_of(ablated)
    box = ablated.selectbox(key="ablation.one.question")
    other = QUESTIONS.questions[4]
    box.set_value(other.id).run()
    ablated.selectbox(key="ablation.one.condition").set_value("general, k = 10, random 1").run()
    written = [element.value for element in ablated.code]
    for name in ("none", "general, k = 10, random 1"):
        answer = next(one for one in results.of(name) if one.question == other.id)
        assert (answer.written or "").strip("\n") in written or not answer.written
    assert any(text.value == other.text for text in ablated.text)
    assert any("random 1" in text.value for text in ablated.markdown)


def test_a_second_ablation_answers_only_what_is_new_and_stands_beside_the_first(
    ablated: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.answers import answer_questions

    asked: list[int] = []

    def counted(*arguments: Any, **more: Any) -> Any:
        asked.append(1)
        return answer_questions(*arguments, **more)

    monkeypatch.setattr("nmke.ablation.running.answer_questions", counted)
    ablated.slider(key="ablation.k").set_value(12).run()
    press(ablated)
    assert len(asked) == 3, "the set and two random sets; none was kept"
    assert len(ablated.multiselect(key="ablation.chosen").value) == 2
    text = said(ablated)
    assert "1: general · k = 12" in text and "2: general · k = 10" in text
    ablated.button(key="ablation.forget").click().run()
    assert len(ablation_results.list_results()) == 1
    assert not ablated.error


def test_kept_results_are_there_in_a_new_tab(ablated: AppTest, open_ablation: Callable[[], AppTest]) -> None:
    other = open_ablation()
    assert "**general, k = 10**:" in said(other)


def test_results_that_sound_alike_are_told_apart_and_never_shown_for_each_other(page: AppTest) -> None:
    page.segmented_control(key="ablation.source").set_value("By hand").run()
    page.number_input(key="ablation.config.controls").set_value(0)
    for text in ("1:5\n2:7", "1:6\n2:8"):
        page.text_area(key="ablation.text").set_value(text).run()
        press(page)
        page.segmented_control(key="ablation.score").set_value("loss").run()
    first, second = (AblationResults.load(path) for path in newest_last())
    assert first.answered == second.answered and first.identity != second.identity
    rows = [ablation_tables.loss_rows(one, "loss")["change"].tolist() for one in (first, second)]
    assert rows[0] != rows[1]
    assert state_of(page).kept.newest("ablation.losses")["change"].tolist() == rows[1]
    text = said(page)
    assert "1: by hand · k = 2 · layers 1 to 2 · 6 questions (2)" in text
    assert "2: by hand · k = 2 · layers 1 to 2 · 6 questions" in text


def newest_last() -> list[Path]:
    return [ablation_results.results_folder() / name for name in reversed(ablation_results.list_results())]


def test_results_without_the_score_are_named_and_not_numbered(page: AppTest) -> None:
    page.segmented_control(key="ablation.source").set_value("By hand").run()
    page.text_area(key="ablation.text").set_value("1:5").run()
    page.number_input(key="ablation.config.controls").set_value(0)
    for scores in (["cloze", "loss"], ["loss"], ["cloze"]):
        page.multiselect(key="ablation.scores").set_value(scores).run()
        press(page)
    kept = [path.name for path in newest_last()]
    page.multiselect(key="ablation.chosen").set_value([kept[0], kept[1], kept[2]]).run()
    page.segmented_control(key="ablation.score").set_value("cloze").run()
    text, title = said(page), ablation_results.title_of(results_of(page))
    assert f"1: {title}  \n2: {title} (3)" in text
    assert f"Without this score, so not drawn: {title} (2)." in text


def test_the_presets_set_k(page: AppTest) -> None:
    page.button(key="ablation.k.50").click().run()
    assert page.slider(key="ablation.k").value == 50
    page.button(key="ablation.k.10").click().run()
    assert page.slider(key="ablation.k").value == 10


def test_domains_tasks_mean_and_layers_can_be_chosen(page: AppTest) -> None:
    page.multiselect(key="ablation.roles").set_value(["inactive", "general"])
    page.slider(key="ablation.k").set_value(2)
    page.selectbox(key="ablation.config.how").set_value("mean")
    page.selectbox(key="ablation.config.counted").set_value("per layer")
    layers = next(str(box.key) for box in page.text_input if str(box.key).startswith("ablation.layers."))
    page.text_input(key=layers).set_value("1-2").run()
    press(page)
    results = results_of(page)
    assert {one.label for one in results.conditions} == {"none", "inactive", "general"}
    general = results.condition("general, k = 2 per layer")
    assert {layer: len(found) for layer, found in general.neurons.items()} == {1: 2, 2: 2}
    assert "by mean" in ablation_results.title_of(results)


def test_roles_found_with_other_edits_are_said_to_be(page: AppTest, folder: Path) -> None:
    roles = roles_with(load_model(str(folder), device="cpu"), STRENGTHS)
    for edits in ("", "other edits"):
        state_of(page).settings[roles_work.ASSIGNED] = replace(roles, edits=edits)
        page.run()
        assert "Roles of the Roles page: LPS over 6 questions." in said(page)
        assert ("with other edits in force than yours now" in said(page)) == bool(edits)


def test_neurons_of_facts_are_ablated_by_kind(page: AppTest) -> None:
    page.segmented_control(key="ablation.source").set_value("Facts").run()
    press(page)
    labels = [one.label for one in results_of(page).conditions if one.kind == "set"]
    assert labels == ["knowledge-general", "knowledge-specific"]


def test_neurons_are_named_by_hand(page: AppTest) -> None:
    page.segmented_control(key="ablation.source").set_value("By hand").run()
    page.text_area(key="ablation.text").set_value("1:5\n2:7").run()
    assert "2 neurons in 2 layers" in said(page)
    press(page)
    assert results_of(page).condition("by hand, k = 2").neurons == {1: (5,), 2: (7,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [("1:5\nfive", "names no neuron"), ("1:64", "neuron 64 of layer 1"), ("9:1", "layer 9")],
)
def test_lines_that_name_no_neuron_are_refused_at_once(page: AppTest, text: str, words: str) -> None:
    page.segmented_control(key="ablation.source").set_value("By hand").run()
    page.text_area(key="ablation.text").set_value(text).run()
    assert words in page.error[0].value
    assert page.button(key="ablation.start").disabled


def test_a_saved_set_of_another_model_is_refused(page: AppTest, folder: Path, tmp_path: Path) -> None:
    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=3)), device="cpu")
    for model, refused in ((other, True), (load_model(str(folder), device="cpu"), False)):
        save_set(by_hand(model, "1:5"), tmp_path / "set.json")
        text = ablation_work.text_of_file("set.json", (tmp_path / "set.json").read_bytes())
        page.segmented_control(key="ablation.source").set_value("By hand").run()
        page.text_area(key="ablation.text").set_value(text).run()
        assert any("chosen on another model" in error.value for error in page.error) == refused


def test_more_neurons_than_a_role_has_end_in_one_sentence_naming_the_largest(page: AppTest) -> None:
    page.multiselect(key="ablation.roles").set_value(["mixed"]).run()
    page.slider(key="ablation.k").set_value(128).run()
    page.button(key="ablation.start").click().run()
    wait(page)
    assert "neurons of the role “mixed”" in page.error[0].value


def test_nothing_chosen_is_said_and_cannot_be_started(page: AppTest) -> None:
    page.multiselect(key="ablation.roles").set_value([]).run()
    assert any("at least one role" in warning.value for warning in page.warning)
    assert page.button(key="ablation.start").disabled
    page.multiselect(key="ablation.roles").set_value(["general"]).run()
    page.multiselect(key="ablation.scores").set_value([]).run()
    assert any("at least one score" in warning.value for warning in page.warning)
    assert page.button(key="ablation.start").disabled


def test_a_bad_file_of_questions_is_one_sentence(page: AppTest, questions: Path) -> None:
    rows = [one.to_dict() for one in QUESTIONS.questions]
    rows[1]["answer"] = 9
    questions.write_text("\n".join(map(json.dumps, rows)))
    page.run()
    page.button(key="ablation.start").click().run()
    wait(page)
    assert "answer" in page.error[0].value


def test_the_dose_response_draws_a_curve_over_k(page: AppTest) -> None:
    press(page)
    page.text_input(key="ablation.doses").set_value("1, 2, x").run()
    assert "'x' is not a number" in page.error[0].value
    page.text_input(key="ablation.doses").set_value("1, 10, 3").run()
    page.button(key="ablation.dose.start").click().run()
    wait(page)
    results = results_of(page)
    assert {one.k for one in results.conditions if one.kind == "set"} == {1, 3, 10}
    assert state_of(page).kept.newest("ablation.dose") is not None
    assert not page.error


def cancel_at_the_second_condition(page: AppTest, monkeypatch: pytest.MonkeyPatch, button: str) -> AppTest:
    """Press a button, and cancel once two questions of the first set are answered; ends while these are shown."""
    from nmke.answers import answer_questions

    gate, second = threading.Event(), threading.Event()

    def slow(model: Any, questions: Any, config: Any, progress: Any, on_answered: Any, **more: Any) -> Any:
        if second.is_set():
            answer_questions(model, questions[:2], config, progress, on_answered, **more)
            gate.set()
            while True:
                progress.update("", 0, None)
                time.sleep(0.01)
        second.set()
        return answer_questions(model, questions, config, progress, on_answered, **more)

    monkeypatch.setattr("nmke.ablation.running.answer_questions", slow)
    page.button(key=button).click().run()
    assert gate.wait(60)
    return page.run()


def cancel(page: AppTest) -> AppTest:
    page.button(key="cancel.here.ablation").click().run()
    wait(page)
    assert "The ablation was cancelled" in said(page)
    return page


def test_answers_show_while_the_work_goes_on_and_a_cancel_keeps_them(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_at_the_second_condition(page, monkeypatch, "ablation.start")
    assert "**general, k = 10**:" in said(page), "two of its questions are answered"
    assert not page.error and not page.exception
    cancel(page)
    assert "**general, k = 10**:" in said(page), "what was answered stands there still"


def test_after_a_cancel_kept_results_can_be_looked_at_and_the_unfinished_ones_forgotten(
    ablated: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = ablation_results.list_results()
    ablated.number_input(key="ablation.limit").set_value(2).run()  # other questions: nothing of them is kept
    cancel(cancel_at_the_second_condition(ablated, monkeypatch, "ablation.start"))
    box = ablated.multiselect(key="ablation.chosen")
    assert box.value == ["unfinished", name], "the unfinished ones come first, beside what was shown before"
    assert box.options[0].startswith("unfinished: general · k = 10")
    assert ablated.selectbox(key="ablation.one.condition").options == ["general, k = 10"]
    box.set_value([name]).run()
    assert not ablated.error and not ablated.exception
    assert "general, k = 10, random 1" in ablated.selectbox(key="ablation.one.condition").options
    ablated.multiselect(key="ablation.chosen").set_value(["unfinished"]).run()
    assert ablated.selectbox(key="ablation.one.condition").options == ["general, k = 10"]
    ablated.button(key="ablation.forget").click().run()
    assert ablation_results.list_results() == [name], "nothing kept was removed"
    (left,) = ablated.multiselect(key="ablation.chosen").options
    assert left.startswith("general · k = 10"), "and the unfinished ones are not offered any more"


def test_an_error_of_the_engine_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("nmke.ablation.running.answer_questions", broken)
    page.button(key="ablation.start").click().run()
    wait(page)
    assert "memory ran out" in page.error[0].value


# ---- figures, without the page ----------------------------------------------------------------------------------


def test_bars_keep_their_order_intervals_and_colours() -> None:
    rows = [
        {"name": "none", "kind": "none", "label": "none", "k": 0, "value": 0.5, "low": 0.4, "high": 0.7},
        {
            "name": "general, k = 10",
            "kind": "set",
            "label": "general",
            "k": 10,
            "value": 0.2,
            "low": 0.1,
            "high": 0.3,
        },
        {
            "name": "random like it",
            "kind": "random",
            "label": "general",
            "k": 10,
            "value": 0.4,
            "low": 0.3,
            "high": 0.5,
        },
    ]
    table = pd.DataFrame(rows).assign(group="all", n=10, seeds=[[], [], [0.3, 0.5]])
    figure = drawing.bars(table, drawing.Scale("share", True, 0.25))
    assert [bar.name for bar in figure.data] == ["none", "general, k = 10", "random like it"]
    assert figure.data[1].error_y.array[0] == pytest.approx(0.1)
    assert figure.data[1].marker.color == figure.data[2].marker.color != figure.data[0].marker.color
    assert "each random set: 30.0%, 50.0%" in figure.data[2].customdata[0]


def test_a_score_without_questions_answered_has_no_sentence_of_effects() -> None:
    empty = AblationResults(QUESTIONS, (), {}, {"config": {"answers": {"scores": ["loss"]}}})
    assert ablation_tables.say_effects(empty, "loss") == []
    assert ablation_tables.say_unablated(empty, "loss") == "Nothing is answered yet."


def answers_of(chosen: list[int]) -> list[Answered]:
    asked = zip(QUESTIONS.questions, chosen, strict=False)
    return [
        Answered(one.id, one.subject, one.answer, 4, letters=(one.answer + off) % 4) for one, off in asked
    ]


def test_the_verdict_waits_for_all_questions_and_minds_every_random_set() -> None:
    names = ("mine, k = 1", "mine, k = 1, random 0", "mine, k = 1, random 1")
    conditions = (
        Condition("none", "none", "none", 0),
        Condition(names[0], "set", "mine", 1),
        *(Condition(name, "random", "mine", 1, seed) for seed, name in enumerate(names[1:])),
    )
    right, wrong = [0] * 6, [1] * 6
    about = {"config": {"answers": {"scores": ["letters"]}}}

    def said_of(*answered: list[int]) -> str:
        answers = {"none": answers_of(right)} | dict(zip(names, map(answers_of, answered), strict=True))
        results = AblationResults(QUESTIONS, conditions, answers, about)
        return ablation_tables.say_effects(results, "letters")[0]

    assert "**outside the random sets** (2)" in said_of(wrong, right, right)
    assert "not told apart from the random sets (2)" in said_of(wrong, right, wrong)
    early = said_of(wrong[:2], right[:2], right[:2])
    assert "random sets" not in early and "(so far, 2 of 6 questions)" in early


def test_the_page_and_its_views_do_not_import_torch() -> None:
    root = Path(__file__).parents[2]
    code = "import sys, dashboard.ablation_view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
    assert "torch" not in (root / "pages" / "ablation.py").read_text()
