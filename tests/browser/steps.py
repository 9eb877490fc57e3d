"""What a person does in the browser, and the screenshots on the way."""

import os
from pathlib import Path

from playwright.sync_api import Locator, Page, TimeoutError, expect

SIZES = {"1440x900": (1440, 900), "1024x768": (1024, 768)}
#: Milliseconds for loading, fetching and editing on a slow machine.
LONG = 900_000
USUAL = 60_000


def settled(page: Page, timeout: float = USUAL) -> None:
    """Wait until the page's script has run and its elements stopped moving."""
    page.wait_for_timeout(300)
    running = page.locator("[data-testid='stApp'][data-test-script-state='running']")
    expect(running).to_have_count(0, timeout=timeout)
    page.wait_for_timeout(300)


def shoot(page: Page, name: str) -> None:
    """Save the page at both sizes under screenshots/ (or NMKE_SCREENSHOTS)."""
    folder = Path(os.environ.get("NMKE_SCREENSHOTS", Path(__file__).resolve().parents[2] / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    page.mouse.move(0, 0)
    for label, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(700)
        page.screenshot(path=folder / f"{name}-{label}.png")
    page.set_viewport_size({"width": SIZES["1440x900"][0], "height": SIZES["1440x900"][1]})
    page.wait_for_timeout(300)


def go(page: Page, title: str) -> None:
    """Open a page by its name in the navigation."""
    page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True).click()
    settled(page)


def button(page: Page, name: str) -> Locator:
    """The button of that exact name in the main part of the page."""
    return page.get_by_test_id("stMain").get_by_role("button", name=name, exact=True)


def sidebar(page: Page) -> Locator:
    """The frame all pages share."""
    return page.get_by_test_id("stSidebar")


def choose(page: Page, label: str, option: str) -> None:
    """Choose from a select box by a part of the option's words."""
    pick(page, page.get_by_test_id("stSelectbox").filter(has_text=label).first, option)


def pick(page: Page, box: Locator, option: str) -> None:
    """Open this select box and take an option by a part of its words.

    An open list closes when the page scrolls, as it does while charts below still grow: then it is opened again.
    """
    wanted = page.get_by_role("option").filter(has_text=option).first
    box.scroll_into_view_if_needed()
    settled(page)
    for _ in range(5):
        try:
            box.locator("input").click()
            wanted.click(timeout=5_000)
            break
        except TimeoutError:
            page.keyboard.press("Escape")
            settled(page)
    else:
        wanted.click()
    settled(page)


def no_errors(page: Page) -> None:
    """Nothing on the screen is an error or a traceback."""
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_text("Traceback")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def load_model(page: Page) -> None:
    """Load the model that is offered first; it is fetched when it is not in the cache."""
    expect(page.get_by_text("Which model, and will it work here?")).to_be_visible(timeout=USUAL)
    settled(page)
    button(page, "Load").click()
    expect(page.get_by_text("conformance checks passed")).to_be_visible(timeout=LONG)
    settled(page)


def add_examples(page: Page) -> None:
    """Take the built-in examples."""
    go(page, "Facts")
    page.get_by_test_id("stMain").get_by_role("button", name="Add 6 examples").click()
    settled(page)
    expect(page.get_by_text("Fact to look at")).to_be_visible(timeout=USUAL)


def write_cells(page: Page, *cells: str) -> None:
    """Type into the table from the selected cell on, as a person does."""
    for cell in cells:
        page.keyboard.type(cell, delay=40)
        page.keyboard.press("Tab")
        page.wait_for_timeout(700)
        settled(page)


def start_row(page: Page) -> None:
    """Open the first cell of the empty table for typing."""
    box = page.get_by_test_id("stDataFrame").first.locator("canvas").first.bounding_box()
    assert box is not None
    page.mouse.dblclick(box["x"] + 180, box["y"] + 52)
    page.wait_for_timeout(1500)
