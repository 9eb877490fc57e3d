"""What the Drift page shows of a finished view: the map, the numbers beside it, and all layers below."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard import charts, downloads, drift_work, frame, jobs, state
from dashboard.drift_work import View
from nmke.drift import figures
from nmke.drift.words import FORMULAS, WARNING
from nmke.errors import NmkeError

if TYPE_CHECKING:
    from nmke.drift.results import LayerDrift
    from nmke.loading import LoadedModel
    from nmke.session import EditSession

BY_VERSION, BY_MASK, BY_KIND = "version", "mask", "kind"
_WORDS = {BY_VERSION: "original and edited", BY_MASK: "in the mask", BY_KIND: "kind"}
#: The table beside the map: column of the numbers, its name, and how it is written.
ROWS = (
    ("relative_norm", "change, share of the norm", "{:.2%}"),
    ("untouched", "neurons untouched", "{:.1%}"),
    ("step_mean", "mean step of a neuron", "{:.2%}"),
    ("step_max", "largest step", "{:.1%}"),
    ("cosine_mean", "mean cosine", "{:.4f}"),
    ("cosine_min", "smallest cosine", "{:.4f}"),
    ("norm_change_mean", "mean change of length", "{:+.2%}"),
    ("angle_max", "largest principal angle", "{:.1f}°"),
    ("effective_rank", "effective rank of the change", "{:.1f}"),
)
NEURONS_SHOWN = 200


def show(model: "LoadedModel", session: "EditSession", view: View) -> None:
    """The map left, histograms and the table of norms right, everything else in tabs below."""
    left, right = st.columns([0.63, 0.37], gap="medium")
    with left, frame.guard("Drawing the map"):
        _map(model, session, view)
    with right, frame.guard("Drawing the changes"):
        _beside(view)
    layers, spectra, neurons = st.tabs(
        ["All changed layers", "Directions of the change", "Neurons"], key="drift.tabs"
    )
    with layers, frame.guard("Showing the layers"):
        _layers(view)
    with spectra, frame.guard("Drawing the directions"):
        _spectra(view)
    with neurons, frame.guard("Showing the neurons"):
        _neurons(view)


def changes_of(view: View) -> "dict[str, LayerDrift]":
    """The numbers of the view's layer by version."""
    return {change.label: change for change in view.numbers.at(view.request.layer)}


def palette_of(view: View) -> dict[str, str]:
    """Every version's colour, the same in all figures."""
    return figures.colours(view.drawn.labels)


# ---- the map ----------------------------------------------------------------------------------------------------


def _map(model: "LoadedModel", session: "EditSession", view: View) -> None:
    changes = changes_of(view)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = _choose_colour(view, changes)
        arrows = st.toggle(
            "Arrows",
            key="drift.arrows",
            persist_state="session",
            help="A line from each moved neuron's original place to its edited one.",
            **_opening("drift.arrows", True),
        )
        share = st.slider(
            "From original to edited",
            0.0,
            1.0,
            step=0.1,
            key="drift.share",
            persist_state="session",
            help="Moves the edited points along the straight way from where the original stands.",
            **_opening("drift.share", 1.0),
        )
    groups = _groups(model, session, view, changes, by)
    figure = state.get().kept.figure(
        "drift.map",
        # Kinds become known version by version.
        (view.request, tuple(changes), by if groups else BY_VERSION, tuple(groups or ()), arrows, share),
        lambda: figures.joint_map(
            view.drawn,
            changes,
            palette=palette_of(view),
            groups=groups,
            arrows=arrows,
            share=share,
            height=430,
        ),
    )
    st.plotly_chart(
        charts.drawn(figure), key="drift.map", config=charts.CONFIG, alt="Joint t-SNE of original and edited"
    )
    downloads.caption(
        "Each neuron's output vector, grey as loaded and coloured as edited, in one embedding; a neuron that stays "
        "on its grey point kept its neighbours, and many that leave theirs would be surprising. "
        f"**{WARNING}**",
        figure,
        f"drift-layer-{view.request.layer}",
        key="drift.file.map",
    )
    st.caption(view.drawn.sentence)


