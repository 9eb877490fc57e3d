"""The Edit page's text in front: what an edit that changes no number puts before what the model reads."""

from typing import TYPE_CHECKING

import streamlit as st

from dashboard import frame
from nmke.errors import NmkeError

if TYPE_CHECKING:
    from nmke.session import EditSession


def show(session: "EditSession") -> None:
    """The text in front of the last edit's prompts, and that nothing else was changed."""
    edit, prompt = session.edits[-1], session.prompt
    assert prompt is not None
    st.markdown(
        f"It changed no weight: the edit is a {prompt.kind}, and what stands in front of a text is chosen when the "
        "text is read."
    )
    told = edit.details.get("tokens_in_front", ())
    fact = edit.facts[0]
    try:
        front = prompt.front(fact.prompt)
    except NmkeError as problem:
        frame.show_error(problem)
        return
    with st.expander(f"In front of “{fact.prompt}”", expanded=True):
        if front:
            shown = f"{front}▸{fact.prompt}"
            # Many demonstrations scroll; a few lines need no empty box around them.
            if shown.count("\n") > 12:
                st.code(shown, language=None, wrap_lines=True, height=320)
            else:
                st.code(shown, language=None, wrap_lines=True)
        else:
            st.info("Nothing stands in front of this prompt: it is outside of the scope of every edit.")
    counted = f"{told[0]:,} tokens in front. " if told and front else ""
    st.caption(
        f"{counted}▸ marks where the prompt itself begins; the model goes on behind it. Every page that runs the "
        "edited model reads it like this, or says that it cannot."
    )
