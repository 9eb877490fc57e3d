"""The lesson in a browser: prepared once, walked through in six steps, every question revealed."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dashboard.lesson_words import TITLES
from tests.browser.steps import LONG, USUAL, button, go, no_errors, settled, shoot
from tests.browser.test_ablation import load
from tests.tiny import make_tiny_llama

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_a_class_is_walked_through_six_steps(visit: Page, tmp_path: Path) -> None:
    make_tiny_llama(tmp_path / "llama")
    load(visit, tmp_path / "llama")
    go(visit, "Lesson")
    expect(visit.get_by_text("Show me the idea in ten minutes")).to_be_visible(timeout=USUAL)
    button(visit, "Prepare all steps").click()
    expect(button(visit, "Prepare all steps")).to_have_count(0, timeout=USUAL)
    expect(button(visit, "Reveal the answer")).to_be_enabled(timeout=LONG)
    for step, title in TITLES.items():
        expect(visit.get_by_text(f"Step {step} of {len(TITLES)}: {title}")).to_be_visible(timeout=USUAL)
        expect(button(visit, "Reveal the answer")).to_be_enabled(timeout=LONG)
        button(visit, "Reveal the answer").click()
        expect(button(visit, "Hide the answer")).to_be_visible(timeout=USUAL)
        settled(visit)
        no_errors(visit)
        expect(
            visit.get_by_test_id("stMain").get_by_test_id("stAlert").filter(has_text="went wrong")
        ).to_have_count(0)
        shoot(visit, f"lesson-{step}")
        if step < len(TITLES):
            button(visit, "Next").click()
            settled(visit)
