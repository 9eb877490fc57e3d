"""The Ablation page's left column: which neurons, which questions, and the button."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import ablation_work as work
from dashboard import engine, frame, jobs, roles_work, state
from dashboard.neurons_data import Found, say_estimate
from dashboard.selection import parse_layers
from dashboard.widgets import FormLook, config_form
from nmke.errors import NmkeError
from nmke.questions import DEFAULT_SUBJECTS, known_subjects, title_of

if TYPE_CHECKING:
    from nmke.ablation import AblationConfig
    from nmke.loading import LoadedModel
    from nmke.roles import Roles

PRESETS = (10, 50)
MOST_K = 500
DOSES = (1, 5, 10, 20, 50, 100, 200)
_QUESTIONS: Mapping[str, str] = {"mmlu": "MMLU", "builtin": "built-in questions", "file": "a file of mine"}
_LOOK = FormLook(
    hidden=("ks", "answers"),
    names={
        "zero": "zero",
        "mean": "mean activation",
        "in all": "in all layers together",
        "per layer": "in each layer",
    },
)
_OLDER = " They were found with other edits in force than yours now."
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
        chosen, k = _neurons(model)
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


# ---- neurons ----------------------------------------------------------------------------------------------------


def _neurons(model: "LoadedModel") -> tuple[work.Chosen | None, int]:
    source = st.segmented_control(
        "Neurons from",
        ("Roles", "Facts", "By hand"),
        key="ablation.source",
        default=None if "ablation.source" in st.session_state else "Roles",
        required=True,
        persist_state="session",
        label_visibility="collapsed",
        help="Roles over several subjects, the kinds told from facts, or neurons you name.",
    )
    if source == "By hand":
        return _by_hand(), 0
    return (_of_roles if source == "Roles" else _of_facts)(model), _k(model)


def _k(model: "LoadedModel") -> int:
    most = min(MOST_K, model.n_layers * (model.d_mlp // 2))
    key = "ablation.k"
    if key in st.session_state and st.session_state[key] > most:
        st.session_state[key] = most
    opening: dict[str, Any] = {} if key in st.session_state else {"value": min(PRESETS[0], most)}
    k: int = st.slider(
        "k: neurons switched off",
        1,
        most,
        key=key,
        persist_state="session",
        help="The strongest k neurons; the paper takes 10 and 50.",
        **opening,
    )
    with st.container(horizontal=True, gap="small"):
        for preset in PRESETS:
            st.button(
                f"k = {preset}",
                key=f"ablation.k.{preset}",
                disabled=preset > most,
                on_click=_set_k,
                args=(preset,),
            )
    return k


def _set_k(k: int) -> None:
    st.session_state["ablation.k"] = k


def _layers(model: "LoadedModel") -> tuple[int, ...] | None:
    key = f"ablation.layers.{model.weight_hash[:12]}"
    st.session_state.setdefault(key, "all")
    text = st.text_input(
        "Layers", key=key, persist_state="session", help="All, a range such as 4-8, or a list such as 4, 6."
    )
    try:
        return parse_layers(text, model.n_layers)
    except ValueError as problem:
        st.error(str(problem))
        return None


def known_roles(model: "LoadedModel") -> "Roles | None":
    """The roles that the Roles page found on this model."""
    roles: Roles | None = state.get().settings.get(roles_work.ASSIGNED)
    return roles if roles is not None and roles.model_hash == model.weight_hash else None


def _of_roles(model: "LoadedModel") -> work.Chosen | None:
    roles = known_roles(model)
    options = work.role_options(_subjects_now(), roles)
    picked = st.multiselect(
        "Roles",
        list(options),
        default=None if "ablation.roles" in st.session_state else ["general"],
        format_func=lambda role: options.get(role, role.replace("_", " ")),
        key="ablation.roles",
        persist_state="session",
        help="Each is a condition of its own. General neurons are active in all subjects, domain and task neurons in "
        "one domain or subject alone, mixed ones in some other set of subjects, inactive ones in none.",
    )
    if roles is None:
        st.caption(
            "Roles are found on the questions asked, by activation (MPC). The Roles page has finer ways."
        )
    else:
        kind = roles.config.attribution.kind.upper()
        st.caption(
            f"Roles of the Roles page: {kind} over {sum(roles.sizes)} questions.{_say_older(roles.edits)}"
        )
    layers = _layers(model)
    if not picked:
        st.warning("Choose at least one role.")
        return None
    if layers is None:
        return None
    if roles is not None and not set(layers) & set(roles.layers):
        st.warning("The Roles page scored none of these layers.")
        return None
    return work.Chosen("Roles", tuple(picked), layers, found_roles=roles)


def _say_older(edits: str) -> str:
    session = engine.current_session()
    now = session.digest if session is not None and session.version else ""
    return "" if edits == now else _OLDER


def _of_facts(model: "LoadedModel") -> work.Chosen | None:
    facts = state.get().facts
    found: Found | None = state.get().settings.get("neurons.found")
    mine = found if found is not None and found.origin.weight_hash == model.weight_hash else None
    if mine is None and not facts:
        frame.missing("There are no facts yet.", "facts", "Enter facts")
        return None
    kinds = st.multiselect(
        "Kinds",
        ("general", "specific"),
        default=None if "ablation.kinds" in st.session_state else ["general", "specific"],
        key="ablation.kinds",
        persist_state="session",
        help="General neurons work for most of the facts' prompts, specific ones strongly for some.",
    )
    if mine is not None:
        scored = mine.attribution
        st.caption(
            f"Scores of the Neurons page: {scored.config.kind.upper()} over {len(scored.prompts)} prompts."
            f"{'' if mine.origin.edit_key == engine.edit_state_key() else _OLDER}"
        )
    else:
        st.caption(
            f"The {len(facts)} facts are scored by activation (MPC); the Neurons page has finer scores."
        )
    layers = _layers(model)
    if not kinds:
        st.warning("Choose at least one kind.")
        return None
    if layers is None:
        return None
    if mine is not None:
        if not set(layers) & set(mine.attribution.layers):
            st.warning("The Neurons page scored none of these layers.")
            return None
        return work.Chosen("Facts", tuple(kinds), layers, attribution=mine.attribution)
    return work.Chosen("Facts", tuple(kinds), layers, facts=facts)


def _by_hand() -> work.Chosen | None:
    data = st.file_uploader(
        "A saved set or table",
        type=["json", "csv", "txt"],
        key="ablation.file",
        max_upload_size=5,
        help="A set saved below, or a table with the columns layer and neuron.",
    )
    if data is not None and state.get().settings.get("ablation.uploaded") != data.file_id:
        state.get().settings["ablation.uploaded"] = data.file_id
        with frame.guard("Reading the file"):
            st.session_state["ablation.text"] = work.text_of_file(data.name, data.getvalue())
    text = st.text_area(
        "Neurons",
        key="ablation.text",
        persist_state="session",
        height=150,
        placeholder="5:120\n5:731\n12:9",
        help="One neuron a line, layer:neuron, or a pasted table with the columns layer and neuron.",
    )
    if not text.strip():
        st.caption("Write one neuron a line: layer:neuron.")
        return None
    try:
        model = engine.current_model()
        assert model is not None
        chosen = work.read_by_hand(model, text)
    except NmkeError as problem:
        st.error(str(problem))
        return None
    st.caption(f"{chosen.count} neurons in {len(chosen.neurons)} layers.")
    return work.Chosen("By hand", (), (), text=text)


# ---- questions --------------------------------------------------------------------------------------------------


def _subjects_now() -> tuple[str, ...]:
    """The subjects chosen further down, as they were at the last run."""
    source = st.session_state.get("ablation.questions", "mmlu")
    found = st.session_state.get(f"ablation.subjects.{_path(source) or source}")
    return tuple(found) if found else DEFAULT_SUBJECTS


def _path(source: str) -> str | None:
    return state.get().settings.get("ablation.upload") if source == "file" else source


def _questions() -> work.Asked | None:
    picked = st.selectbox(
        "Questions",
        list(_QUESTIONS),
        format_func=_QUESTIONS.__getitem__,
        key="ablation.questions",
        persist_state="session",
        help="MMLU is fetched once from the package index; a file is JSONL or CSV with subject, question, choices and "
        "answer.",
    )
    if picked == "file":
        _upload()
    source = _path(picked)
    if source is None:
        return None
    try:
        known = known_subjects(source)
    except NmkeError as problem:
        st.error(str(problem))
        return None
    start = [subject for subject in DEFAULT_SUBJECTS if subject in known] or list(known[:4])
    key = f"ablation.subjects.{source}"
    subjects = st.multiselect(
        "Subjects",
        known,
        default=None if key in st.session_state else start,
        format_func=title_of,
        key=key,
        persist_state="session",
        help="Roles need at least two; high school and college biology are one domain.",
    )
    opening: dict[str, Any] = {} if "ablation.limit" in st.session_state else {"value": 25}
    limit = st.number_input(
        "Questions of each",
        1,
        2000,
        step=5,
        key="ablation.limit",
        persist_state="session",
        help="Drawn with the seed below; all where there are fewer. More questions make narrower intervals.",
        **opening,
    )
    if not subjects:
        st.warning("Choose at least one subject.")
        return None
    return work.Asked(
        source, tuple(subjects), int(limit), int(st.session_state.get("ablation.config.seed", 0))
    )


def _upload() -> None:
    data = st.file_uploader(
        "File of questions", type=["jsonl", "json", "csv"], key="ablation.questions.file", max_upload_size=50
    )
    if data is not None:
        with frame.guard("Keeping the upload"):
            state.get().settings["ablation.upload"] = roles_work.keep_upload(data.name, data.getvalue())
    elif _path("file") is None:
        st.caption("One question a line: subject, question, choices, answer (a letter, or a number from 0).")


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
