"""The Edit page's history: undo, redo, the exactness check, saving and loading."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import bundles, charts, engine, frame, jobs, state

if TYPE_CHECKING:
    from nmke.edit import Edit
    from nmke.loading import LoadedModel
    from nmke.session import EditSession

MAX_UPLOAD_MB = 200


def show(model: "LoadedModel", session: "EditSession") -> None:
    """Everything about versions."""
    _buttons(session)
    table = history_table(session)
    if table.empty:
        st.info("No edit yet. Every edit you apply gets a line here and can be undone, the last one first.")
    else:
        st.dataframe(
            table,
            hide_index=True,
            key="edit.history",
            column_config={"seconds": st.column_config.NumberColumn(format="%.1f")},
        )
        st.caption("Newest last. Undo takes back the last edit in force; redo puts it in again.")
    _files(model, session)


def history_table(session: "EditSession") -> pd.DataFrame:
    """One row an edit: those in force, then those that redo would apply."""
    rows = [_row(number, edit, "in force") for number, edit in enumerate(session.edits, start=1)]
    rows += [
        _row(session.version + step, edit, "undone") for step, edit in enumerate(session.redoable, start=1)
    ]
    return pd.DataFrame(rows)


def _row(number: int, edit: "Edit", status: str) -> dict[str, object]:
    shown = ", ".join(f"{fact.subject} → {fact.target_new}" for fact in edit.facts[:3])
    more = f" and {len(edit.facts) - 3} more" if len(edit.facts) > 3 else ""
    return {
        "version": number,
        "status": status,
        "facts": shown + more,
        "method": title_of(edit.method),
        "layers": "none (text in front)"
        if edit.prompt is not None
        else ", ".join(map(str, sorted({*edit.layers, *(module.layer for module in edit.modules)}))),
        "neurons": sum(patch.neurons for patch in edit.patches),
        "seconds": edit.seconds.get("total"),
    }


def title_of(method: str) -> str:
    """A method's name in the literature; its registry name where this program does not know it."""
    from nmke.methods import methods

    known = methods()
    return known[method].title if method in known else method


def _buttons(session: "EditSession") -> None:
    # A running edit was planned on this version: changing it now would only waste the work.
    busy = jobs.running("edit")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Undo the last edit",
            on_click=undo,
            key="edit.undo",
            icon=":material/undo:",
            disabled=busy or session.version == 0,
        )
        st.button(
            "Redo",
            on_click=redo,
            key="edit.redo",
            icon=":material/redo:",
            disabled=busy or not session.redoable,
        )
        st.button(
            "Check that undoing is exact",
            on_click=verify,
            key="edit.verify",
            icon=":material/rule:",
            disabled=busy or session.version == 0,
            help="Undoes everything, compares every down projection with the loaded one bit by bit, redoes everything.",
        )
        st.caption(f"Version {session.version} of {session.latest}.")


def undo() -> None:
    """Undo and say that it was exact; the session refuses an undo that is not."""
    if engine.undo():
        session = engine.current_session()
        version = 0 if session is None else session.version
        what = "the loaded model" if version == 0 else f"version {version}"
        state.get().flash(
            "success", f"Undone, bit-exact: the weights were compared and are those of {what} in every bit."
        )


def redo() -> None:
    """Redo and say so."""
    if engine.redo():
        session = engine.current_session()
        state.get().flash(
            "success", f"Applied again: edit version {0 if session is None else session.version}."
        )


def verify() -> None:
    """Undo everything, compare, redo everything."""
    session = engine.current_session()
    if session is None:
        return
    exact = engine.quick(session.verify_undo, wait=2.0)
    if isinstance(exact, engine.Busy):
        state.get().flash("info", exact.sentence)
    elif exact:
        state.get().flash(
            "success", "Undoing everything gives the loaded weights back, the same in every bit."
        )
    else:
        state.get().flash(
            "error", "Undoing everything does not give the loaded weights back. Load the model anew."
        )


def _files(model: "LoadedModel", session: "EditSession") -> None:
    save, load = st.columns(2)
    with save:
        st.markdown("**Save**")
        if session.version == 0:
            st.caption("There is nothing to save before the first edit.")
        else:
            st.download_button(
                "Save the edits (zip)",
                lambda: zip_session(session),
                "nmke-edits.zip",
                "application/zip",
                key="edit.save",
                on_click="ignore",
                icon=":material/download:",
            )
            st.caption(
                "Factors, facts, settings, seeds, versions and the model's hash, as safetensors and JSON."
            )
    with load:
        st.markdown("**Load**")
        data = st.file_uploader(
            "Saved edits (zip)",
            type="zip",
            key="edit.upload",
            max_upload_size=MAX_UPLOAD_MB,
            help="Replaces the edits in force. A file saved for another model is refused.",
        )
        busy = jobs.running("edit")
        if data is not None and st.button("Load these edits", key="edit.load", disabled=busy):
            with frame.guard("Loading the edits"):
                load_bundle(model, data.getvalue())
                st.rerun()


def load_bundle(model: "LoadedModel", data: bytes) -> None:
    """Replace the session by a saved one.

    Raises:
        NmkeError: the file cannot be used, with the reason.
    """
    from nmke.bundle import load_session

    session, exact = bundles.with_unzipped(data, lambda folder: load_session(model, folder))
    engine.adopt_session(session)
    facts = sum(len(edit.facts) for edit in session.edits)
    what = f"Loaded: {session.version} edits with {facts} facts. "
    if exact:
        state.get().flash("success", f"{what}Their weights are the saved ones, the same in every bit.")
    else:
        state.get().flash("warning", f"{what}This device rounds their weights differently in the last bits.")


def zip_session(session: "EditSession") -> bytes:
    """The edits in force as a zip file."""
    from nmke.bundle import save_session

    return bundles.zip_saved(lambda folder: save_session(session, folder))


def say_edit(edit: "Edit") -> str:
    """An edit on one line."""
    first = edit.facts[0]
    more = f" and {len(edit.facts) - 1} more" if len(edit.facts) > 1 else ""
    return f"{charts.shorten(first.prompt, 50)} → {first.target_new}{more}"
