"""Running a page again makes only what changed: every costly step is counted."""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from plotly.basedatatypes import BaseFigure, BasePlotlyType
from streamlit.testing.v1 import AppTest

from dashboard import charts
from dashboard.kept import MOST, Kept
from dashboard.state import AppState
from tests.app.working_app import FACTS, TEXT, open_page, state_of, wait
from tests.tiny import make_tiny_llama

STEPS = (
    "nmke.attribution.attribute",
    "nmke.masks.build_masks",
    "nmke.neurons.inspect_neuron",
    "nmke.moments.find_statistics",
    "dashboard.neurons_view.bin_masks",
    "dashboard.neurons_view.layer_table",
    "dashboard.neurons_view.neuron_table",
    "dashboard.charts.overview",
    "dashboard.charts.prompt_heatmap",
    "dashboard.charts.ratios",
    "dashboard.charts.token_bars",
    "dashboard.edit_charts.dumbbells",
    "dashboard.edit_charts.layer_changes",
    "dashboard.edit_charts.spectrum",
    "dashboard.edit_charts.stage_seconds",
    "dashboard.rows.read_rows",
    "dashboard.facts_table.facts_to_csv",
    "dashboard.facts_table.facts_to_jsonl",
    "dashboard.preview._estimate",
    "nmke.loading.LoadedModel.generate",
    "nmke.forcing.next_token_table",
)
SLIDER = "neurons.mask.specific_low-specific_high"

Count = Callable[[], Counter[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("reruns") / "llama")


@pytest.fixture
def open_at(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], AppTest]:
    """Opens a page with model and facts; the statistics text is a local one."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join([TEXT] * 60), encoding="utf-8")
    monkeypatch.setattr("nmke.texts.default_corpus", lambda progress: text)
    return lambda page: open_page(page, folder)


@pytest.fixture
def found(open_at: Callable[[str], AppTest]) -> AppTest:
    """The Neurons page with every layer scored."""
    page = open_at("neurons")
    key = next(str(box.key) for box in page.text_input if str(box.key).startswith("neurons.layers."))
    page.text_input(key=key).set_value("all").run()
    page.button(key="neurons.find").click().run()
    return wait(page)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Starts counting the calls of every costly step, by its last name."""

    def start() -> Counter[str]:
        calls: Counter[str] = Counter()
        for step in STEPS:
            owner, name = _owner(step)
            monkeypatch.setattr(owner, name, _counted(calls, name, getattr(owner, name)))
        return calls

    return start


def _owner(step: str) -> tuple[Any, str]:
    """The module or class that has the step, and the step's name in it."""
    path, name = step.rsplit(".", 1)
    try:
        return import_module(path), name
    except ModuleNotFoundError:
        module, owner = path.rsplit(".", 1)
        return getattr(import_module(module), owner), name


def _counted(calls: Counter[str], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **options: Any) -> Any:
        calls[name] += 1
        return plain(*args, **options)

    return step


def _clean(page: AppTest) -> AppTest:
    assert not page.exception
    assert not page.error
    return page


def _charts(page: AppTest) -> list[str]:
    return [element.proto.spec for element in page.get("plotly_chart")]


# ---- the Neurons page -------------------------------------------------------------------------------------------


def test_running_the_neurons_page_again_makes_nothing_again_and_shows_the_same(
    found: AppTest, count: Count
) -> None:
    found.run()  # an opened page is settled once its result was taken
    before = _charts(found)
    calls = count()
    _clean(found.run())
    assert calls == {}
    assert _charts(found) == before
    assert len(before) == 4


def test_moving_a_slider_makes_masks_and_what_shows_them_and_never_attributes(
    found: AppTest, count: Count
) -> None:
    before = _charts(found)
    calls = count()
    _clean(found.slider(key=SLIDER).set_value((0.6, 0.7)).run())
    assert calls["attribute"] == calls["inspect_neuron"] == calls["token_bars"] == 0
    assert calls["build_masks"] == calls["bin_masks"] == 1
    assert calls["overview"] == calls["prompt_heatmap"] == calls["ratios"] == 1
    assert _charts(found) != before


def test_moving_a_slider_back_makes_nothing_and_shows_what_was_there(found: AppTest, count: Count) -> None:
    before, value = _charts(found), found.slider(key=SLIDER).value
    found.slider(key=SLIDER).set_value((0.6, 0.7)).run()
    calls = count()
    _clean(found.slider(key=SLIDER).set_value(value).run())
    assert calls == {}
    assert _charts(found) == before


