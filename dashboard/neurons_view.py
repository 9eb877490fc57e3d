"""The Neurons page: settings, the overview, prompts by neurons, ratios, files."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from dashboard import charts, downloads, engine, frame, jobs, neuron_inspector, state
from dashboard.binning import KINDS, BinnedLayer, strongest_first
from dashboard.neurons_data import (
    SCORE_UNITS,
    Found,
    Origin,
    as_array,
    bin_masks,
    choose_rows,
    guess_seconds,
    layer_table,
    mask_table,
    neuron_table,
    say_estimate,
    stale_reasons,
    steering_sentence,
)
from dashboard.selection import Pick, clamp, layers_text, picked
from dashboard.widgets import FormLook, config_form, reset_form
from nmke.errors import NmkeError
from nmke.facts import Fact
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.masks import LayerMask, MaskConfig

PURPOSE = "attribution"
FIRST_FACTS = 8
COLUMNS = 60
ROWS = 48

MASK_LOOK = FormLook(
    stops={"alpha": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)},
    sliders={"general_gamma": (0.1, 6.0, 0.1), "specific_gamma": (0.1, 6.0, 0.1)},
    ranges={
        ("general_low", "general_high"): ("General: lowest and highest share", 0.0, 1.0, 0.01),
        ("specific_low", "specific_high"): ("Specific: lowest and highest share", 0.0, 1.0, 0.01),
    },
    names={
        "all": "all of them",
        "score": "break by mean score",
        "union": "union of both kinds",
        "overlap": "only neurons of both kinds",
        "non_overlap": "only neurons of one kind",
        "general": "general neurons",
        "specific": "specific neurons",
        "soft": "soft: scaled by score",
    },
)
SCORE_LOOK = FormLook(
    names={
        "lps": "LPS: log-probability rise",
        "psa": "PSA: probability rise",
        "mpc": "MPC: activation (fastest)",
        "top1": "what the model says (top 1)",
        "new": "the new answer",
        "true": "the true answer",
        "last": "last real token",
        "padded": "padded position (as published)",
    },
    advanced=("prob_floor", "read_position", "memory_mib"),
)


def show(model: "LoadedModel", facts: tuple[Fact, ...]) -> None:
    """The whole page, once model and facts are there."""
    _take_result()
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=224):
            asked = _score_settings(model, facts)
            mask_config = _mask_settings()
        found: Found | None = state.get().settings.get("neurons.found")
        if found is None or found.origin.weight_hash != model.weight_hash:
            with st.container(width="stretch"):
                _invite(asked)
            return
        pick, masks, bins = None, None, None
        with st.container(width="stretch"):
            _say_stale(found, asked)
            if mask_config is not None:
                masks = _masks(found, mask_config)
                bins = bin_masks(
                    masks, ranked=st.session_state.get("neurons.order", "strength") == "strength"
                )
                pick = _current_pick(found, masks)
                with frame.guard("Drawing the overview"):
                    _overview(found, masks, bins, pick)
                _tabs(found, masks, mask_config, pick)
        if pick is not None and masks is not None:
            with st.container(width=290), frame.guard("Inspecting the neuron"):
                neuron_inspector.show(model, found, masks, pick)


# ---- settings ---------------------------------------------------------------------------------------------------


def _score_settings(model: "LoadedModel", facts: tuple[Fact, ...]) -> Origin | None:
    """Controls of the attribution; what they ask for, or None after saying what is wrong."""
    from nmke.attribution import AttributionConfig

    seen = state.get().settings.get("neurons.found") is not None
    with st.expander("What is scored", expanded=not seen, icon=":material/search:"):
        chosen = _choose_facts(facts)
        config = config_form(AttributionConfig, AttributionConfig(), "neurons.score", SCORE_LOOK)
        layers = _choose_layers(model)
        contexts = st.checkbox(
            "Five contexts before each prompt",
            key="neurons.contexts",
            persist_state="session",
            help="The edit scores each prompt also behind five short generated texts; without them it is six "
            "times faster.",
        )
    asked = None
    if config is not None and layers is not None and chosen:
        key = engine.edit_state_key()
        session = engine.current_session()
        version = 0 if session is None else session.version
        asked = Origin(model.weight_hash, key, version, chosen, layers, contexts, config)
    _find_button(model, asked)
    return asked


def _choose_facts(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    version = state.get().facts_version
    key = f"neurons.facts.{version}"
    chosen = st.multiselect(
        "Facts",
        range(len(facts)),
        default=None if key in st.session_state else list(range(min(FIRST_FACTS, len(facts)))),
        format_func=lambda index: charts.shorten(facts[index].prompt, 40),
        key=key,
        persist_state="session",
        help="Each fact's prompt becomes one row of scores.",
    )
    if not chosen:
        st.warning("Choose at least one fact.")
    return tuple(facts[index] for index in chosen)


def _choose_layers(model: "LoadedModel") -> tuple[int, ...] | None:
    from dashboard.selection import parse_layers

    edited = layers_text(edited_layers(model))
    key = f"neurons.layers.{model.weight_hash[:12]}"
    st.session_state.setdefault(key, edited)
    text = st.text_input(
        "Layers",
        key=key,
        persist_state="session",
        help=f"A range such as 4-8, a list such as 4, 6, or: all. The layers this model is edited in are {edited}.",
    )
    try:
        return parse_layers(text, model.n_layers)
    except ValueError as problem:
        st.error(str(problem))
        return None


def edited_layers(model: "LoadedModel") -> tuple[int, ...]:
    """The layers the model's preset edits: where scores matter first."""
    from nmke.presets import preset_for

    preset: Any = preset_for(model, "nmke").config
    return tuple(preset.layers)


