"""One ablation in a browser: chosen, pressed, bars that fill, and a question with and without the neurons."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.steps import LONG, USUAL, button, go, no_errors, pick, settled, shoot
from tests.tiny import make_tiny_llama
from tests.unit.test_ablation import QUESTIONS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a file of short questions."""
    folder = tmp_path_factory.mktemp("ablation")
    make_tiny_llama(folder / "llama")
    rows = [json.dumps(question.to_dict()) for question in QUESTIONS.questions]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    return folder


def load(page: Page, model: Path) -> None:
    """Load the model of a folder by typing its path."""
    expect(page.get_by_text("Which model, and will it work here?")).to_be_visible(timeout=USUAL)
    settled(page)
    field = page.get_by_test_id("stSelectbox").first.locator("input")
    field.click()
    field.fill(str(model))
    field.press("Enter")
    settled(page)
    button(page, "Load").click()
    expect(page.get_by_text("conformance checks passed")).to_be_visible(timeout=LONG)
    settled(page)


def test_neurons_are_switched_off_and_the_bars_fill(visit: Page, folder: Path) -> None:
    load(visit, folder / "llama")
    go(visit, "Ablation")
    expect(visit.get_by_text("What breaks without them?")).to_be_visible(timeout=USUAL)
    main = visit.get_by_test_id("stMain")
    main.locator("summary").filter(has_text="Questions").first.click()
    settled(visit)
    box = main.get_by_test_id("stSelectbox").filter(has_text="Questions").first
    pick(visit, box, "a file of mine")
    visit.locator("input[type=file]").first.set_input_files(folder / "questions.jsonl")
    settled(visit)
    expect(main.get_by_text("High school biology").first).to_be_visible(timeout=USUAL)
    button(visit, "Switch them off").click()
    expect(main.get_by_text("Without ablation:")).to_be_visible(timeout=LONG)
    expect(visit.get_by_text("Done: general")).to_be_visible(timeout=LONG)
    settled(visit)
    no_errors(visit)
    bars = main.get_by_test_id("stPlotlyChart").first
    expect(bars.locator(".barlayer .trace")).to_have_count(3, timeout=USUAL)  # none, general, random
    shoot(visit, "ablation")
    main.get_by_text("One question, both ways").click()
    settled(visit)
    expect(main.get_by_text("Without ablation", exact=True)).to_be_visible(timeout=USUAL)
    expect(main.get_by_text("Without general, k = 10", exact=True)).to_be_visible(timeout=USUAL)
    no_errors(visit)
