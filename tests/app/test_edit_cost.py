"""What the edits cost at inference, on the Edit page."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.working_app import TEXT, open_page, said, state_of, wait
from tests.tiny import make_tiny_llama
from tests.tiny_encoder import make_tiny_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("cost") / "llama")


def edited_by(folder: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    text = tmp_path / "text.txt"
    text.write_text("\n".join([TEXT] * 60), encoding="utf-8")
    monkeypatch.setattr("nmke.texts.default_corpus", lambda progress: text)
    encoder = make_tiny_encoder(tmp_path / "encoder")
    monkeypatch.setattr("nmke.encoder.fetch_encoder", lambda name, progress: encoder)
    page = open_page("edit", folder)
    page.selectbox(key="edit.method").set_value(method).run()
    page.button(key="edit.apply").click().run()
    return wait(page)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ft-m", "no parameter and no time more"),
        ("grace", "which is asked at every token"),
        ("ike", "set of demonstrations stands in front of texts"),
    ],
)
def test_the_kind_of_edit_and_its_measured_cost_are_told(
    folder: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    words: str,
) -> None:
    page = edited_by(folder, method, tmp_path, monkeypatch)
    assert words in said(page)
    page.button(key="edit.cost").click().run()
    page = wait(page)
    assert not page.exception and not page.error
    shown = measured(page)
    session = state_of(page).edit_session
    there = [*session.modules.values(), *([session.prompt] if session.prompt else [])]
    assert shown["extra parameters"] == f"{sum(each.n_parameters for each in there):,}"
    assert ("tokens in front of a prompt" in shown) == (method == "ike")
    assert float(shown["milliseconds a token, edited"]) > 0
    assert "mean over 12 pairs of passes" in said(page)
    page.button(key="edit.undo").click().run()
    assert measured(page) == {}, "the cost was that of edits which are no longer in force"


def measured(page: AppTest) -> dict[str, str]:
    tables = [frame.value for frame in page.dataframe if list(frame.value.columns) == ["cost", "measured"]]
    return dict(zip(tables[0]["cost"], tables[0]["measured"], strict=True)) if tables else {}