def _opening(key: str, value: Any) -> dict[str, Any]:
    """A control's first value; one that is in the session already must not be given again."""
    return {} if key in st.session_state else {"value": value}


def _choose_colour(view: View, changes: "Mapping[str, LayerDrift]") -> str:
    options = [BY_VERSION]
    if any(change.mask is not None for change in changes.values()):
        options.append(BY_MASK)
    if any(choice.has_kinds for choice in view.choices):
        options.append(BY_KIND)
    if len(options) == 1:
        return BY_VERSION
    if st.session_state.get("drift.colour") not in options:
        st.session_state["drift.colour"] = BY_VERSION
    chosen = st.segmented_control(
        "Colour",
        options,
        key="drift.colour",
        required=True,
        persist_state="session",
        format_func=_WORDS.__getitem__,
        help="Kinds: general, specific, both or none, as the edit's own scores tell; these are scored again.",
    )
    return chosen or BY_VERSION


def _groups(
    model: "LoadedModel",
    session: "EditSession",
    view: View,
    changes: "Mapping[str, LayerDrift]",
    by: str,
) -> "dict[str, NDArray[Any]] | None":
    """What colours each version's points; None for the versions' own colours."""
    if by == BY_MASK:
        masks = {label: change.mask for label, change in changes.items() if change.mask is not None}
        return {label: figures.mask_groups(mask) for label, mask in masks.items()}
    if by != BY_KIND:
        return None
    known = drift_work.kinds()
    found = {
        choice.label: known[choice.key][view.request.layer]
        for choice in view.choices
        if choice.key in known and view.request.layer in known[choice.key]
    }
    if any(choice.has_kinds and choice.key not in known for choice in view.choices):
        _offer_scoring(model, session, view)
    return found or None


def _offer_scoring(model: "LoadedModel", session: "EditSession", view: View) -> None:
    if jobs.running(drift_work.SCORING):
        frame.progress_here(drift_work.SCORING)
        return
    st.caption(
        "Edits keep their masks, not the kinds behind them; scoring their prompts again tells the kinds."
    )
    if st.button("Score the edits' prompts", key="drift.score", icon=":material/search:"):
        current = {choice.key for choice in drift_work.choices_of(session, model.weight_hash)}
        chosen = [choice for choice in view.choices if choice.key in current]
        try:
            drift_work.start_scoring(model, session, chosen, model.weight_hash)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()


# ---- the numbers ------------------------------------------------------------------------------------------------


def _beside(view: View) -> None:
    changes = list(changes_of(view).values())
    figure = state.get().kept.figure(
        "drift.histograms",
        (view.request.of_numbers, view.request.layer, tuple(change.label for change in changes)),
        lambda: figures.neuron_histograms(changes, palette=palette_of(view)),
    )
    st.plotly_chart(
        charts.drawn(figure),
        key="drift.histograms",
        config=charts.CONFIG,
        alt="Histograms of the neurons' changes",
    )
    downloads.caption(
        "How far each neuron's vector turned and how its length changed; the outer bins hold what lies beyond. A "
        "second hump would be a group that moved together.",
        figure,
        f"drift-neurons-layer-{view.request.layer}",
        key="drift.file.histograms",
    )
    st.dataframe(norm_table(changes), hide_index=True, key="drift.norms", height="content")
    st.caption(f"{changes[0].angle_sentence} The meaning of each row is under “All changed layers”.")


def norm_table(changes: "list[LayerDrift]") -> pd.DataFrame:
    """One row a measure, one column a version, written with the digits they deserve."""
    columns: dict[str, list[str]] = {"measure": [name for _, name, _ in ROWS]}
    for change in changes:
        columns[charts.shorten(change.label, 30)] = [
            form.format(change.figures[column]) for column, _, form in ROWS
        ]
    return pd.DataFrame(columns)


