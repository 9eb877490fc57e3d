"""The Ablation page's left column: which neurons, which questions, and the button."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import ablation_neurons, engine, frame, jobs, questions_form, state
from dashboard import ablation_work as work
from dashboard.neurons_data import say_estimate
from dashboard.widgets import FormLook, config_form
from nmke.errors import NmkeError
from nmke.questions import title_of

if TYPE_CHECKING:
    from nmke.ablation import AblationConfig
    from nmke.loading import LoadedModel

DOSES = (1, 5, 10, 20, 50, 100, 200)
_LOOK = FormLook(
    hidden=("ks", "answers"),
    names={
        "zero": "zero",
        "mean": "mean activation",
        "in all": "in all layers together",
        "per layer": "in each layer",
    },
)
_ANSWERS_LOOK = FormLook(hidden=("scores", "batch_tokens"))


@dataclass(frozen=True)
class Wish:
    """Everything the form asks for."""

    asked: work.Asked
    chosen: work.Chosen
    config: "AblationConfig"
    k: int


def show(model: "LoadedModel") -> Wish | None:
    """The whole column; what it asks for, or None after saying what is wrong."""
    button = st.container()  # above the settings it depends on, so that it is always on the first screen
    with st.expander("Neurons", expanded=True, icon=":material/scatter_plot:"):
        chosen, k = ablation_neurons.choose_neurons(model)
    with st.expander("Questions", icon=":material/quiz:"):
        asked, scores = _questions(), _scores()
    with st.expander("How, and beside what", icon=":material/tune:"):
        config = _config(scores)
    wish = None
    if chosen is not None and asked is not None and config is not None:
        wish = Wish(asked, chosen, config, k)
    with button:
        _start_button(model, wish)
    return wish


# ---- questions --------------------------------------------------------------------------------------------------


def _questions() -> work.Asked | None:
    source = questions_form.choose_source("ablation", "ablation.questions")
    if source is None:
        return None
    subjects = questions_form.choose_subjects(
        "ablation",
        source,
        title_of,
        "Roles need at least two; high school and college biology are one domain.",
    )
    if subjects is None:
        return None
    limit = questions_form.choose_number(
        st,
        "Questions of each",
        "ablation.limit",
        25,
        (1, questions_form.MOST),
        5,
        "Drawn with the seed below; all where there are fewer. More questions make narrower intervals.",
    )
    if not subjects:
        st.warning("Choose at least one subject.")
        return None
    return work.Asked(source, subjects, limit, int(st.session_state.get("ablation.config.seed", 0)))


def _scores() -> tuple[str, ...]:
    picked: list[str] = st.multiselect(
        "Scores",
        ("letters", "cloze", "written", "loss"),
        default=None if "ablation.scores" in st.session_state else ["letters", "cloze", "written", "loss"],
        format_func=lambda score: work.SCORE_TITLES[score],
        key="ablation.scores",
        persist_state="session",
        help="Letters: the likeliest letter. Cloze: the likeliest choice's text. Written: what the model writes, and "
        "the slowest. Loss: nats per token of the right choice and of the question.",
    )
    if not picked:
        st.warning("Choose at least one score.")
    return tuple(picked)


def _config(scores: Sequence[str]) -> "AblationConfig | None":
    from nmke.ablation import AblationConfig
    from nmke.answers import AnswersConfig

    config = config_form(AblationConfig, AblationConfig(), "ablation.config", _LOOK)
    answers = config_form(AnswersConfig, AnswersConfig(), "ablation.answers", _ANSWERS_LOOK)
    if config is None or answers is None or not scores:
        return None
    values: dict[str, Any] = {**answers.model_dump(), "scores": tuple(scores)}
    return config.changed(answers=values)


# ---- the button -------------------------------------------------------------------------------------------------


def _start_button(model: "LoadedModel", wish: Wish | None) -> None:
    busy = jobs.running(work.PURPOSE)
    if st.button(
        "Switch them off",
        type="primary",
        key="ablation.start",
        disabled=wish is None or busy,
        width="stretch",
    ):
        assert wish is not None
        start(wish, (wish.k,) if wish.chosen.source != "By hand" else ())
    if wish is not None and not busy:
        st.caption(say_work(model, wish, 1))


def start(wish: Wish, ks: Sequence[int]) -> None:
    """Start the ablation, or say why it cannot be started."""
    session = engine.current_session()
    assert session is not None
    try:
        work.start(session, wish.asked, wish.chosen, wish.config, ks)
    except NmkeError as problem:
        frame.show_error(problem)
    else:
        st.rerun()


def say_work(model: "LoadedModel", wish: Wish, sizes: int) -> str:
    """How many conditions and questions there are, and about how long they take."""
    sets = sizes * max(len(wish.chosen.roles), 1)
    conditions = 1 + sets * (1 + wish.config.controls)
    questions = len(wish.asked.subjects) * (wish.asked.limit or 200)
    pace: float | None = state.get().settings.get(f"ablation.pace.{wish.config.answers.scores}")
    each = pace or work.guess_pace(model, wish.config.answers.scores)
    told = f"{say_estimate(conditions * questions * each)}{' (measured here)' if pace else ''}"
    return f"{conditions} conditions × {questions} questions: {told}, less what is kept."
