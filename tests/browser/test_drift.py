"""The Drift page in a browser: an edit, then one joint t-SNE of the real model."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.steps import (
    LONG,
    USUAL,
    add_examples,
    button,
    go,
    load_model,
    no_errors,
    settled,
    shoot,
    sidebar,
)

# The first visit on a new machine fetches and converts the model and reads the statistics text.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]


def test_a_visitor_writes_an_edit_and_sees_how_far_the_weights_moved(visit: Page) -> None:
    load_model(visit)
    go(visit, "Drift")
    expect(visit.get_by_text("There are no edits yet, so no weight has moved.")).to_be_visible(timeout=USUAL)
    add_examples(visit)
    go(visit, "Edit")
    button(visit, "Apply to 1 fact").click()
    expect(visit.get_by_text("the model is now at edit version 1")).to_be_visible(timeout=LONG)
    settled(visit)

    go(visit, "Drift")
    button(visit, "Draw the map").click()
    expect(sidebar(visit).get_by_role("button", name="Cancel")).to_be_visible(timeout=USUAL)
    expect(visit.get_by_text("PCA components, which keep")).to_be_visible(timeout=LONG)
    settled(visit)
    no_errors(visit)
    expect(visit.get_by_text("t-SNE keeps neighbours together, nothing else")).to_be_visible()
    chart = visit.get_by_test_id("stPlotlyChart").first
    expect(chart.get_by_text("original", exact=True)).to_be_visible()
    expect(chart.get_by_text("edited", exact=True)).to_be_visible()
    assert chart.locator(".scatterlayer .trace .points path").count() > 1536
    shoot(visit, "drift")
    no_errors(visit)
