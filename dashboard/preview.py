"""Will it fit? The memory of a model that is not loaded yet, without fetching anything."""

import importlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from dashboard.holder import ModelKey
from nmke.errors import NmkeError
from nmke.progress import Silent

if TYPE_CHECKING:
    from nmke.memory import MemoryEstimate
    from nmke.resources import KnownModel

_ENGINE = "nmke.loading"


@st.cache_resource(show_spinner=False)
def warm_up() -> threading.Thread:
    """Import torch and TransformerLens beside the first page, which would otherwise wait seconds for them."""
    thread = threading.Thread(target=importlib.import_module, args=(_ENGINE,), name="warm-up", daemon=True)
    thread.start()
    return thread


def is_warm() -> bool:
    """Whether the libraries are there (or could not be imported, which loading then reports)."""
    return not warm_up().is_alive() or _ENGINE in sys.modules and hasattr(sys.modules[_ENGINE], "load_model")


@st.cache_data(show_spinner=False, ttl=10, max_entries=50)
def memory_of(key: ModelKey) -> "MemoryEstimate | str":
    """Memory needed against free, or one sentence why that is not known before loading."""
    from nmke.resources import list_models

    try:
        known = {model.name: model for model in list_models()}
        if key.spec in known:
            if not known[key.spec].cached:
                return _not_fetched(known[key.spec])
        elif key.spec.endswith(".gguf"):
            return "A GGUF file is converted once; the memory it needs is checked before its weights are loaded."
        elif not Path(key.spec).expanduser().exists():
            return "A hub model; the memory it needs is checked before its weights are loaded."
        return _estimate(key)
    except NmkeError as problem:
        return str(problem)


def _not_fetched(model: "KnownModel") -> str:
    return (
        f"{model.title} is not in the cache yet: loading fetches and converts it once "
        "and checks the memory before the weights are loaded."
    )


def _estimate(key: ModelKey) -> "MemoryEstimate":
    from nmke.loading import choose_device
    from nmke.memory import estimate_memory, shape_of
    from nmke.resources import resolve_model

    device = choose_device(key.device)
    narrow = key.dtype in ("bfloat16", "float16") or (key.dtype == "auto" and device != "cpu")
    shape = shape_of(resolve_model(key.spec, Silent()))
    return estimate_memory(
        shape.n_params,
        shape.n_layers,
        shape.d_model,
        shape.d_mlp,
        shape.d_vocab,
        dtype_bytes=2 if narrow else 4,
        device=device,
    )
