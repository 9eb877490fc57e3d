"""Forms are made from settings classes alone."""

from typing import Literal

import pytest
from pydantic import Field, model_validator
from streamlit.testing.v1 import AppTest

from dashboard.widgets import FieldSpec, field_specs, step_of
from nmke.config import Config


class Inner(Config):
    low: float = Field(0.3, ge=0, le=1, description="The least share.")
    high: float = Field(0.4, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Inner":
        if self.low > self.high:
            raise ValueError("low is above high; lower it")
        return self


class Outer(Config):
    layers: tuple[int, ...] = (4, 5, 6)
    rate: float = Field(0.5, gt=0, description="The learning rate.")
    steps: int = Field(25, ge=1, le=100)
    kind: Literal["a", "b"] = "a"
    on: bool = True
    seed: int | None = None
    texts: tuple[str, ...] = ("{}",)
    inner: Inner = Inner()
    floor: float = Field(1e-8, ge=0, json_schema_extra={"advanced": True})


def _spec(name: str) -> FieldSpec:
    return next(spec for spec in field_specs(Outer) if spec.name == name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("layers", "layers"),
        ("rate", "float"),
        ("steps", "int"),
        ("kind", "choice"),
        ("on", "bool"),
        ("texts", "lines"),
        ("inner", "nested"),
    ],
)
def test_a_field_gets_the_control_of_its_type(name: str, kind: str) -> None:
    assert _spec(name).kind == kind


def test_a_field_brings_its_help_bounds_and_choices() -> None:
    assert _spec("rate").help == "The learning rate."
    assert (_spec("steps").minimum, _spec("steps").maximum) == (1, 100)
    assert _spec("kind").choices == ("a", "b")
    assert _spec("seed").optional
    assert _spec("floor").advanced


@pytest.mark.parametrize(("value", "step"), [(1.5, 0.1), (0.02, 0.001), (30.0, 1.0), (0.0, 0.1), (None, 0.1)])
def test_the_step_follows_the_size_of_the_value(value: float | None, step: float) -> None:
    assert step_of(value) == pytest.approx(step)


def _form_page() -> None:
    import streamlit as st

    from dashboard.widgets import FormLook, config_form, reset_form
    from tests.unit.test_widgets import Outer

    made = config_form(Outer, Outer(), "f", FormLook(columns=2, sliders={"low": (0, 1, 0.01)}, n_layers=30))
    st.button("reset", on_click=reset_form, args=(Outer(), "f"))
    st.text("nothing" if made is None else made.model_dump_json())


@pytest.fixture
def page() -> AppTest:
    return AppTest.from_function(_form_page, default_timeout=30).run()


def _made(page: AppTest) -> Outer:
    assert not page.exception
    return Outer.model_validate_json(page.text[0].value)


def test_an_untouched_form_gives_the_settings_it_was_opened_with(page: AppTest) -> None:
    assert _made(page) == Outer()


def test_changed_controls_arrive_in_the_settings_nested_ones_too(page: AppTest) -> None:
    page.number_input(key="f.seed").set_value(7)
    page.text_input(key="f.layers").set_value("4-8")
    page.slider(key="f.inner.low").set_value(0.1)
    page.run()
    made = _made(page)
    assert (made.seed, made.layers, made.inner.low) == (7, (4, 5, 6, 7, 8), 0.1)


def test_a_bad_combination_is_one_sentence_and_the_page_goes_on(page: AppTest) -> None:
    page.slider(key="f.inner.low").set_value(0.9).run()
    assert not page.exception
    assert "low is above high" in page.error[0].value
    assert page.text[0].value == "nothing"


@pytest.mark.parametrize("text", ["4-99", "four"])
def test_layers_out_of_range_are_said_so(page: AppTest, text: str) -> None:
    page.text_input(key="f.layers").set_value(text).run()
    assert not page.exception
    assert "layer" in page.error[0].value


def test_reset_puts_every_control_back(page: AppTest) -> None:
    page.slider(key="f.inner.low").set_value(0.9).run()
    page.button[0].click().run()
    assert not page.error
    assert _made(page) == Outer()