def _layers(view: View) -> None:
    table = view.numbers.table()
    rows = tuple(
        (str(label), int(layer), float(norm))
        for label, layer, norm in zip(table["version"], table["layer"], table["relative_norm"], strict=True)
    )
    palette = palette_of(view)
    figure = state.get().kept.figure(
        "drift.layers",
        rows,
        lambda: figures.layer_norms(rows, palette=figures.colours([*palette, *table["version"]])),
    )
    st.plotly_chart(
        charts.drawn(figure), key="drift.layers", config=charts.CONFIG, alt="Size of the change per layer"
    )
    downloads.caption(
        "The Frobenius norm of each layer's change against the matrix; a change above a tenth would be surprising "
        "after few edits.",
        figure,
        "drift-layers",
        key="drift.file.layers",
    )
    st.dataframe(
        table,
        hide_index=True,
        key="drift.table",
        column_config={
            **{
                name: st.column_config.NumberColumn(format="%.4f", help=text)
                for name, text in FORMULAS.items()
            },
            **{
                name: st.column_config.NumberColumn(format="percent", help=FORMULAS[name])
                for name in ("relative_norm", "untouched", "untouched_as_stored", "step_mean", "step_max")
            },
        },
    )
    with st.container(horizontal=True):
        downloads.table_files(lambda: table, "drift-layers", key="drift.file.table")
        st.download_button(
            "Report (HTML)",
            lambda: _report(view),
            f"drift-layer-{view.request.layer}.html",
            "text/html",
            key="drift.file.report",
            on_click="ignore",
            type="tertiary",
        )
    with st.expander("What the columns mean"):
        st.markdown("\n".join(f"- `{name}`: {_plain(text)}" for name, text in FORMULAS.items()))


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("^", "\\^")


def _report(view: View) -> bytes:
    from nmke.drift.report import page_html

    changes, palette = changes_of(view), palette_of(view)
    told = list(changes.values())
    pictures = [
        figures.joint_map(view.drawn, changes, palette=palette, height=620),
        figures.neuron_histograms(told, palette=palette, height=520),
        figures.change_spectra(told, palette=palette, height=380),
    ]
    title = f"Weight drift, layer {view.request.layer}"
    return page_html(title, view.drawn.sentence, pictures, view.numbers.table()).encode()


def _spectra(view: View) -> None:
    changes = list(changes_of(view).values())
    figure = state.get().kept.figure(
        "drift.spectra",
        (view.request.of_numbers, view.request.layer, tuple(change.label for change in changes)),
        lambda: figures.change_spectra(changes, palette=palette_of(view)),
    )
    st.plotly_chart(
        charts.drawn(figure), key="drift.spectra", config=charts.CONFIG, alt="Singular values and angles"
    )
    ranks = ", ".join(f"{change.figures['effective_rank']:.1f} ({change.label})" for change in changes)
    downloads.caption(
        f"Left: the change's singular values, at most the first 100; its effective rank is {ranks}. A closed-form "
        "edit writes one direction a fact, so more would be surprising. Right: the angles between the leading "
        f"{view.numbers.directions} directions before and after. **{changes[0].angle_sentence}**",
        figure,
        f"drift-directions-layer-{view.request.layer}",
        key="drift.file.spectra",
    )


def _neurons(view: View) -> None:
    layer = view.request.layer

    def make() -> pd.DataFrame:
        table = view.numbers.neurons()
        here = table[table["layer"] == layer].drop(columns="layer")
        return here.sort_values("step", ascending=False, kind="stable", ignore_index=True).head(NEURONS_SHOWN)

    table = state.get().kept.get("drift.neurons", (view.request, tuple(view.drawn.labels)), make)
    st.dataframe(
        table,
        hide_index=True,
        height=260,
        key="drift.neurons",
        column_config={
            "cosine": st.column_config.NumberColumn(format="%.5f"),
            "norm_change": st.column_config.NumberColumn("change of length", format="percent"),
            "step": st.column_config.NumberColumn("step, share of the length", format="percent"),
            "mask_weight": st.column_config.NumberColumn("weight in the mask"),
        },
    )
    st.caption(
        f"The {min(NEURONS_SHOWN, len(table))} neurons of layer {layer} that moved farthest. The files hold every "
        "neuron of every changed layer."
    )
    with st.container(horizontal=True):
        downloads.table_files(view.numbers.neurons, "drift-neurons", key="drift.file.neurons")
