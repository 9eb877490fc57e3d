"""What a person does in the browser, and the screenshots on the way."""

import os
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

SIZES = {"1440x900": (1440, 900), "1024x768": (1024, 768)}
LONG = 600_000


def settled(page: Page, timeout: float = 60_000) -> None:
    """Wait until the page's script has run and its elements stopped moving."""
    page.wait_for_timeout(300)
    running = page.locator("[data-testid='stApp'][data-test-script-state='running']")
    expect(running).to_have_count(0, timeout=timeout)
    page.wait_for_timeout(300)


def shoot(page: Page, name: str) -> None:
    """Save the page at both sizes under screenshots/ (or NMKE_SCREENSHOTS)."""
    folder = Path(os.environ.get("NMKE_SCREENSHOTS", Path(__file__).parents[2] / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    for label, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(700)
        page.screenshot(path=folder / f"{name}-{label}.png")
    page.set_viewport_size({"width": 1440, "height": 900})


def go(page: Page, title: str) -> None:
    """Open a page by its name in the navigation."""
    page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True).click()
    settled(page)


def button(page: Page, name: str) -> Locator:
    """The button of that name in the main part of the page."""
    return page.get_by_test_id("stMain").get_by_role("button", name=name, exact=True)


def choose(page: Page, label: str, option: str) -> None:
    """Choose from a select box."""
    page.get_by_test_id("stSelectbox").filter(has_text=label).locator("input").click()
    page.get_by_role("option").filter(has_text=option).first.click()
    settled(page)


def no_errors(page: Page) -> None:
    """Nothing on the screen looks like an error or a traceback."""
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_text("Traceback")).to_have_count(0)
    expect(page.locator("[data-testid='stAlertContentError']")).to_have_count(0)
