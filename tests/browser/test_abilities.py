"""The Abilities page in a browser: a small measurement before and after edits, and one question read in full."""

import json
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect

from nmke.edit import Edit, WeightPatch
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.session import EditSession
from tests.browser.steps import LONG, USUAL, button, go, no_errors, settled, shoot
from tests.tiny import make_tiny_llama

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("abilities") / "tiny-llama")


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved edits of the tiny model, large enough to change what it answers."""
    session = EditSession(load_model(str(folder), device="cpu"))
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 8, generator=generator)
    patch = WeightPatch(2, left, torch.randn(8, 32, generator=generator))
    fact = Fact("The capital of France is", "France", "Rome")
    session.apply(Edit("rome", {}, (fact,), (patch,), {}, seconds={"total": 0.0}))
    return session.save(tmp_path_factory.mktemp("saved") / "large-edit")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up questions of CommonsenseQA's form."""
    folder = tmp_path_factory.mktemp("questions")
    records = [
        {
            "question": f"Where would one put {number} cups?",
            "choices": {"label": list("ABCDE"), "text": ["shelf", "sky", "sea", "song", "storm"]},
            "answerKey": "ABCDE"[number % 5],
        }
        for number in range(20)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "commonsense_qa_dev.jsonl").write_text(lines, encoding="utf-8")
    return folder


def load_tiny(page: Page, folder: Path) -> None:
    """Type a path into the model field and load it."""
    expect(page.get_by_text("Which model, and will it work here?")).to_be_visible(timeout=USUAL)
    settled(page)
    field = page.get_by_test_id("stSelectbox").filter(has_text="Model").first.locator("input")
    field.fill(str(folder))
    field.press("Enter")
    settled(page)
    expect(button(page, "Load")).to_be_enabled(timeout=LONG)
    button(page, "Load").click()
    expect(page.get_by_text("conformance checks passed")).to_be_visible(timeout=LONG)
    settled(page)


def write(page: Page, label: str, text: str) -> None:
    """Fill a field and take it."""
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    field.press("Enter")
    settled(page)


def test_saved_edits_are_measured_and_the_questions_they_changed_are_read(
    visit: Page, folder: Path, saved: Path, questions: Path
) -> None:
    pytest.importorskip("lm_eval")
    load_tiny(visit, folder)
    go(visit, "Abilities")
    expect(visit.get_by_text("Nothing is measured yet")).to_be_visible(timeout=USUAL)
    button(visit, "Add from disk").click()
    write(visit, "Folder or zip file", str(saved))
    visit.get_by_role("button", name="Add", exact=True).first.click()
    settled(visit)
    chosen = visit.get_by_test_id("stMultiSelect")
    expect(chosen.filter(has_text="Compare")).to_contain_text("large-edit (1 fact)", timeout=USUAL)
    visit.keyboard.press("Escape")
    tasks = chosen.filter(has_text="Benchmarks")
    tasks.locator("input").click()
    visit.get_by_role("option").filter(has_text="CommonsenseQA").click()
    visit.keyboard.press("Escape")
    settled(visit)
    tasks.get_by_role("button", name="MMLU").first.click()  # takes it out again
    settled(visit)
    write(visit, "Folder with the questions", str(questions))
    write(visit, "Questions of each", "20")
    button(visit, "Measure and compare").click()
    expect(visit.get_by_text("Measured: 2 scores")).to_be_visible(timeout=LONG)
    settled(visit)
    no_errors(visit)
    expect(visit.get_by_test_id("stPlotlyChart")).to_be_visible()
    expect(visit.get_by_text("Where would one put").first).to_be_attached()
    expect(visit.get_by_text("of 20 questions")).to_be_visible()
    shoot(visit, "abilities")
    # The tables have a column of that name: the choice is the button.
    visit.get_by_test_id("stButtonGroup").get_by_text("gained", exact=True).click()
    settled(visit)
    no_errors(visit)
