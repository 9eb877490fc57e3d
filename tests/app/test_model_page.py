"""Which model, and will it work here? The whole page on a tiny random Llama."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import engine
from tests.app.conftest import clean, finish, go, load, name_model, state_of, words

Open = Callable[[], AppTest]


def test_the_first_page_asks_its_question_and_offers_the_known_model(app: AppTest) -> None:
    clean(app)
    assert app.header[0].value == "Which model, and will it work here?"
    assert "SmolLM2 135M Instruct" in app.selectbox(key="model.spec").options[0]
    assert app.sidebar.markdown[0].value == "**No model loaded**"
    assert app.toggle(key="model.trust").value is False


@pytest.mark.parametrize("page", ["facts", "neurons", "edit"])
def test_every_page_opens_without_a_model(app: AppTest, page: str) -> None:
    clean(go(app, page))


def test_loading_a_folder_shows_the_card_and_the_ticks(app: AppTest, tiny_llama: Path) -> None:
    clean(load(app, tiny_llama))
    text = words(app)
    assert "4 × 64" in text
    assert "All 5 conformance checks passed" in text
    assert text.count(":material/check_circle:") == 5
    assert app.sidebar.markdown[0].value == "**tiny-llama**"
    assert "No edit yet" in [caption.value for caption in app.sidebar.caption]


def test_memory_needed_against_free_is_shown_before_loading(app: AppTest, tiny_llama: Path) -> None:
    name_model(app, tiny_llama)
    engine.libraries.warm_up().join(60)
    app.run()
    assert "needed of" in words(app)
    assert engine.holder().get(engine.ModelKey(str(tiny_llama)), state_of(app).owner) is None


def test_next_goes_to_the_facts(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    clean(app.button(key="model.next").click().run())
    assert app.header[0].value == "What shall be known?"


def test_unload_frees_the_model(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    model = engine.holder().get(engine.ModelKey(str(tiny_llama)), state_of(app).owner)
    assert model is not None
    clean(app.button(key="model.unload").click().run())
    assert app.sidebar.markdown[0].value == "**No model loaded**"
    assert not hasattr(model, "bridge")


def test_a_folder_that_is_no_model_gets_one_sentence_and_the_model_stays(
    app: AppTest, tiny_llama: Path, tmp_path: Path
) -> None:
    load(app, tiny_llama)
    (tmp_path / "empty").mkdir()
    name_model(app, tmp_path / "empty")
    assert not app.exception
    assert len(app.error) == 1
    assert "is no model: it has no config.json" in app.error[0].value
    assert app.button(key="model.load").disabled
    assert app.sidebar.markdown[0].value == "**tiny-llama**"


def test_only_pickled_weights_are_refused_with_the_remedy(
    app: AppTest, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}")
    name_model(app, folder)
    engine.libraries.warm_up().join(60)
    app.run()
    assert "has only pickled weights" in app.error[0].value
    assert "safe_serialization=True" in app.error[0].value


def test_a_truncated_gguf_fails_with_a_sentence(app: AppTest, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    load(app, file)
    assert not app.exception
    assert len(app.error) == 1
    assert "Traceback" not in app.error[0].value
    assert app.sidebar.markdown[0].value == "**No model loaded**"


def test_a_broken_load_keeps_the_earlier_model(app: AppTest, tiny_llama: Path, tmp_path: Path) -> None:
    load(app, tiny_llama)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_llama.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    load(app, broken)
    assert not app.exception
    assert app.error
    assert app.sidebar.markdown[0].value == "**tiny-llama**"


def test_trusting_code_warns_and_holds_for_one_load_only(app: AppTest, tiny_llama: Path) -> None:
    name_model(app, tiny_llama)
    app.toggle(key="model.trust").set_value(True).run()
    assert "will run Python code" in app.warning[0].value
    app.button(key="model.load").click().run()
    clean(finish(app))
    assert state_of(app).model_key == engine.ModelKey(str(tiny_llama), trust_remote_code=True)
    assert app.toggle(key="model.trust").value is False


def test_two_visitors_share_the_model_and_not_the_edits(new_app: Open, tiny_llama: Path) -> None:
    first, second = new_app(), new_app()
    load(first, tiny_llama)
    load(second, tiny_llama)
    mine, yours = state_of(first), state_of(second)
    assert mine.edit_session is not None
    assert yours.edit_session is not None
    assert mine.edit_session is not yours.edit_session
    assert mine.edit_session.model is yours.edit_session.model
    first.button(key="model.unload").click().run()
    assert "when the other open tabs unload it too" in words(first)
    clean(second.run())
    assert second.sidebar.markdown[0].value == "**tiny-llama**"


def test_a_load_can_be_cancelled_and_leaves_nothing(
    app: AppTest, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nmke.loading
    from nmke.progress import Progress

    def endless(spec: str, *, progress: Progress, **options: object) -> None:
        while True:
            progress.update("loading weights", 1, 4)

    monkeypatch.setattr(nmke.loading, "load_model", endless)
    name_model(app, tiny_llama)
    app.button(key="model.load").click().run()
    assert app.button(key="model.load").disabled
    app.button(key="cancel.side.load").click().run()
    finish(app)
    assert not app.exception
    assert "Cancelled; nothing was changed." in words(app)
    assert app.sidebar.markdown[0].value == "**No model loaded**"
    assert not app.button(key="model.load").disabled


def test_an_unforeseen_error_is_one_sentence(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("something odd")

    monkeypatch.setattr(engine, "known_models", broken)
    app.run()
    assert not app.exception
    assert "failed unexpectedly (RuntimeError: something odd)" in app.error[0].value
