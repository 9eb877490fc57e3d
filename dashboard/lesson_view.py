"""The Lesson page's frame: the model it needs, the steps with previous and next, each step's button and its reveal."""

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import engine, frame, jobs, lesson_steps, lesson_words, libraries, state
from dashboard import lesson_work as work

if TYPE_CHECKING:
    from nmke.loading import LoadedModel

STEPS = len(lesson_words.TITLES)
_STEP = "lesson.step"


def offer_model() -> None:
    """Without a model: load the default one right here."""
    from nmke.registry import MODELS

    if jobs.running("load"):
        st.info("The model is being loaded; the lesson begins when it is there.")
        frame.progress_here("load")
        return
    name, default = next(iter(MODELS.items()))
    st.info(
        f"No model is loaded yet. The lesson was written for {default.title}, which is small enough for any laptop."
    )
    with st.container(horizontal=True):
        if st.button(f"Load {default.title}", key="lesson.load", type="primary"):
            engine.start_loading(engine.ModelKey(name))
            st.rerun()
        if st.button("Choose another model", key="go.model"):
            st.switch_page(frame.PAGES["model"][0])


def show(model: "LoadedModel") -> None:
    """The whole lesson, once a model is there."""
    if not libraries.are_ready():
        libraries.wait_here()
        return
    if not model.conformance.passed:
        st.error(
            f"{model.conformance.sentence} The lesson would show wrong numbers on it; load another model."
        )
        return
    if work.take():
        st.rerun()
    step = _step()
    _navigate(step)
    with frame.guard("Showing the step"):
        st.markdown(lesson_words.INTRO[step])
        parts = work.parts_of(model)
        missing = [part for part in work.NEEDED[step] if part not in parts]
        frame.progress_here(work.PURPOSE)
        if missing:
            _offer(model, step, missing)
        else:
            lesson_steps.show(step, model, parts)
        _ask(step, parts, ready=not missing)


def _step() -> int:
    found: int = state.get().settings.get(_STEP, 1)
    return found


def _go(step: int) -> None:
    state.get().settings[_STEP] = step


def _navigate(step: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Previous",
            key="lesson.previous",
            disabled=step == 1,
            on_click=_go,
            args=(step - 1,),
            icon=":material/arrow_back:",
        )
        st.progress(
            step / STEPS, text=f"**Step {step} of {STEPS}: {lesson_words.TITLES[step]}**", width="stretch"
        )
        st.button(
            "Next",
            key="lesson.next",
            type="primary",
            disabled=step == STEPS,
            on_click=_go,
            args=(step + 1,),
            icon=":material/arrow_forward:",
        )


def _offer(model: "LoadedModel", step: int, missing: list[str]) -> None:
    """The step's button, and another that makes all steps at once."""
    if jobs.running(work.PURPOSE):
        st.info("The picture appears here when this is done. You can look at the other steps meanwhile.")
        return
    session = engine.current_session()
    assert session is not None
    every = [part for part in work.PARTS if part not in work.parts_of(model)]
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Show it", key=f"lesson.show.{step}", type="primary", icon=":material/play_arrow:"):
            work.start(model, session, missing, f"Lesson, step {step}: {lesson_words.TITLES[step]}")
            st.rerun()
        st.caption(f"Computed now on {model.name}: about {_say_time(model, missing)}.")
        if len(every) > len(missing) and st.button(
            "Prepare all steps",
            key="lesson.all",
            type="tertiary",
            help=f"Before a class: computes every picture, about {_say_time(model, every)}.",
        ):
            work.start(model, session, every, "Lesson, all steps")
            st.rerun()
    if session.version:
        st.caption("Your edits are left out here: the lesson speaks of the model as it was loaded.")


def _say_time(model: "LoadedModel", parts: list[str]) -> str:
    return jobs.say_seconds(work.guess_seconds(model, parts))


def _ask(step: int, parts: dict[str, object], *, ready: bool) -> None:
    """The question to the audience; its answer comes with a click."""
    with st.container(border=True):
        revealed = state.get().settings.setdefault("lesson.revealed", set())
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**Your guess?** {lesson_words.QUESTIONS[step]}", width="stretch")
            if st.button(
                "Hide the answer" if step in revealed and ready else "Reveal the answer",
                key=f"lesson.reveal.{step}",
                disabled=not ready,
                help=None if ready else "Press “Show it” first: the answer is read from its numbers.",
            ):
                revealed.symmetric_difference_update({step})
                st.rerun()
        if ready and step in revealed:
            lesson_steps.reveal(step, parts)
