"""The Benchmark page's files: figures, CSV, LaTeX and the HTML report. Nothing is written until somebody clicks."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import benchmark_tables as tables
from dashboard import benchmark_work as work
from dashboard import charts, downloads
from dashboard.benchmark_report import Figure, Report, html_report, latex_table


def chart_config() -> dict[str, object]:
    """The camera icon saves a PNG where the page's own menu cannot draw one."""
    if downloads.can_draw():
        return charts.CONFIG
    return {**charts.CONFIG, "toImageButtonOptions": {"format": "png", "scale": 2}}


def caption(text: str, figure: dict[str, Any], name: str, *, key: str) -> None:
    """The sentence under a figure, and beside it the menu with the figure's files."""
    words, menu = st.columns([0.9, 0.1], gap="xsmall")
    words.caption(text)
    with menu.popover("", type="tertiary", icon=":material/download:", help="Save the figure"):
        _button("HTML (interactive)", lambda: downloads.html_bytes(figure), f"{name}.html", "text/html", key)
        if downloads.can_draw():
            for kind, mime in (("svg", "image/svg+xml"), ("png", "image/png")):
                _button(kind.upper(), _drawer(figure, kind), f"{name}.{kind}", mime, key)
        else:
            st.caption("The camera icon in the chart's corner saves a PNG.")


def _drawer(figure: dict[str, Any], kind: str) -> Callable[[], bytes]:
    return lambda: downloads.image_bytes(figure, kind)


def show(
    runs: Sequence[work.Run],
    table: pd.DataFrame,
    paper: pd.DataFrame,
    marks: Sequence[int],
    figures: Sequence[Figure],
) -> None:
    """The row of files of the whole page."""
    st.markdown("**Files**")
    title = ", ".join(run.name for run in runs)
    name = f"benchmark-{runs[0].name}" if len(runs) == 1 else "benchmark"
    key = "benchmark.file.all"
    with st.container(horizontal=True):
        downloads.table_files(lambda: table, name, key=key)
        if marks and not paper.empty:
            caption = say_latex(table)
            _button(
                "LaTeX table",
                lambda: latex_table(paper, caption).encode(),
                f"{name}.tex",
                "application/x-tex",
                key,
            )
        _button(
            "HTML report",
            lambda: html_report(make_report(title, runs, table, paper, figures)).encode(),
            f"{name}.html",
            "text/html",
            key,
        )
        if downloads.can_draw():
            for figure in figures:
                _button(
                    f"{figure.title} (PNG)",
                    _drawer(dict(figure.spec), "png"),
                    f"{name}-{figure.title.lower()}.png",
                    "image/png",
                    key,
                )
    st.caption(
        "CSV and Parquet hold every measured number. The report is one file that needs no network: charts, tables, "
        "settings, seeds, formulas and versions."
        + ("" if downloads.can_draw() else " For a PNG use the camera icon in a chart's corner.")
    )


def _button(label: str, make: Callable[[], bytes], name: str, mime: str, key: str) -> None:
    st.download_button(
        label,
        make,
        name,
        mime,
        key=f"{key}.{label}",
        on_click="ignore",
        type="tertiary",
        help=f"Saves {name}.",
    )


def say_latex(table: pd.DataFrame) -> str:
    """The caption of the LaTeX table."""
    seeds = tables.seeds_of(table)
    told = ", ".join(map(str, seeds))
    return (
        "Lifelong editing: every measure over all facts written so far, after T edits. In brackets: "
        f"{tables.INTERVALS}. Seed{'s' if len(seeds) > 1 else ''}: {told}."
    )


def make_report(
    title: str,
    runs: Sequence[work.Run],
    table: pd.DataFrame,
    paper: pd.DataFrame,
    figures: Sequence[Figure],
) -> Report:
    """What the HTML report tells."""
    from nmke.metrics import FORMULAS
    from nmke.versions import library_versions

    known = tables.known_measures(table)
    formulas = {measure.title: FORMULAS.get(measure.column, measure.meaning) for measure in known}
    models = {run.model[0] or "unknown" for run in runs}
    status = pd.concat(
        [pd.DataFrame(list(run.results.status)).assign(run=run.name) for run in runs], ignore_index=True
    )
    return Report(
        title=f"Benchmark: {title}",
        facts={
            "runs": title,
            "model": ", ".join(sorted(models)),
            "seeds": ", ".join(map(str, tables.seeds_of(table))),
            "numbers of edits (T)": ", ".join(map(str, tables.marks_of(table))),
            "finished": "yes" if all(run.complete for run in runs) else "no, some editors have not ended",
        },
        paper=paper,
        figures=figures,
        table=table,
        status=status,
        specs={run.name: run.spec for run in runs},
        formulas=formulas,
        versions=library_versions(),
    )
