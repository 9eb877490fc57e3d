"""The Benchmark page in a browser: a finished run is opened, and a click on a point shows what is behind it."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.steps import LONG, USUAL, choose, go, no_errors, settled, shoot
from tests.finished_run import finish_run
from tests.tiny import make_tiny_llama

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two editors on a tiny model."""
    folder = tmp_path_factory.mktemp("benchmark")
    return finish_run(folder / "finished", make_tiny_llama(folder / "llama"))


def open_run(page: Page, folder: Path) -> None:
    """Show the run of that folder."""
    expect(page.get_by_text("Which model, and will it work here?")).to_be_visible(timeout=USUAL)
    go(page, "Benchmark")
    page.get_by_test_id("stMain").get_by_text("Results", exact=True).click()
    settled(page)
    page.get_by_test_id("stMain").get_by_role("button", name="Open a folder").click()
    field = page.get_by_label("Folder of a run", exact=True)
    field.fill(str(folder))
    page.get_by_role("button", name="Open", exact=True).click()  # the box lies beside the page
    settled(page)
    chosen = page.get_by_test_id("stMultiSelect").filter(has_text="Runs")
    expect(chosen).to_contain_text(folder.name, timeout=USUAL)
    expect(page.get_by_text("Raw predictions behind a point")).to_be_visible(timeout=LONG)


def test_a_click_on_a_point_shows_the_raw_predictions_behind_it(visit: Page, finished: Path) -> None:
    open_run(visit, finished)
    no_errors(visit)
    shoot(visit, "benchmark")
    chart = visit.get_by_test_id("stPlotlyChart").first
    point = chart.locator(".scatterlayer .trace .points path").last
    point.scroll_into_view_if_needed()
    settled(visit)
    place = point.bounding_box()
    assert place is not None
    visit.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    settled(visit)
    expect(visit.get_by_text("prompts of FT-M, seed 1, after 2 edits")).to_be_visible(timeout=USUAL)
    no_errors(visit)
    # A list that is open closes when the page scrolls, so the box is brought into view before it is clicked.
    visit.get_by_text("Raw predictions behind a point").first.scroll_into_view_if_needed()
    settled(visit)
    choose(visit, "Raw predictions behind a point", "ROME, seed 0, T = 1")
    expect(visit.get_by_text("4 of 4 prompts of ROME, seed 0, after 1 edit")).to_be_visible(timeout=USUAL)
    visit.get_by_label("Words", exact=True).fill("italy")
    visit.get_by_label("Words", exact=True).press("Enter")
    expect(visit.get_by_text("1 of 4 prompts of ROME")).to_be_visible(timeout=USUAL)
    no_errors(visit)
