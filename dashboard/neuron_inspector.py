"""The Neurons page's right edge: one neuron, everything known about it."""

import html
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dashboard import charts, engine, frame, jobs, state
from dashboard.binning import KINDS
from dashboard.neurons_data import SCORE_UNITS, Found, as_array, say_estimate
from dashboard.selection import Pick
from dashboard.tokens_html import value_strip
from nmke.errors import NmkeError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.masks import LayerMask
    from nmke.moments import Statistics, StatisticsConfig
    from nmke.neurons import NeuronCard

PURPOSE = "statistics"
TOKENS_SHOWN = 8
PROMPTS_OPEN = 4


def show(model: "LoadedModel", found: Found, masks: "dict[int, LayerMask]", pick: Pick) -> None:
    """The inspector of ``pick``; its boxes choose another neuron."""
    _take_statistics()
    mask = masks[pick.layer]
    left, right = st.columns(2)
    left.selectbox("Layer", found.attribution.layers, key="neurons.layer", persist_state="session")
    right.number_input(
        "Neuron",
        0,
        len(mask.kinds) - 1,
        step=1,
        key="neurons.neuron",
        persist_state="session",
        help="A click on a cell of either map puts its strongest neuron here.",
    )
    _kind_line(found, mask, pick)
    card = _card(model, found, pick)
    if card is None:
        return
    with frame.guard("Drawing the tokens"):
        _tokens(card)
    with frame.guard("Showing the activations"):
        _activations(found, card, pick)
    with frame.guard("Showing the passages"):
        _passages(model, card, pick)


def _kind_line(found: Found, mask: "LayerMask", pick: Pick) -> None:
    kind = KINDS[int(mask.kinds[pick.neuron])]
    dark_text = kind in ("none", "both", "specific")
    colour = "#1B1F24" if dark_text else "#FFFFFF"
    st.html(
        f"<span style='background:{charts.KIND_COLOURS[kind]};color:{colour};padding:2px 10px;border-radius:10px;"
        f"font-size:0.9rem;font-weight:600'>{html.escape(kind)}</span>"
    )
    specific = as_array(mask.specific_score)
    rank = int((specific > specific[pick.neuron]).sum()) + 1
    prompts = len(found.attribution.prompts)
    weight = float(mask.weights[pick.neuron])
    unit = SCORE_UNITS[found.attribution.config.kind]
    kept = (
        "kept by the mask"
        if weight == 1
        else "left out by the mask"
        if weight == 0
        else f"scaled by {weight:.2f}"
    )
    st.caption(
        f"Above average in **{int(mask.general_score[pick.neuron])} of {prompts}** prompts (general from "
        f"{mask.general_cut:g})  \nLargest score **{specific[pick.neuron]:.4g}**, rank {rank} of {len(specific)} "
        f"(specific from {mask.specific_cut:.3g}; {unit})  \nAn edit's update of it is **{kept}**"
    )


def _card(model: "LoadedModel", found: Found, pick: Pick) -> "NeuronCard | None":
    """What the engine says about the neuron, of the model as edited now; None while the model is busy."""
    statistics = _statistics(model, pick.layer)
    texts = tuple(prompt.text for prompt in found.attribution.prompts)
    key = (engine.edit_state_key(), pick, texts, None if statistics is None else statistics.folder)

    def inspect() -> "NeuronCard":
        from nmke.neurons import inspect_neuron

        session = engine.current_session()
        assert session is not None
        with session.active():
            return inspect_neuron(
                model, pick.layer, pick.neuron, texts, k=TOKENS_SHOWN, statistics=statistics
            )

    try:
        return state.get().kept.get("neurons.card", key, lambda: engine.quick_or_raise(inspect))
    except engine.BusyError as busy:
        st.info(str(busy))
        return None


def _tokens(card: "NeuronCard") -> None:
    tokens = (card.promoted, card.suppressed)
    figure = state.get().kept.figure("neurons.tokens", tokens, lambda: charts.token_bars(*tokens))
    st.plotly_chart(
        charts.drawn(figure), key="neurons.tokens", config=charts.CONFIG, alt="Tokens promoted and suppressed"
    )
    st.caption(
        "Tokens its value vector pushes up (red) and down (blue); a negative activation turns them round. Related "
        "words are telling, a mix is usual."
    )


