"""The controls that say which questions are asked, of every page that asks some."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from dashboard import frame, roles_work, state
from nmke.errors import NmkeError
from nmke.questions import DEFAULT_SUBJECTS, known_subjects

UPLOAD_MB = 50
#: Questions of a subject at most.
MOST = 2000
_SOURCES: Mapping[str, str] = {"mmlu": "MMLU", "builtin": "built-in questions", "file": "a file of mine"}


def choose_source(page: str, key: str) -> str | None:
    """Where the questions come from: mmlu, builtin, or the path of a file; None until there is one.

    Args:
        page: what the page's keys begin with.
        key: of the control.
    """
    picked = st.selectbox(
        "Questions",
        list(_SOURCES),
        format_func=_SOURCES.__getitem__,
        key=key,
        persist_state="session",
        help="MMLU is fetched once from the package index; a file is JSONL or CSV with subject, question, choices and "
        "answer.",
    )
    if picked == "file":
        _upload(page, f"{key}.file")
    return path_of(page, picked)


def path_of(page: str, source: str) -> str | None:
    """The source itself, and of a file the path of what was uploaded on this page."""
    return state.get().settings.get(f"{page}.upload") if source == "file" else source


def _upload(page: str, key: str) -> None:
    data = st.file_uploader(
        "File of questions", type=["jsonl", "json", "csv"], key=key, max_upload_size=UPLOAD_MB
    )
    if data is not None:
        with frame.guard("Keeping the upload"):
            state.get().settings[f"{page}.upload"] = roles_work.keep_upload(data.name, data.getvalue())
    if path_of(page, "file") is None:
        st.caption("One question a line: subject, question, choices, answer (a letter, or a number from 0).")


def choose_subjects(
    page: str, source: str, name_of: Callable[[str], str], explanation: str
) -> tuple[str, ...] | None:
    """The subjects chosen, perhaps none; None after saying why the questions cannot be read."""
    try:
        known = known_subjects(source)
    except NmkeError as problem:
        frame.show_error(problem, "Reading the questions")
        return None
    key = subjects_key(page, source)
    start = [subject for subject in DEFAULT_SUBJECTS if subject in known] or list(known[:4])
    picked: list[str] = st.multiselect(
        "Subjects",
        known,
        default=None if key in st.session_state else start,
        format_func=name_of,
        key=key,
        persist_state="session",
        help=explanation,
    )
    return tuple(picked)


def subjects_key(page: str, source: str) -> str:
    """Of the control: each source has subjects of its own."""
    return f"{page}.subjects.{source}"


def choose_number(
    place: Any, label: str, key: str, opening: int, ends: tuple[int, int], step: int, explanation: str
) -> int:
    """A whole number beside the questions, such as how many of each subject, in this place of the page."""
    fresh: dict[str, Any] = {} if key in st.session_state else {"value": opening}
    return int(
        place.number_input(
            label, *ends, step=step, key=key, persist_state="session", help=explanation, **fresh
        )
    )
