"""The Neurons page: the overview, prompts by neurons, ratios, files."""

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from dashboard import (
    charts,
    downloads,
    frame,
    jobs,
    neuron_inspector,
    neurons_figures,
    neurons_settings,
    state,
)
from dashboard.binning import KINDS, BinnedLayer
from dashboard.neurons_data import (
    Found,
    Origin,
    as_array,
    bin_masks,
    layer_table,
    mask_table,
    neuron_table,
    say_reduction,
    stale_reasons,
    steering_sentence,
)
from dashboard.selection import Pick, clamp, picked
from nmke.facts import Fact

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.masks import LayerMask, MaskConfig


def show(model: "LoadedModel", facts: tuple[Fact, ...]) -> None:
    """The whole page, once model and facts are there."""
    neurons_settings.take_result()
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=224):
            asked = neurons_settings.score_settings(model, facts)
            mask_config = neurons_settings.mask_settings()
        found: Found | None = state.get().settings.get("neurons.found")
        if found is None or found.origin.weight_hash != model.weight_hash:
            with st.container(width="stretch"):
                _invite(asked)
            return
        pick, masks = None, None
        with st.container(width="stretch"):
            _say_stale(found, asked)
            if mask_config is not None:
                masks = _masks(found, mask_config)
                pick = _current_pick(found, masks)
                with frame.guard("Drawing the overview"):
                    _overview(found, masks, mask_config, pick)
                _tabs(found, masks, mask_config, pick)
        if pick is not None and masks is not None:
            with st.container(width=290), frame.guard("Inspecting the neuron"):
                neuron_inspector.show(model, found, masks, pick)


def _invite(asked: Origin | None) -> None:
    if jobs.running(neurons_settings.PURPOSE):
        st.info(
            "The neurons are being scored; the map appears here when that is done. The sidebar shows the progress."
        )
    elif asked is not None:
        st.info(
            "Nothing is scored yet. Press “Find the neurons”: every neuron of the chosen layers is then scored on "
            "every prompt, and the map of their kinds appears here. The sliders re-select at once."
        )


def _say_stale(found: Found, asked: Origin | None) -> None:
    if asked is None:
        return
    reasons = stale_reasons(found.origin, asked)
    if reasons:
        text = "; ".join(reasons)
        st.warning(f"{text[:1].upper()}{text[1:]}. Press “Find the neurons” to score again.")


# ---- what the sliders change ------------------------------------------------------------------------------------


def _masks(found: Found, config: "MaskConfig") -> "dict[int, LayerMask]":
    """The masks of these scores and sliders."""
    from nmke.masks import build_masks

    mine = state.get()
    mine.settings["neurons.mask_config"] = config  # the Edit page offers to take it over
    key = (found.origin, config)
    return mine.kept.get("neurons.masks", key, lambda: build_masks(found.attribution, config))


def _current_pick(found: Found, masks: "dict[int, LayerMask]") -> Pick:
    """The layer and neuron in the inspector's boxes, moved into range; the strongest neuron at first."""
    layers = found.attribution.layers
    width = len(masks[layers[0]].kinds)
    layer = st.session_state.get("neurons.layer", layers[0])
    layer = clamp(Pick(layer, 0), layers, width).layer
    neuron = st.session_state.get("neurons.neuron")
    if neuron is None:
        neuron = int(as_array(masks[layer].specific_score).argmax())
    pick = clamp(Pick(layer, neuron), layers, width)
    st.session_state["neurons.layer"], st.session_state["neurons.neuron"] = pick.layer, pick.neuron
    return pick


def _on_click(key: str) -> None:
    """Take a click on a chart into the inspector's boxes."""
    pick = picked(st.session_state.get(key))
    if pick is not None:
        st.session_state["neurons.layer"], st.session_state["neurons.neuron"] = pick.layer, pick.neuron


def _clickable(figure: dict[str, Any], key: str, alt: str) -> None:
    st.plotly_chart(
        charts.drawn(figure),
        key=key,
        on_select=lambda: _on_click(key),
        selection_mode="points",
        config=charts.CONFIG,
        alt=alt,
    )


# ---- pictures ---------------------------------------------------------------------------------------------------


def _legend(masks: "dict[int, LayerMask]") -> None:
    """The four kinds, their colours and how many neurons each has in all layers."""
    totals = np.sum(
        [np.bincount(as_array(mask.kinds), minlength=len(KINDS)) for mask in masks.values()], axis=0
    )
    square = "display:inline-block;width:0.8em;height:0.8em;border-radius:2px;margin-right:0.4em"
    chips = "".join(
        f"<span style='white-space:nowrap'><span style='{square};background:{charts.KIND_COLOURS[kind]}'></span>"
        f"{kind} {count:,}</span>"
        for kind, count in sorted(zip(KINDS, totals, strict=True), key=lambda pair: pair[0] == "none")
    )
    st.html(
        f"<div style='display:flex;flex-wrap:wrap;gap:0.2em 1.2em;font-size:0.85rem'>{chips}</div>",
        width="stretch",
    )


