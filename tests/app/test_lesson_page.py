"""The Lesson page on a tiny real model: every step, its reveal, previous and next; and its sentences alone."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard import lesson_charts, lesson_html, lesson_parts
from dashboard import lesson_findings as findings
from dashboard import lesson_words as words
from nmke.ablation import AblationResults, Condition
from nmke.answers import Answered
from nmke.edit import Edit, WeightPatch
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.progress import Silent
from nmke.questions import Question, QuestionSet
from tests.app.working_app import FACTS, open_page, said, state_of, wait
from tests.tiny import make_tiny_gpt2, make_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("lesson") / "llama")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four short questions of each of three subjects, and fewer doses; what is computed stays the same."""
    questions = QuestionSet(
        tuple(
            Question(f"{subject}/{number}", subject, text, ("Paris", "Rome", "the boat", "woof"), number % 4)
            for subject in ("high_school_biology", "college_biology", "high_school_chemistry")
            for number, text in enumerate(("The capital of", "A dog says", "A cat says", "The river is"))
        ),
        "a test",
    )
    monkeypatch.setattr("nmke.questions.load_questions", lambda *_, **__: questions)
    monkeypatch.setattr(lesson_parts, "DOSES", (1, 3, 10))
    monkeypatch.setattr(lesson_parts, "WRITTEN_TOKENS", 3)
    monkeypatch.setattr(lesson_parts, "SEEDS", 2)


@pytest.fixture
def page(folder: Path, cache: Path) -> AppTest:
    return open_page("lesson", folder)


@pytest.fixture
def prepared(page: AppTest) -> AppTest:
    """Every step's picture is computed."""
    page.button(key="lesson.all").click().run()
    return healthy(wait(page, 120))


def healthy(page: AppTest) -> AppTest:
    assert not page.exception
    assert [error.value for error in page.error] == []
    return page


def forward(page: AppTest, step: int) -> AppTest:
    """Press Next until the step is there."""
    while f"Step {step} of 6" not in progress_of(page):
        page.button(key="lesson.next").click().run()
        healthy(page)
    return page


def progress_of(page: AppTest) -> str:
    return " ".join(str(bar.proto.text) for bar in page.get("progress"))


def part(page: AppTest, name: str) -> Any:
    return state_of(page).kept.newest(f"lesson.part.{name}")


def test_without_a_model_the_lesson_offers_to_load_the_default_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("dashboard.engine.start_loading", asked.append)
    page = open_page("lesson", None)
    assert "No model is loaded" in said(page)
    assert page.button(key="go.model")
    page.button(key="lesson.load").click().run()
    assert [key.spec for key in asked] == ["smollm2-135m"]


def test_previous_and_next_walk_through_six_steps(page: AppTest) -> None:
    assert "Step 1 of 6" in progress_of(page)
    assert page.button(key="lesson.previous").disabled
    for step in range(1, 7):
        assert f"Step {step} of 6: {words.TITLES[step]}" in progress_of(page)
        assert words.INTRO[step] in said(page)
        assert words.QUESTIONS[step] in said(page)
        assert page.button(key=f"lesson.reveal.{step}").disabled, "nothing is computed yet"
        if step < 6:
            healthy(page.button(key="lesson.next").click().run())
    assert page.button(key="lesson.next").disabled
    healthy(page.button(key="lesson.previous").click().run())
    assert "Step 5 of 6" in progress_of(page)


@pytest.mark.parametrize("step", range(1, 7))
def test_every_step_computes_what_it_needs_when_nothing_was_shown_before(page: AppTest, step: int) -> None:
    forward(page, step)
    page.button(key=f"lesson.show.{step}").click().run()
    healthy(wait(page, 120))
    assert not [button for button in page.button if button.key == f"lesson.show.{step}"]
    assert page.get("plotly_chart")
    assert not page.button(key=f"lesson.reveal.{step}").disabled


