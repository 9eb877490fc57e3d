"""Typed access to what one browser session keeps in ``st.session_state``."""

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from dashboard.kept import Kept
from nmke.facts import Fact

if TYPE_CHECKING:
    from dashboard.holder import ModelKey
    from nmke.session import EditSession

FlashKind = Literal["success", "info", "warning", "error"]
_KEY = "nmke.state"


@dataclass
class AppState:
    """Everything one visitor has so far."""

    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    facts: tuple[Fact, ...] = ()
    facts_version: int = 0
    fact_index: int = 0
    model_key: "ModelKey | None" = None
    edit_session: "EditSession | None" = None
    job_ids: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    flashes: list[tuple[FlashKind, str]] = field(default_factory=list)

    def set_facts(self, facts: tuple[Fact, ...]) -> None:
        """Replace the facts; what was computed from the old ones is recognised by the version."""
        if facts != self.facts:
            self.facts = facts
            self.facts_version += 1

    @property
    def selected_fact(self) -> int:
        """The selected fact's index, always in range (0 when there are no facts)."""
        return min(max(self.fact_index, 0), max(len(self.facts) - 1, 0))

    @selected_fact.setter
    def selected_fact(self, index: int) -> None:
        self.fact_index = index

    def flash(self, kind: FlashKind, text: str) -> None:
        """Say something once, at the top of the next run that is not cut short by another."""
        self.flashes.append((kind, text))


def get() -> AppState:
    """This browser session's state."""
    if _KEY not in st.session_state:
        st.session_state[_KEY] = AppState()
    kept: AppState = st.session_state[_KEY]
    return kept
