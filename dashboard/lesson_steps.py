"""The lesson's six pictures, and what each question's reveal says."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dashboard import (
    ablation_charts,
    ablation_tables,
    charts,
    engine,
    jobs,
    lesson_charts,
    lesson_html,
    roles_charts,
    state,
)
from dashboard import lesson_findings as findings
from dashboard import lesson_parts as making
from dashboard import lesson_words as words
from dashboard import lesson_work as work
from dashboard.tokens_html import token_strip, visible

if TYPE_CHECKING:
    from nmke.ablation import AblationResults
    from nmke.answers import Answered
    from nmke.loading import LoadedModel
    from nmke.questions import Question

Parts = Mapping[str, Any]


def show(step: int, model: "LoadedModel", parts: Parts) -> None:
    """One step's picture with its sentences; the parts it needs are there."""
    {1: _neuron, 2: _today, 3: _roles, 4: _off, 5: _controls, 6: _doses}[step](model, parts)


def reveal(step: int, parts: Parts) -> None:
    """The answer to a step's question, read from the numbers."""
    if step == 1:
        st.markdown(words.say_one_neuron(parts["glimpse"]))
    elif step == 2:
        st.markdown(words.say_die(*_told(parts["today"])))
    elif step == 3:
        st.markdown(words.say_chance_of_general(parts["roles"]))
    elif step == 4:
        st.markdown(findings.say_lost(_before_after(parts)))
    elif step == 5:
        st.markdown(findings.say_why_random(_results(parts, "controls"), _score_of(5)))
    else:
        learned = findings.say_learned(_results(parts, "doses"), parts["roles"])
        left, right = st.columns(2)
        left.markdown("**What these numbers show**\n\n" + "\n".join(f"- {line}" for line in learned))
        right.markdown("**What they do not show**\n\n" + "\n".join(f"- {line}" for line in findings.LIMITS))


# ---- 1: a neuron ----------------------------------------------------------------------------------------------------


def _neuron(model: "LoadedModel", parts: Parts) -> None:
    glimpse: making.Glimpse = parts["glimpse"]
    layers = list(glimpse.activations)
    sentence, slider = st.columns([0.55, 0.45], gap="medium", vertical_alignment="center")
    sentence.markdown(words.say_next(glimpse))
    opening: dict[str, Any] = (
        {} if st.session_state.get("lesson.layer") in layers else {"value": glimpse.best_layer}
    )
    if opening:
        st.session_state.pop("lesson.layer", None)
    layer = slider.select_slider("Layer", layers, key="lesson.layer", persist_state="session", **opening)
    neuron = glimpse.strongest(layer)
    figure = state.get().kept.figure(
        "lesson.neuron",
        (work.key_of(model), layer),
        lambda: lesson_charts.activations(glimpse.activations[layer], neuron),
    )
    st.plotly_chart(
        charts.drawn(figure), key="lesson.neuron", config=charts.CONFIG, alt="Activations of a layer"
    )
    st.caption(
        f"Each bar is one of the {model.d_mlp:,} neurons of layer {layer}: how active it is at the last word. A layer "
        "in which all are equally active would be surprising."
    )
    st.markdown(words.say_pusher(glimpse, layer))
    if glimpse.pushes[layer][neuron] > 0:
        st.html(token_strip(glimpse.promoted[layer]))


# ---- 2: today -------------------------------------------------------------------------------------------------------


def _today(model: "LoadedModel", parts: Parts) -> None:
    today: making.Today = parts["today"]
    letters, cloze = _told(today)
    left, right = st.columns([0.44, 0.56], gap="medium")
    with left:
        figure = state.get().kept.figure(
            "lesson.today",
            work.key_of(model),
            lambda: lesson_charts.accuracies({"by letters": letters, "by cloze": cloze}),
        )
        st.plotly_chart(charts.drawn(figure), key="lesson.today", config=charts.CONFIG, alt="Right answers")
        st.caption(
            f"{words.say_questions(today)}. Whiskers: 95% intervals; green: better than guessing (exact binomial "
            "test). A bar left of the dotted line with its whisker would be surprising."
        )
        st.markdown(words.say_today(letters, cloze))
    with right:
        st.markdown(
            "**What it writes to four of them**" if len(today.few) == 4 else "**What it writes to some**"
        )
        st.html(_written(making.few_of(today.questions), {"it writes": today.few}))


