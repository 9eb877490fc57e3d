"""The Roles page's left column: which questions, what is scored, the rule, and the job that scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import engine, frame, jobs, questions_form, state
from dashboard import roles_work as work
from dashboard.layers_field import choose_layers
from dashboard.neurons_data import say_estimate
from dashboard.neurons_settings import CHOICES as SCORE_CHOICES
from dashboard.widgets import FormLook, config_form, reset_form
from nmke.errors import NmkeError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.roles import RolesConfig

PURPOSE = "roles"
FOUND = "roles.found"
_NAMES: Mapping[Any, str] = {
    **SCORE_CHOICES,
    "letters": "letters, as MMLU's",
    "cloze": "cloze: question alone",
    "top1": "the model's own top 1",
    "answer": "the right answer",
    "top share": "top share on most questions",
    "sign test": "sign test over questions",
    "none": "none",
    "bonferroni": "Bonferroni",
    "fdr": "false discovery rate",
}
_SCORE_LOOK = FormLook(
    names=_NAMES, hidden=("target", "read_position"), advanced=("prob_floor", "memory_mib", "seed", "scale")
)
_RULE = ("rule", "top_share", "task_share", "level", "correction", "resamples", "seed")
_SCORED = ("attribution", "form", "target")
_FORM_LOOK = FormLook(names=_NAMES, hidden=("attribution", *_RULE))


def show(model: "LoadedModel") -> "tuple[work.Asked | None, RolesConfig | None]":
    """The whole column: what is asked for, and the rule."""
    button = st.container()  # above the settings it depends on, so that it is always on the first screen
    seen = state.get().settings.get(FOUND) is not None
    with st.expander("Questions and scores", expanded=not seen, icon=":material/quiz:"):
        questions = _questions()
        scored = _scored()
        layers = choose_layers(model, "roles")
    asked = None
    if questions is not None and scored is not None and layers is not None:
        session = engine.current_session()
        version = 0 if session is None else session.version
        asked = work.Asked(model.weight_hash, engine.edit_state_key(), version, *questions, layers, scored)
    with button:
        _button(model, asked)
    return asked, _rule()


def _questions() -> tuple[str, tuple[str, ...], int, int] | None:
    """Source, subjects, how many of each, the seed of the draw."""
    source = questions_form.choose_source("roles", "roles.source")
    if source is None:
        return None
    subjects = questions_form.choose_subjects(
        "roles",
        source,
        work.short_title,
        "Each is one task. High school and college biology are one domain, biology.",
    )
    if subjects is None:
        return None
    left, right = st.columns(2)
    limit = questions_form.choose_number(
        left,
        "Of each",
        "roles.limit",
        100,
        (1, questions_form.MOST),
        10,
        "Questions of each subject, drawn with the seed; all where there are fewer.",
    )
    seed = questions_form.choose_number(
        right, "Draw seed", "roles.draw", 0, (0, 10**6), 1, "Which questions are drawn."
    )
    if len(subjects) < 2:
        st.warning("Roles compare tasks: choose at least two subjects.")
        return None
    return source, subjects, limit, seed


def _scored() -> "RolesConfig | None":
    """Score, form and token followed; the rule's settings stay at their defaults."""
    from nmke.roles.config import RolesConfig
    from nmke.scores import AttributionConfig

    start = RolesConfig()
    attribution = config_form(AttributionConfig, start.attribution, "roles.score", _SCORE_LOOK)
    look = _FORM_LOOK
    if attribution is not None and attribution.kind == "mpc":
        look = FormLook(names=_NAMES, hidden=("attribution", "target", *_RULE))
    form = config_form(RolesConfig, start, "roles.form", look)
    if attribution is None or form is None:
        return None
    return form.changed(attribution=attribution.model_dump())


def _button(model: "LoadedModel", asked: work.Asked | None) -> None:
    busy = jobs.running(PURPOSE)
    if st.button(
        "Find the roles", type="primary", key="roles.find", disabled=asked is None or busy, width="stretch"
    ):
        assert asked is not None
        try:
            start(model, asked)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()
    if asked is not None and not busy:
        seconds, measured = _estimate(model, asked)
        st.caption(
            f"{len(asked.subjects)} × {asked.limit} questions × {len(asked.layers)} layers: {say_estimate(seconds)}"
            f"{' (measured here)' if measured else ''}."
        )


def _estimate(model: "LoadedModel", asked: work.Asked) -> tuple[float, bool]:
    """Seconds, and whether they come from scores computed in this session."""
    guess = work.guess_seconds(model, asked)
    found: work.Found | None = state.get().settings.get(FOUND)
    if found is None or found.asked.weight_hash != model.weight_hash:
        return guess, False
    if (found.asked.config.attribution.kind == "mpc") != (asked.config.attribution.kind == "mpc"):
        return guess, False
    return guess * found.scores.seconds / work.guess_seconds(model, found.asked), True


def start(model: "LoadedModel", asked: work.Asked) -> None:
    """Score the questions as a job; it can be cancelled between groups of questions."""
    session = engine.current_session()
    assert session is not None

    def find(progress: Progress) -> work.Found:
        return work.find(model, session, asked, progress)

    jobs.start(PURPOSE, "Finding the roles of neurons", find)


def take_result() -> None:
    """Take in what a finished job found."""
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return
    if outcome.state == jobs.JobState.DONE:
        state.get().settings[FOUND] = outcome.value
    else:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
    st.rerun()


def _rule() -> "RolesConfig | None":
    """The rule's controls; what the scores depend on stays at its defaults."""
    from nmke.roles.config import RolesConfig

    opened = RolesConfig()
    rule = st.session_state.get("roles.rule.rule", opened.rule)
    unused = ("level", "correction") if rule == "top share" else ("top_share", "task_share")
    look = FormLook(
        names=_NAMES,
        hidden=(*_SCORED, *unused),
        advanced=("resamples", "seed"),
        sliders={"top_share": (0.01, 0.5, 0.01), "task_share": (0.05, 1.0, 0.05)},
        stops={"level": (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2)},
    )
    config = config_form(RolesConfig, opened, "roles.rule", look)
    st.button(
        "Default rule",
        on_click=reset_form,
        args=(opened, "roles.rule", look),
        key="roles.reset",
        type="tertiary",
        icon=":material/restart_alt:",
    )
    return config