def _find_button(model: "LoadedModel", asked: Origin | None) -> None:
    busy = jobs.running(PURPOSE)
    if st.button(
        "Find the neurons",
        type="primary",
        key="neurons.find",
        disabled=asked is None or busy,
        width="stretch",
    ):
        assert asked is not None
        try:
            start(asked)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()
    if asked is not None and not busy:
        seconds, measured = _estimate(model, asked)
        prompts = len(asked.facts) * (6 if asked.contexts else 1)
        st.caption(
            f"{prompts} prompts × {len(asked.layers)} layers: {say_estimate(seconds)}"
            f"{' (measured here)' if measured else ''}."
        )


def _estimate(model: "LoadedModel", asked: Origin) -> tuple[float, bool]:
    """Seconds, and whether they come from an attribution measured in this session."""
    prompts = len(asked.facts) * (6 if asked.contexts else 1)
    guess = guess_seconds(
        asked.config.kind, prompts, len(asked.layers), model.d_model, model.d_mlp, model.d_vocab, model.device
    )
    found: Found | None = state.get().settings.get("neurons.found")
    if found is None or found.origin.weight_hash != model.weight_hash or asked.config.kind == "mpc":
        return guess, False
    then = found.origin
    if then.config.kind == "mpc":
        return guess, False
    before = guess_seconds(
        then.config.kind,
        len(found.attribution.prompts),
        len(then.layers),
        model.d_model,
        model.d_mlp,
        model.d_vocab,
        model.device,
    )
    return guess * found.seconds / before, True


def start(asked: Origin) -> None:
    """Attribute on the model as this browser session has edited it, as a job."""
    model, session = engine.current_model(), engine.current_session()
    assert model is not None and session is not None

    def work(progress: Progress) -> Found:
        from nmke.attribution import attribute, prompts_of
        from nmke.contexts import context_templates

        started = time.perf_counter()
        progress.update("reading the prompts", 0, None)
        templates: Sequence[str] = ("{}",)
        if asked.contexts:
            templates = context_templates(model)
        prompts = prompts_of(asked.facts, templates, asked.config.target)
        with session.active():
            attribution = attribute(model, prompts, asked.layers, asked.config, progress)
        return Found(asked, attribution, time.perf_counter() - started)

    jobs.start(PURPOSE, f"Finding the neurons of {len(asked.facts)} facts", work)


def _take_result() -> None:
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return
    if outcome.state == jobs.JobState.DONE:
        state.get().settings["neurons.found"] = outcome.value
    else:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
        st.rerun()


def _mask_settings() -> "MaskConfig | None":
    from nmke.masks import MaskConfig

    with st.container(gap="small"):
        config = config_form(MaskConfig, MaskConfig(), "neurons.mask", MASK_LOOK)
        st.button(
            "Authors' values",
            on_click=reset_form,
            args=(MaskConfig(), "neurons.mask", MASK_LOOK),
            key="neurons.reset",
            type="tertiary",
            icon=":material/restart_alt:",
        )
    return config


def _invite(asked: Origin | None) -> None:
    if jobs.running(PURPOSE):
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
    """The masks of these scores and sliders; only the last are kept, they are quick to make."""
    from nmke.masks import build_masks

    settings = state.get().settings
    kept = settings.get("neurons.masks")
    if kept is not None and kept[0] is found and kept[1] == config:
        made: dict[int, LayerMask] = kept[2]
        return made
    masks = build_masks(found.attribution, config)
    settings["neurons.mask_config"] = config  # the Edit page offers to take it over
    settings["neurons.masks"] = (found, config, masks)
    return masks


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