def _told(today: "making.Today") -> tuple[dict[str, Any], dict[str, Any]]:
    from nmke.answers import beats_chance

    return beats_chance(today.answers, "letters"), beats_chance(today.answers, "cloze")


def _written(questions: "tuple[Question, ...]", answers: "Mapping[str, tuple[Answered, ...]]") -> str:
    return lesson_html.written(
        [(question.text, question.choices[question.answer]) for question in questions],
        {name: [one.written or "" for one in found] for name, found in answers.items()},
    )


# ---- 3: roles -------------------------------------------------------------------------------------------------------


def _roles(model: "LoadedModel", parts: Parts) -> None:
    found: making.Found = parts["roles"]
    left, right = st.columns([0.62, 0.38], gap="medium")
    with left:
        figure = state.get().kept.figure("lesson.roles", work.key_of(model), lambda: _stacked(found))
        st.plotly_chart(charts.drawn(figure), key="lesson.roles", config=charts.CONFIG, alt="Roles per layer")
        st.caption(
            "Each bar is a layer, its parts the neurons of each role; those active in no subject are not drawn. A "
            "layer in which one subject's neurons outnumber the general ones would be surprising."
        )
    with right:
        first = found.main.ranked[: found.k]
        st.markdown(f"**The {len(first)} strongest {words.say_role(found.main.label)} ones**")
        table = pd.DataFrame(
            {
                "layer": [layer for layer, _ in first],
                "neuron": [neuron for _, neuron in first],
                "makes likelier": [" ".join(map(visible, tokens[:4])) for tokens in found.promoted],
            }
        )
        st.dataframe(table, hide_index=True, key="lesson.strongest", row_height=29)
    st.markdown(words.say_roles(found))


def _stacked(found: "making.Found") -> Any:
    figure = roles_charts.stacked(found.roles.counts(), whole=False)
    figure.update_layout(showlegend=True, margin={"t": 36})
    return figure


# ---- 4: off ---------------------------------------------------------------------------------------------------------


def _off(model: "LoadedModel", parts: Parts) -> None:
    today, off, found = parts["today"], parts["off"], parts["roles"]
    questions = making.few_of(today.questions)
    place = st.selectbox(
        "Question",
        range(len(questions)),
        format_func=lambda index: (
            f"{questions[index].text} (right: {questions[index].choices[questions[index].answer]})"
        ),
        key="lesson.question",
        persist_state="session",
        label_visibility="collapsed",
    )
    question = questions[place]
    for column, title, answers in zip(
        st.columns(2), ("Everything on", f"{found.k} neurons off"), (today.few, off.few), strict=True
    ):
        with column:
            st.markdown(f"**{title}**: it writes")
            st.code((answers[place].written or "").strip("\n") or "(nothing)", language=None, wrap_lines=True)
    tokens, before = today.texts[question.id]
    after = off.texts[question.id][1]
    figure = state.get().kept.figure(
        "lesson.tokens",
        (work.key_of(model), question.id),
        lambda: lesson_charts.token_losses(tokens, before, after),
    )
    st.plotly_chart(charts.drawn(figure), key="lesson.tokens", config=charts.CONFIG, alt="Loss per token")
    st.caption(
        "How surprised the model is by each next word of the question and its right answer; 0 is sure, higher is "
        "worse. Single words may get easier by accident; bars that are all alike would mean that nothing happened."
    )
    st.markdown(f"{findings.say_off(_before_after(parts), found)} {findings.say_written(today.few, off.few)}")


def _before_after(parts: Parts) -> "AblationResults":
    return making.results_of(parts["today"], making.before_after(parts["today"], parts["off"]))


# ---- 5: control -----------------------------------------------------------------------------------------------------


