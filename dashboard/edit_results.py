"""The Edit page's answers: facts before and after, the change of the weights, any prompt on both models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import (
    charts,
    downloads,
    edit_charts,
    edit_cost,
    edit_fronts,
    edit_history,
    engine,
    frame,
    jobs,
    state,
)
from dashboard.edit_work import Measured, measure_now
from dashboard.facts_report import answer_html, answer_table, fact_table, probabilities, scores_of
from dashboard.tokens_html import visible
from nmke.errors import NmkeError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.edit import Edit
    from nmke.metrics import FactReport
    from nmke.session import EditSession

DRAWN = 20
TABS = 6
MEASURE = "measure"


def facts(session: "EditSession", measured: Measured | None) -> None:
    """Probabilities, answers and scores of the last edit's facts."""
    _take_measured(session)
    if measured is None:
        _no_measures(session)
        return
    version = f"version {session.version - 1} → {session.version}" if measured.edit else "original → edited"
    reports = measured.reports
    _dumbbells(reports, version)
    _one_fact(reports)
    with st.expander("All facts as a table"):
        table = fact_table(reports)
        st.dataframe(table, hide_index=True, key="edit.fact_table")
        with st.container(horizontal=True):
            downloads.table_files(lambda: table, "edited-facts", key="edit.file.facts")


def _no_measures(session: "EditSession") -> None:
    if jobs.running("edit") or jobs.running(MEASURE):
        st.info(
            "The answers appear here when the work is done; the sidebar shows its progress and can cancel it."
        )
    elif session.version == 0:
        st.info(
            "No edit is in force. Choose facts on the left and press Apply: each fact then shows its probability, its "
            "answers and its scores before and after. Every edit can be undone exactly."
        )
    else:
        st.info(
            "The facts of this version were not measured in this tab, for example because its edits were loaded."
        )
        if st.button("Measure them now", key="edit.measure"):
            try:
                _start_measuring(session)
            except NmkeError as problem:
                frame.show_error(problem)
            else:
                st.rerun()


def _start_measuring(session: "EditSession") -> None:
    chosen = session.edits[-1].facts
    words = st.session_state.get("edit.words", 12)

    def work(progress: Progress) -> Measured:
        return measure_now(session, chosen, words, progress)

    jobs.start(MEASURE, f"Measuring {len(chosen)} facts", work)


def _take_measured(session: "EditSession") -> None:
    outcome = jobs.take(MEASURE)
    if outcome is None:
        return
    if outcome.state != jobs.JobState.DONE:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
    else:
        state.get().settings.setdefault("edit.results", {})[outcome.value.based_on] = outcome.value
    st.rerun()


def _dumbbells(reports: "Sequence[FactReport]", version: str) -> None:
    labels = [f"{report.fact.subject} → {report.fact.target_new}" for report in reports[:DRAWN]]
    panels = probabilities(reports[:DRAWN])
    key = (*labels, *((title, *before, *after) for title, (before, after) in panels.items()))
    figure = state.get().kept.figure("edit.dumbbells", key, lambda: edit_charts.dumbbells(labels, panels))
    st.plotly_chart(
        charts.drawn(figure), key="edit.dumbbells", config=charts.CONFIG, alt="Probabilities before and after"
    )
    more = f" The first {DRAWN} of {len(reports)} facts; the table has all." if len(reports) > DRAWN else ""
    downloads.caption(
        f"Probability of each answer's first token on the edit prompt, {version}, grey before and green after. The new "
        f"answer should move right, the true one left; the other way round would be a failed edit.{more}",
        figure,
        "edit-probabilities",
        key="edit.file.dumbbells",
    )


def _one_fact(reports: "Sequence[FactReport]") -> None:
    labels = [charts.shorten(f"{report.fact.subject} → {report.fact.target_new}", 32) for report in reports]
    if len(reports) <= TABS:
        for place, report in zip(st.tabs(labels, key="edit.fact_tabs"), reports, strict=True):
            with place:
                _report(report)
        return
    index = st.selectbox("Fact", range(len(reports)), format_func=labels.__getitem__, key="edit.fact")
    _report(reports[index])


def _report(report: "FactReport") -> None:
    with st.container(horizontal=True, gap="medium"):
        for score in scores_of(report):
            st.markdown(f"{score.name} {score.value}", help=score.formula, width="content")
    st.html(answer_html(answer_table(report)))
    st.caption(
        "Greedy answers, always read them beside the scores: scores alone mislead. Neighbours are about other "
        "subjects and should answer as before."
        + (" Conclusions follow from the new answer (portability)." if report.fact.portability else "")
    )


# ---- weights ----------------------------------------------------------------------------------------------------


def weights(session: "EditSession", measured: Measured | None) -> None:
    """Neurons, parameters and size of the last edit per layer, its null space and its seconds."""
    if session.version == 0:
        st.info("No edit is in force, so no weight differs from the loaded model.")
        return
    edit = session.edits[-1]
    st.markdown(f"**{edit_history.say_edit(edit)}**")
    for module in edit.modules:
        st.markdown(
            f"It put a {module.kind} of {module.n_parameters:,} numbers beside layer {module.layer}, whose own weights "
            "are as they were."
        )
    if edit.prompt is not None:
        edit_fronts.show(session)
    if measured is not None and measured.changes:
        _changes(measured)
    elif not (edit.patches or edit.modules or edit.prompt):
        st.info("It changed nothing: the method found the facts written well enough already.")
    elif not edit.modules and edit.prompt is None:
        st.info(
            "The size of this change is shown for edits computed in this tab; its factors are in the saved file."
        )
    if measured is not None and measured.spectrum is not None:
        _null_space(measured)
    _seconds(edit)
    edit_cost.show(session)