def test_choosing_another_neuron_looks_at_that_neuron_and_selects_nothing_anew(
    found: AppTest, count: Count
) -> None:
    shown = found.number_input(key="neurons.neuron").value
    calls = count()
    _clean(found.number_input(key="neurons.neuron").set_value((int(shown or 0) + 7) % 64).run())
    assert calls["inspect_neuron"] == 1
    assert calls["build_masks"] == calls["bin_masks"] == calls["ratios"] == calls["neuron_table"] == 0


def test_scoring_again_with_other_settings_shows_other_figures(found: AppTest) -> None:
    before = _charts(found)
    found.selectbox(key="neurons.score.kind").set_value("mpc").run()
    found.button(key="neurons.find").click().run()
    wait(found)
    assert _charts(_clean(found))[1] != before[1]


# ---- the other pages ----------------------------------------------------------------------------------------------


def test_running_the_edit_page_again_draws_nothing_again_and_asks_the_model_nothing(
    open_at: Callable[[str], AppTest], count: Count
) -> None:
    page = open_at("edit")
    page.button(key="edit.apply").click().run()
    wait(page).run()
    before = _charts(page)
    calls = count()
    _clean(page.run())
    assert calls == {}
    assert _charts(page) == before
    assert len(before) == 4


def test_the_prompt_of_the_edit_page_is_answered_only_once_its_tab_is_open(
    open_at: Callable[[str], AppTest], count: Count
) -> None:
    page = open_at("edit")
    page.button(key="edit.apply").click().run()
    wait(page)
    calls = count()
    page.run()
    assert calls["generate"] == 0
    page.session_state["edit.tabs"] = "Try a prompt"
    _clean(page.run())
    assert calls["generate"] == 2, "the original and the edited model"
    _clean(page.run())
    assert calls["generate"] == 2


def test_running_the_facts_page_again_reads_no_row_and_asks_the_model_nothing(
    open_at: Callable[[str], AppTest], count: Count
) -> None:
    page = open_at("facts")
    page.button(key="facts.add").click().run()
    page.run()
    calls = count()
    _clean(page.run())
    assert calls == {}
    assert len(state_of(page).facts) == 6


def test_running_the_model_page_again_estimates_nothing_again(
    open_at: Callable[[str], AppTest], count: Count
) -> None:
    page = open_at("model")
    page.run()
    calls = count()
    _clean(page.run())
    assert calls == {}


# ---- what is kept -------------------------------------------------------------------------------------------------


def test_visitors_keep_their_own_things() -> None:
    first, second = AppState(), AppState()
    assert first.kept.get("figure", 1, lambda: "mine") == "mine"
    assert second.kept.get("figure", 1, lambda: "yours") == "yours"


def test_only_the_last_few_things_of_a_name_are_kept() -> None:
    kept, made = Kept(), Counter[int]()

    def get(key: int) -> int:
        def make() -> int:
            made[key] += 1
            return key

        return kept.get("number", key, make)

    assert [get(key) for key in range(MOST)] == list(range(MOST))
    get(0)  # used again, so that 1 is now the longest unused
    get(MOST)
    get(0)
    get(1)
    assert made[0] == 1
    assert made[1] == 2
    assert kept.newest("number") == 1
    assert kept.newest("letter") is None


def test_what_could_not_be_made_is_not_kept() -> None:
    kept = Kept()

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        kept.get("figure", 1, fail)
    assert kept.get("figure", 1, lambda: 5) == 5


def test_a_kept_figure_is_plain_data_that_is_freed_without_the_garbage_collector() -> None:
    spec = Kept().figure("bars", 1, lambda: charts.token_bars([(" Rome", 1.0)], [(" Paris", -1.0)]))
    assert not [part for part in _parts(spec) if isinstance(part, BasePlotlyType | BaseFigure)]


def _parts(thing: Any) -> list[Any]:
    inner = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
    return [thing, *(part for one in inner for part in _parts(one))]


def test_unloading_the_model_forgets_what_was_made_from_it(found: AppTest) -> None:
    assert state_of(found).kept.newest("neurons.masks") is not None
    found.switch_page("../pages/model.py").run()
    found.button(key="model.unload").click().run()
    assert state_of(found).kept.newest("neurons.masks") is None
    assert state_of(found).facts == FACTS
