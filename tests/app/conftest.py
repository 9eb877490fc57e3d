"""The dashboard in Streamlit's test harness, on a tiny random model, with an empty cache folder of its own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard import jobs
from dashboard.state import AppState
from tests.tiny import make_tiny

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
WAIT = 120.0


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama."""
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def new_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], AppTest]]:
    """Opens browser sessions on one server."""
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))
    st.cache_resource.clear()
    st.cache_data.clear()
    yield lambda: AppTest.from_file(str(APP), default_timeout=60).run()
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def app(new_app: Callable[[], AppTest]) -> AppTest:
    """One browser session, on the Model page."""
    return new_app()


def state_of(at: AppTest) -> AppState:
    """What that browser session has so far."""
    kept: AppState = at.session_state["nmke.state"]
    return kept


def finish(at: AppTest) -> AppTest:
    """Wait until no job of that browser session is running, then let the page take what ended."""
    mine = state_of(at)
    limit = time.monotonic() + WAIT
    while any(
        (shown := jobs.registry().view(mine.owner, job)) is not None and shown.active
        for job in mine.job_ids.values()
    ):
        assert time.monotonic() < limit, "the job did not end"
        time.sleep(0.05)
    return at.run() if mine.job_ids else at


def go(at: AppTest, page: str) -> AppTest:
    """Open a page by its key: model, facts, neurons, edit."""
    return at.switch_page(f"../pages/{page}.py").run()


def name_model(at: AppTest, folder: Path | str) -> AppTest:
    """Type a path into the model field; the harness itself only knows the options that are listed."""
    field = at.selectbox(key="model.spec")
    field.options.append(str(folder))
    return field.set_value(str(folder)).run()


def load(at: AppTest, folder: Path | str) -> AppTest:
    """Load a model through the Model page's own controls."""
    go(at, "model")
    name_model(at, folder)
    at.button(key="model.load").click().run()
    return finish(at)


def words(at: AppTest) -> str:
    """Everything that is said on the page, for looking for a sentence."""
    kinds = ("header", "markdown", "caption", "error", "warning", "info", "success", "html")
    found = [element for kind in kinds for element in at.get(kind)]
    return "\n".join(str(getattr(element, "value", None) or element.proto.body) for element in found)


def clean(at: AppTest) -> AppTest:
    """Nothing went wrong on the page."""
    assert not at.exception
    assert [shown.value for shown in at.error] == []
    return at
