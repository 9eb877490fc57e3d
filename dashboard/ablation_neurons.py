"""The controls of the Ablation page that say which neurons are switched off."""

from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import ablation_work as work
from dashboard import engine, frame, questions_form, roles_work, state
from dashboard.layers_field import choose_layers
from dashboard.neurons_data import Found
from nmke.errors import NmkeError
from nmke.questions import DEFAULT_SUBJECTS

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.roles import Roles

PRESETS = (10, 50)
MOST_K = 500
_OLDER = " They were found with other edits in force than yours now."


def choose_neurons(model: "LoadedModel") -> tuple[work.Chosen | None, int]:
    """Which neurons, or None after saying what is missing; and k, which is 0 for neurons by hand."""
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
    layers = choose_layers(model, "ablation")
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
    layers = choose_layers(model, "ablation")
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


def _subjects_now() -> tuple[str, ...]:
    """The subjects chosen further down, as they were at the last run."""
    source = st.session_state.get("ablation.questions", "mmlu")
    path = questions_form.path_of("ablation", source) or source
    found = st.session_state.get(questions_form.subjects_key("ablation", path))
    return tuple(found) if found else DEFAULT_SUBJECTS
