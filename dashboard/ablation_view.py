"""The Ablation page: neurons are switched off, and the bars fill while the questions are answered."""

from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import ablation_form, ablation_panels, ablation_results, frame, jobs, libraries, state
from dashboard import ablation_work as work

if TYPE_CHECKING:
    from nmke.ablation import AblationResults
    from nmke.loading import LoadedModel

CHOSEN = "ablation.chosen"
#: Stands among the names of kept results for what a cancelled ablation has answered.
UNFINISHED = "unfinished"
_TICK = 2.0


def show(model: "LoadedModel") -> None:
    """The whole page, once a model is there."""
    if not libraries.are_ready():
        libraries.wait_here()
        return
    _take()
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=272), frame.guard("Showing the form"):
            wish = ablation_form.show(model)
        with st.container(width="stretch"):
            live = jobs.running(work.PURPOSE)
            if live:
                frame.progress_here(work.PURPOSE)
            chosen = _choose(model, None if live else _begun(model))
            every = _TICK if live else None
            st.fragment(_results, run_every=every, key="ablation.results")(model, chosen, live, wish)


def _take() -> None:
    """Take in what a finished ablation hands over."""
    outcome = jobs.take(work.PURPOSE)
    if outcome is None:
        return
    mine = state.get()
    if outcome.state == jobs.JobState.DONE:
        name, title = outcome.value
        mine.settings["ablation.live"] = None
        mine.settings["ablation.wish"] = [name]
        with frame.guard("Reading the results"):
            _note_pace(ablation_results.open_result(name).results)
        mine.flash("success", f"Done: {title}.")
    elif outcome.state == jobs.JobState.CANCELLED:
        mine.flash(
            "info",
            "The ablation was cancelled. Finished conditions are kept and not answered again; what was answered so "
            "far stands below.",
        )
    else:
        mine.flash("error", outcome.error)
    if outcome.state != jobs.JobState.DONE:
        mine.settings["ablation.wish"] = [UNFINISHED]
    st.rerun()


def _note_pace(results: "AblationResults") -> None:
    """Remember how long a question takes here."""
    if results.seconds:
        answered = len(results.seconds) * len(results.questions)
        scores = tuple(results.about["config"]["answers"]["scores"])
        state.get().settings[f"ablation.pace.{scores}"] = sum(results.seconds.values()) / answered


def _begun(model: "LoadedModel") -> "AblationResults | None":
    """What the ablation at work, or a cancelled one, has answered on this model; None before its first answer."""
    now = work.live()
    begun = now.results() if now is not None else None
    here = begun is not None and begun.answered and begun.about["model"]["weight_hash"] == model.weight_hash
    return begun if here else None


def _choose(model: "LoadedModel", unfinished: "AblationResults | None") -> dict[str, str]:
    """The results to show, name by title: those kept, and what a cancelled ablation has answered."""
    kept, others = ablation_results.kept_results(model.weight_hash)
    titles = ablation_results.titles_of(kept)
    options = list(kept)
    if unfinished is not None:
        titles[UNFINISHED] = f"unfinished: {ablation_results.title_of(unfinished)}"
        options.insert(0, UNFINISHED)
    wish = [name for name in state.get().settings.pop("ablation.wish", ()) if name in titles]
    if CHOSEN in st.session_state or wish:
        # What was shown before stays beside it: comparing is the point.
        before = [name for name in st.session_state.get(CHOSEN, ()) if name in titles and name not in wish]
        st.session_state[CHOSEN] = [*wish, *before][:2] if wish else before
    if not options:
        if others:
            st.caption(f"{others} kept results are of other models.")
        return {}
    fresh: dict[str, Any] = {} if CHOSEN in st.session_state else {"default": options[:1]}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = st.multiselect(
            "Results",
            options,
            format_func=lambda name: titles.get(name, name),
            key=CHOSEN,
            persist_state="session",
            help="Kept on this machine. Several are drawn side by side; the first is looked at closely.",
            placeholder="Choose results to show",
            width="stretch",
            **fresh,
        )
        if st.button(
            "Forget",
            key="ablation.forget",
            type="tertiary",
            disabled=not names,
            help="Remove the first of them.",
        ):
            if names[0] == UNFINISHED:
                state.get().settings["ablation.live"] = None
            else:
                ablation_results.forget(names[0])
            st.rerun()
    return {titles[name]: name for name in names}


def _results(
    model: "LoadedModel", chosen: dict[str, str], live: bool, wish: "ablation_form.Wish | None"
) -> None:
    """What is shown; a fragment that ticks while an ablation is at work."""
    if live and not jobs.running(work.PURPOSE):
        st.rerun()
    shown: dict[str, AblationResults] = {}
    begun = _begun(model)
    if live and begun is not None:
        shown[f"now: {ablation_results.title_of(begun)}"] = begun
    for title, name in chosen.items():
        if name == UNFINISHED:
            if begun is not None:
                shown[title] = begun
            continue
        with frame.guard("Reading the results"):
            shown[title] = ablation_results.open_result(name).results
    if live and not shown:
        st.info(
            "The neurons and questions are being prepared; the bars appear here and fill as questions are answered."
        )
        return
    if not shown:
        st.info(
            "Nothing is ablated yet. Press “Switch them off”: the questions are answered with nothing switched off, "
            "without the chosen neurons, and without as many random ones in the same layers."
        )
        return
    ablation_panels.show(model, shown, wish)