def _changes(measured: Measured) -> None:
    table = pd.DataFrame(measured.changes)
    shown = (
        tuple(int(layer) for layer in table["layer"]),
        tuple(int(count) for count in table["neurons"]),
        tuple(table["relative_norm"].tolist()),
    )
    masked = measured.edit is not None and measured.edit.masks
    reason = (
        "Later layers usually move more, because they make up for what the mask left out. " if masked else ""
    )
    figure = state.get().kept.figure("edit.layer_changes", shown, lambda: edit_charts.layer_changes(*shown))
    st.plotly_chart(
        charts.drawn(figure), key="edit.layer_changes", config=charts.CONFIG, alt="Neurons changed per layer"
    )
    downloads.caption(
        f"{int(table['neurons'].sum()):,} neurons and {int(table['parameters'].sum()):,} parameters changed. "
        f"{reason}A change above a tenth of the matrix's norm would be surprising.",
        figure,
        "edit-layers",
        key="edit.file.layers",
    )
    st.dataframe(
        table,
        hide_index=True,
        key="edit.change_table",
        column_config={
            "norm": st.column_config.NumberColumn("norm of the change", format="%.4g"),
            "relative_norm": st.column_config.NumberColumn("share of the matrix's norm", format="percent"),
        },
    )
    with st.container(horizontal=True):
        downloads.table_files(lambda: table, "edit-layers", key="edit.file.changes")


def _null_space(measured: Measured) -> None:
    found = measured.spectrum
    assert found is not None
    kept = ", ".join(f"{found.kept[layer]:.0%} in layer {layer}" for layer in sorted(found.kept))
    st.markdown(f"**Null space kept: {kept}**")
    lines = tuple((layer, values.tobytes()) for layer, values in found.eigenvalues.items())
    figure = state.get().kept.figure(
        "edit.spectrum",
        (lines, found.threshold, tuple(found.kept.items())),
        lambda: edit_charts.spectrum(found.eigenvalues, found.threshold, found.kept),
    )
    st.plotly_chart(
        charts.drawn(figure), key="edit.spectrum", config=charts.CONFIG, alt="Eigenvalue spectrum per layer"
    )
    downloads.caption(
        "Eigenvalues of the keys' second moment on ordinary text. Directions under the dashed threshold are hardly "
        "used there, and only those may be written to; less than half of them kept would leave an edit little room.",
        figure,
        "edit-spectrum",
        key="edit.file.spectrum",
    )


def _seconds(edit: "Edit") -> None:
    if len(edit.seconds) < 2:
        return
    with st.expander(f"Computed in {edit.seconds.get('total', sum(edit.seconds.values())):.1f} seconds"):
        stages = tuple(edit.seconds.items())
        figure = state.get().kept.figure(
            "edit.seconds", stages, lambda: edit_charts.stage_seconds(edit.seconds)
        )
        st.plotly_chart(
            charts.drawn(figure), key="edit.seconds", config=charts.CONFIG, alt="Seconds per stage"
        )
        st.caption(
            "Seconds of each stage; the statistics are collected once per model and then read from disk."
        )


# ---- any prompt -------------------------------------------------------------------------------------------------


def try_prompt(session: "EditSession", is_open: bool) -> None:
    """One prompt on the original and on the edited model, side by side.

    Args:
        session: this visitor's edits.
        is_open: whether the visitor looks at this; answers take seconds and are not written for nobody.
    """
    last = session.edits[-1].facts[0].prompt if session.version else ""
    with st.form("edit.try", border=False):
        prompt = st.text_input(
            "Prompt",
            key="edit.prompt",
            persist_state="session",
            placeholder=last or "The capital of France is",
            max_chars=4000,
        )
        words = st.slider("Tokens to write", 1, 60, 20, key="edit.try_words", persist_state="session")
        asked = st.form_submit_button("Answer with both", type="primary", icon=":material/compare_arrows:")
    if not is_open and not asked:
        return
    prompt = prompt.strip() or last
    if not prompt:
        st.caption("Write any prompt to read what the original and the edited model answer.")
        return
    left, right = st.columns(2)
    with left:
        st.markdown("**Original model**")
        _answer(prompt, words, edited=False)
    with right:
        st.markdown(f"**Edited model, version {session.version}**")
        if session.version == 0:
            st.caption("No edit is in force: both are the same model.")
        _answer(prompt, words, edited=True)


def _answer(prompt: str, words: int, *, edited: bool) -> None:
    with st.spinner("Asking the model"):
        written = engine.continuations((prompt,), words, edited)
    if isinstance(written, engine.Busy):
        st.info(written.sentence)
        return
    with st.container(border=True):
        st.text(f"{prompt}{written[0]}")
    likely = engine.next_tokens(prompt, 5, edited)
    if not isinstance(likely, engine.Busy):
        table = pd.DataFrame(
            [(visible(token), probability) for token, probability in likely],
            columns=["next token", "probability"],
        )
        st.dataframe(
            table,
            hide_index=True,
            key=f"edit.next.{'edited' if edited else 'original'}",
            column_config={
                "probability": st.column_config.ProgressColumn(min_value=0, max_value=1, format="%.3f")
            },
        )
