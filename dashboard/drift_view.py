"""The Drift page: which versions, which layer, the map with its settings; what came of it is in drift_panels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import drift_panels, drift_work, engine, frame, jobs
from dashboard.drift_work import Choice, Request
from dashboard.neurons_data import say_estimate
from dashboard.widgets import FormLook, config_form, reset_form
from nmke.drift.settings import DriftConfig
from nmke.errors import NmkeError

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.session import EditSession

VERSIONS, LAYER, FORM = "drift.versions", "drift.layer", "drift.form"
PAPER_LAYER = 8
MAX_UPLOAD_MB = 200
LOOK = FormLook(
    names={
        None: "all",
        "pca": "principal components",
        "random": "random positions",
        "once": "once where equal",
        "each": "each version's copy",
    },
    advanced=("start", "copies", "directions"),
)


def show(model: "LoadedModel") -> None:
    """The whole page, once a model is there."""
    session = engine.current_session()
    assert session is not None
    fresh = drift_work.take_opened()
    ended = [drift_work.take(), drift_work.take_scored(), fresh is not None]
    choices = drift_work.choices_of(session, model.weight_hash)
    if fresh:
        # Controls can only be set before they are drawn.
        st.session_state[VERSIONS] = [*st.session_state.get(VERSIONS, ()), *fresh]
    if any(ended):
        st.rerun()  # what they said stands at the top of the next run
    if not choices:
        frame.missing("There are no edits yet, so no weight has moved.", "edit", "Write an edit")
        with st.expander("Open saved edits", icon=":material/folder_open:"), frame.guard("Opening the edits"):
            _open_form(model)
        return
    request, chosen = _controls(model, session, choices)
    if request is not None:
        with frame.guard("Showing the drift"):
            _result(model, session, request, chosen)


# ---- what is asked for ------------------------------------------------------------------------------------------


def _controls(
    model: "LoadedModel", session: "EditSession", choices: Sequence[Choice]
) -> tuple[Request | None, list[Choice]]:
    """The row of controls: the request they make, or None after saying what is wrong."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = _choose_versions(choices)
        layers = sorted({layer for choice in chosen for layer in choice.layers})
        layer = _choose_layer(layers) if layers else None
        with st.popover("Settings", icon=":material/tune:"):
            config = config_form(DriftConfig, DriftConfig(), FORM, LOOK)
            st.button(
                "Default values",
                on_click=reset_form,
                args=(DriftConfig(), FORM, LOOK),
                key="drift.reset",
                type="tertiary",
                icon=":material/restart_alt:",
            )
        with (
            st.popover("Open edits", icon=":material/folder_open:", help="Saved edits, or a lifelong run"),
            frame.guard("Opening the edits"),
        ):
            _open_form(model)
        problem = _problem(model, chosen, layers, config)
        request = None
        if not problem and config is not None and layer is not None:
            changed = [choice for choice in chosen if layer in choice.layers]
            request = Request(model.weight_hash, tuple(choice.key for choice in changed), layer, config)
            chosen = changed
        _draw_button(model, session, request, chosen)
    if problem:
        (st.error if config is not None and layers else st.info)(problem)
    elif request is not None:
        _say_left_out(choices, chosen, layer)
    return request, chosen


def _choose_versions(choices: Sequence[Choice]) -> list[Choice]:
    known = {choice.id: choice for choice in choices}
    if VERSIONS in st.session_state:  # an undone edit's version is gone
        st.session_state[VERSIONS] = [each for each in st.session_state[VERSIONS] if each in known]
    fresh: dict[str, Any] = {} if VERSIONS in st.session_state else {"default": [choices[0].id]}
    ids = st.multiselect(
        "Versions",
        list(known),
        format_func=lambda each: known[each].label if each in known else str(each),
        key=VERSIONS,
        persist_state="session",
        help="Compared with the original. All share one embedding and the same axes.",
        width="stretch",
        **fresh,
    )
    return [known[each] for each in ids]


def _choose_layer(layers: Sequence[int]) -> int:
    if st.session_state.get(LAYER) not in layers:
        st.session_state[LAYER] = PAPER_LAYER if PAPER_LAYER in layers else layers[0]
    layer: int = st.selectbox(
        "Layer",
        layers,
        key=LAYER,
        persist_state="session",
        width=90,
        help="Layers that some chosen version changed; the paper's figure shows layer 8.",
    )
    return layer


