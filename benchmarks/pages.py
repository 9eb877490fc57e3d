"""Seconds and bytes of every page of the dashboard on a real model, with the numbers cached.

    python benchmarks/pages.py [--model smollm2-135m] [--repeats 5] [--out benchmarks/results/pages.json]

Each page is opened in Streamlit's own test harness after its numbers were computed once: activation scores (MPC) of
8 built-in facts in all layers for the Neurons page, one applied and measured edit for the Edit page. Seconds are those
of the script's thread from its start to its end (and to the first chart or table it sends), Streamlit's garbage
collection included; the browser's own drawing is not. Bytes are those of the chart specifications that a run sends,
and of everything it sends.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from streamlit.runtime.scriptrunner import ScriptRunContext, ScriptRunner
from streamlit.testing.v1 import AppTest

from dashboard import engine, libraries, rows
from dashboard.edit_work import plan_and_measure
from dashboard.holder import ModelKey
from dashboard.neurons_data import Found, Origin
from dashboard.state import AppState
from nmke.attribution import AttributionConfig, attribute, prompts_of
from nmke.examples import builtin_facts
from nmke.loading import load_model
from nmke.presets import preset_for
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.versions import library_versions

APP = Path(__file__).resolve().parents[1] / "dashboard" / "app.py"
PAGES = ("model", "facts", "neurons", "edit")
PICTURES = ("plotly_chart", "dataframe")
Change = Callable[[AppTest, int], Any]


def main() -> None:
    """Measure, print one table and write the JSON file."""
    chosen = arguments()
    app = AppTest.from_file(str(APP), default_timeout=120)
    prepare(app, chosen.model, edited=not chosen.no_edit)
    found = []
    with timed_runs() as runs:
        app.run()
        for page in PAGES:
            found += measure_page(app, page, chosen.repeats, runs)
    print_table(found)
    record = {
        "command": " ".join(["python", "benchmarks/pages.py", *sys.argv[1:]]),
        "model": chosen.model,
        "threads": torch.get_num_threads(),
        "libraries": library_versions(),
        "runs": found,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {chosen.out}")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-edit", action="store_true", help="leave out the edit that the Edit page shows")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pages.json"))
    return parser.parse_args()


# ---- what a visitor has when the pages are measured -------------------------------------------------------------


def prepare(app: AppTest, name: str, *, edited: bool) -> None:
    """Put model, facts, scores and one edit into the browser session, as its jobs would have."""
    libraries.warm_up().join()
    mine = AppState()
    mine.set_facts(builtin_facts()[:8])
    mine.settings["facts.rows"] = [rows.to_row(fact) for fact in mine.facts]
    mine.model_key = ModelKey(name)
    model = engine.holder().load(mine.model_key, mine.owner, lambda: load_model(name))
    session = mine.edit_session = EditSession(model)
    if edited:
        config = preset_for(model, "nmke").config
        measured = plan_and_measure(session, mine.facts[:1], "nmke", config, 12, Silent())
        assert measured.edit is not None
        session.apply(measured.edit)
        mine.settings["edit.results"] = {session.digest: measured}
    asked = AttributionConfig.make(kind="mpc")
    with session.active():
        scores = attribute(model, prompts_of(mine.facts), None, asked)
    key = (model.weight_hash, model.device, model.dtype, session.digest)
    origin = Origin(model.weight_hash, key, session.version, mine.facts, scores.layers, False, asked)
    mine.settings["neurons.found"] = Found(origin, scores, 0.1)
    app.session_state["nmke.state"] = mine


# ---- measuring ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Seconds of one run of the script, and until it sent its first chart or table (the whole, where it has none)."""

    whole: float
    picture: float


@contextmanager
def timed_runs() -> Iterator[list[Run]]:
    """Every script run inside the block; the harness's own work before and after is left out."""
    runs: list[Run] = []
    pictures: list[float] = []
    run_script, enqueue = ScriptRunner._run_script, ScriptRunContext.enqueue

    def timed_run(self: ScriptRunner, rerun_data: Any) -> None:
        pictures.clear()
        started = time.perf_counter()
        run_script(self, rerun_data)
        ended = time.perf_counter()
        runs.append(Run(ended - started, (pictures[0] if pictures else ended) - started))

    def timed_enqueue(self: ScriptRunContext, message: Any) -> None:
        if message.delta.new_element.WhichOneof("type") in PICTURES:
            pictures.append(time.perf_counter())
        enqueue(self, message)

    ScriptRunner._run_script = timed_run  # type: ignore[method-assign]
    ScriptRunContext.enqueue = timed_enqueue  # type: ignore[assignment,method-assign]
    try:
        yield runs
    finally:
        ScriptRunner._run_script = run_script  # type: ignore[method-assign]
        ScriptRunContext.enqueue = enqueue  # type: ignore[method-assign]


