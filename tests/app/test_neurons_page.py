"""The Neurons page on a tiny real model."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard.neurons_data import (
    Origin,
    bin_masks,
    guess_seconds,
    layer_table,
    mask_table,
    say_estimate,
    stale_reasons,
    steering_sentence,
)
from nmke.attribution import AttributionConfig
from nmke.edit import Edit, WeightPatch
from nmke.masks import MaskConfig, build_mask
from tests.app.working_app import FACTS, TEXT, open_page, said, state_of, wait
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("neurons") / "llama")


@pytest.fixture
def page(folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page before anything is scored; the statistics text is a local one."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join([TEXT] * 60), encoding="utf-8")
    monkeypatch.setattr("nmke.texts.default_corpus", lambda progress: text)
    return open_page("neurons", folder)


@pytest.fixture
def found(page: AppTest) -> AppTest:
    """The page with every layer scored."""
    page.text_input(key=_layers_key(page)).set_value("all").run()
    page.button(key="neurons.find").click().run()
    return wait(page)


def _layers_key(page: AppTest) -> str:
    return next(str(box.key) for box in page.text_input if str(box.key).startswith("neurons.layers."))


def _result(page: AppTest) -> Any:
    return state_of(page).settings["neurons.found"]


def test_without_a_model_the_page_says_so_and_offers_the_way() -> None:
    page = open_page("neurons", None)
    assert any("No model" in info.value for info in page.info)
    assert page.button(key="go.model")


def test_without_facts_the_page_says_so(folder: Path) -> None:
    page = open_page("neurons", folder, ())
    assert any("no facts" in info.value for info in page.info)


def test_before_pressing_the_page_gives_an_estimate(page: AppTest) -> None:
    assert "3 prompts × 1 layers" in said(page)
    assert "Nothing is scored yet" in said(page)


def test_finding_the_neurons_fills_map_heatmap_tables_and_inspector(found: AppTest) -> None:
    assert _result(found).attribution.layers == (0, 1, 2, 3)
    text = said(found)
    assert "Framed: layer 0" in text
    assert "entropy" in text
    assert "Above average in" in text
    assert not found.error


def test_moving_a_slider_selects_anew_and_never_attributes(
    found: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(found).kept.newest("neurons.masks")
    scores = _result(found)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a slider attributed")

    monkeypatch.setattr("nmke.attribution.attribute", never)
    found.slider(key="neurons.mask.specific_low-specific_high").set_value((0.6, 0.7)).run()
    after = state_of(found).kept.newest("neurons.masks")
    assert _result(found) is scores
    assert int(after[0].specific.sum()) > int(before[0].specific.sum())
    found.button(key="neurons.reset").click().run()
    assert state_of(found).settings["neurons.mask_config"] == MaskConfig()
    assert not found.exception


@pytest.mark.parametrize("variant", ["union", "overlap", "non_overlap", "general", "specific", "soft"])
def test_every_variant_can_be_chosen(found: AppTest, variant: str) -> None:
    found.selectbox(key="neurons.mask.variant").set_value(variant).run()
    assert state_of(found).settings["neurons.mask_config"].variant == variant
    assert not found.error


@pytest.mark.parametrize("kind", ["psa", "mpc"])
def test_every_score_can_be_chosen(page: AppTest, kind: str) -> None:
    page.selectbox(key="neurons.score.kind").set_value(kind).run()
    page.button(key="neurons.find").click().run()
    wait(page)
    assert _result(page).attribution.config.kind == kind


def test_a_single_prompt_is_enough(page: AppTest) -> None:
    key = next(str(box.key) for box in page.multiselect if str(box.key).startswith("neurons.facts."))
    page.multiselect(key=key).set_value([0]).run()
    page.button(key="neurons.find").click().run()
    wait(page)
    assert len(_result(page).attribution.prompts) == 1
    assert not page.error


def test_contexts_make_six_prompts_of_each_fact(page: AppTest) -> None:
    page.checkbox(key="neurons.contexts").check().run()
    assert "18 prompts" in said(page)
    page.button(key="neurons.find").click().run()
    wait(page)
    assert len(_result(page).attribution.prompts) == 18


def test_layer_and_neuron_can_be_chosen_without_clicking_a_chart(found: AppTest) -> None:
    found.selectbox(key="neurons.layer").set_value(2)
    found.number_input(key="neurons.neuron").set_value(7).run()
    assert "Framed: layer 2" in said(found)
    card = state_of(found).kept.newest("neurons.card")
    assert (card.layer, card.neuron) == (2, 7)


def test_passages_are_offered_and_collected_as_a_job(found: AppTest) -> None:
    assert "not been read for layer 0" in said(found)
    found.button(key="neurons.statistics.collect").click().run()
    wait(found)
    assert not found.error
    assert state_of(found).kept.newest("neurons.card").passages


def test_a_layer_out_of_range_is_one_sentence(page: AppTest) -> None:
    page.text_input(key=_layers_key(page)).set_value("4-9").run()
    assert "layers 0 to 3" in page.error[0].value
    assert page.button(key="neurons.find").disabled


def test_scores_of_an_earlier_edit_version_say_so(found: AppTest) -> None:
    session = state_of(found).edit_session
    assert session is not None
    patch = WeightPatch(0, torch.ones(64, 1) * 0.01, torch.ones(1, 32))
    session.apply(Edit("test", {}, FACTS[:1], (patch,), {0: torch.ones(64, 1)}))
    found.run()
    assert "of edit version 0, you are at version 1" in found.warning[0].value


def test_scores_of_other_facts_say_so(found: AppTest) -> None:
    key = next(str(box.key) for box in found.multiselect if str(box.key).startswith("neurons.facts."))
    found.multiselect(key=key).set_value([1]).run()
    assert "facts changed" in found.warning[0].value


def test_cancelling_keeps_what_was_there(found: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _result(found)

    def endless(model: Any, prompts: Any, layers: Any, config: Any, progress: Any) -> None:
        while True:
            progress.update("scoring neurons", 0, 4)
            time.sleep(0.01)

    monkeypatch.setattr("nmke.attribution.attribute", endless)
    found.button(key="neurons.find").click().run()
    found.button(key="cancel.side.attribution").click().run()
    text = said(found)
    wait(found)
    assert _result(found) is before
    assert "Cancelled" in text + said(found)


def test_an_error_of_the_engine_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("nmke.attribution.attribute", broken)
    page.button(key="neurons.find").click().run()
    wait(page)
    assert "memory ran out" in page.error[0].value


# ---- what the page says, without the page -----------------------------------------------------------------------


def _origin(**changes: Any) -> Origin:
    values: dict[str, Any] = {
        "weight_hash": "a",
        "edit_key": ("a", 0),
        "edit_version": 0,
        "facts": FACTS,
        "layers": (1, 2),
        "contexts": False,
        "config": AttributionConfig(),
    }
    return Origin(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "said_so"),
    [
        ({}, ""),
        ({"weight_hash": "b"}, "another model"),
        ({"edit_key": ("a", 2), "edit_version": 2}, "of edit version 0, you are at version 2"),
        ({"edit_key": ("a", "other")}, "another one than when"),
        ({"facts": FACTS[:1]}, "facts changed"),
        ({"layers": (1,), "contexts": True}, "layers and contexts on the left changed"),
        ({"config": AttributionConfig(kind="mpc")}, "score settings on the left changed"),
    ],
)
def test_what_makes_scores_stale_is_said(changes: dict[str, Any], said_so: str) -> None:
    reasons = "; ".join(stale_reasons(_origin(), _origin(**changes)))
    assert said_so in reasons
    assert bool(reasons) == bool(said_so)


def test_selecting_again_takes_less_than_half_a_second_for_eight_prompts_and_thirty_layers() -> None:
    scores = {layer: torch.randn(8, 1536) for layer in range(30)}
    started = time.process_time()
    masks = {layer: build_mask(one, MaskConfig()) for layer, one in scores.items()}
    bin_masks(masks, ranked=True)
    layer_table(masks)
    assert time.process_time() - started < 0.5


def test_tables_hold_every_neuron_of_every_layer() -> None:
    scores = {layer: torch.randn(3, 10) for layer in (4, 5)}
    masks = {layer: build_mask(one) for layer, one in scores.items()}
    table = mask_table(masks, {layer: one.numpy() for layer, one in scores.items()})
    assert len(table) == 20
    counts = layer_table(masks)
    assert counts[["none", "general", "specific", "both"]].sum(axis=1).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MaskConfig(alpha=1000), "hardly steers the general share"),
        (MaskConfig(general_low=0.2, general_high=0.2), "fixed at 20%"),
        (MaskConfig(alpha=0.01, general_gamma=0.1), "moves the general share"),
    ],
)
def test_the_page_says_openly_how_far_the_entropy_steers(config: MaskConfig, words: str) -> None:
    torch.manual_seed(0)
    masks = {layer: build_mask(torch.randn(3, 200), config) for layer in (1, 2)}
    assert words in steering_sentence(masks, config)


def test_estimates_grow_with_the_work() -> None:
    small = guess_seconds("lps", 1, 1, 576, 1536, 49152, "cpu")
    large = guess_seconds("lps", 8, 30, 576, 1536, 49152, "cpu")
    assert guess_seconds("mpc", 8, 30, 576, 1536, 49152, "cpu") < small < large
    assert say_estimate(1) == "a second or two"
    assert "minutes" in say_estimate(600)


def test_the_pages_and_their_views_do_not_import_torch() -> None:
    code = (
        "import sys, dashboard.neurons_view, dashboard.edit_view; "
        "sys.exit('torch' in sys.modules or 'transformer_lens' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode
        == 0
    )
    for name in ("neurons", "edit"):
        text = (Path(__file__).parents[2] / "pages" / f"{name}.py").read_text()
        assert "torch" not in text
