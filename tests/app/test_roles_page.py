"""The Roles page on a tiny real model, with a file of questions, and its figures and sentences without a page."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import roles_charts
from dashboard.charts import KIND_COLOURS
from dashboard.roles_work import Asked, guess_seconds, say_counts, say_stability, stale_reasons
from nmke.attribution import AttributionConfig
from nmke.roles import ROLES, RolesConfig, assign_roles
from tests.app.working_app import open_page, said, state_of, wait
from tests.tiny import make_tiny_llama
from tests.unit.test_roles import TASKS, made_scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("roles") / "llama")


def lines(**changes: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"subject": task, "question": f"Is the cat {n}?", "choices": ["yes", "no"], "answer": n % 2}
        for task in TASKS[:3]
        for n in range(5)
    ]
    rows[0] = {**rows[0], **changes}
    return rows


def upload(page: AppTest, rows: list[dict[str, Any]]) -> AppTest:
    page.selectbox(key="roles.source").set_value("file").run()
    data = "\n".join(json.dumps(row) for row in rows).encode()
    return page.file_uploader[0].set_value(("mine.jsonl", data, "text/plain")).run()


@pytest.fixture
def page(folder: Path, cache: Path) -> AppTest:
    """The page with questions chosen, before anything is scored."""
    shown = upload(open_page("roles", folder), lines())
    shown.selectbox(key="roles.form.form").set_value("cloze").run()
    return shown


@pytest.fixture
def found(page: AppTest) -> AppTest:
    """The page with every question scored by activations."""
    page.selectbox(key="roles.score.kind").set_value("mpc").run()
    page.button(key="roles.find").click().run()
    return wait(page)


def _roles(page: AppTest) -> Any:
    return state_of(page).settings["roles.assigned"]


def test_without_a_model_the_page_says_so_and_offers_the_way(cache: Path) -> None:
    page = open_page("roles", None)
    assert any("No model" in info.value for info in page.info)
    assert page.button(key="go.model")


def test_before_pressing_the_page_says_what_will_happen_and_how_long_it_takes(page: AppTest) -> None:
    text = said(page)
    assert "Nothing is scored yet" in text
    assert "3 × 100 questions × 4 layers" in text
    assert not page.button(key="roles.find").disabled


def test_finding_the_roles_fills_charts_tables_and_words(found: AppTest) -> None:
    text = said(found)
    assert not found.error
    assert sum(_roles(found).totals().values()) == 4 * 64
    assert "keep their role" in text
    assert "seed 0" in text
    assert "mine.jsonl" in text
    assert "General: active in every task" in text
    assert "active on a question: the score is among the layer's top q".lower() in text.lower()


@pytest.mark.parametrize("kind", ["lps", "psa"])
def test_every_score_can_be_chosen(page: AppTest, kind: str) -> None:
    page.selectbox(key="roles.score.kind").set_value(kind).run()
    page.button(key="roles.find").click().run()
    wait(page)
    assert _roles(page).config.attribution.kind == kind
    assert "Tokens followed most" in said(page)


def test_moving_a_slider_assigns_anew_and_never_scores(
    found: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _roles(found)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a slider scored")

    monkeypatch.setattr("nmke.roles.scores.score_layers", never)
    found.slider(key="roles.rule.top_share").set_value(0.4).run()
    after = _roles(found)
    assert after.totals()["inactive"] < before.totals()["inactive"]
    found.button(key="roles.reset").click().run()
    assert _roles(found).totals() == before.totals()
    assert not found.error


def test_the_sign_test_shows_its_own_settings(found: AppTest) -> None:
    found.selectbox(key="roles.rule.rule").set_value("sign test").run()
    assert _roles(found).config.rule == "sign test"
    assert not [box for box in found.slider if box.key == "roles.rule.top_share"]
    found.selectbox(key="roles.rule.correction").set_value("none").run()
    assert not found.error
    assert "correction for many tests: none" in said(found)


def test_a_rule_by_which_nobody_is_active_is_a_sentence(found: AppTest) -> None:
    found.selectbox(key="roles.rule.rule").set_value("sign test").run()
    found.select_slider(key="roles.rule.level").set_value(0.0001).run()
    assert _roles(found).totals()["inactive"] == 256
    assert "no neuron is active in any task" in said(found)
    assert not found.error


def test_the_strongest_of_one_role_are_listed_with_what_they_raise(found: AppTest) -> None:
    table = next(frame.value for frame in found.dataframe if "raises" in frame.value)
    assert set(table["role"]) <= set(ROLES) - {"inactive"}
    assert (table["raises"].str.len() > 0).all()
    found.segmented_control(key="roles.role").set_value("general").run()
    found.toggle(key="roles.per_layer").set_value(True).run()
    table = next(frame.value for frame in found.dataframe if "raises" in frame.value)
    assert set(table["role"]) == {"general"}
    assert not found.error


def test_both_settings_of_the_rule_can_be_swept(found: AppTest) -> None:
    found.segmented_control(key="roles.sweep").set_value("top_share").run()
    assert not found.error
    assert "steep" in said(found)


def test_other_questions_make_the_roles_stale(found: AppTest) -> None:
    found.number_input(key="roles.limit").set_value(3).run()
    assert "questions on the left changed" in found.warning[0].value


def test_the_same_roles_again_come_from_the_cache(found: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _roles(found)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("nmke.roles.files.score_questions", never)
    found.button(key="roles.find").click().run()
    wait(found)
    assert not found.error
    assert _roles(found).totals() == before.totals()


def test_cancelling_keeps_what_was_there(found: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _roles(found)

    def endless(model: Any, questions: Any, layers: Any, config: Any, progress: Any, edits: str) -> None:
        while True:
            progress.update("scoring", 0, 4)
            time.sleep(0.01)

    monkeypatch.setattr("nmke.roles.score_once", endless)
    found.number_input(key="roles.limit").set_value(3).run()
    found.button(key="roles.find").click().run()
    found.button(key="cancel.side.roles").click().run()
    text = said(found)
    wait(found)
    assert _roles(found) is before
    assert "Cancelled" in text + said(found)


def test_an_error_of_the_engine_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("nmke.roles.score_once", broken)
    page.button(key="roles.find").click().run()
    wait(page)
    assert "memory ran out" in page.error[0].value


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choices": ["yes", ""]}, "Choice B is missing"),
        ({"choices": None}, "choices are missing"),
        ({"answer": 5}, "out of range"),
    ],
)
def test_a_bad_question_is_a_sentence_that_names_its_row(
    folder: Path, cache: Path, changes: dict[str, Any], words: str
) -> None:
    page = upload(open_page("roles", folder), lines(**changes))
    if not page.button(key="roles.find").disabled:
        page.button(key="roles.find").click().run()
        wait(page)
    assert words in page.error[0].value
    assert "ow 1" in page.error[0].value


def test_an_empty_file_is_a_sentence(folder: Path, cache: Path) -> None:
    page = open_page("roles", folder)
    page.selectbox(key="roles.source").set_value("file").run()
    page.file_uploader[0].set_value(("mine.jsonl", b"\n", "text/plain")).run()
    assert page.error[0].value
    assert page.button(key="roles.find").disabled


def test_one_subject_is_too_few(page: AppTest) -> None:
    box = next(one for one in page.multiselect if str(one.key).startswith("roles.subjects."))
    box.set_value([TASKS[0]]).run()
    assert "at least two subjects" in page.warning[0].value
    assert page.button(key="roles.find").disabled


def test_questions_that_do_not_fit_the_model_are_a_sentence(folder: Path, cache: Path) -> None:
    page = upload(open_page("roles", folder), lines(question="long " * 400))
    page.button(key="roles.find").click().run()
    wait(page)
    assert "longer than the 256 tokens" in page.error[0].value


def test_a_layer_out_of_range_is_one_sentence(page: AppTest) -> None:
    box = next(one for one in page.text_input if str(one.key).startswith("roles.layers."))
    box.set_value("2-9").run()
    assert "layers 0 to 3" in page.error[0].value
    assert page.button(key="roles.find").disabled


# ---- figures and sentences ------------------------------------------------------------------------------------------


def _made(resamples: int = 20) -> Any:
    scores = made_scores()
    return assign_roles(scores, scores.config.changed(resamples=resamples))


def test_every_role_has_a_colour_of_its_own_and_inactive_is_grey() -> None:
    assert set(roles_charts.ROLE_COLOURS) == set(ROLES)
    assert len(set(roles_charts.ROLE_COLOURS.values())) == len(ROLES)
    assert roles_charts.ROLE_COLOURS["inactive"] == KIND_COLOURS["none"] == "#DDDDDD"


def test_the_bars_of_a_layer_add_up_to_its_neurons() -> None:
    roles = _made()
    figure = roles_charts.stacked(roles.stability.layers, whole=True)
    assert sum(sum(bar.y) for bar in figure.data) == 80
    assert [bar.name for bar in figure.data] == list(roles_charts.ORDER)
    assert len(roles_charts.stacked(roles.counts(), whole=False).data) == 4


@pytest.mark.parametrize("resamples", [0, 20])
def test_the_overlaps_show_every_active_combination_with_its_tasks_dotted(resamples: int) -> None:
    roles = _made(resamples)
    table = roles.overlaps()
    figure = roles_charts.upset(table, roles.tasks, {task: task for task in roles.tasks})
    shown = table[table["tasks"].map(len) > 0].head(roles_charts.MOST_COMBINATIONS)
    assert list(figure.data[0].y) == shown["count"].tolist()
    assert (figure.data[0].error_y.array is not None) == bool(resamples)
    for combination, dots in zip(shown["tasks"], figure.data[2:], strict=False):
        assert [roles.tasks[place] for place in dots.y] == sorted(combination, key=roles.tasks.index)


def test_counts_are_shown_with_intervals_only_where_the_questions_were_drawn_anew() -> None:
    assert {"from", "to", "same neurons"} <= set(say_counts(_made()).columns)
    assert "from" not in say_counts(_made(0)).columns
    assert "No resampling" in say_stability(_made(0))
    assert "20 times (seed 0)" in say_stability(_made())


def _asked(**changes: Any) -> Asked:
    values: dict[str, Any] = {
        "weight_hash": "a",
        "edit_key": 0,
        "edit_version": 0,
        "source": "mmlu",
        "subjects": TASKS,
        "limit": 100,
        "seed": 0,
        "layers": tuple(range(30)),
        "config": RolesConfig(),
    }
    return Asked(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "said_so"),
    [
        ({}, ""),
        ({"edit_key": 1, "edit_version": 2}, "of edit version 0, you are at version 2"),
        ({"edit_key": 1}, "another one than when"),
        ({"seed": 1}, "questions on the left changed"),
        ({"layers": (1,), "limit": 3}, "questions and layers on the left changed"),
        ({"config": RolesConfig(form="cloze")}, "score settings on the left changed"),
        ({"config": RolesConfig(top_share=0.4)}, ""),
    ],
)
def test_what_makes_roles_stale_is_said(changes: dict[str, Any], said_so: str) -> None:
    reasons = "; ".join(stale_reasons(_asked(), _asked(**changes)))
    assert said_so in reasons
    assert bool(reasons) == bool(said_so)


def test_the_estimate_grows_with_the_work() -> None:
    class Model:
        n_parameters, d_mlp, d_model, device = 134_515_008, 1536, 576, "cpu"

    model: Any = Model()
    mpc = RolesConfig(attribution=AttributionConfig(kind="mpc"))
    assert guess_seconds(model, _asked(config=mpc)) < guess_seconds(model, _asked())
    assert guess_seconds(model, _asked(limit=10)) < guess_seconds(model, _asked())


def test_an_empty_sweep_row_draws() -> None:
    swept = pd.DataFrame({"value": [0.1] * 5, "role": ROLES, "count": [5, 4, 3, 2, 1]})
    figure = roles_charts.sweep(swept, title="top share q", now=0.1)
    assert [line.name for line in figure.data] == list(roles_charts.ORDER[:-1])


def test_the_page_and_its_views_do_not_import_torch() -> None:
    code = "import sys, dashboard.roles_view; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
    assert "torch" not in (root / "pages" / "roles.py").read_text()
