"""The Abilities page: the form, a measurement in work, and what came of it."""

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import abilities_form, abilities_panels, frame, jobs, libraries, state
from dashboard import abilities_work as work

if TYPE_CHECKING:
    from nmke.loading import LoadedModel

_TICK = 2.0


def show(model: "LoadedModel") -> None:
    """The whole page, once a model is there."""
    _take(model)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=264), frame.guard("Showing the form"):
            abilities_form.show(model)
        with st.container(width="stretch"):
            live = jobs.running(work.PURPOSE)
            if live:
                frame.progress_here(work.PURPOSE)
            st.fragment(_results, run_every=_TICK if live else None, key="abilities.results")(model, live)


def _take(model: "LoadedModel") -> None:
    """Say how a finished measurement ended; what it measured is kept however it ended."""
    outcome = jobs.take(work.PURPOSE)
    if outcome is None:
        return
    mine = state.get()
    work.results(model)
    watched: work.Watched | None = mine.settings.pop("abilities.watched", None)
    failures = watched.failures if watched is not None else []
    measured = len(watched.results) if watched is not None else 0
    if outcome.state == jobs.JobState.CANCELLED:
        mine.flash("info", "The measurement was cancelled. What it finished is kept and shown.")
    elif outcome.state == jobs.JobState.FAILED:
        mine.flash("error", outcome.error)
    elif measured:
        cached = sum(result.score.cached for result in watched.results) if watched is not None else 0
        mine.flash("success", f"Measured: {measured} scores, {cached} of them from the cache.")
    for failure in failures:
        mine.flash("error", failure)
    st.rerun()


def _results(model: "LoadedModel", live: bool) -> None:
    """Everything measured so far; a fragment that ticks while a measurement is in work."""
    if live and not jobs.running(work.PURPOSE):
        st.rerun()
    libraries.are_ready()
    known = work.results(model)
    if known:
        abilities_panels.show(known, live)
    elif live:
        st.info("The first score appears here as soon as one benchmark is answered.")
    else:
        st.info(
            "Nothing is measured yet. Choose what to compare and which benchmarks, then press the button: the model "
            "as loaded is asked first, then every state you chose, with the same questions."
        )