def measure_page(app: AppTest, page: str, repeats: int, runs: list[Run]) -> list[dict[str, Any]]:
    """The first run of a page, and its reruns after nothing, a slider and a layer changed."""
    changes: dict[str, Change] = {"nothing changed": lambda app, turn: None}
    if page == "neurons":
        changes |= {"temperature slider moved": move_temperature, "other layer": choose_layer}
    if page == "facts":
        changes |= {"other fact": choose_fact}
    runs.clear()
    checked(app.switch_page(f"../pages/{page}.py").run())
    measured = [row(page, "first run", runs, app)]
    for name, change in changes.items():
        runs.clear()
        for turn in range(repeats):
            change(app, turn)
            checked(app.run())
        measured.append(row(page, name, runs, app))
    return measured


def move_temperature(app: AppTest, turn: int) -> None:
    """Another stop of the entropy temperature each time."""
    slider = app.select_slider(key="neurons.mask.alpha")
    slider.set_value((0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 300.0, 1000.0)[turn % 8])


def choose_layer(app: AppTest, turn: int) -> None:
    """Another layer each time."""
    layers = app.session_state["nmke.state"].settings["neurons.found"].attribution.layers
    app.selectbox(key="neurons.layer").set_value(layers[(turn + 1) % len(layers)])


def choose_fact(app: AppTest, turn: int) -> None:
    """Another fact each time, then round again."""
    box = next(box for box in app.selectbox if box.label == "Fact to look at")
    box.set_value((turn + 1) % len(app.session_state["nmke.state"].facts))


def checked(app: AppTest) -> None:
    """Refuse to time a page that failed.

    Raises:
        RuntimeError: with what the page said.
    """
    wrong = [error.value for error in app.error] + [str(problem.value) for problem in app.exception]
    if wrong:
        raise RuntimeError(" ".join(wrong))


def row(page: str, name: str, runs: list[Run], app: AppTest) -> dict[str, Any]:
    """One line of the table: medians, and what the last run sent."""
    charts = chart_bytes(app)
    return {
        "page": page,
        "run": name,
        "seconds": round(statistics.median(run.whole for run in runs), 4),
        "slowest": round(max(run.whole for run in runs), 4),
        "first_picture": round(statistics.median(run.picture for run in runs), 4),
        "repeats": len(runs),
        "charts": charts,
        "chart_bytes": sum(charts.values()),
        "largest_chart": max(charts.values(), default=0),
        "all_bytes": sum(element.proto.ByteSize() for element in elements(app)),
    }


def elements(app: AppTest) -> list[Any]:
    """Everything on the page that was sent as a message of its own."""
    return [element for element in (*app.main, *app.sidebar) if hasattr(element.proto, "ByteSize")]


def chart_bytes(app: AppTest) -> dict[str, int]:
    """Bytes of each chart's specification, by what it is called for readers of the screen."""
    charts = [element.proto for element in elements(app) if element.type == "plotly_chart"]
    return {chart.alt or f"chart {spot}": len(chart.spec.encode()) for spot, chart in enumerate(charts)}


def print_table(measured: list[dict[str, Any]]) -> None:
    """The table that is read."""
    print(
        f"{'page':<9}{'run':<26}{'median ms':>10}{'slowest':>9}{'picture':>9}{'charts kB':>11}{'largest':>9}"
        f"{'all kB':>8}"
    )
    for one in measured:
        print(
            f"{one['page']:<9}{one['run']:<26}{1000 * one['seconds']:>10.0f}{1000 * one['slowest']:>9.0f}"
            f"{1000 * one['first_picture']:>9.0f}"
            f"{one['chart_bytes'] / 1000:>11.1f}{one['largest_chart'] / 1000:>9.1f}{one['all_bytes'] / 1000:>8.1f}"
        )


if __name__ == "__main__":
    main()
