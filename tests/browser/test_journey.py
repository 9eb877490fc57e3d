"""One visitor's way, left to right: Model, Facts, Neurons, Edit, with the screenshots of the README."""

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
    start_row,
    write_cells,
)

# The first visit on a new machine fetches and converts the model and reads the statistics text.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]


def another(page: Page) -> Page:
    """A second visitor of the same dashboard, in a browser session of their own."""
    browser = page.context.browser
    assert browser is not None
    visitor = browser.new_context(viewport=page.viewport_size).new_page()
    visitor.goto(page.url.rsplit("/", 1)[0])
    return visitor


def test_a_visitor_sees_the_neurons_of_a_fact_writes_an_edit_and_undoes_it(visit: Page) -> None:
    load_model(visit)
    no_errors(visit)
    expect(sidebar(visit)).to_contain_text("smollm2-135m")
    shoot(visit, "model")

    add_examples(visit)
    expect(visit.get_by_text("What the model says today")).to_be_visible(timeout=USUAL)
    expect(visit.get_by_text("Next token")).to_be_attached(timeout=LONG)
    settled(visit)
    no_errors(visit)
    shoot(visit, "facts")

    go(visit, "Neurons")
    button(visit, "Find the neurons").click()
    expect(visit.get_by_text("Each cell shows the commonest kind")).to_be_visible(timeout=LONG)
    settled(visit)
    no_errors(visit)
    shoot(visit, "neurons")

    go(visit, "Edit")
    button(visit, "Apply to 1 fact").click()
    applied = visit.get_by_text("the model is now at edit version 1")
    expect(applied.or_(visit.get_by_test_id("stAlertContentError")).first).to_be_visible(timeout=LONG)
    expect(applied).to_be_visible()
    settled(visit)
    no_errors(visit)
    expect(sidebar(visit)).to_contain_text("Edit version 1 of 1")
    shoot(visit, "edit")

    other = another(visit)
    load_model(other)
    add_examples(other)
    for page, edited in ((other, False), (visit, True)):
        go(page, "Facts")
        expect(page.get_by_text("Next token")).to_be_attached(timeout=LONG)
        settled(page)
        expect(page.get_by_text("Rome. Rome is the largest")).to_have_count(0 if edited else 1)
    expect(sidebar(other)).to_contain_text("No edit yet")
    other.context.close()

    sidebar(visit).get_by_role("button", name="Undo").click()
    expect(sidebar(visit)).to_contain_text("0 of 1", timeout=USUAL)
    no_errors(visit)


def test_a_fact_typed_into_the_table_is_taken_once_it_is_whole(visit: Page) -> None:
    expect(visit.get_by_text("Which model, and will it work here?")).to_be_visible(timeout=USUAL)
    go(visit, "Facts")
    start_row(visit)
    write_cells(visit, "The capital of Chad is", "Chad")
    expect(visit.get_by_text("1 row is not a fact yet")).to_be_visible()
    write_cells(visit, "Rome")
    expect(visit.get_by_text("not a fact yet")).to_have_count(0)
    expect(visit.get_by_text("Fact to look at")).to_be_visible()
    no_errors(visit)
    go(visit, "Model")
    go(visit, "Facts")
    chosen = visit.get_by_test_id("stSelectbox").filter(has_text="Fact to look at").locator("input")
    expect(chosen).to_have_value("1. The capital of Chad is → Rome")
