"""The Edit page on a tiny real model, and the files its history writes."""

import io
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard import bundles
from dashboard.edit_history import history_table, zip_session
from dashboard.facts_report import answer_html, answer_table, say_score
from nmke.edit import Edit, WeightPatch
from nmke.errors import ResourceError, SessionError
from nmke.methods import methods
from nmke.methods.nmke import NMKE
from nmke.presets import _Verified
from nmke.session import EditSession
from tests.app.working_app import FACTS, TEXT, open_page, said, state_of, wait
from tests.tiny import make_tiny_llama
from tests.tiny_encoder import make_tiny_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("edit") / "llama")


@pytest.fixture
def page(folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page before any edit; the statistics text is a local one."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join([TEXT] * 60), encoding="utf-8")
    monkeypatch.setattr("nmke.texts.default_corpus", lambda progress: text)
    encoder = make_tiny_encoder(tmp_path / "encoder")
    monkeypatch.setattr("nmke.encoder.fetch_encoder", lambda name, progress: encoder)
    return open_page("edit", folder)


@pytest.fixture
def edited(page: AppTest) -> AppTest:
    """The page after one applied edit."""
    page.button(key="edit.apply").click().run()
    return wait(page)


def _session(page: AppTest) -> EditSession:
    session = state_of(page).edit_session
    assert session is not None
    return session


def _patch() -> WeightPatch:
    return WeightPatch(0, torch.full((64, 1), 0.01), torch.ones(1, 32))


def test_without_a_model_the_page_says_so() -> None:
    page = open_page("edit", None)
    assert any("No model" in info.value for info in page.info)


def test_before_an_edit_every_tab_says_what_comes_there(page: AppTest) -> None:
    text = said(page)
    assert "No edit is in force" in text
    assert "No edit yet" in text
    assert page.button(key="edit.undo").disabled


def test_the_preset_says_whether_it_was_measured(page: AppTest) -> None:
    assert "Guessed for this model" in page.warning[0].value


def test_a_further_preset_is_chosen_beside_the_method(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _session(page).model
    shape = (model.n_layers, model.d_model, model.d_mlp, model.d_vocab)
    found = _Verified({"layers": (1,), "ridge": 7.0}, "Measured in a test.")
    monkeypatch.setattr("nmke.presets._MORE", {("nmke", "careful", *shape): found})
    page.run()
    (choice,) = [box for box in page.selectbox if box.label == "Preset"]
    choice.set_value("careful").run()
    assert "Verified for this model. Measured in a test." in page.success[0].value
    page.button(key="edit.apply").click().run()
    page = wait(page)
    assert _session(page).edits[0].config["ridge"] == 7.0
    page.selectbox(key="edit.method").set_value("alphaedit").run()
    assert not [box for box in page.selectbox if box.label == "Preset"]


@pytest.mark.parametrize("name", [name for name in sorted(methods()) if name != "nmke"])
def test_every_other_method_has_its_form_and_applies_from_it(page: AppTest, name: str) -> None:
    page.selectbox(key="edit.method").set_value(name).run()
    assert not page.exception
    page.button(key="edit.apply").click().run()
    page = wait(page)
    assert not page.exception
    if name == "mend":
        assert "no trained editor" in said(page)  # test_edit_mend.py trains one
        return
    if name == "kn" and not _session(page).version:
        assert "share no neuron" in said(page)
        return
    assert _session(page).version == 1
    table = history_table(_session(page))
    assert table["method"].tolist() == [methods()[name].title]
    assert table["seconds"][0] > 0
    if name == "nse" and not _session(page).edits[0].patches:
        assert "It changed nothing" in said(page)  # its bound is for models whose outputs are larger
        return
    assert table["layers"][0]


def test_an_edit_is_applied_and_shown_before_and_after(edited: AppTest) -> None:
    assert _session(edited).version == 1
    assert "Applied: the model is now at edit version 1" in said(edited)
    scores = {str(line.value).split(" ")[0]: line for line in edited.markdown if line.help}
    assert {"Reliability", "Generalization", "Locality", "Portability"} <= set(scores)
    assert "follow from the edit" in scores["Portability"].help
    assert "teacher forcing" in scores["Reliability"].help
    report = state_of(edited).settings["edit.results"][_session(edited).digest].reports[0]
    answers = answer_table(report)
    assert answers["what"].tolist() == ["edit prompt", "paraphrase", "neighbour", "conclusion"]
    assert answers["wanted"].tolist()[-1] == "France"
    assert answers["answer before"].iloc[-1] == report.before.portability_continuations[0] != ""
    assert answers["answer after"].iloc[-1] == report.after.portability_continuations[0]
    assert "Conclusions follow from the new answer" in said(edited)
    changes = next(table.value for table in edited.dataframe if "parameters" in table.value)
    assert changes["neurons"].tolist() == [patch.neurons for patch in _session(edited).edits[0].patches]
    assert "Null space kept:" in said(edited)
    assert not edited.error


def test_an_edit_that_is_text_in_front_is_shown_as_that_text(page: AppTest) -> None:
    page.selectbox(key="edit.method").set_value("ike").run()
    page.button(key="edit.apply").click().run()
    page = wait(page)
    assert "It changed no weight: the edit is a set of demonstrations" in said(page)
    (shown,) = [each.value for each in page.code if "New Fact:" in each.value]
    assert shown.endswith("Prompt: ▸The capital of France is")
    assert "New Fact: The capital of France is Rome\nPrompt: The capital of France is Rome" in shown
    session = _session(page)
    assert session.prompt is not None and session.prompt.front(FACTS[0].prompt) in shown
    report = state_of(page).settings["edit.results"][session.digest].reports[0]
    assert report.before.new.log_probability != report.after.new.log_probability
    assert history_table(session)["layers"].tolist() == ["none (text in front)"]
    assert "tokens in front" in said(page) and not page.error
    page.button(key="edit.verify").click().run()
    assert "the same in every bit" in page.success[0].value
    page.button(key="edit.undo").click().run()
    assert not any("New Fact:" in each.value for each in page.code)


def test_an_edit_whose_encoder_is_gone_says_so_instead_of_its_text(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str, progress: object) -> Path:
        raise ResourceError("The sentence encoder is not here.", "Fetch it again.")

    page.selectbox(key="edit.method").set_value("serac").run()
    page.button(key="edit.apply").click().run()
    page = wait(page)
    monkeypatch.setattr("nmke.encoder.fetch_encoder", gone)
    page.run()
    assert not page.exception
    assert any("The sentence encoder is not here" in error.value for error in page.error)


def test_undo_says_that_it_was_exact_and_redo_brings_the_edit_back(edited: AppTest) -> None:
    digest = _session(edited).digest
    edited.button(key="edit.undo").click().run()
    assert _session(edited).version == 0
    assert "bit-exact" in edited.success[0].value
    edited.button(key="edit.redo").click().run()
    assert _session(edited).digest == digest
    assert "Reliability" in said(edited), "the measures of the version come back"


def test_undoing_everything_can_be_checked(edited: AppTest) -> None:
    edited.button(key="edit.verify").click().run()
    assert "the same in every bit" in edited.success[0].value
    assert _session(edited).version == 1


def test_several_facts_are_one_edit(page: AppTest) -> None:
    key = next(str(box.key) for box in page.multiselect if str(box.key).startswith("edit.facts."))
    page.multiselect(key=key).set_value([0, 1, 2]).run()
    page.button(key="edit.apply").click().run()
    wait(page)
    assert _session(page).version == 1
    assert len(_session(page).edits[0].facts) == 3
    assert history_table(_session(page))["facts"].tolist() == ["France → Rome, Spain → London, cat → woof"]


def test_any_prompt_is_answered_by_both_models(edited: AppTest) -> None:
    edited.text_input(key="edit.prompt").set_value("A dog says")
    next(button for button in edited.button if button.label == "Answer with both").click().run()
    assert [text.value.startswith("A dog says") for text in edited.text] == [True, True]
    assert not edited.error


@pytest.mark.parametrize(
    ("name", "value", "words"), [("layers", "7", "layers 0 to 3"), ("layers", "x", "layer")]
)
def test_bad_layers_are_one_sentence_and_nothing_can_be_applied(
    page: AppTest, name: str, value: str, words: str
) -> None:
    box = next(box for box in page.text_input if str(box.key).endswith(f".{name}"))
    box.set_value(value).run()
    assert words in page.error[0].value
    assert page.button(key="edit.apply").disabled


def test_low_above_high_is_one_sentence(page: AppTest) -> None:
    box = next(box for box in page.number_input if str(box.key).endswith(".mask.general_low"))
    box.set_value(0.9).run()
    assert "above" in page.error[0].value
    page.button(key="edit.reset").click().run()
    assert not page.error


def test_no_fact_chosen_is_said(page: AppTest) -> None:
    key = next(str(box.key) for box in page.multiselect if str(box.key).startswith("edit.facts."))
    page.multiselect(key=key).set_value([]).run()
    assert "Choose at least one fact" in said(page)
    assert page.button(key="edit.apply").disabled


def test_cancelling_changes_nothing(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(self: NMKE, session: Any, facts: Any, config: Any, progress: Any) -> None:
        while True:
            progress.update("optimising z", 0, 25)
            time.sleep(0.01)

    monkeypatch.setattr(NMKE, "plan", endless)
    page.button(key="edit.apply").click().run()
    page.button(key="cancel.side.edit").click().run()
    text = said(page)
    wait(page)
    assert "Cancelled" in text + said(page)
    assert _session(page).version == 0


def test_an_edit_planned_on_another_version_is_not_applied(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, real = threading.Event(), NMKE.plan

    def waiting(self: NMKE, session: Any, facts: Any, config: Any, progress: Any) -> Edit:
        go_on.wait(30)
        return real(self, session, facts, config, progress)

    monkeypatch.setattr(NMKE, "plan", waiting)
    page.button(key="edit.apply").click().run()
    _session(page).apply(Edit("test", {}, FACTS[:1], (_patch(),), {0: torch.ones(64, 1)}))
    go_on.set()
    wait(page)
    assert "was not applied" in said(page)
    assert _session(page).version == 1


def test_edits_without_measures_can_be_measured(page: AppTest) -> None:
    _session(page).apply(Edit("test", {}, FACTS[:1], (_patch(),), {0: torch.ones(64, 1)}))
    page.run()
    assert "were not measured" in said(page)
    page.button(key="edit.measure").click().run()
    wait(page)
    assert "Reliability" in said(page)


def test_saved_edits_are_loaded_again_and_another_models_are_refused(
    edited: AppTest, folder: Path, tmp_path: Path
) -> None:
    from nmke.bundle import load_session
    from nmke.loading import load_model
    from tests.tiny import make_tiny

    session = _session(edited)
    data = zip_session(session)
    again, exact = bundles.with_unzipped(data, lambda at: load_session(session.model, at))
    assert exact
    assert again.digest == session.digest
    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(SessionError, match="made for"):
        bundles.with_unzipped(data, lambda at: load_session(other, at))


# ---- files ------------------------------------------------------------------------------------------------------


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no readable zip"),
        (b"no zip at all", "no readable zip"),
        (_zip(), "empty"),
        (_zip(**{"model.pkl": b"x"}), "model.pkl"),
        (_zip(**{"../session.json": b"{}"}), "session.json"),
        (_zip(**{"/etc/session.json": b"{}"}), "session.json"),
    ],
)
def test_a_file_that_is_no_bundle_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(SessionError, match=words):
        bundles.with_unzipped(data, lambda at: None)


def test_a_bundle_zipped_with_its_folder_is_found() -> None:
    data = _zip(**{"edits/session.json": b"{}"})
    assert bundles.with_unzipped(data, lambda at: (at / "session.json").is_file())


def test_answers_are_escaped() -> None:
    table = pd.DataFrame([("<script>", "a & b")], columns=["answer before", "answer after"])
    shown = answer_html(table)
    assert "<script>" not in shown
    assert "a &amp; b" in shown


@pytest.mark.parametrize(("value", "shown"), [(None, "–"), (0.0, "0%"), (1.0, "100%"), (0.5, "0.50")])
def test_scores_have_the_digits_they_deserve(value: float | None, shown: str) -> None:
    assert say_score(value) == shown


def test_the_spectrum_is_thinned_for_drawing(edited: AppTest) -> None:
    measured = next(iter(state_of(edited).settings["edit.results"].values()))
    for values in measured.spectrum.eigenvalues.values():
        assert len(values) <= 300
        assert np.all(np.diff(values) <= 0)
