"""The Ablation page's right side: bars that fill, what changed, one question both ways, the dose-response curve."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dashboard import ablation_charts as drawing
from dashboard import ablation_form, ablation_tables, charts, downloads, frame, jobs, state
from dashboard import ablation_work as work
from nmke.errors import NmkeError

if TYPE_CHECKING:
    from nmke.ablation import AblationResults
    from nmke.answers import Answered
    from nmke.loading import LoadedModel
    from nmke.questions import Question

TABS = (
    "Change per question",
    "One question, both ways",
    "Dose-response",
    "Unablated model",
    "Neurons and files",
)


def show(
    model: "LoadedModel", shown: "Mapping[str, AblationResults]", wish: "ablation_form.Wish | None"
) -> None:
    """Everything the results hold; the first of several is the one looked at closely.

    Args:
        shown: results by title, those at work among them.
    """
    main = next(iter(shown.values()))
    score = _score(main)
    with frame.guard("Drawing the bars"):
        _bars(shown, score)
    changes, one, doses, unablated, files = st.tabs(TABS, key="ablation.tabs")
    with changes, frame.guard("Drawing the changes"):
        _changes(main, score)
    with one, frame.guard("Showing a question"):
        _question(main)
    with doses, frame.guard("Drawing the curve"):
        _doses(model, shown, score, wish)
    with unablated, frame.guard("Showing the unablated model"):
        _unablated(main)
    with files, frame.guard("Making the files"):
        _files(model, main)


def _score(results: "AblationResults") -> str:
    options = results.scores
    if st.session_state.get("ablation.score") not in options:
        st.session_state["ablation.score"] = "cloze" if "cloze" in options else options[0]
    score = st.segmented_control(
        "Score",
        options,
        key="ablation.score",
        required=True,
        persist_state="session",
        format_func=work.SCORE_TITLES.__getitem__,
        label_visibility="collapsed",
    )
    return score or options[0]


def _key(shown: "Mapping[str, AblationResults]") -> tuple[object, ...]:
    """Changes with every answer of every result, and with which result it is."""
    return tuple((title, results.identity, results.answered) for title, results in shown.items())


# ---- bars -------------------------------------------------------------------------------------------------------


def _bars(shown: "Mapping[str, AblationResults]", score: str) -> None:
    main, kept, key = next(iter(shown.values())), state.get().kept, (_key(shown), score)
    comparable = {title: one for title, one in shown.items() if score in one.scores}
    several = len([one for one in main.conditions if one.kind == "set"]) > 4
    table = kept.get(
        "ablation.bars", key, lambda: ablation_tables.bar_table(comparable, score, subjects=not several)
    )
    st.markdown(ablation_tables.say_unablated(main, score))
    if table.empty:
        st.info("The first answers appear here in a moment.")
        return
    scale = ablation_tables.scale_of(main, score)
    figure = kept.figure("ablation.figure", key, lambda: drawing.bars(table, scale))
    st.plotly_chart(
        charts.drawn(figure),
        key="ablation.bars",
        config=charts.CONFIG,
        alt="Scores without and with ablation",
    )
    better = "lower is better" if score in ablation_tables.LOSSES else "the dotted line is chance"
    downloads.caption(
        f"Bars: the score under each condition with its 95% interval, {better}; hatched: the mean of random sets of "
        "the same size in the same layers. A role that matters moves away from grey where hatched does not; random "
        "neurons that break as much would be surprising.",
        figure,
        "ablation",
        key="ablation.file.bars",
    )
    if len(comparable) > 1:
        st.caption("  \n".join(f"{number}: {title}" for number, title in enumerate(comparable, 1)))
    others = [title for title in shown if title not in comparable]
    if others:
        st.caption(f"Without this score, so not drawn: {'; '.join(others)}.")
    said = kept.get("ablation.effects", key, lambda: ablation_tables.say_effects(main, score))
    if said:
        st.markdown("\n".join(f"- {text}" for text in said))


# ---- changes ----------------------------------------------------------------------------------------------------


def _changes(results: "AblationResults", score: str) -> None:
    kept, key = state.get().kept, (_key({"": results}), score)
    if score in ablation_tables.LOSSES:
        rows = kept.get("ablation.losses", key, lambda: ablation_tables.loss_rows(results, score))
        if rows.empty:
            st.info("This fills once the first neurons are off.")
            return
        figure = kept.figure("ablation.changes", key, lambda: drawing.loss_changes(rows))
        how = "Each line is one condition's questions, sorted by how much the loss rose; above zero the ablation hurt."
    else:
        counts = kept.get("ablation.counts", key, lambda: ablation_tables.change_counts(results, score))
        if counts.empty:
            st.info("This fills once the first neurons are off.")
            return
        figure = kept.figure("ablation.changes", key, lambda: drawing.changes(counts))
        how = (
            "The same questions before and after: red ones were right and are not any more, blue ones became right. As "
            "many lost as gained is what guessing looks like."
        )
    st.plotly_chart(
        charts.drawn(figure), key="ablation.changes", config=charts.CONFIG, alt="Questions lost and gained"
    )
    downloads.caption(how, figure, "ablation-changes", key="ablation.file.changes")


# ---- one question -----------------------------------------------------------------------------------------------


def _question(results: "AblationResults") -> None:
    names = [one.name for one in results.conditions if one.kind != "none" and results.answers.get(one.name)]
    if not names:
        st.info("This fills once the first neurons are off.")
        return
    left, right = st.columns([0.36, 0.64])
    if st.session_state.get("ablation.one.condition") not in names:
        st.session_state["ablation.one.condition"] = names[0]
    name = left.selectbox("Switched off", names, key="ablation.one.condition")
    ids = state.get().kept.get(
        "ablation.order",
        (_key({"": results}), name),
        lambda: ablation_tables.order_questions(results, name),
    )
    if not ids:
        st.info("No question is answered both ways yet.")
        return
    if st.session_state.get("ablation.one.question") not in ids:
        st.session_state["ablation.one.question"] = ids[0]
    id = right.selectbox(
        "Question (the most changed first)",
        ids,
        key="ablation.one.question",
        format_func=lambda id: charts.shorten(results.question(id).text, 90),
    )
    question = results.question(id)
    _say_question(question)
    plain, ablated = st.columns(2)
    for place, title, condition in ((plain, "Without ablation", "none"), (ablated, f"Without {name}", name)):
        answered = next(one for one in results.of(condition) if one.question == id)
        with place.container(border=True):
            st.markdown(f"**{title}**")
            _say_answer(question, answered)


def _say_question(question: "Question") -> None:
    from nmke.questions import LETTERS, title_of

    with st.container(border=True):
        st.caption(title_of(question.subject))
        st.text(question.text)
        for index, choice in enumerate(question.choices):
            st.text(f"{LETTERS[index]}. {choice}{'  ✓' if index == question.answer else ''}")


def _say_answer(question: "Question", answered: "Answered") -> None:
    if answered.written is not None:
        st.caption("It writes")
        st.code(answered.written.strip("\n") or "(nothing)", language=None, wrap_lines=True)
    for how, what in ablation_tables.answer_lines(question, answered):
        st.text(f"{how}: {what}")


# ---- dose-response ----------------------------------------------------------------------------------------------


def _doses(
    model: "LoadedModel",
    shown: "Mapping[str, AblationResults]",
    score: str,
    wish: "ablation_form.Wish | None",
) -> None:
    curved = [(title, one) for title, one in shown.items() if score in one.scores and len(_ks(one)) > 1]
    if curved:
        (title, results), kept = curved[0], state.get().kept
        if len(shown) > 1:
            st.caption(f"Of {title}.")
        key = (_key({"": results}), score)
        curve: pd.DataFrame = kept.get("ablation.curve", key, lambda: results.curve(score))
        if len(curve):
            scale = ablation_tables.scale_of(results, score)
            figure = kept.figure("ablation.dose", key, lambda: drawing.dose(curve, scale))
            st.plotly_chart(
                charts.drawn(figure), key="ablation.dose", config=charts.CONFIG, alt="Score against k"
            )
            downloads.caption(
                "The score against how many neurons are off, with 95% bands: solid the role's strongest, dashed random "
                "sets of the same size in the same layers, which should stay flat while the role's line leaves it.",
                figure,
                "ablation-dose",
                key="ablation.file.dose",
            )
    _dose_button(model, wish, bool(curved))


def _ks(results: "AblationResults") -> set[int]:
    return {one.k for one in results.conditions if one.kind == "set"}


def _dose_button(model: "LoadedModel", wish: "ablation_form.Wish | None", drawn: bool) -> None:
    if wish is None:
        st.caption("The form on the left says what is missing.")
        return
    most = model.n_layers * (model.d_mlp // 2)
    start = ", ".join(str(k) for k in ablation_form.DOSES if k <= most)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        opening: dict[str, Any] = {} if "ablation.doses" in st.session_state else {"value": start}
        text = st.text_input(
            "Values of k", key="ablation.doses", persist_state="session", help="As 1, 10, 50.", **opening
        )
        pressed = st.button(
            "Dose-response again" if drawn else "Dose-response",
            key="ablation.dose.start",
            disabled=jobs.running(work.PURPOSE),
            help="Answers the questions for every k of the chosen neurons, beside random sets.",
        )
    try:
        ks = work.check_ks(text, most)
    except NmkeError as problem:
        st.error(str(problem))
        return
    st.caption(ablation_form.say_work(model, wish, len(ks)))
    if pressed:
        ablation_form.start(wish, ks)


# ---- the unablated model ----------------------------------------------------------------------------------------


def _unablated(results: "AblationResults") -> None:
    from nmke.answers import FORMULAS

    rows = state.get().kept.get(
        "ablation.chance", _key({"": results}), lambda: ablation_tables.chance_rows(results, FORMULAS)
    )
    if rows.empty:
        st.info("Nothing is answered yet.")
        return
    st.table(rows.set_index("score"))
    st.caption(
        f"Over {len(results.of('none'))} questions: {results.questions.source}. Chance: one choice of each question "
        "picked blindly; p: exact binomial, one-sided. A score that does not beat chance cannot fall much: use one "
        "that does, or a loss."
    )


# ---- files ------------------------------------------------------------------------------------------------------


def _files(model: "LoadedModel", results: "AblationResults") -> None:
    names = [one.name for one in results.conditions if one.kind != "none"]
    if st.session_state.get("ablation.neurons") not in names:
        st.session_state["ablation.neurons"] = names[0]
    name = st.selectbox("Neurons of", names, key="ablation.neurons")
    condition = results.condition(name)
    table = ablation_tables.neuron_rows(results, [name]).drop(columns="condition")
    st.dataframe(table, hide_index=True, height=180, key="ablation.neuron.table")
    st.caption(f"{condition.chosen_by[:1].upper()}{condition.chosen_by[1:]}.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Neurons**")
        st.download_button(
            "Set (JSON)",
            lambda: _set_bytes(model, results, name),
            "neurons.json",
            "application/json",
            key="ablation.file.set",
            on_click="ignore",
            type="tertiary",
        )
        downloads.table_files(lambda: table, "neurons", key="ablation.file.neurons")
        st.markdown("**Answers**")
        downloads.table_files(results.frame, "answers", key="ablation.file.answers")
        st.download_button(
            "Summary (JSON)",
            lambda: _summary_bytes(results),
            "summary.json",
            "application/json",
            key="ablation.file.summary",
            on_click="ignore",
            type="tertiary",
        )


def _set_bytes(model: "LoadedModel", results: "AblationResults", name: str) -> bytes:
    from nmke.ablation import NeuronSet

    one = results.condition(name)
    chosen = NeuronSet(one.ranked, one.label, model.weight_hash, one.chosen_by, len(one.ranked))
    return json.dumps(chosen.to_json(), indent=1).encode()


def _summary_bytes(results: "AblationResults") -> bytes:
    from nmke.store import plain

    return json.dumps(plain(results.summary()), indent=1, ensure_ascii=False).encode()
