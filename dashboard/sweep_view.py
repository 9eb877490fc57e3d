"""The Benchmark page's view of a sweep: its runs as they go, what they cost and keep, the best of each method."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import benchmark_files, benchmark_looks, charts, downloads, frame, state, sweep_charts
from dashboard import sweep_work as work
from dashboard.benchmark_panels import method_names

if TYPE_CHECKING:
    from nmke.sweep import SweepResults

CHOSEN = "benchmark.sweep"
_TICK = 3.0


def show(open_run: Callable[[str], None]) -> None:
    """The whole view.

    Args:
        open_run: shows a run's folder among the results.
    """
    name = _choose()
    if name is None:
        st.info(
            "There is no sweep yet. `nmke sweep SPEC.yaml --out DIR` makes one from a file of methods, settings, "
            f"layers and seeds; open its folder here, or let it write below {work.sweeps_folder()}."
        )
        return
    at_work = False
    with frame.guard("Opening the sweep"):
        at_work = work.open_sweep(name).at_work
    st.fragment(_results, run_every=_TICK if at_work else None, key="benchmark.sweep.results")(
        name, at_work, open_run
    )


def opened() -> list[str]:
    """Folders of sweeps opened by their path in this tab."""
    found: list[str] = state.get().settings.setdefault("benchmark.sweeps.opened", [])
    return found


def _choose() -> str | None:
    names = list(dict.fromkeys([*work.list_sweeps(), *opened()]))
    wish = state.get().settings.pop("benchmark.sweep.wish", None)
    if wish in names:
        st.session_state[CHOSEN] = wish
    if st.session_state.get(CHOSEN) not in names:
        st.session_state.pop(CHOSEN, None)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = (
            st.selectbox(
                "Sweep",
                names,
                format_func=lambda path: Path(path).name,
                key=CHOSEN,
                persist_state="session",
                help="Each is the folder that an `nmke sweep` wrote or writes.",
                width="stretch",
            )
            if names
            else None
        )
        with st.popover(
            "Open a folder", icon=":material/folder_open:", help="Show a sweep that lies elsewhere."
        ):
            _open_folder()
    return name


def _open_folder() -> None:
    path = st.text_input(
        "Folder of a sweep",
        key="benchmark.sweep.path",
        placeholder="/path/to/sweep",
        help=f"A folder that `nmke sweep` wrote, on the machine this page runs on; it holds {work.MANIFEST}.",
    )
    if not st.button("Open", key="benchmark.sweep.open", type="primary"):
        return
    if not path.strip():
        st.info("Write the path of a sweep's folder first.")
        return
    with frame.guard("Opening the folder"):
        open_folder(Path(path.strip()).expanduser().absolute())


def open_folder(folder: Path) -> None:
    """Show a sweep's folder.

    Raises:
        NmkeError: it is no sweep, or its files are damaged.
    """
    work.open_sweep(str(folder))
    if str(folder) not in opened():
        opened().append(str(folder))
    state.get().settings["benchmark.sweep.wish"] = str(folder)
    st.rerun()


def _results(name: str, at_work: bool, open_run: Callable[[str], None]) -> None:
    """Everything the sweep holds; a fragment that ticks while somebody works on it."""
    with frame.guard("Opening the sweep"):
        results = work.open_sweep(name)
        if results.at_work != at_work:
            st.rerun()
        _progress(results)
        pairs = work.pairs_of(results)
        pair = pairs[0]
        if len(pairs) > 1:
            pair = st.selectbox(
                "Model and data",
                pairs,
                format_func=lambda pair: f"{Path(pair[0]).name} on {Path(pair[1]).name}",
                key="benchmark.sweep.pair",
                persist_state="session",
                help="Runs are compared with those on the same model and the same facts.",
            )
        with frame.guard("Drawing what is gained and paid"):
            _pareto(results, pair)
        with frame.guard("Showing the best configurations"):
            _best(results, pair)
        with frame.guard("Showing the command"):
            _command(results, open_run)


def _progress(results: "SweepResults") -> None:
    rows = work.progress_of(results)
    done = sum(entry["edits_done"] for entry in results.status)
    total = sum(entry["edits"] for entry in results.status)
    st.progress(1.0 if results.complete else done / total, text=work.say_states(results))
    for name in ("model", "data"):
        if rows[name].nunique() == 1:
            rows = rows.drop(columns=name)
    if not rows["message"].any():
        rows = rows.drop(columns="message")
    with st.expander("Each run", expanded=not results.complete):
        st.dataframe(
            rows,
            hide_index=True,
            key="benchmark.sweep.runs",
            column_config={
                "configuration": st.column_config.TextColumn(pinned=True, width="medium"),
                "progress": st.column_config.ProgressColumn(min_value=0, max_value=1, format="percent"),
                "T": st.column_config.NumberColumn(help="The last mark that was measured.", format="%d"),
                "quality": st.column_config.NumberColumn(
                    help="The mean of reliability, generalisation and locality at that mark.", format="%.3f"
                ),
                "perplexity ratio": st.column_config.NumberColumn(
                    help="The edited model's perplexity over the unedited one's; 1 is unharmed.",
                    format="%.3f",
                ),
            },
        )
        with st.container(horizontal=True):
            downloads.table_files(lambda: results.table(), "sweep", key="benchmark.sweep.file.table")
    if not results.complete and not results.at_work:
        st.caption(
            "Nobody works on it now. The command that began it goes on with it; finished runs are passed over."
        )


def _pareto(results: "SweepResults", pair: tuple[str, str]) -> None:
    from nmke.sweep.results import last_common_mark

    table = results.table()
    mine = table[(table["model"] == pair[0]) & (table["data"] == pair[1])]
    marks = sorted(mine["T"].unique(), reverse=True)
    if not marks:
        st.info("Nothing has been measured yet. The picture appears with the first mark.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        opening: dict[str, Any] = {}
        if st.session_state.get("benchmark.sweep.mark") not in marks:
            st.session_state.pop("benchmark.sweep.mark", None)
            common = last_common_mark(mine)
            opening = {"index": marks.index(common) if common in marks else 0}
        mark = st.selectbox(
            "At T =",
            marks,
            **opening,
            key="benchmark.sweep.mark",
            format_func=lambda mark: f"{mark:,}",
            persist_state="session",
            help="The number of edits after which the configurations are compared.",
            width=160,
        )
        points = work.points_of(mine, int(mark))
        measures = work.kept_measures(points)
        if st.session_state.get("benchmark.sweep.kept") not in measures:
            st.session_state.pop("benchmark.sweep.kept", None)
        kept = (
            st.selectbox(
                "What was kept",
                measures,
                key="benchmark.sweep.kept",
                format_func=lambda name: work.KEPT[name],
                persist_state="session",
                help="What the left picture sets against the quality of the edits.",
                width=340,
            )
            if measures
            else None
        )
    panels = []
    if kept is not None:
        front = work.front_of(points, kept, work.QUALITY, lower_x=False)
        panels.append(sweep_charts.Panel(kept, work.KEPT[kept], False, front))
    if points["seconds_per_edit"].notna().any():
        front = work.front_of(points, "seconds_per_edit", work.QUALITY, lower_x=True)
        panels.append(sweep_charts.Panel("seconds_per_edit", "seconds per edit", True, front))
    if not panels:
        st.info("The runs have no figures to set against each other at this T.")
        return
    methods = list(dict.fromkeys(points["method"]))
    look = benchmark_looks.looks([(method, method) for method in methods], method_names())
    key: Any = (str(results.folder), pair, points.to_csv(index=False), kept)
    figure = state.get().kept.figure(
        "benchmark.sweep.pareto",
        key,
        lambda: sweep_charts.pareto(points, work.QUALITY, "quality of the edits", panels, look),
    )
    st.plotly_chart(
        charts.drawn(figure),
        key="benchmark.sweep.pareto",
        config=benchmark_files.chart_config(),
        alt="Quality of the edits against what was kept and against seconds",
    )
    missing = sorted(set(run["label"] for run in results.runs) - set(points["label"]))
    told = (
        f" Not measured at this T: {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}."
        if missing
        else ""
    )
    benchmark_files.caption(
        f"Each point is a configuration after {int(mark):,} edits, the mean over its seeds. Up: reliability and "
        "generalisation, their mean. The dotted line joins the configurations that no other one beats in both; what "
        f"lies under it is never the one to take.{told}",
        figure,
        "sweep-pareto",
        key="benchmark.sweep.file.pareto",
    )


def _best(results: "SweepResults", pair: tuple[str, str]) -> None:
    from nmke.sweep.results import CRITERION

    best = [one for one in results.best() if (one["model"], one["data"]) == pair]
    if not best:
        return
    st.markdown(f"**Best configuration of each method, at T = {best[0]['T']:,}**")
    numbers = {
        name: st.column_config.NumberColumn(format="%.3f") for name in ("reliability", "generalization")
    }
    st.dataframe(
        work.best_table(best),
        hide_index=True,
        key="benchmark.sweep.best",
        column_config={
            **numbers,
            "method": st.column_config.TextColumn(pinned=True, width="small"),
            "best configuration": st.column_config.TextColumn(width="medium"),
            "of": st.column_config.NumberColumn(help="How many configurations were tried."),
            "quality": st.column_config.NumberColumn(format="%.3f"),
            "locality": st.column_config.NumberColumn(format="%.3f"),
            "perplexity": st.column_config.NumberColumn(format="%.2f"),
            "seconds per edit": st.column_config.NumberColumn(format="%.2f"),
            "its quality on the other half": st.column_config.NumberColumn(format="%.3f"),
        },
    )
    halved = any("other_half" in one for one in best)
    st.caption(
        f"Best by {CRITERION}."
        + (
            " The best of many looks better than it is. The last columns choose on the facts of even place alone and "
            "say how good that choice is on the others."
            if halved
            else ""
        )
    )


def _command(results: "SweepResults", open_run: Callable[[str], None]) -> None:
    names = [run["name"] for run in results.runs]
    if st.session_state.get("benchmark.sweep.run") not in names:
        st.session_state.pop("benchmark.sweep.run", None)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "The command that makes this run again",
            names,
            key="benchmark.sweep.run",
            persist_state="session",
            help="Every run is an ordinary lifelong run; this makes it again in a new folder.",
            width="stretch",
        )
        begun = results.run(name) is not None
        if st.button(
            "Show its curves",
            key="benchmark.sweep.show",
            icon=":material/show_chart:",
            disabled=not begun,
            help="Opens the run among the results." if begun else "It has not begun.",
        ):
            open_run(str(results.run_folder(name)))
    command = next(run["command"] for run in results.runs if run["name"] == name)
    st.code(command, language="bash", wrap_lines=True)
