"""The Edit page: facts and method, the form, Apply, and what came of it."""

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import charts, edit_history, edit_results, engine, frame, jobs, state
from dashboard.edit_work import Measured, plan_and_measure
from dashboard.neurons_data import say_estimate
from dashboard.neurons_settings import CHOICES
from dashboard.preset_choice import choose_preset, form_key
from dashboard.widgets import FormLook, config_form, reset_form
from nmke.config import Config
from nmke.errors import NmkeError
from nmke.facts import Fact
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.methods import Method
    from nmke.presets import Preset

PURPOSE = "edit"


def show(model: "LoadedModel", facts: tuple[Fact, ...]) -> None:
    """The whole page, once model and facts are there."""
    take_result()
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=300), frame.guard("Showing the form"):
            _form_side(model, facts)
        with st.container(width="stretch"):
            _result_side(model)


# ---- the form ---------------------------------------------------------------------------------------------------


def _form_side(model: "LoadedModel", facts: tuple[Fact, ...]) -> None:
    from nmke.methods import methods

    known = methods()
    chosen = _choose_facts(facts)
    name = st.selectbox(
        "Method",
        list(known),
        key="edit.method",
        persist_state="session",
        format_func=lambda key: known[key].title,
        help="Which published editor computes the change.",
    )
    method = known[name]
    st.caption(method.about)
    config = _settings(model, method)
    words = st.session_state.get("edit.words", 12)
    busy = jobs.running(PURPOSE)
    ready = config is not None and bool(chosen)
    count = f"{len(chosen)} facts" if len(chosen) != 1 else "1 fact"
    if st.button(
        f"Apply to {count}", type="primary", key="edit.apply", disabled=busy or not ready, width="stretch"
    ):
        assert config is not None
        try:
            start(chosen, method.name, config, words)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()
    if not busy and ready:
        st.caption(_estimate(len(chosen)))


def _choose_facts(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    mine = state.get()
    key = f"edit.facts.{mine.facts_version}"
    chosen = st.multiselect(
        "Facts to write in",
        range(len(facts)),
        default=None if key in st.session_state else [mine.selected_fact],
        format_func=lambda index: (
            f"{facts[index].subject} → {facts[index].target_new}: {facts[index].prompt}"
        ),
        key=key,
        persist_state="session",
        help="Several facts are written in one edit, which is then undone as one.",
    )
    if not chosen:
        st.warning("Choose at least one fact.")
    return tuple(facts[index] for index in chosen)


def say_fact(fact: Fact, limit: int) -> str:
    """A fact on one line: its prompt, shortened, and the new answer."""
    answer = charts.shorten(fact.target_new, 16)
    return f"{charts.shorten(fact.prompt, max(limit - len(answer) - 3, 12))} → {answer}"


def _settings(model: "LoadedModel", method: "Method") -> Config | None:
    preset = choose_preset(model, method.name, "edit")
    key = form_key(model, method.name, preset, "edit.form")
    look = FormLook(names=CHOICES, n_layers=model.n_layers, advanced=("context_seed",))
    with st.expander(f"Settings: preset {preset.status}", icon=":material/tune:"):
        _say_preset(preset)
        with st.container(horizontal=True, gap="small"):
            st.button(
                "Back to the preset",
                on_click=reset_form,
                args=(preset.config, key, look),
                key="edit.reset",
                type="tertiary",
                icon=":material/restart_alt:",
            )
            mask = state.get().settings.get("neurons.mask_config")
            if mask is not None and hasattr(preset.config, "mask"):
                st.button(
                    "Mask of the Neurons page",
                    on_click=reset_form,
                    args=(mask, f"{key}.mask", look),
                    key="edit.take_mask",
                    type="tertiary",
                    icon=":material/content_paste:",
                    help="Copies the sliders of the Neurons page into these settings.",
                )
        return config_form(method.config_class, preset.config, key, look)


def _say_preset(preset: "Preset") -> None:
    if preset.status == "verified":
        st.success(f"Verified for this model. {preset.figures}".strip(), icon=":material/verified:")
    else:
        st.warning(
            f"Guessed for this model: derived from its depth, never measured. {preset.figures}".strip(),
            icon=":material/help:",
        )


def _estimate(facts: int) -> str:
    per_fact = state.get().settings.get("edit.seconds_per_fact")
    if per_fact is None:
        return "Seconds to a minute per fact on a laptop; the first edit also reads the statistics text once."
    return f"{say_estimate(per_fact * facts).capitalize()}, as measured here."


def start(facts: tuple[Fact, ...], method: str, config: Config, words: int) -> None:
    """Plan and measure the edit as a job; it is applied when the job is done."""
    session = engine.current_session()
    assert session is not None

    def work(progress: Progress) -> Measured:
        return plan_and_measure(session, facts, method, config, words, progress)

    what = say_fact(facts[0], 40) if len(facts) == 1 else f"{len(facts)} facts"
    jobs.start(PURPOSE, f"Editing: {what}", work)


def take_result() -> None:
    """Apply what a finished job planned, unless the session moved on meanwhile."""
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return
    if outcome.state != jobs.JobState.DONE:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
        st.rerun()
    measured: Measured = outcome.value
    session, mine = engine.current_session(), state.get()
    if session is None or session.digest != measured.based_on:
        mine.flash(
            "warning",
            "The edits were changed while this one was computed, so it was not applied. Apply it again.",
        )
        st.rerun()
    if measured.edit is not None:
        if not engine.apply(measured.edit):
            st.rerun()
        seconds = measured.edit.seconds
        per_fact = (seconds.get("total", 0.0) - seconds.get("statistics", 0.0)) / max(len(measured.facts), 1)
        mine.settings["edit.seconds_per_fact"] = per_fact + 2.0
        mine.flash("success", f"Applied: the model is now at edit version {session.version}.")
    results: dict[str, Measured] = mine.settings.setdefault("edit.results", {})
    results[session.digest] = measured
    st.rerun()


# ---- what came of it --------------------------------------------------------------------------------------------


def _result_side(model: "LoadedModel") -> None:
    session = engine.current_session()
    assert session is not None
    facts, weights, history, words = st.tabs(
        ["Facts before and after", "Change of the weights", "History", "Try a prompt"],
        key="edit.tabs",
        on_change="rerun",  # so that the last tab knows whether it is open
    )
    results: dict[str, Measured] = state.get().settings.get("edit.results", {})
    measured = results.get(session.digest)
    with facts, frame.guard("Showing the facts"):
        edit_results.facts(session, measured)
    with weights, frame.guard("Showing the change"):
        edit_results.weights(session, measured)
    with history, frame.guard("Showing the history"):
        edit_history.show(model, session)
    with words, frame.guard("Comparing the answers"):
        edit_results.try_prompt(session, bool(words.open))