def test_every_step_reveals_its_answer_on_a_click_and_hides_it_again(prepared: AppTest) -> None:
    for step in range(1, 7):
        forward(prepared, step)
        before = said(prepared)
        healthy(prepared.button(key=f"lesson.reveal.{step}").click().run())
        assert len(said(prepared)) > len(before) + 40
        healthy(prepared.button(key=f"lesson.reveal.{step}").click().run())
        assert said(prepared) == before


def test_the_steps_say_what_was_computed(prepared: AppTest, folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    glimpse, today, found = (part(prepared, name) for name in ("glimpse", "today", "roles"))
    assert words.say_pusher(glimpse, glimpse.best_layer) in said(prepared)
    assert glimpse.activations[0].shape == (model.d_mlp,)
    forward(prepared, 2)
    right = sum(bool(one.right("letters")) for one in today.answers)
    assert f"By letters **{right}** of {len(today.questions)} are right" in said(prepared)
    forward(prepared, 3)
    assert f"Of {model.n_layers * model.d_mlp:,} neurons" in said(prepared)
    assert found.k == min(10, found.main.count)


def test_switched_off_means_the_neurons_rows_are_zero(prepared: AppTest, folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    today, off = part(prepared, "today"), part(prepared, "off")
    stored = {}
    for layer, neurons in off.condition.neurons.items():
        matrix = model.W_out(layer).clone()
        matrix[list(neurons)] = 0
        stored[layer] = model.as_stored(layer, matrix)
    with model.weights_in(stored):
        for question in lesson_parts.few_of(today.questions):
            tokens, nats = lesson_parts.token_losses(model, question)
            assert tokens == off.texts[question.id][0]
            assert nats == pytest.approx(off.texts[question.id][1], abs=1e-4)
    before = next(iter(today.texts.values()))[1]
    assert before != pytest.approx(next(iter(off.texts.values()))[1], abs=1e-4), "the neurons did nothing"


def test_the_control_has_random_sets_of_the_same_size_in_the_same_layers(prepared: AppTest) -> None:
    controls = part(prepared, "controls")
    main = controls.conditions[1]
    random = [one for one in controls.conditions if one.kind == "random"]
    assert len(random) == 2
    for one in random:
        assert {layer: len(found) for layer, found in one.neurons.items()} == {
            layer: len(found) for layer, found in main.neurons.items()
        }
        assert not {(x, n) for x, found in one.neurons.items() for n in found} & {
            (x, n) for x, found in main.neurons.items() for n in found
        }
    forward(prepared, 5)
    for score in findings.SCORES:
        prepared.segmented_control(key="lesson.score.5").set_value(score).run()
        healthy(prepared)
        results = lesson_parts.results_of(part(prepared, "today"), controls)
        assert findings.say_control(results, part(prepared, "roles"), score) in said(prepared)


def test_the_dose_slider_says_what_that_many_do(prepared: AppTest) -> None:
    forward(prepared, 6)
    results = lesson_parts.results_of(part(prepared, "today"), part(prepared, "doses"))
    for k in (1, 3):
        prepared.select_slider(key="lesson.k").set_value(k).run()
        assert findings.say_dose(results, k, "text_loss") in said(healthy(prepared))


def test_switched_on_again_the_answers_are_those_of_step_2_to_the_bit(prepared: AppTest) -> None:
    forward(prepared, 6)
    prepared.button(key="lesson.again").click().run()
    healthy(wait(prepared))
    assert part(prepared, "again") == part(prepared, "today").few
    assert "equal to the last bit" in said(prepared)


def test_no_part_is_computed_twice(prepared: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(lesson_parts, "make", again)
    for step in range(1, 7):
        forward(prepared, step)
        assert not [button for button in prepared.button if button.key == f"lesson.show.{step}"]


def test_a_cancel_keeps_what_was_finished_and_leaves_the_model_as_it_was(
    page: AppTest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, make = threading.Event(), lesson_parts.switch_off

    def slow(model: Any, today: Any, found: Any, progress: Any) -> Any:
        make(model, today, found, progress)
        gate.set()
        while True:
            progress.update("waiting", 0, None)
            time.sleep(0.01)

    monkeypatch.setattr(lesson_parts, "switch_off", slow)
    forward(page, 4)
    page.button(key="lesson.show.4").click().run()
    assert gate.wait(60)
    healthy(page.run())
    assert "The picture appears here" in said(page)
    page.button(key="cancel.here.lesson").click().run()
    healthy(wait(page))
    assert "Cancelled. What was finished before is kept" in said(page)
    assert part(page, "today") and part(page, "roles") and part(page, "off") is None
    monkeypatch.setattr(lesson_parts, "switch_off", make)
    page.button(key="lesson.show.4").click().run()
    healthy(wait(page))
    assert page.get("plotly_chart")


def test_an_error_of_the_engine_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(lesson_parts, "look_at_fact", broken)
    page.button(key="lesson.show.1").click().run()
    wait(page)
    assert "memory ran out" in page.error[0].value


def test_edits_of_the_session_do_not_reach_the_lesson(page: AppTest, folder: Path) -> None:
    mine = state_of(page)
    model = load_model(str(folder), device="cpu")
    plain = lesson_parts.look_at_fact(model, Silent())
    patch = WeightPatch(1, torch.ones(model.d_mlp, 1), torch.ones(1, model.d_model))
    assert mine.edit_session is not None, "the sidebar has made one"
    mine.edit_session.apply(Edit("test", {}, FACTS[:1], (patch,), {1: torch.ones(model.d_mlp, 1)}))
    page.run()
    assert "Your edits are left out here" in said(page)
    page.button(key="lesson.show.1").click().run()
    healthy(wait(page))
    assert part(page, "glimpse").following == plain.following
    with mine.edit_session.active():
        edited = lesson_parts.look_at_fact(mine.edit_session.model, Silent())
    assert edited.following != plain.following, "the edit changes nothing, so this shows nothing"


def test_a_model_that_fails_the_gate_is_refused(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page("lesson", folder)
    mine = state_of(page)
    from dashboard import engine

    assert mine.model_key is not None
    model = engine.holder().get(mine.model_key, mine.owner)
    assert model is not None
    failed = replace(
        model.conformance, checks=tuple(replace(one, passed=False) for one in model.conformance.checks)
    )
    monkeypatch.setattr(model, "conformance", failed)
    page.run()
    assert "The lesson would show wrong numbers" in page.error[0].value
    assert not [button for button in page.button if str(button.key).startswith("lesson.show")]


def test_another_architecture_walks_through_the_whole_lesson(tmp_path: Path, cache: Path) -> None:
    page = open_page("lesson", make_tiny_gpt2(tmp_path / "gpt2"))
    page.button(key="lesson.all").click().run()
    healthy(wait(page, 120))
    for step in range(1, 7):
        forward(page, step)
        healthy(page.button(key=f"lesson.reveal.{step}").click().run())


# ---- sentences, without the page ------------------------------------------------------------------------------------


def told(right: int, beats: bool, **more: Any) -> dict[str, Any]:
    return {
        "right": right, "n": 48, "value": right / 48, "low": 0.1, "high": 0.9, "chance": 0.25,
        "p_value": 0.001 if beats else 0.5, "beats": beats, "one_answer": 0.5, "best_constant": 0.25, **more,
    }  # fmt: skip


def test_what_the_model_can_do_is_said_for_all_four_outcomes() -> None:
    assert "Both are better" in words.say_today(told(30, True), told(30, True))
    assert "By letters the model is **not measurably better" in words.say_today(
        told(12, False), told(30, True)
    )
    assert "by cloze not measurably" in words.say_today(told(30, True), told(12, False))
    assert "**Neither is measurably better" in words.say_today(told(12, False), told(11, False))


def test_a_model_that_always_says_one_letter_is_told_so() -> None:
    assert "same letter to 100%" in words.say_die(told(12, False, one_answer=1.0), told(30, True))
    assert "same letter" not in words.say_die(told(12, False), told(30, True))
    assert "depends on how it is asked" not in words.say_die(told(30, True), told(30, True))


def glimpse_of(pushes: list[float], token: str = " Rome") -> lesson_parts.Glimpse:
    row = np.array(pushes, dtype=np.float32)
    fact = Fact("The capital of Italy is", "Italy", "Vienna", "Rome")
    return lesson_parts.Glimpse(fact, ((token, 0.5),), {0: row}, {0: row}, {0: ("a",)})


def test_one_neuron_stands_out_many_do_a_little_or_none_does() -> None:
    assert words.say_one_neuron(glimpse_of([0.2] * 20)).endswith("Many neurons each do a little.")
    assert "one stands out" in words.say_one_neuron(glimpse_of([3.0, 0.02] + [0.0] * 20))
    assert "No neuron alone" in words.say_one_neuron(glimpse_of([0.001] * 20))
    assert "no neuron by itself" in words.say_pusher(glimpse_of([-0.1] * 20), 0)


def test_the_next_word_is_compared_with_the_facts_answer() -> None:
    assert "which is right" in words.say_next(glimpse_of([0.1]))
    assert "and not with Rome" in words.say_next(glimpse_of([0.1], " Paris"))


def test_a_token_cannot_become_markdown() -> None:
    assert words.plain(" **x**") == "\\*\\*x\\*\\*"


def results(none: list[float], off: list[float], random: list[float]) -> AblationResults:
    """Losses of the same questions with everything on, without the set, and without a random one."""
    neurons = {0: (1,)}
    conditions = (
        Condition("none", "none", "none", 0),
        Condition("general, k = 1", "set", "general", 1, None, neurons),
        Condition("general, k = 1, random 0", "random", "general", 1, 0, {0: (2,)}),
    )
    questions = QuestionSet(
        tuple(Question(f"q{n}", "biology", "What?", ("a", "b"), 0) for n in range(len(none))), "a test"
    )
    answers = {
        one.name: tuple(
            Answered(f"q{n}", "biology", 0, 2, cloze=int(loss > 3), loss=loss, text_loss=loss)
            for n, loss in enumerate(losses)
        )
        for one, losses in zip(conditions, (none, off, random), strict=True)
    }
    return AblationResults(
        questions, conditions, answers, {"config": {"answers": {"scores": ["cloze", "loss"]}}}
    )


class FoundLike:
    """What the sentences read of the roles."""

    k = 1
    subject = None

    class main:
        label = "general"


LOSSES = [1.0, 2.0, 1.5, 2.5] * 4


def test_the_control_sentence_follows_the_paired_numbers() -> None:
    found: Any = FoundLike()
    worse = results(LOSSES, [loss + 1 for loss in LOSSES], LOSSES)
    assert "more harm than random ones" in findings.say_control(worse, found, "text_loss")
    better = results(LOSSES, [loss - 0.5 for loss in LOSSES], LOSSES)
    assert "less harm than random ones" in findings.say_control(better, found, "text_loss")
    alike = results(LOSSES, [loss + 1 for loss in LOSSES], [loss + 1 for loss in LOSSES])
    assert "no more than random ones" in findings.say_control(alike, found, "text_loss")
    assert "would have fooled us" in findings.say_why_random(alike, "text_loss")
    assert "Here it is not zero" in findings.say_why_random(worse, "text_loss")


def test_lost_answers_are_claimed_only_when_chance_does_not_explain_them() -> None:
    many = results(LOSSES, [9.0] * 16, LOSSES)
    assert "16 lost, 0 gained. Fewer than chance explains" in findings.say_lost(many)
    one = results(LOSSES, [9.0, *LOSSES[1:]], LOSSES)
    assert "no more than chance makes of it" in findings.say_lost(one)


def test_the_dose_sentence_compares_with_as_many_random_ones() -> None:
    worse = results(LOSSES, [loss + 1 for loss in LOSSES], LOSSES)
    assert "measurably worse. That differs from what as many random ones do" in findings.say_dose(
        worse, 1, "text_loss"
    )
    same = results(LOSSES, LOSSES, LOSSES)
    assert "no measurable change. That does not measurably differ from what" in findings.say_dose(
        same, 1, "text_loss"
    )


def test_answers_that_differ_by_one_bit_are_not_called_equal() -> None:
    one = Answered("q", "biology", 0, 2, letters_logp=(-1.0, -2.0), loss=1.0, text_loss=2.0, written="a")
    other = replace(one, loss=float(np.nextafter(1.0, 2.0)))
    assert "to the last bit" in findings.say_again([one], [one])
    assert findings.say_again([one], [other]).startswith("1 of 5")


@pytest.mark.parametrize(
    ("low", "high", "score", "verdict"),
    [
        (0.1, 0.3, "loss", "measurably worse"),
        (-0.3, -0.1, "loss", "measurably better"),
        (-0.3, -0.1, "cloze", "measurably worse"),
        (-0.1, 0.3, "cloze", "no measurable change"),
    ],
)
def test_a_change_is_measurable_when_its_interval_leaves_out_zero(
    low: float, high: float, score: str, verdict: str
) -> None:
    assert findings.verdict({"low": low, "high": high}, score) == verdict


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert [findings.signed(value) for value in (-0.001, 0.001, -0.2)] == ["+0.00", "+0.00", "-0.20"]


def test_a_wide_layer_is_drawn_by_the_extreme_of_each_cell() -> None:
    values = np.zeros(14336, dtype=np.float32)
    values[7000] = -5.0
    figure = lesson_charts.activations(values, 7000)
    assert len(figure.data[0].x) <= 768
    assert min(figure.data[0].y) == -5.0


def test_questions_too_long_for_the_model_are_left_out(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    long = Question("long", "biology", "word " * 400, ("a", "b"), 0)
    short = Question("short", "biology", "A dog says", ("a", "b"), 0)
    kept = lesson_parts.fitting(model, QuestionSet((long, short), "a test"))
    assert [question.id for question in kept.questions] == ["short"]


def test_the_page_and_its_views_do_not_import_torch() -> None:
    root = Path(__file__).parents[2]
    code = "import sys, dashboard.lesson_view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
    assert "torch" not in (root / "pages" / "lesson.py").read_text()


def test_what_the_model_writes_is_escaped_and_nothing_is_said_as_nothing() -> None:
    shown = lesson_html.written(
        [("Which <b>?", "a & b")], {"it writes": ["<script>x</script>"], "now": ["  "]}
    )
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "Which &lt;b&gt;?" in shown and "(nothing)" in shown


def test_what_was_learned_is_claimed_only_from_where_it_shows() -> None:
    class Roles:
        @staticmethod
        def totals() -> dict[str, int]:
            return {"general": 1, "domain": 2, "task": 2, "mixed": 0, "inactive": 5}

    found: Any = FoundLike()
    found.roles = Roles
    harmed = " ".join(findings.say_learned(results(LOSSES, [loss + 5 for loss in LOSSES], LOSSES), found))
    assert "not most of the active neurons" in harmed
    assert "Already with 1 of the general neurons off" in harmed and "lost with 1 of them off" in harmed
    alike = " ".join(findings.say_learned(results(LOSSES, LOSSES, LOSSES), found))
    assert "not measurably read worse" in alike and "does not measurably fall" in alike


def test_the_changes_are_drawn_from_zero_each_with_its_paired_interval() -> None:
    rows = findings.control_changes(results(LOSSES, [loss + 1 for loss in LOSSES], LOSSES), "loss")
    assert [row["name"] for row in rows] == ["general", "random set 0"]
    figure = lesson_charts.changes(rows, "change", share=False)
    assert figure.data[0].x[0] == pytest.approx(1.0) and figure.data[1].x[0] == 0
    assert figure.data[0].error_x.array[0] == pytest.approx(rows[0]["high"] - 1)
    points = lesson_charts.changes([{**rows[0], "value": 0.5, "low": 0.4, "high": 0.6}], "change", share=True)
    assert points.data[0].x[0] == 50
