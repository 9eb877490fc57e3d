"""What every page shares: its first line, what is missing, errors as sentences, and the sidebar."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import streamlit as st

from dashboard import engine, jobs, libraries, state

if TYPE_CHECKING:
    from nmke.facts import Fact
    from nmke.loading import LoadedModel

_TICK = 0.5

#: Every page by its key: its file as seen from app.py, and its title.
PAGES: Mapping[str, tuple[str, str]] = {
    "model": ("../pages/model.py", "Model"),
    "facts": ("../pages/facts.py", "Facts"),
    "neurons": ("../pages/neurons.py", "Neurons"),
    "edit": ("../pages/edit.py", "Edit"),
    "drift": ("../pages/drift.py", "Drift"),
    "roles": ("../pages/roles.py", "Roles"),
    "ablation": ("../pages/ablation.py", "Ablation"),
    "abilities": ("../pages/abilities.py", "Abilities"),
    "benchmark": ("../pages/benchmark.py", "Benchmark"),
    "lesson": ("../pages/lesson.py", "Lesson"),
}


def style() -> None:
    """Less empty space above the page, so that its first screen needs no scrolling."""
    st.html("<style>.stMainBlockContainer{padding:2.2rem 2.5rem 2rem}</style>")


def question(text: str, more: str = "") -> None:
    """The page's first line: the question it answers."""
    st.header(text, anchor=False)
    if more:
        st.caption(more)


def missing(sentence: str, page: str, label: str) -> None:
    """One sentence saying what is missing, and a button that goes there."""
    st.info(sentence)
    if st.button(label, key=f"go.{page}", type="primary"):
        st.switch_page(PAGES[page][0])


def need_model() -> "LoadedModel | None":
    """The current model, or None after saying that one must be loaded."""
    model = engine.current_model()
    if model is None:
        if jobs.running("load"):
            st.info("The model is being loaded; this page fills in when it is there.")
        else:
            missing("No model is loaded yet.", "model", "Choose a model")
    return model


def need_facts() -> "tuple[Fact, ...] | None":
    """The facts, or None after saying that some must be entered."""
    facts = state.get().facts
    if not facts:
        missing("There are no facts yet.", "facts", "Enter facts")
        return None
    return facts


def show_error(problem: Exception | str, doing: str = "This step") -> None:
    """An error as one sentence with its remedy."""
    st.error(problem if isinstance(problem, str) else jobs.explain(problem, doing))


@contextmanager
def guard(doing: str) -> Iterator[None]:
    """Turn any error of the block into one sentence on the page; the rest of the page goes on.

    Streamlit's own stop and rerun pass through: they are no ``Exception``.

    Args:
        doing: what the block does, as the start of a sentence: "Drawing the map".
    """
    try:
        yield
    except Exception as problem:
        show_error(problem, doing)


@st.fragment(run_every=1.0)
def wait_until_free() -> None:
    """Say that the model is busy, and run the page again once it is free."""
    busy = engine.quick(lambda: None, wait=0.0)
    if isinstance(busy, engine.Busy):
        st.caption(busy.sentence)
    else:
        st.rerun()


def progress_here(purpose: str) -> None:
    """Progress and Cancel of one job in the page itself."""
    if jobs.running(purpose):
        _tick_one(purpose)


@st.fragment(run_every=_TICK)
def _tick_one(purpose: str) -> None:
    shown = jobs.view(purpose)
    if shown is None or not shown.active:
        st.rerun()
    else:
        _draw_job(shown, "here")


def sidebar() -> None:
    """Model, edit version and running work; nothing else."""
    with st.sidebar, guard("Showing the sidebar"):
        _model_box()
        _edit_box()
        if jobs.any_running():
            _tick_jobs()


@st.fragment(run_every=_TICK)
def _tick_jobs() -> None:
    """Redraws itself while work runs; the full rerun that ends it leaves the fragment out, so ticking stops."""
    libraries.are_ready()
    active = [shown for shown in jobs.views() if shown.active]
    watched: set[str] = st.session_state.setdefault("frame.watched", set())
    ended = watched - {shown.id for shown in active}
    watched |= {shown.id for shown in active}
    if ended or not active:
        watched.clear()
        st.rerun()
    for shown in active:
        _draw_job(shown, "side")


def _draw_job(shown: jobs.JobView, where: str) -> None:
    st.markdown(f"**{_plain(shown.name)}**")
    st.progress(shown.fraction or 0.0, text=_plain(jobs.say_progress(shown)))
    if st.button("Cancel", key=f"cancel.{where}.{shown.purpose}", width="stretch"):
        jobs.cancel(shown.purpose)
        st.rerun()


def _model_box() -> None:
    model = engine.current_model()
    if model is None:
        st.markdown("**No model loaded**")
        return
    st.markdown(f"**{_plain(model.name)}**")
    lines = [
        f"{say_count(model.n_parameters)}, {model.n_layers} × {model.d_mlp:,} neurons",
        f"{model.device}, {model.dtype}, {say_bytes(model.memory.weights)}",
    ]
    st.caption("  \n".join(lines))


def _edit_box() -> None:
    session = engine.current_session()
    if session is None:
        return
    last = session.latest
    st.caption("No edit yet" if last == 0 else f"Edit version {session.version} of {last}")
    if last == 0:
        return
    left, right = st.columns(2)
    if left.button(
        "Undo", key="frame.undo", disabled=session.version == 0, icon=":material/undo:", width="stretch"
    ):
        engine.undo()
        st.rerun()
    nothing = session.version == last
    if right.button("Redo", key="frame.redo", disabled=nothing, icon=":material/redo:", width="stretch"):
        engine.redo()
        st.rerun()


@contextmanager
def flashes() -> Iterator[None]:
    """Show the waiting sentences above the block; they are forgotten when it ran to its end without a rerun."""
    mine = state.get()
    shown = len(mine.flashes)
    for kind, text in mine.flashes:
        {"success": st.success, "info": st.info, "warning": st.warning, "error": st.error}[kind](_plain(text))
    yield
    del mine.flashes[:shown]


def say_bytes(size: float) -> str:
    """Bytes as a person says them."""
    for unit, digits in (("B", 0), ("KB", 0), ("MB", 0)):
        if size < 1000:
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def say_count(count: int) -> str:
    """A number of parameters as a person says it."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            value = count / limit
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(count)


def _plain(text: str) -> str:
    """Text that markdown must not read as markup."""
    for sign in "\\`*_[]$#<>~":
        text = text.replace(sign, "\\" + sign)
    return text
