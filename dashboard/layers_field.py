"""The field that names layers, of every page that asks for some of the model's."""

from typing import TYPE_CHECKING

import streamlit as st

from dashboard.selection import parse_layers

if TYPE_CHECKING:
    from nmke.loading import LoadedModel

_HELP = "All, a range such as 4-8, or a list such as 4, 6."


def choose_layers(
    model: "LoadedModel", page: str, opening: str = "all", explanation: str = _HELP
) -> tuple[int, ...] | None:
    """The layers named, or None after saying what is wrong.

    Args:
        page: what the page's keys begin with; each model has a field of its own there.
    """
    key = f"{page}.layers.{model.weight_hash[:12]}"
    st.session_state.setdefault(key, opening)
    text = st.text_input("Layers", key=key, persist_state="session", help=explanation)
    try:
        return parse_layers(text, model.n_layers)
    except ValueError as problem:
        st.error(str(problem))
        return None
