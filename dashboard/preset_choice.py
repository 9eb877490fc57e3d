"""Which of a method's presets a form starts from, where the model has several."""

from typing import TYPE_CHECKING

import streamlit as st

from nmke.preset_names import STANDARD

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.presets import Preset


def choose_preset(model: "LoadedModel", method: str, key: str) -> "Preset":
    """The preset chosen, by a list that is shown only where there is a choice.

    Args:
        key: what the list's key and the form's begin with.
    """
    from nmke.presets import presets_for

    known = presets_for(model, method)
    if len(known) == 1:
        return next(iter(known.values()))
    name = st.selectbox(
        "Preset",
        list(known),
        key=f"{key}.preset.{method}.{model.weight_hash[:12]}",
        persist_state="session",
        format_func=str.capitalize,
        help="Settings measured on this model for different purposes; what each was measured to do stands below.",
    )
    return known[name]


def form_key(model: "LoadedModel", method: str, preset: "Preset", key: str) -> str:
    """The key of the form of that preset's settings: what is changed there stays with the preset."""
    own = "" if preset.name == STANDARD else f".{preset.name}"
    return f"{key}.{method}{own}.{model.weight_hash[:12]}"