def _problem(
    model: "LoadedModel", chosen: Sequence[Choice], layers: Sequence[int], config: DriftConfig | None
) -> str:
    """Why nothing can be drawn; empty when something can."""
    if not chosen:
        return "Choose at least one version."
    if not layers:
        places = ", ".join(map(str, sorted({layer for choice in chosen for layer in choice.module_layers})))
        return (
            f"These edits changed no weights: they put modules beside layers {places}, whose own weights are as they "
            "were. Choose edits of a method that writes weights."
        )
    if config is None:
        return "The settings cannot be used as they are; open them to see why."
    try:
        config.require_fit(model.d_mlp)
    except NmkeError as error:
        return str(error)
    return ""


def _say_left_out(choices: Sequence[Choice], chosen: Sequence[Choice], layer: int | None) -> None:
    picked = {each for each in st.session_state.get(VERSIONS, ())}
    left = [choice for choice in choices if choice.id in picked and choice not in chosen]
    for choice in left:
        reason = (
            f"It put modules beside layers {', '.join(map(str, choice.module_layers))} instead."
            if choice.module_layers
            else f"It changed layers {', '.join(map(str, choice.layers))}."
        )
        st.info(f"“{choice.label}” did not change the weights of layer {layer}. {reason}")
    for choice in chosen:
        if choice.module_layers:
            places = ", ".join(map(str, choice.module_layers))
            st.caption(
                f"“{choice.label}” also put modules beside layers {places}; weights do not show those."
            )


def _draw_button(
    model: "LoadedModel", session: "EditSession", request: Request | None, chosen: Sequence[Choice]
) -> None:
    busy = jobs.running(drift_work.PURPOSE)
    if st.button(
        "Draw the map",
        type="primary",
        key="drift.draw",
        disabled=request is None or busy or request in drift_work.views(),
        help="Measures every changed layer and embeds this one; a map drawn before comes back at once.",
    ):
        assert request is not None
        try:
            drift_work.start(model, session, request, chosen)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()


def _open_form(model: "LoadedModel") -> None:
    busy = jobs.running(drift_work.OPENING)
    name = st.text_input(
        "Folder",
        key="drift.folder",
        placeholder="/path/to/edits",
        help="A folder that `nmke edit` or the Edit page saved, or the folder of a lifelong run, whose checkpoints "
        "are then read.",
    ).strip()
    if st.button("Open the folder", key="drift.open", disabled=busy or not name):
        folder = Path(name).expanduser()
        _start_opening(model, folder, folder.name)
    data = st.file_uploader(
        "Or saved edits (zip)", type="zip", key="drift.zip", max_upload_size=MAX_UPLOAD_MB
    )
    if data is not None and st.button("Open the file", key="drift.open_zip", disabled=busy):
        _start_opening(model, data.getvalue(), data.name)


def _start_opening(model: "LoadedModel", source: Path | bytes, name: str) -> None:
    try:
        drift_work.start_opening(model, source, name)
    except NmkeError as problem:
        frame.show_error(problem)
    else:
        st.rerun()


# ---- what is shown ----------------------------------------------------------------------------------------------


def _result(model: "LoadedModel", session: "EditSession", request: Request, chosen: Sequence[Choice]) -> None:
    view = drift_work.views().get(request)
    if view is not None:
        drift_work.keep(view)
    else:
        if jobs.running(drift_work.PURPOSE):
            frame.progress_here(drift_work.PURPOSE)
        else:
            _invite(model, request)
        view = drift_work.newest(model.weight_hash)
        if view is None:
            return
        st.warning(
            f"Below is the view drawn before: layer {view.request.layer}, "
            f"{', '.join(choice.label for choice in view.choices)}."
        )
    drift_panels.show(model, session, view)


def _invite(model: "LoadedModel", request: Request) -> None:
    points = request.config.neurons_of(model.d_mlp) * (len(request.versions) + 1)
    seconds = drift_work.guess_seconds(points, request.config.iterations)
    sample = " A sample of neurons (under Settings) is faster." if seconds > 120 else ""
    st.info(
        f"Press “Draw the map”: up to {points:,} points are embedded, {say_estimate(seconds)} on an idle machine, and "
        f"every changed layer is measured.{sample} It can be cancelled, and is kept."
    )
