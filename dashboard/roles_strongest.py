"""The Roles page's table of the strongest neurons of each role with what they promote, and one of them closer."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import charts, downloads, engine, state
from dashboard import roles_work as work
from dashboard.neurons_data import SCORE_UNITS
from dashboard.roles_charts import ORDER
from dashboard.tokens_html import visible

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.neurons import NeuronCard
    from nmke.roles import Roles

TOKENS = 6
ALL = "all roles"


def show(model: "LoadedModel", found: work.Found, roles: "Roles") -> None:
    """The table, and beside it one neuron's tokens."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        role = st.segmented_control(
            "Role",
            [ALL, *ORDER],
            key="roles.role",
            default=None if "roles.role" in st.session_state else ALL,
            required=True,
            persist_state="session",
        )
        st.session_state.setdefault("roles.k", 5)
        k = st.slider("Of each role", 1, 50, key="roles.k", persist_state="session", width=180)
        per_layer = st.toggle(
            "in every layer",
            key="roles.per_layer",
            persist_state="session",
            help="So many of every layer instead of in all: later layers' scores are larger.",
        )
    wanted = tuple(ORDER[:-1]) if role in (ALL, None) else (str(role),)
    key = (found.asked, roles.config, wanted, k, per_layer)
    table = state.get().kept.get(
        "roles.strongest", key, lambda: _strongest(roles, wanted, int(k), bool(per_layer))
    )
    if table.empty:
        st.info("By this rule no neuron has this role.")
        return
    try:
        tokens = state.get().kept.get(
            "roles.promoted", (engine.edit_state_key(), key), lambda: _promoted(model, table)
        )
    except engine.BusyError as busy:
        st.caption(str(busy))
        tokens = [""] * len(table)
    full = table.assign(raises=tokens, tasks=table["tasks"].map(len))
    st.dataframe(
        full,
        hide_index=True,
        key="roles.strongest",
        height=min(38 + 35 * len(full), 300),
        column_order=["role", "layer", "neuron", "strength", "activation", "tasks", "raises"],
        column_config={
            "strength": st.column_config.NumberColumn(format="%.4g"),
            "activation": st.column_config.NumberColumn(format="%.3g"),
            "tasks": st.column_config.NumberColumn("in tasks"),
            "raises": st.column_config.TextColumn("raises", width="large"),
        },
    )
    unit = SCORE_UNITS[roles.config.attribution.kind]
    st.caption(
        f"Strength: mean {unit} over the tasks in which the neuron is active. Raises: the tokens whose logits it "
        "raises most with an activation of that sign; related words are telling, a mix is usual."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        downloads.table_files(lambda: full, "strongest-neurons", key="roles.file.strongest")
    _closer(model, roles, table)


def _strongest(roles: "Roles", wanted: tuple[str, ...], k: int, per_layer: bool) -> pd.DataFrame:
    from nmke.roles import strongest

    table = pd.concat([strongest(roles, role, k, per_layer=per_layer) for role in wanted], ignore_index=True)
    table["activation"] = [
        float(roles.activation[layer][:, neuron].mean())
        for layer, neuron in table[["layer", "neuron"]].itertuples(index=False)
    ]
    return table


def _promoted(model: "LoadedModel", table: pd.DataFrame) -> list[str]:
    """The tokens each neuron raises, by the model as edited now.

    Raises:
        BusyError: the model was computing something else.
    """

    def work_() -> list[str]:
        from nmke.roles import promoted_tokens

        session = engine.current_session()
        assert session is not None
        pairs = [
            (int(layer), int(neuron)) for layer, neuron in table[["layer", "neuron"]].itertuples(index=False)
        ]
        with session.active():
            found = promoted_tokens(model, pairs, TOKENS, table["activation"].tolist())
        return [" · ".join(visible(token) for token in tokens) for tokens in found]

    return engine.quick_or_raise(work_)


def _closer(model: "LoadedModel", roles: "Roles", table: pd.DataFrame) -> None:
    """One neuron: its strength per task and the tokens it pushes."""
    options = [
        (int(layer), int(neuron)) for layer, neuron in table[["layer", "neuron"]].itertuples(index=False)
    ]
    if st.session_state.get("roles.neuron") not in options:
        st.session_state.pop("roles.neuron", None)
    pick = st.selectbox(
        "One neuron closer",
        options,
        format_func=lambda pair: f"layer {pair[0]}, neuron {pair[1]}",
        key="roles.neuron",
        width=260,
    )
    layer, neuron = pick
    left, right = st.columns(2)
    with left:
        titles = work.titles_of(roles.tasks)
        st.dataframe(
            pd.DataFrame(
                {
                    "task": [titles[task] for task in roles.tasks],
                    "active": roles.active[layer][:, neuron].tolist(),
                    "mean score": roles.strength[layer][:, neuron].tolist(),
                    "mean activation": roles.activation[layer][:, neuron].tolist(),
                }
            ),
            hide_index=True,
            key="roles.one",
            column_config={
                "mean score": st.column_config.NumberColumn(format="%.4g"),
                "mean activation": st.column_config.NumberColumn(format="%.3g"),
            },
        )
        st.caption(
            "Where it is active by the rule, and its mean score and activation on each task's questions."
        )
    with right:
        try:
            card = state.get().kept.get(
                "roles.card", (engine.edit_state_key(), pick), lambda: _card(model, layer, neuron)
            )
        except engine.BusyError as busy:
            st.caption(str(busy))
            return
        tokens = (card.promoted, card.suppressed)
        figure = state.get().kept.figure("roles.tokens", tokens, lambda: charts.token_bars(*tokens))
        st.plotly_chart(
            charts.drawn(figure),
            key="roles.tokens",
            config=charts.CONFIG,
            alt="Tokens promoted and suppressed",
        )
        st.caption(
            "Tokens its value vector pushes up (red) and down (blue); a negative activation turns them round."
        )


def _card(model: "LoadedModel", layer: int, neuron: int) -> "NeuronCard":
    def inspect() -> "NeuronCard":
        from nmke.neurons import inspect_neuron

        session = engine.current_session()
        assert session is not None
        with session.active():
            return inspect_neuron(model, layer, neuron, (), k=TOKENS)

    return engine.quick_or_raise(inspect)