def _activations(found: Found, card: "NeuronCard", pick: Pick) -> None:
    prompts = found.attribution.prompts
    scores = as_array(found.attribution.scores[pick.layer])[:, pick.neuron]
    limit = max((abs(value) for row in card.activations for _, value in row), default=0.0)
    shown = max(range(len(prompts)), key=lambda row: abs(float(scores[row])), default=0)
    order = [shown, *(row for row in range(len(prompts)) if row != shown)]
    st.markdown(
        "**Activation on each token**",
        help="Orange is positive, blue negative; point at a token for its value.",
    )
    for row in order[:PROMPTS_OPEN]:
        _strip(card, row, limit, scores)
    if len(order) > PROMPTS_OPEN:
        with st.expander(f"The other {len(order) - PROMPTS_OPEN} prompts"):
            for row in order[PROMPTS_OPEN:]:
                _strip(card, row, limit, scores)
    with st.expander("Scores on every prompt"):
        table = pd.DataFrame(
            {
                "prompt": [prompt.text for prompt in prompts],
                "followed": list(found.attribution.target_tokens),
                "score": scores,
                "activation": as_array(found.attribution.activations[pick.layer])[:, pick.neuron],
            }
        )
        number = st.column_config.NumberColumn(format="%.4g")
        st.dataframe(
            table,
            hide_index=True,
            key="neurons.scores",
            column_config={"score": number, "activation": number},
        )


def _strip(card: "NeuronCard", row: int, limit: float, scores: Any) -> None:
    pairs = card.activations[row]
    st.html(
        f"<div style='font-size:0.85rem'>{value_strip([t for t, _ in pairs], [v for _, v in pairs], limit)}"
        f"<div style='opacity:0.65;font-size:0.75rem'>score {float(scores[row]):.4g}</div></div>"
    )


# ---- passages of the statistics text ------------------------------------------------------------------------------


def _passages(model: "LoadedModel", card: "NeuronCard", pick: Pick) -> None:
    st.markdown("**Where it fires most in ordinary text**")
    if _statistics(model, pick.layer) is None:
        _offer_statistics(model, pick.layer)
        return
    if not card.passages:
        st.caption("It never fires in the text that was read.")
        return
    for passage in card.passages:
        st.html(
            f"<div style='font-size:0.85rem;line-height:1.5;margin-bottom:0.4rem'>{html.escape(passage.before)}"
            f"<mark style='background:#E69F00;color:#1B1F24;border-radius:3px'>{html.escape(passage.token)}</mark>"
            f"{html.escape(passage.after)} <span style='opacity:0.65'>{passage.value:.2f}</span></div>"
        )
    st.caption(
        "The marked token is where the activation is largest in size; a common theme would be telling."
    )


def _offer_statistics(model: "LoadedModel", layer: int) -> None:
    config, layers = _settings(model, layer)
    if jobs.running(PURPOSE):
        st.caption("The statistics are being collected; the passages appear here when that is done.")
        return
    st.caption(f"The statistics text has not been read for layer {layer} yet.")
    # A forward pass costs about two operations a parameter and token, up to the last layer read.
    operations = 2.0 * config.tokens * model.n_parameters * (max(layers) + 1) / model.n_layers
    seconds = operations / (8e10 if model.device.startswith("cpu") else 1e13)
    label = f"Read {config.tokens:,} tokens ({say_estimate(max(seconds, 4))})"
    if st.button(label, key="neurons.statistics.collect", width="stretch"):
        try:
            _start_statistics(model, config, layers)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()


def _settings(model: "LoadedModel", layer: int) -> "tuple[StatisticsConfig, tuple[int, ...]]":
    """The text and layers an edit with the preset would collect, so that the work is done only once."""
    from nmke.presets import preset_for

    config: Any = preset_for(model, "nmke").config
    layers = tuple(config.layers)
    return config.statistics, layers if layer in layers else (layer,)


def _start_statistics(model: "LoadedModel", config: "StatisticsConfig", layers: tuple[int, ...]) -> None:
    def work(progress: Progress) -> None:
        from nmke.moments import collect_statistics

        collect_statistics(model, config, layers, progress)

    jobs.start(PURPOSE, "Reading the statistics text", work)


def _take_statistics() -> None:
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return
    state.get().settings.pop("neurons.statistics", None)
    if outcome.state != jobs.JobState.DONE:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
        st.rerun()


def _statistics(model: "LoadedModel", layer: int) -> "Statistics | None":
    """Statistics on disk that cover the layer; looked up once per model and layers."""
    from nmke.moments import find_statistics

    config, layers = _settings(model, layer)
    key = (model.weight_hash, config, layers)
    settings = state.get().settings
    kept = settings.get("neurons.statistics")
    if kept is None or kept[0] != key:
        kept = (key, find_statistics(model, config, layers))
        settings["neurons.statistics"] = kept
    statistics: Statistics | None = kept[1]
    return statistics
