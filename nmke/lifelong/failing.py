"""How one entrant of a run ends for a reason of its own, while the others go on."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nmke.edit import Edit
from nmke.errors import Cancelled, EditError, NmkeError

_LOG = logging.getLogger(__name__)


class Failed(Exception):
    """One entrant cannot go on; the text is for the user."""


@contextmanager
def failing(where: str = "", but: type[NmkeError] = Cancelled) -> Iterator[None]:
    """Turns whatever a method or a measurement breaks on, but cancels, into the end of this one entrant.

    Args:
        where: what the message begins with.
        but: errors that concern all entrants, and pass.

    Raises:
        Failed: in the place of any other error.
    """
    try:
        yield
    except (Cancelled, but):
        raise
    except Exception as problem:
        raise Failed(where + explain(problem)) from None


def explain(problem: Exception) -> str:
    """An error in words for the user; one that nobody foresaw is logged with its traceback."""
    if isinstance(problem, NmkeError):
        return str(problem)
    reason = " ".join(str(problem).split())[:300]
    told = reason.lower()
    if isinstance(problem, MemoryError | torch.OutOfMemoryError) or any(
        words in told for words in ("out of memory", "can't allocate memory", "not enough memory")
    ):
        return (
            "The memory ran out. Edit fewer layers, load the model in a smaller dtype, or write fewer facts an edit; "
            "then start the run in a new folder, or the same one on a larger machine."
        )
    _LOG.error("a lifelong run failed", exc_info=problem)
    return f"It failed unexpectedly ({type(problem).__name__}: {reason})."


def require_finite(edit: Edit) -> None:
    """Refuse an edit whose optimisation lost its numbers, also where the update itself came out finite.

    Raises:
        EditError: saying what is not finite.
    """
    edit.require_finite()
    told = edit.details.get("target_probability")
    values: Sequence[Any] = told if isinstance(told, list | tuple) else ()
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise EditError(
            "The optimisation of the target gave no number.", "Lower its learning rate or its clamp."
        )


def require_same_editor(before: Sequence[Edit], edit: Edit) -> None:
    """Refuse a trained editor that is not the one the run began with: its figures would be of two.

    Raises:
        EditError: saying so.
    """
    first = next((one.details["editor"] for one in before if "editor" in one.details), None)
    now = edit.details.get("editor")
    if first and now and first["digest"] != now["digest"]:
        raise EditError(
            "The trained editor is not the one this run began with.",
            "Put that one back, or start a new run.",
        )