def _controls(model: "LoadedModel", parts: Parts) -> None:
    results = _results(parts, "controls")
    score = _score(5)
    figure = state.get().kept.figure(
        "lesson.controls",
        (work.key_of(model), score),
        lambda: ablation_charts.bars(
            results.table(score).assign(group=ablation_tables.ALL), ablation_tables.scale_of(results, score)
        ),
    )
    share = score == "cloze"
    title = "change of the right answers (points)" if share else "change of the loss (nats per token)"
    change = state.get().kept.figure(
        "lesson.changes",
        (work.key_of(model), score),
        lambda: lesson_charts.changes(findings.control_changes(results, score), title, share=share),
    )
    left, right = st.columns([0.56, 0.44], gap="medium")
    left.plotly_chart(
        charts.drawn(figure), key="lesson.controls", config=charts.CONFIG, alt="Scores with controls"
    )
    right.plotly_chart(
        charts.drawn(change), key="lesson.changes", config=charts.CONFIG, alt="Changes against everything on"
    )
    better = "the dotted line is guessing" if score == "cloze" else "lower is better"
    st.caption(
        f"Left: the scores with 95% intervals, {better}; hatched: the mean of {making.SEEDS} random sets. Right: the "
        "same questions compared one by one with everything on, which settles what overlapping whiskers do not. "
        "Random sets that move as far as the chosen ones would be surprising."
    )
    st.markdown(findings.say_control(results, parts["roles"], score))


def _results(parts: Parts, part: str) -> "AblationResults":
    return making.results_of(parts["today"], parts[part])


def _score_of(step: int) -> str:
    return str(st.session_state.get(f"lesson.score.{step}") or next(iter(findings.SCORES)))


def _score(step: int) -> str:
    key = f"lesson.score.{step}"
    opening: dict[str, Any] = {} if key in st.session_state else {"default": next(iter(findings.SCORES))}
    found = st.segmented_control(
        "Score",
        list(findings.SCORES),
        key=key,
        required=True,
        persist_state="session",
        format_func=findings.SCORES.__getitem__,
        label_visibility="collapsed",
        **opening,
    )
    return str(found or next(iter(findings.SCORES)))


# ---- 6: dose and undo -----------------------------------------------------------------------------------------------


def _doses(model: "LoadedModel", parts: Parts) -> None:
    results = _results(parts, "doses")
    ks = sorted({one.k for one in results.conditions})
    left, right = st.columns([0.62, 0.38], gap="medium")
    with left:
        score = _score(6)
        chosen = [k for k in ks if k]
        fresh = st.session_state.get("lesson.k") not in chosen
        opening: dict[str, Any] = {"value": min(parts["roles"].k, chosen[-1])} if fresh else {}
        if opening:
            st.session_state.pop("lesson.k", None)
        k = st.select_slider(
            "k: neurons switched off", chosen, key="lesson.k", persist_state="session", **opening
        )
        scale = ablation_tables.scale_of(results, score)
        curve = results.curve(score)
        figure = state.get().kept.figure(
            "lesson.doses",
            (work.key_of(model), score, k),
            lambda: lesson_charts.mark_dose(ablation_charts.dose(curve, scale), sorted(set(curve["k"])), k),
        )
        st.plotly_chart(
            charts.drawn(figure), key="lesson.doses", config=charts.CONFIG, alt="Dose and response"
        )
        st.caption(
            "The score against the number of neurons off, with 95% intervals; dashed: as many random neurons of the "
            "same layers. Two lines that stay together would mean that it does not matter which neurons they are."
        )
    with right:
        st.markdown(findings.say_dose(results, k, score))
        _undo(model, parts)


def _undo(model: "LoadedModel", parts: Parts) -> None:
    st.markdown("**Switch everything on again**")
    session = engine.current_session()
    assert session is not None
    if st.button(
        "Ask once more" if "again" not in parts else "Asked once more",
        key="lesson.again",
        disabled=jobs.running(work.PURPOSE) or "again" in parts,
        help="Answers the questions of step 2's table again, now, and compares every number.",
    ):
        work.start(model, session, ["again"], "Lesson: everything on again")
        st.rerun()
    if "again" not in parts:
        st.caption(
            "The questions of step 2's table are answered once more and compared with what was said then."
        )
        return
    today: making.Today = parts["today"]
    questions = making.few_of(today.questions)
    st.html(_written(questions[:1], {"step 2": today.few, "now": parts["again"]}))
    st.markdown(findings.say_again(today.few, parts["again"]))
