"""The slow imports, made beside the first page instead of before it."""

import importlib
import threading

import streamlit as st

from dashboard import garbage
from nmke.progress import Progress

_LIBRARIES = ("nmke.loading", "nmke.session", "transformers.models.auto", "transformer_lens.model_bridge")


@st.cache_resource(show_spinner=False)
def warm_up() -> threading.Thread:
    """The one thread that imports torch and TransformerLens."""
    thread = threading.Thread(target=_import_all, name="warm-up", daemon=True)
    thread.start()
    return thread


def are_ready() -> bool:
    """Whether the imports ended (in success, or in a failure that loading will report)."""
    ready = not warm_up().is_alive()
    if not ready:
        garbage.set_aside()
    return ready


@st.fragment(run_every=0.5)
def wait_here() -> None:
    """Say on the page that they are not there yet, and run it again once they are."""
    st.info("The libraries are being read; this takes some seconds after the server's start.")
    if are_ready():
        st.rerun()


def wait_for(thread: threading.Thread, progress: Progress) -> None:
    """Wait in a worker: two threads importing transformers at once see each other's half-made modules."""
    while thread.is_alive():
        progress.update("importing the libraries", 0, None)
        thread.join(0.2)


def _import_all() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    garbage.collect_all()