def _clickable(figure: Any, key: str, alt: str) -> None:
    st.plotly_chart(
        figure,
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
    st.html(f"<div style='display:flex;flex-wrap:wrap;gap:0.2em 1.2em;font-size:0.85rem'>{chips}</div>")


def _overview(found: Found, masks: "dict[int, LayerMask]", bins: dict[int, BinnedLayer], pick: Pick) -> None:
    layers = list(masks)
    ranked = st.session_state.get("neurons.order", "strength") == "strength"
    width = len(masks[layers[0]].kinds)
    row, cell = layers.index(pick.layer), bins[pick.layer].bin_of(pick.neuron)
    figure = charts.overview(
        layers,
        np.stack([bins[layer].counts for layer in layers]),
        np.stack([bins[layer].strongest for layer in layers]),
        ranked=ranked,
        neurons=width,
        chosen=(row, cell),
    )
    _legend(masks)
    _clickable(figure, "neurons.overview", "Layers by neurons, coloured by kind")
    counts = bins[pick.layer].counts[cell]
    exact = ", ".join(f"{count} {kind}" for kind, count in zip(KINDS, counts, strict=True) if count)
    st.caption(
        f"Each cell shows the commonest kind of about {round(width / len(bins[pick.layer].members))} neurons, the bars "
        f"each layer's shares; a layer unlike its neighbours would be surprising. "
        f"**Framed: layer {pick.layer}, cell {cell}: {exact}.**"
    )
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
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
        _figure_menu(figure, "overview")


def _figure_menu(figure: Any, name: str) -> None:
    with st.popover("Save the figure", type="tertiary", icon=":material/download:"):
        downloads.figure_files(figure, f"neurons-{name}", key=f"neurons.file.{name}")


def _tabs(found: Found, masks: "dict[int, LayerMask]", config: "MaskConfig", pick: Pick) -> None:
    prompts, ratios, tables = st.tabs(
        [f"Prompts × neurons, layer {pick.layer}", "Counts and ratios", "Tables and files"],
        key="neurons.tabs",
    )
    with prompts, frame.guard("Drawing the prompts"):
        _prompts(found, masks, pick)
    with ratios, frame.guard("Drawing the ratios"):
        _ratios(masks, config)
    with tables, frame.guard("Making the tables"):
        _tables(found, masks, pick)


def _prompts(found: Found, masks: "dict[int, LayerMask]", pick: Pick) -> None:
    attribution = found.attribution
    scores = as_array(attribution.scores[pick.layer])
    labels = [prompt.label or prompt.text for prompt in attribution.prompts]
    rows, left_out = choose_rows(labels, ROWS)
    columns = strongest_first(scores[rows], COLUMNS)
    unit = SCORE_UNITS[attribution.config.kind]
    figure = charts.prompt_heatmap(
        scores[np.ix_(np.array(rows), columns)],
        columns.tolist(),
        [labels[row] for row in rows],
        as_array(masks[pick.layer].kinds)[columns],
        layer=pick.layer,
        unit=unit,
        chosen=pick.neuron,
    )
    _clickable(figure, "neurons.prompts", "Prompts by neurons: scores of the strongest neurons")
    st.caption(
        f"The {len(columns)} strongest of {scores.shape[1]} neurons, red above zero, blue below: a column of one "
        f"colour works for every prompt, a lone cell for one fact; the strip on top gives the kinds.{left_out}"
    )
    targets = ", ".join(
        f"{charts.shorten(label, 30)} → {charts.visible(token)}"
        for label, token in list(zip(labels, attribution.target_tokens, strict=True))[:4]
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"Tokens followed: {targets}{' …' if len(labels) > 4 else ''}")
        _figure_menu(figure, "prompts")


def _ratios(masks: "dict[int, LayerMask]", config: "MaskConfig") -> None:
    table = layer_table(masks)
    figure = charts.ratios(
        table["layer"].tolist(),
        {kind: table[f"ratio {kind}"].tolist() for kind in ("general", "specific")},
        {kind: table[f"entropy {kind}"].tolist() for kind in ("general", "specific")},
        table["share in the mask"].tolist(),
        {
            kind: (getattr(config, f"{kind}_low"), getattr(config, f"{kind}_high"))
            for kind in ("general", "specific")
        },
    )
    st.plotly_chart(figure, key="neurons.ratios", config=charts.CONFIG, alt="Ratios and entropies per layer")
    st.caption(
        "Left: the share asked for per kind (grey band: lowest to highest) and what ends up in the mask; right: the "
        f"entropy that steers it. **{steering_sentence(masks, config)}**"
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
        _figure_menu(figure, "ratios")
        downloads.table_files(lambda: table, "ratios", key="neurons.file.ratios")


def _tables(found: Found, masks: "dict[int, LayerMask]", pick: Pick) -> None:
    attribution = found.attribution
    scores = {layer: as_array(attribution.scores[layer]) for layer in attribution.layers}
    st.dataframe(
        neuron_table(masks[pick.layer], pick.layer, scores[pick.layer]),
        hide_index=True,
        height=260,
        key="neurons.neuron_table",
    )
    st.caption(
        f"Every neuron of layer {pick.layer}, strongest first. The files below hold all scored layers."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Masks**")
        downloads.table_files(lambda: mask_table(masks, scores), "masks", key="neurons.file.masks")
        st.markdown("**Scores**")
        downloads.table_files(attribution.frame, "scores", key="neurons.file.scores")
