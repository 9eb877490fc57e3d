"""The whole app on a tiny real model, for tests of pages that need one."""

import time
from pathlib import Path

from streamlit.testing.v1 import AppTest

from dashboard import engine, jobs
from dashboard.holder import ModelKey
from dashboard.state import AppState
from nmke.facts import Consequence, Fact, Neighbor
from nmke.loading import load_model

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
TEXT = "The capital of France is Paris. A cat says meow and a dog says woof. The river is wide and I take the boat."

FACTS = (
    Fact(
        "The capital of France is",
        "France",
        "Rome",
        "Paris",
        paraphrases=("The main city of France is",),
        neighborhood=(Neighbor("The capital of Italy is", "Rome"),),
        portability=(Consequence("The country that is ruled from Rome is", "France"),),
    ),
    Fact("The capital of Spain is", "Spain", "London", "Madrid"),
    Fact("A cat says", "cat", "woof", "meow"),
)


def open_page(page: str, folder: Path | None, facts: tuple[Fact, ...] = FACTS) -> AppTest:
    """The app at ``page``, with the model of ``folder`` loaded and facts entered."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    mine = AppState()
    mine.set_facts(facts)
    if folder is not None:
        mine.model_key = ModelKey(str(folder), "cpu")
        engine.holder().load(mine.model_key, mine.owner, lambda: load_model(str(folder), device="cpu"))
    app.session_state["nmke.state"] = mine
    app.run()
    app.switch_page(f"../pages/{page}.py").run()
    assert not app.exception
    return app


def state_of(app: AppTest) -> AppState:
    """What the app's browser session keeps."""
    mine: AppState = app.session_state["nmke.state"]
    return mine


def active(app: AppTest) -> bool:
    """Whether work of this browser session waits or works."""
    mine = state_of(app)
    views = [jobs.registry().view(mine.owner, job) for job in mine.job_ids.values()]
    return any(shown is not None and shown.active for shown in views)


def wait(app: AppTest, seconds: float = 60.0) -> AppTest:
    """Run the app again once its work has ended."""
    end = time.monotonic() + seconds
    while active(app):
        assert time.monotonic() < end, "the work did not end in time"
        time.sleep(0.05)
    if state_of(app).job_ids:
        app.run()  # the page has not taken the outcome yet
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    """Every sentence on the page."""
    kinds = (app.error, app.warning, app.info, app.success, app.caption, app.markdown)
    return "\n".join(str(element.value) for kind in kinds for element in kind)
