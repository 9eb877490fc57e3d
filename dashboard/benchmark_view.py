"""The Benchmark page: a run is started, watched, resumed and compared; the results fill while it works."""

from typing import Any

import streamlit as st

from dashboard import (
    benchmark_form,
    benchmark_panels,
    engine,
    frame,
    jobs,
    libraries,
    state,
    sweep_view,
    sweep_work,
)
from dashboard import benchmark_work as work

VIEWS = ("Results", "Start a run", "Sweeps")
VIEW = "benchmark.view"
CHOSEN = "benchmark.chosen"
_TICK = 2.0


def show() -> None:
    """The whole page."""
    _take()
    _follow_wish()
    if VIEW not in st.session_state:
        st.session_state[VIEW] = VIEWS[0] if work.list_runs() or _opened() else VIEWS[1]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control(
            "View",
            VIEWS,
            key=VIEW,
            required=True,
            persist_state="session",
            help="Results of finished and running benchmarks, the form that starts one, or many runs of one sweep.",
        )
        names = _choose() if view == VIEWS[0] else []
    if view == VIEWS[1]:
        with frame.guard("Showing the form"):
            _form()
    elif view == VIEWS[2]:
        if libraries.are_ready():
            sweep_view.show(_open_run)
        else:
            libraries.wait_here()
    elif not names:
        _say_nothing_chosen()
    elif not libraries.are_ready():
        libraries.wait_here()
    else:
        live = jobs.running(work.PURPOSE)
        if live:
            frame.progress_here(work.PURPOSE)
        watched = live or any(map(work.is_at_work, names))
        every = _TICK if watched else None
        st.fragment(_results, run_every=every, key="benchmark.results")(names, live, watched)


def _take() -> None:
    """Say how a finished job ended."""
    outcome = jobs.take(work.PURPOSE)
    if outcome is None:
        return
    mine = state.get()
    if outcome.state == jobs.JobState.DONE:
        mine.flash("success", f"{outcome.name} has ended; its results are below.")
    elif outcome.state == jobs.JobState.CANCELLED:
        mine.flash(
            "info", f"{outcome.name} was cancelled. What it measured is kept; it can be resumed below."
        )
    else:
        mine.flash("error", outcome.error)
    st.rerun()


def _follow_wish() -> None:
    """Open what a button asked for in the run before; controls can only be set before they are drawn."""
    settings = state.get().settings
    if "benchmark.sweep.wish" in settings:
        st.session_state[VIEW] = VIEWS[2]
    wish = settings.pop("benchmark.wish", None)
    if wish is not None:
        st.session_state[VIEW] = VIEWS[0]
        st.session_state[CHOSEN] = wish


def _form() -> None:
    model = frame.need_model()
    if model is None:
        return
    started = benchmark_form.show(model)
    if started is not None:
        state.get().settings["benchmark.wish"] = [started]
        st.rerun()


def _opened() -> list[str]:
    """Folders opened by their path in this tab."""
    found: list[str] = state.get().settings.setdefault("benchmark.opened", [])
    return found


def _choose() -> list[str]:
    """The runs to show."""
    options = _options()
    names: list[str] = []
    if options:
        fresh: dict[str, Any] = {} if CHOSEN in st.session_state else {"default": options[:1]}
        names = st.multiselect(
            "Runs",
            options,
            format_func=work.short_name,
            key=CHOSEN,
            persist_state="session",
            help="Several runs are drawn side by side; each line then carries its run's name.",
            width="stretch",
            **fresh,
        )
    with st.popover("Open a folder", icon=":material/folder_open:", help="Show a run that lies elsewhere."):
        _open_folder()
    return names


def _options() -> list[str]:
    """The page's own runs, folders opened by path, and what was chosen before."""
    return list(dict.fromkeys([*work.list_runs(), *_opened(), *st.session_state.get(CHOSEN, ())]))


def _say_nothing_chosen() -> None:
    if _options():
        st.info("Choose at least one run.")
    else:
        st.info(
            "There are no runs yet. Start one under “Start a run”, or open the folder of a run made elsewhere."
        )


def _open_folder() -> None:
    path = st.text_input(
        "Folder of a run",
        key="benchmark.path",
        placeholder="/path/to/run",
        help=f"A folder that a benchmark wrote, on the machine this page runs on; it holds a file {work.SPEC}.",
    )
    if not st.button("Open", key="benchmark.open", type="primary"):
        return
    if not path.strip():
        st.info("Write the path of a run's folder first.")
        return
    with frame.guard("Opening the folder"):
        folder = work.folder_of(path.strip()).absolute()
        if sweep_work.is_sweep(folder):
            sweep_view.open_folder(folder)
        work.require_run(folder)
        _open_run(str(folder))


def _open_run(folder: str) -> None:
    """Show a run's folder among the results."""
    work.open_run(folder)
    if folder not in _opened():
        _opened().append(folder)
    state.get().settings["benchmark.wish"] = [folder]
    st.rerun()


def _results(names: list[str], live: bool, watched: bool) -> None:
    """Everything the runs hold; a fragment that ticks while one is at work.

    Args:
        live: this window has a job at work.
        watched: that, or somebody else works on one of the runs.
    """
    if (live and not jobs.running(work.PURPOSE)) or (
        watched and not live and not any(map(work.is_at_work, names))
    ):
        st.rerun()
    runs = []
    for name in names:
        if live and not (work.folder_of(name) / work.SPEC).is_file():
            st.info(f"{work.short_name(name)} is being prepared; its curves appear here.")
            continue
        with frame.guard(f"Opening {work.short_name(name)}"):
            runs.append(work.open_run(name))
    for run in runs:
        _unfinished(run, live)
    with frame.guard("Showing the results"):
        benchmark_panels.show(runs, live)


def _unfinished(run: work.Run, live: bool) -> None:
    """What can be done about a run that has not ended."""
    model = engine.current_model()
    name, weights = run.model
    if model is not None and weights and weights != model.weight_hash:
        st.info(
            f"{run.name} was made on another model ({name or 'unknown'}), not on the one that is loaded."
            + ("" if run.complete else " It can be read here; to go on with it, load its model.")
        )
        return
    if run.complete or live:
        return
    if run.at_work:
        st.caption(f"{run.name} is at work in another window or program; its curves grow here.")
        return
    if model is None:
        st.caption(f"{run.name} is not finished. Load its model ({name or 'unknown'}) to resume it.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            f"Resume {run.name}",
            key=f"benchmark.resume.{run.folder}",
            type="primary",
            icon=":material/resume:",
            help="Goes on where the run stopped; what is finished is not made again.",
        ):
            with frame.guard("Resuming the run"):
                work.resume(str(run.folder), model)
                st.rerun()
        st.caption(f"{run.name} is not finished.")
