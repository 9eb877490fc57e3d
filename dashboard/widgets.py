"""Forms made from settings classes: one control per field, its description as help, its bounds as limits.

:func:`field_specs` reads a class and knows nothing of Streamlit; :func:`config_form` draws what it says.
"""

import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import streamlit as st
from pydantic.fields import FieldInfo

from dashboard.selection import layers_text, parse_layers
from nmke.config import Config
from nmke.errors import ConfigError

C = TypeVar("C", bound=Config)
FieldKind = Literal["bool", "int", "float", "choice", "layers", "lines", "text", "nested"]


@dataclass(frozen=True)
class FieldSpec:
    """One field as a form sees it."""

    name: str
    kind: FieldKind
    label: str
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False
    advanced: bool = False
    nested: type[Config] | None = None


@dataclass(frozen=True)
class FormLook:
    """How a form is drawn.

    Attributes:
        sliders: field name to (least, most, step): drawn as a slider instead of a number box.
        stops: field name to the values a slider stops at, for quantities that span powers of ten.
        ranges: (low field, high field) to (label, least, most, step): one slider with two handles.
        names: what a choice is called on the screen, by its value.
        labels: field name to the label on the screen, where the field's own name does not read well.
        hidden: fields that keep their initial value and are not drawn.
        advanced: fields that go into the expander, beside those the class itself marks.
        columns: columns of the form's plain part.
        n_layers: layers of the model, to check fields of layers.
    """

    sliders: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    stops: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ranges: Mapping[tuple[str, str], tuple[str, float, float, float]] = field(default_factory=dict)
    names: Mapping[Any, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    hidden: Collection[str] = ()
    advanced: Collection[str] = ()
    columns: int = 1
    n_layers: int | None = None


def field_specs(config_class: type[Config]) -> tuple[FieldSpec, ...]:
    """The fields of a settings class, in their order."""
    return tuple(_spec(name, info) for name, info in config_class.model_fields.items())


def config_form(config_class: type[C], initial: C, key: str, look: FormLook | None = None) -> C | None:
    """Draw the form and return the settings, or None after showing what is wrong with them.

    Args:
        config_class: the settings class.
        initial: the values the form opens with (and goes back to).
        key: prefix of the controls' keys; give another one when ``initial`` means something else.
        look: sliders, labels and columns.
    """
    look = look or FormLook()
    problems: list[str] = []
    values = _fields(config_class, initial, key, look, problems)
    if problems:
        st.error(" ".join(problems))
        return None
    try:
        return config_class.make(**values)
    except ConfigError as error:
        # What the settings are called is on the screen already, so the remedy of the library is left out.
        st.error(error.what)
        return None


def reset_form(initial: Config, key: str, look: FormLook | None = None) -> None:
    """Put every control of the form back to ``initial``; for a button's ``on_click``."""
    for low, high in (look or FormLook()).ranges:
        if hasattr(initial, low):
            st.session_state[_range_key(key, low, high)] = (getattr(initial, low), getattr(initial, high))
    for spec in field_specs(type(initial)):
        value = getattr(initial, spec.name)
        if spec.kind == "nested":
            reset_form(value, f"{key}.{spec.name}", look)
        else:
            st.session_state[f"{key}.{spec.name}"] = _shown(spec, value)


def step_of(value: float | None) -> float:
    """A step that moves the second digit of ``value``: 0.1 for 1.5, 0.001 for 0.02."""
    if not value:
        return 0.1
    return float(10.0 ** (math.floor(math.log10(abs(value))) - 1))


def _spec(name: str, info: FieldInfo) -> FieldSpec:
    annotation, optional = _without_none(info.annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    minimum, maximum = _bounds(info)
    choices: tuple[Any, ...] = ()
    nested: type[Config] | None = None
    kind: FieldKind = "text"
    if typing.get_origin(annotation) is Literal:
        kind, choices = "choice", typing.get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        kind, nested = "nested", annotation
    elif annotation is bool:
        kind = "bool"
    elif annotation is int:
        kind = "int"
    elif annotation is float or annotation == float | int:
        kind = "float"
    elif typing.get_origin(annotation) in (tuple, list):
        kind = "layers" if typing.get_args(annotation)[0] is int else "lines"
    return FieldSpec(
        name,
        kind,
        info.title or name.replace("_", " ").capitalize(),
        info.description or "",
        minimum,
        maximum,
        choices,
        optional,
        bool(extra.get("advanced", False)),
        nested,
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        if len(rest) < len(typing.get_args(annotation)):
            return (rest[0] if len(rest) == 1 else annotation), True
    return annotation, False


def _bounds(info: FieldInfo) -> tuple[float | None, float | None]:
    """Inclusive bounds of a number; exclusive ones are left to the class, whose sentence names them."""
    minimum = maximum = None
    for rule in info.metadata:
        minimum = getattr(rule, "ge", None) if getattr(rule, "ge", None) is not None else minimum
        maximum = getattr(rule, "le", None) if getattr(rule, "le", None) is not None else maximum
    return minimum, maximum


def _fields(
    config_class: type[Config], initial: Config, key: str, look: FormLook, problems: list[str]
) -> dict[str, Any]:
    specs = field_specs(config_class)
    values: dict[str, Any] = {spec.name: getattr(initial, spec.name) for spec in specs}
    drawn = [spec for spec in specs if spec.name not in look.hidden]
    later = [spec for spec in drawn if spec.advanced or spec.name in look.advanced]
    plain = [spec for spec in drawn if spec not in later and spec.kind != "nested"]
    nested = [spec for spec in drawn if spec not in later and spec.kind == "nested"]
    _grid(plain, values, key, look, problems)
    for spec in nested:
        with st.expander(look.labels.get(spec.name, spec.label)):
            values[spec.name] = _nested(spec, values[spec.name], key, look, problems)
    if later:
        with st.expander("Advanced settings"):
            _grid([spec for spec in later if spec.kind != "nested"], values, key, look, problems)
            for spec in (spec for spec in later if spec.kind == "nested"):
                st.markdown(f"**{look.labels.get(spec.name, spec.label)}**")
                values[spec.name] = _nested(spec, values[spec.name], key, look, problems)
    return values


def _grid(
    specs: Sequence[FieldSpec], values: dict[str, Any], key: str, look: FormLook, problems: list[str]
) -> None:
    specs = [spec for spec in specs if all(spec.name != high for _, high in look.ranges)]
    for start in range(0, len(specs), look.columns):
        row = specs[start : start + look.columns]
        for column, spec in zip(st.columns(look.columns) if look.columns > 1 else [st], row, strict=False):
            pair = next((pair for pair in look.ranges if pair[0] == spec.name), None)
            if pair is not None:
                _range(column, pair, values, key, look, spec.help)
                continue
            values[spec.name] = _control(
                column, spec, values[spec.name], f"{key}.{spec.name}", look, problems
            )


def _range_key(key: str, low: str, high: str) -> str:
    return f"{key}.{low}-{high}"


def _range(
    place: Any, pair: tuple[str, str], values: dict[str, Any], key: str, look: FormLook, help: str
) -> None:
    """One slider with two handles for a lowest and a highest value: low above high cannot be asked for."""
    low, high = pair
    label, least, most, step = look.ranges[pair]
    name = _range_key(key, low, high)
    opening = {} if name in st.session_state else {"value": (float(values[low]), float(values[high]))}
    values[low], values[high] = place.slider(
        label, least, most, step=step, key=name, help=help or None, persist_state="session", **opening
    )


def _nested(spec: FieldSpec, value: Any, key: str, look: FormLook, problems: list[str]) -> Any:
    assert spec.nested is not None
    if spec.help:
        st.caption(spec.help)
    # As plain values, so that a wrong combination inside is reported by the one `make` of the whole form.
    return _fields(
        spec.nested, value if value is not None else spec.nested(), f"{key}.{spec.name}", look, problems
    )


def _control(place: Any, spec: FieldSpec, value: Any, key: str, look: FormLook, problems: list[str]) -> Any:
    common = {
        "label": look.labels.get(spec.name, spec.label),
        "help": spec.help or None,
        "key": key,
        "persist_state": "session",
    }
    # A value put into the session beforehand (by a reset) wins; giving both makes Streamlit complain.
    fresh = key not in st.session_state
    shown = _shown(spec, value)
    if spec.kind == "bool":
        return place.checkbox(**common, **({"value": shown} if fresh else {}))
    if spec.kind == "choice":
        choices = ((None, *spec.choices) if spec.optional else spec.choices) or (value,)
        index = {"index": choices.index(value) if value in choices else 0} if fresh else {}
        return place.selectbox(options=choices, format_func=_namer(look.names), **common, **index)
    if spec.kind in ("int", "float"):
        return _number(place, spec, shown, common, look, fresh)
    opening = {"value": shown} if fresh else {}
    if spec.kind == "lines":
        text = place.text_area(**common, **opening, height=110)
        return tuple(line for line in str(text).splitlines() if line.strip())
    placeholder = look.names.get(None, "automatic") if spec.optional else None
    text = str(place.text_input(**common, **opening, placeholder=placeholder) or "")
    if spec.optional and not text.strip():
        return None
    return _layers(text, spec, common["label"], look, problems, value) if spec.kind == "layers" else text


def _namer(names: Mapping[Any, str]) -> Any:
    def name(choice: Any) -> str:
        return names.get(choice, "automatic" if choice is None else str(choice).replace("_", " "))

    return name


def _number(
    place: Any, spec: FieldSpec, shown: Any, common: dict[str, Any], look: FormLook, fresh: bool
) -> float | int | None:
    cast = int if spec.kind == "int" else float
    opening = {"value": shown} if fresh else {}
    if spec.name in look.stops and shown is not None:
        held = shown if fresh else st.session_state[common["key"]]
        stops = sorted({cast(stop) for stop in (*look.stops[spec.name], shown, held)})
        stopped: float = place.select_slider(
            options=stops, format_func=lambda stop: f"{stop:g}", **common, **opening
        )
        return stopped
    if spec.name in look.sliders and shown is not None:
        least, most, step = look.sliders[spec.name]
        # A preset may lie outside the usual range: the slider then reaches as far as the preset.
        low, high = cast(min(least, shown)), cast(max(most, shown))
        digits = max(0, -math.floor(math.log10(step)))
        sliding = {"format": f"%.{digits}f"} if spec.kind == "float" else {}
        moved: float = place.slider(
            min_value=low, max_value=high, step=cast(step), **common, **opening, **sliding
        )
        return moved
    limits = {
        "min_value": None if spec.minimum is None else cast(spec.minimum),
        "max_value": None if spec.maximum is None else cast(spec.maximum),
    }
    step = 1 if spec.kind == "int" else step_of(shown)
    format_ = {} if spec.kind == "int" else {"format": "%g"}
    if spec.optional:
        opening, common = (
            {"value": shown} if fresh else {"value": None},
            {**common, "placeholder": look.names.get(None, "automatic")},
        )
    number: float | None = place.number_input(step=step, **limits, **common, **opening, **format_)
    return number


def _layers(
    text: str, spec: FieldSpec, label: Any, look: FormLook, problems: list[str], value: Any
) -> tuple[int, ...]:
    try:
        return parse_layers(text, look.n_layers or 10**6)
    except ValueError as error:
        problems.append(f"{label}: {error}")
        return tuple(value or ())


def _shown(spec: FieldSpec, value: Any) -> Any:
    """A value as its control holds it."""
    if spec.kind == "layers":
        return "" if value is None else layers_text(value)
    if spec.kind == "lines":
        return "\n".join(value or ())
    if spec.kind == "float" and value is not None:
        return float(value)
    if spec.kind == "text":
        return "" if value is None else str(value)
    return value
