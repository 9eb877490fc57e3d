"""What the lesson computes in the background, and what it keeps.

A part is made once for a model and kept; a step needs some parts, and those before them that they are made of. The
lesson always speaks of the model as loaded: edits of the session are left out.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dashboard import jobs, lesson_parts, state
from dashboard.lesson_parts import PARTS
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.model import EditableModel
    from nmke.session import EditSession

PURPOSE = "lesson"
#: The parts each step shows.
NEEDED: Mapping[int, tuple[str, ...]] = {
    1: ("glimpse",),
    2: ("today",),
    3: ("roles",),
    4: ("today", "roles", "off"),
    5: ("today", "roles", "off", "controls"),
    6: ("today", "roles", "off", "doses"),
}
#: Roughly how many tokens go through the model for each part, for the guess of the time.
_TOKENS: Mapping[str, int] = {
    "glimpse": 3500,
    "today": 11000,
    "roles": 5500,
    "off": 4500,
    "controls": 12500,
    "doses": 27000,
    "again": 1500,
}


def key_of(model: "EditableModel") -> Hashable:
    """What every part depends on."""
    return (model.weight_hash, model.device, model.dtype)


def parts_of(model: "EditableModel") -> dict[str, Any]:
    """The parts that were made of this model already."""
    kept, found = state.get().kept, {}
    for part in (*PARTS, "again"):
        try:
            found[part] = kept.get(f"lesson.part.{part}", key_of(model), _missing)
        except LookupError:
            continue
    return found


def start(model: "EditableModel", session: "EditSession", parts: Sequence[str], name: str) -> None:
    """Make what is missing of these parts, as this browser session's job.

    Raises:
        JobBusy: the lesson is computing already.
    """
    known, made = parts_of(model), dict[str, Any]()

    def work(progress: Progress) -> None:
        from nmke.questions import load_questions

        questions = load_questions("builtin")
        for part in parts:
            if part not in known or part == "again":
                with session.original():
                    made[part] = lesson_parts.make(part, model, questions, {**known, **made}, progress)

    jobs.start(PURPOSE, name, work)
    # Looked into only when the job has ended, in whichever way: finished parts are good also after a cancel.
    state.get().settings["lesson.begun"] = (key_of(model), made)


def take() -> bool:
    """Keep what a job that ended has made, and leave a sentence for the next run if it did not end well.

    Returns:
        Whether a job has ended.
    """
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return False
    mine = state.get()
    key, made = mine.settings.pop("lesson.begun", (None, {}))
    for part in made:
        mine.kept.get(f"lesson.part.{part}", key, partial(made.get, part))
    if outcome.state == jobs.JobState.CANCELLED:
        mine.flash("info", "Cancelled. What was finished before is kept; press again to go on.")
    elif outcome.state == jobs.JobState.FAILED:
        mine.flash("error", outcome.error)
    return True


def guess_seconds(model: "EditableModel", parts: Sequence[str]) -> float:
    """Roughly how long the parts take here, in seconds."""
    speed = 1e13 if not model.device.startswith("cpu") else 1.3e11
    return 1 + sum(_TOKENS[part] for part in parts) * 2.0 * model.n_parameters / speed


def _missing() -> Any:
    raise LookupError
