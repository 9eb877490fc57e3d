"""The Drift page on a tiny real model: the map, its settings, and what it says when nothing can be drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard import drift_work
from dashboard.drift_panels import norm_table
from dashboard.drift_work import View, guess_seconds
from nmke.drift.words import WARNING
from nmke.edit import Edit, WeightPatch
from nmke.errors import DriftError
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.methods.side_memory import SideMemory
from nmke.session import EditSession
from tests.app.working_app import open_page, said, state_of, wait
from tests.tiny import make_tiny, make_tiny_llama

FACT = Fact("The capital of France is", "France", "Rome", "Paris")
FORM = "drift.form"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("drift") / "llama")


def edit_of(layers: tuple[int, ...], neurons: tuple[int, ...], masked: bool = False) -> Edit:
    left = torch.zeros(64, 1)
    left[list(neurons)] = 0.5
    patches = tuple(WeightPatch(layer, left, torch.ones(1, 32)) for layer in layers)
    masks = {layer: (left[:, 0] != 0).float() for layer in layers} if masked else {}
    return Edit("memit", {}, (FACT,), patches, {}, masks, {"total": 1.0})


def apply(page: AppTest, edit: Edit) -> AppTest:
    """Put an edit in force in the page's browser session."""
    from dashboard import engine

    mine = state_of(page)
    assert mine.model_key is not None
    if mine.edit_session is None:
        model = engine.holder().get(mine.model_key, mine.owner)
        assert model is not None
        mine.edit_session = EditSession(model)
    mine.edit_session.apply(edit)
    return page.run()


@pytest.fixture
def empty(folder: Path, cache: Path) -> AppTest:
    return open_page("drift", folder)


@pytest.fixture
def page(empty: AppTest) -> AppTest:
    """One edit in force, quick settings."""
    apply(empty, edit_of((1, 2), (0, 3), masked=True))
    empty.number_input(key=f"{FORM}.perplexity").set_value(5.0)
    empty.number_input(key=f"{FORM}.components").set_value(8)
    empty.number_input(key=f"{FORM}.iterations").set_value(300).run()
    return empty


@pytest.fixture
def drawn(page: AppTest) -> AppTest:
    page.button(key="drift.draw").click().run()
    return wait(page)


def newest(page: AppTest) -> View:
    view: View = list(state_of(page).settings["drift.views"].values())[-1]
    return view


def test_without_a_model_the_page_says_so() -> None:
    page = open_page("drift", None)
    assert any("No model" in info.value for info in page.info)


def test_without_edits_the_page_says_so_and_leads_to_edit(empty: AppTest) -> None:
    assert any("no edits yet" in info.value for info in empty.info)
    assert empty.button(key="go.edit").label == "Write an edit"
    assert not empty.error


def test_before_pressing_the_page_gives_an_estimate(page: AppTest) -> None:
    assert "up to 128 points" in said(page)
    assert page.selectbox(key="drift.layer").options == ["1", "2"]


def test_drawing_shows_the_map_its_settings_the_warning_and_the_norms(drawn: AppTest) -> None:
    text = said(drawn)
    assert "all 64 neurons, 128 points" in text
    assert "seed 0, perplexity 5, 8 PCA components" in text
    assert WARNING in text
    assert "turned by at most" in text
    view = newest(drawn)
    assert view.request.layer == 1
    table = norm_table(list(view.numbers.at(1)))
    assert table["measure"].tolist()[:2] == ["change, share of the norm", "neurons untouched"]
    assert table.iloc[1, 1] == "96.9%"
    assert not drawn.error
    assert drawn.button(key="drift.draw").disabled  # this very view is on the screen


