"""Will it fit? The memory of a model that is not loaded yet, without fetching anything."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from dashboard.holder import ModelKey
from nmke.progress import Silent

if TYPE_CHECKING:
    from nmke.memory import MemoryEstimate


@st.cache_data(show_spinner=False, ttl=10, max_entries=50)
def memory_of(key: ModelKey) -> "MemoryEstimate | str":
    """Memory needed against free, or one sentence why that is not known before loading.

    Raises:
        NmkeError: what was named is no model that can be loaded.
    """
    from nmke.resources import list_models

    later = "the memory it needs is checked before the weights are loaded."
    known = {model.name: model for model in list_models()}
    if key.spec in known:
        if not known[key.spec].cached:
            return f"{known[key.spec].title} is fetched and converted once; {later}"
    elif Path(key.spec).expanduser().is_file():
        return f"A file is converted once and kept in the cache; {later}"
    elif is_hub_id(key.spec):
        return f"A model of the Hugging Face hub, if it can be reached; {later}"
    return _estimate(key)


def is_hub_id(spec: str) -> bool:
    """Whether the words could be a hub id and nothing of that name lies here."""
    return (
        not Path(spec).expanduser().exists() and not spec.startswith((".", "/", "~")) and spec.count("/") < 2
    )


def _estimate(key: ModelKey) -> "MemoryEstimate":
    from nmke.loading import choose_device, estimate_load
    from nmke.resources import resolve_model

    return estimate_load(resolve_model(key.spec, Silent()), choose_device(key.device), key.dtype)