def _overview(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig", pick: Pick) -> None:
    kept = state.get().kept
    ranked = st.session_state.get("neurons.order", "strength") == "strength"
    width = len(masks[pick.layer].kinds)
    shown = (found.origin, config, ranked)
    bins = kept.get("neurons.bins", shown, lambda: bin_masks(masks, ranked=ranked))
    cell = bins[pick.layer].bin_of(pick.neuron)
    figure = kept.figure(
        "neurons.overview",
        (shown, pick.layer, cell),
        lambda: neurons_figures.overview(bins, ranked=ranked, neurons=width, pick=pick),
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        _legend(masks)
        st.segmented_control(
            "Order of the neurons",
            ["strength", "index"],
            key="neurons.order",
            default=None if "neurons.order" in st.session_state else "strength",
            required=True,
            persist_state="session",
            format_func={"strength": "strongest first", "index": "by index"}.__getitem__,
            label_visibility="collapsed",
        )
    _clickable(figure, "neurons.overview", "Layers by neurons, coloured by kind")
    downloads.caption(
        _say_overview(bins[pick.layer], pick.layer, cell, width),
        figure,
        "neurons-overview",
        key="neurons.file.overview",
    )
    precision = kept.get("neurons.precision", found.origin, found.attribution.precision)
    if precision:
        st.caption(precision)


def _say_overview(bins: BinnedLayer, layer: int, cell: int, width: int) -> str:
    exact = ", ".join(
        f"{count} {kind}" for kind, count in zip(KINDS, bins.counts[cell], strict=True) if count
    )
    return (
        f"Each cell shows the commonest kind of about {round(width / len(bins.members))} neurons, the bars each "
        f"layer's shares; a layer unlike its neighbours would be surprising. "
        f"**Framed: layer {layer}, cell {cell}: {exact}.**"
    )


def _tabs(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig", pick: Pick) -> None:
    prompts, ratios, tables = st.tabs(
        [f"Prompts × neurons, layer {pick.layer}", "Counts and ratios", "Tables and files"],
        key="neurons.tabs",
    )
    with prompts, frame.guard("Drawing the prompts"):
        _prompts(found, masks, config, pick)
    with ratios, frame.guard("Drawing the ratios"):
        _ratios(found, masks, config)
    with tables, frame.guard("Making the tables"):
        _tables(found, masks, config, pick)


def _prompts(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig", pick: Pick) -> None:
    attribution, mask = found.attribution, masks[pick.layer]
    figure = state.get().kept.figure(
        "neurons.prompts",
        (found.origin, config, pick),
        lambda: neurons_figures.prompts(attribution, mask, pick),
    )
    reduced = say_reduction(
        len(attribution.prompts), len(mask.kinds), neurons_figures.ROWS, neurons_figures.COLUMNS
    )
    _clickable(figure, "neurons.prompts", "Prompts by neurons: scores of the strongest neurons")
    downloads.caption(
        f"{reduced} Red is above zero, blue below: a column of one colour works for every prompt, a lone cell for one "
        "fact; the strip on top gives the kinds.",
        figure,
        "neurons-prompts",
        key="neurons.file.prompts",
    )


def _ratios(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig") -> None:
    kept, shown = state.get().kept, (found.origin, config)
    table = kept.get("neurons.layer_table", shown, lambda: layer_table(masks))
    figure = kept.figure("neurons.ratios", shown, lambda: neurons_figures.ratios(table, config))
    st.plotly_chart(
        charts.drawn(figure), key="neurons.ratios", config=charts.CONFIG, alt="Ratios and entropies per layer"
    )
    downloads.caption(
        "Left: the share asked for per kind (grey band: lowest to highest) and what ends up in the mask; right: the "
        f"entropy that steers it. **{steering_sentence(masks, config)}**",
        figure,
        "neurons-ratios",
        key="neurons.file.ratios.figure",
    )
    st.dataframe(
        table,
        hide_index=True,
        key="neurons.layer_table",
        column_config={
            "share in the mask": st.column_config.NumberColumn(format="percent"),
            "ratio general": st.column_config.NumberColumn(format="%.5f"),
            "ratio specific": st.column_config.NumberColumn(format="%.5f"),
            "entropy general": st.column_config.NumberColumn(format="%.5f"),
            "entropy specific": st.column_config.NumberColumn(format="%.5f"),
            "threshold general": st.column_config.NumberColumn(format="%.4g"),
            "threshold specific": st.column_config.NumberColumn(format="%.4g"),
        },
    )
    with st.container(horizontal=True):
        downloads.table_files(lambda: table, "ratios", key="neurons.file.ratios")


def _tables(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig", pick: Pick) -> None:
    attribution = found.attribution
    scores = {layer: as_array(attribution.scores[layer]) for layer in attribution.layers}
    table = state.get().kept.get(
        "neurons.neuron_table",
        (found.origin, config, pick.layer),
        # the layer stands in the sentence below: a column of it would be sent once a neuron
        lambda: neuron_table(masks[pick.layer], pick.layer, scores[pick.layer]).drop(columns="layer"),
    )
    st.dataframe(table, hide_index=True, height=260, key="neurons.neuron_table")
    st.caption(
        f"Every neuron of layer {pick.layer}, strongest first. The files below hold all scored layers."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Masks**")
        downloads.table_files(lambda: mask_table(masks, scores), "masks", key="neurons.file.masks")
        st.markdown("**Scores**")
        downloads.table_files(attribution.frame, "scores", key="neurons.file.scores")