def test_another_layer_measures_nothing_again_and_says_what_is_still_shown(
    drawn: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.selectbox(key="drift.layer").set_value(2).run()
    assert any("drawn before: layer 1" in warning.value for warning in drawn.warning)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("nmke.drift.results.measure_drift", never)
    drawn.button(key="drift.draw").click().run()
    wait(drawn)
    assert newest(drawn).request.layer == 2
    drawn.selectbox(key="drift.layer").set_value(1).run()
    assert newest(drawn).request.layer == 1
    assert not drawn.warning


def test_arrows_slider_and_mask_redraw_without_embedding(
    drawn: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("nmke.drift.embedding.draw_map", never)
    before = state_of(drawn).kept.newest("drift.map")
    assert [trace["name"] for trace in before["data"]][:2] == ["original", "from original to edited"]
    drawn.toggle(key="drift.arrows").set_value(False).run()
    drawn.slider(key="drift.share").set_value(0.0).run()
    after = state_of(drawn).kept.newest("drift.map")
    assert [trace["name"] for trace in after["data"]] == ["original", "edited"]
    drawn.segmented_control(key="drift.colour").set_value("mask").run()
    masked = state_of(drawn).kept.newest("drift.map")
    assert [trace["name"] for trace in masked["data"]] == ["original", "in a mask", "in no mask"]
    assert not drawn.error


def test_kinds_that_become_known_later_are_drawn(page: AppTest) -> None:
    apply(page, edit_of((2,), (7,), masked=True))
    page.multiselect(key="drift.versions").set_value(["own 2", "own 1"]).run()
    page.selectbox(key="drift.layer").set_value(2).run()
    page.button(key="drift.draw").click().run()
    wait(page)
    first, second = (choice.key for choice in newest(page).choices)
    kinds = state_of(page).settings.setdefault("drift.kinds", {})
    kinds[first] = {2: np.array(["general"] * 64)}
    page.segmented_control(key="drift.colour").set_value("kind").run()
    kinds[second] = {2: np.array(["specific"] * 64)}
    page.run()
    shown = {trace["name"] for trace in state_of(page).kept.newest("drift.map")["data"]}
    assert {"general", "specific"} <= shown


def test_edits_exchanged_while_a_view_waits_are_not_drawn_in_its_place(folder: Path) -> None:
    session = EditSession(load_model(str(folder), device="cpu"))
    session.apply(edit_of((1,), (2,)))
    (choice,) = drift_work._own(session)
    make = drift_work._maker(choice, session, session.model.weight_hash)
    assert make().layers == (1,)
    session.undo()
    session.apply(edit_of((2,), (5,)))
    with pytest.raises(DriftError, match="changed while"):
        make()


def test_two_versions_stand_beside_each_other(page: AppTest) -> None:
    apply(page, edit_of((2,), (7,)))
    page.multiselect(key="drift.versions").set_value(["own 2", "own 1"]).run()
    page.selectbox(key="drift.layer").set_value(2).run()
    page.button(key="drift.draw").click().run()
    wait(page)
    assert newest(page).drawn.labels == ("Version 2: MEMIT, 2 facts", "Version 1: MEMIT, 1 fact")
    assert newest(page).drawn.points == 3 * 64
    assert not page.error


def test_a_version_that_left_the_layer_alone_is_said(page: AppTest) -> None:
    apply(page, edit_of((3,), (7,)))
    page.multiselect(key="drift.versions").set_value(["own 2", "own 1"]).run()
    page.selectbox(key="drift.layer").set_value(3).run()
    assert any("did not change the weights of layer 3" in info.value for info in page.info)


def test_an_undone_version_leaves_the_choice(drawn: AppTest) -> None:
    session = state_of(drawn).edit_session
    assert session is not None
    session.undo()
    drawn.run()
    assert any("no edits yet" in info.value for info in drawn.info)
    session.redo()
    drawn.run()
    assert not drawn.error
    assert not drawn.exception


@pytest.mark.parametrize("sample", [5, 4])
def test_a_perplexity_larger_than_the_sample_is_refused_with_the_remedy(page: AppTest, sample: int) -> None:
    page.number_input(key=f"{FORM}.sample").set_value(sample).run()
    assert any(f"too large for {sample} neurons" in error.value for error in page.error)
    assert any("larger sample" in error.value for error in page.error)
    assert page.button(key="drift.draw").disabled
    page.button(key="drift.reset").click().run()
    assert not page.error


def test_no_version_chosen_is_one_sentence(page: AppTest) -> None:
    page.multiselect(key="drift.versions").set_value([]).run()
    assert any("Choose at least one version" in info.value for info in page.info)
    assert not page.error


def test_edits_that_only_put_modules_beside_the_weights_are_said(empty: AppTest) -> None:
    patch = SideMemory(2, {"trained": torch.zeros(64, 32), "threshold": torch.ones(1)}, {"edits": 1})
    apply(empty, Edit("wise", {}, (FACT,), (), {}, {}, {"total": 1.0}, modules=(patch,)))
    assert any("changed no weights" in info.value for info in empty.info)
    assert not empty.error


def test_saved_edits_can_be_opened_by_their_folder(empty: AppTest, folder: Path, tmp_path: Path) -> None:
    session = EditSession(load_model(str(folder), device="cpu"))
    session.apply(edit_of((1,), (2,)))
    session.save(tmp_path / "saved")
    empty.text_input(key="drift.folder").set_value(str(tmp_path / "saved")).run()
    empty.button(key="drift.open").click().run()
    wait(empty)
    assert empty.multiselect(key="drift.versions").value
    assert "MEMIT, 1 fact" in str(empty.multiselect(key="drift.versions").options)
    empty.text_input(key="drift.folder").set_value(str(tmp_path / "nowhere")).run()
    empty.button(key="drift.open").click().run()
    wait(empty)
    assert any("There is no folder" in error.value for error in empty.error)


def test_another_models_edits_are_refused(empty: AppTest, tmp_path: Path) -> None:
    session = EditSession(load_model(str(make_tiny("llama", tmp_path / "other", seed=1)), device="cpu"))
    session.apply(edit_of((1,), (2,)))
    session.save(tmp_path / "saved")
    empty.text_input(key="drift.folder").set_value(str(tmp_path / "saved")).run()
    empty.button(key="drift.open").click().run()
    wait(empty)
    assert any("was made for" in error.value for error in empty.error)


def test_a_cancel_leaves_the_page_usable(page: AppTest) -> None:
    from dashboard import jobs

    page.number_input(key=f"{FORM}.iterations").set_value(10000).run()
    page.button(key="drift.draw").click().run()
    mine = state_of(page)
    jobs.registry().cancel(mine.owner, mine.job_ids["drift"])
    wait(page)
    assert not page.button(key="drift.draw").disabled
    assert not page.error


def test_the_estimate_grows_with_points_and_iterations() -> None:
    assert guess_seconds(3072, 1000) < 30
    assert guess_seconds(2 * 14336, 1000) > guess_seconds(3072, 1000)
    assert guess_seconds(3072, 2000) > guess_seconds(3072, 1000)


def test_the_page_needs_no_torch_before_a_model_is_loaded() -> None:
    code = "import dashboard.drift_view, sys; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip().splitlines()[-1] == "False"
