"""MEND on the Edit page: untrained it is refused with the command that trains it, trained it edits."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from nmke.loading import load_model
from nmke.methods.mend_training import train_editor, training_for
from nmke.progress import Silent
from tests.app.working_app import open_page, state_of, wait
from tests.tiny import make_tiny_llama
from tests.tiny_editors import FACTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("edit") / "llama")


@pytest.fixture
def page(folder: Path, cache: Path) -> AppTest:
    page = open_page("edit", folder)
    page.selectbox(key="edit.method").set_value("mend").run()
    return page


def test_an_untrained_editor_is_a_message_with_the_command_and_no_traceback(
    page: AppTest, folder: Path
) -> None:
    page.button(key="edit.apply").click().run()
    wait(page)
    assert not page.exception
    errors = "\n".join(str(error.value) for error in page.error)
    assert "MEND has no trained editor for" in errors and "Traceback" not in errors
    assert f"nmke train mend --model {folder} --data zsre_train.jsonl" in errors.replace("\\", ""), errors
    session = state_of(page).edit_session
    assert session is None or session.version == 0


def test_a_trained_editor_edits_from_the_same_form(page: AppTest, folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    config = training_for(model).changed(steps=3, accumulate=1, held_out=0)
    train_editor(model, FACTS, config, Silent())
    page.button(key="edit.apply").click().run()
    wait(page)
    session = state_of(page).edit_session
    assert session is not None and session.version == 1
    assert session.edits[0].method == "mend" and session.edits[0].layers == (1, 2, 3)
