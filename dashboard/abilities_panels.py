"""The Abilities page's results: dumbbells, the table of changes, single questions, how it was measured, files."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard import abilities_charts as drawing
from dashboard import abilities_questions as questions
from dashboard import abilities_tables as tables
from dashboard import charts, downloads, frame, state
from dashboard.abilities_tables import Pair, Result

#: Columns of the table of changes where one state stands after: its name is above.
_ONE_STATE = ("benchmark", "n", "score before", "score after", "change", "McNemar p", "gained", "lost")
BEFORE, AFTER = "abilities.before", "abilities.after"


def show(known: Sequence[Result], live: bool) -> None:
    """Everything measured on this model, that of the newest settings of each benchmark."""
    results = tables.relabelled(tables.newest(known))
    labels = tables.states_of(results)
    before, afters = _choose(labels)
    shown = [result for result in results if result.state in (before, *afters)]
    key = (tuple((result.label, result.state, result.setting) for result in shown), before)
    found = state.get().kept.get("abilities.pairs", key, lambda: tables.pairs(shown, before, afters))
    with frame.guard("Drawing the scores"):
        _dumbbells(shown, found, before, labels[before], key)
    if found:
        with frame.guard("Showing the changes"):
            _changes(found)
        with frame.guard("Showing the questions"):
            questions.show(found)
    elif not live:
        st.caption("Only one state is measured. Choose another one on the left to see what changed.")
    with frame.guard("Showing how it was measured"):
        _measured(shown)
    with frame.guard("Showing the files"):
        _files(shown, found)
    left_out = len(known) - len(results)
    if left_out:
        st.caption(
            f"{left_out} earlier scores are not shown: they were measured with other questions or settings than the "
            "newest of the same benchmark and cannot be compared with it."
        )


def _choose(labels: dict[str, str]) -> tuple[str, list[str]]:
    """The state before, and those after; a state that is measured for the first time joins those after."""
    states = sorted(labels, key=lambda each: each != tables.LOADED)
    if len(states) == 1:
        return states[0], []
    settings = state.get().settings
    if st.session_state.get(BEFORE) not in states:
        st.session_state[BEFORE] = states[0]
    seen: set[str] = settings.setdefault("abilities.seen", {tables.LOADED})
    chosen = [*st.session_state.get(AFTER, []), *(each for each in states if each not in seen)]
    seen.update(states)
    was, now = settings.get("abilities.was_before"), st.session_state[BEFORE]
    if was is not None and was != now:
        chosen.append(was)  # the two change places, so that there is still something to compare
    settings["abilities.was_before"] = now
    others = [each for each in states if each != now]
    st.session_state[AFTER] = [each for each in dict.fromkeys(chosen) if each in others]
    left, right = st.columns([0.36, 0.64])
    before: str = left.selectbox(
        "Before",
        states,
        format_func=lambda each: labels[each],
        key=BEFORE,
        persist_state="session",
        help="What the others are compared with, question by question.",
    )
    afters: list[str] = right.multiselect(
        "After",
        others,
        format_func=lambda each: labels[each],
        key=AFTER,
        persist_state="session",
        help="Several are drawn one under the other.",
    )
    return before, afters


def _dumbbells(
    shown: Sequence[Result], found: Sequence[Pair], before: str, label: str, key: tuple[Any, ...]
) -> None:
    rows = rows_of(shown, found, before)
    if not rows:
        st.info("None of the chosen states is measured on the newest questions yet.")
        return
    figure = state.get().kept.figure("abilities.dumbbells", key, lambda: drawing.dumbbells(rows, label))
    st.plotly_chart(
        charts.drawn(figure),
        key="abilities.chart",
        config=charts.CONFIG,
        alt="Scores per benchmark before and after, with intervals",
    )
    words = "Bars are 95% intervals over the questions. "
    if found:
        words += (
            "Left: grey is before, colour after. Right: the paired change, which is the finer measure because both "
            "answered the same questions; where its bar crosses zero, the change may be chance. A small edit should "
            "leave every benchmark in place, and a gain would be surprising."
        )
    else:
        words += "A score whose bar reaches the grey tick is no better than guessing, and cannot show a loss."
    downloads.caption(words, figure, "abilities", key="abilities.figure")


def rows_of(shown: Sequence[Result], found: Sequence[Pair], before: str) -> list[drawing.Row]:
    """What the figure draws: a row a pair; results that have no partner stand alone."""
    rows = []
    for task in dict.fromkeys(result.task for result in shown):
        mine = [each for each in found if each.before.task == task]
        guess = tables.GUESSING.get(task)
        for each in mine:
            ends = _estimate(each.before), _estimate(each.after)
            name, label, p = each.before.title, each.after.label, tables.say_p(each.p)
            rows.append(drawing.Row(name, each.n, label, *ends, each.change, p, guess))
        for result in shown:
            if result.task == task and not mine:
                first = result.state == before
                before_, after = (_estimate(result), None) if first else (None, _estimate(result))
                label = "" if first else result.label
                rows.append(drawing.Row(result.title, result.score.n, label, before_, after, guess=guess))
    return rows


def _estimate(result: Result) -> drawing.Estimate:
    interval = result.score.interval
    return interval.value, interval.low, interval.high


def _changes(found: Sequence[Pair]) -> None:
    st.dataframe(
        tables.paired_table(found),
        hide_index=True,
        column_order=None if len({each.after.state for each in found}) > 1 else _ONE_STATE,
        key="abilities.pairs",
        column_config={
            "McNemar p": st.column_config.NumberColumn(
                format="%.3g", help="How often chance alone would give as uneven gains and losses."
            ),
            "gained": st.column_config.NumberColumn(help="Wrong before, right after."),
            "lost": st.column_config.NumberColumn(help="Right before, wrong after."),
        },
    )
    st.caption(
        "Change: mean of after − before over the n questions both answered, with a 95% bootstrap interval over "
        "questions. Scores that stay equal while many questions are gained and lost would mean that answers moved "
        "without getting worse."
    )


def _measured(shown: Sequence[Result]) -> None:
    with st.expander("How it was measured", icon=":material/fact_check:"):
        st.dataframe(
            tables.measured_table(shown),
            hide_index=True,
            key="abilities.measured",
            column_config={
                "seconds": st.column_config.NumberColumn(
                    format="%.1f",
                    help="Spent computing the answers, also where they came from the cache now.",
                ),
                "cached": st.column_config.CheckboxColumn(help="Nothing was computed this time."),
                "cut prompts": st.column_config.NumberColumn(
                    help="Questions too long for the model, which lost their beginning."
                ),
            },
        )
        st.caption(
            "One row a score. Prompts, answer filters and metrics are those of lm-evaluation-harness, so the numbers "
            "mean what the literature's mean when n, few-shot and version agree."
        )
        parts = tables.parts_table(shown)
        if not parts.empty:
            st.dataframe(parts, hide_index=True, key="abilities.parts")
            st.caption("The same scores by subject or task; with few questions each, single ones jump about.")


def _files(shown: Sequence[Result], found: Sequence[Pair]) -> None:
    st.markdown("**Files**")
    with st.container(horizontal=True):
        st.caption("Scores", width="content")
        downloads.table_files(
            lambda: tables.numbers_table(shown, found), "abilities", key="abilities.file.scores"
        )
        st.caption("All answers", width="content")
        downloads.table_files(lambda: tables.answers_table(shown), "answers", key="abilities.file.answers")
    st.caption(
        "Scores hold every number with its interval and origin; the answers, one row a question and state."
    )
