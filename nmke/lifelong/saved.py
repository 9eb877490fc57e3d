"""What a lifelong run left behind: the edited model of each of its entrants, as the last checkpoint holds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmke.errors import SessionError
from nmke.facts import Fact
from nmke.lifelong.checkpoint import load_checkpoint, read_record
from nmke.lifelong.files import CHECKPOINT, SPEC, run_folder
from nmke.lifelong.starting import read_spec, require_same_model
from nmke.loading import LoadedModel
from nmke.session import EditSession


@dataclass(frozen=True)
class SavedRun:
    """One entrant with one seed, after the facts its checkpoint holds; nothing of it is in memory yet.

    Attributes:
        label: the entrant's, with the seed where the run has several, and how many facts are written.
        folder: where it lies.
        digest: the session's; see :attr:`EditSession.digest`.
        facts: all that the run writes, in order.
    """

    label: str
    folder: Path
    digest: str
    facts: Sequence[Fact]

    def open(self, model: LoadedModel) -> EditSession:
        """The session, its edits settled.

        Raises:
            SessionError: the run went on meanwhile, the file is damaged, or it does not give the saved weights.
        """
        saved = load_checkpoint(model, self.folder / CHECKPOINT, self.facts)
        if saved is None or saved.session.digest != self.digest:
            raise SessionError(
                f"The run went on: its checkpoint is no longer that of {self.label}.",
                "Wait until the run has ended, and open it again.",
            )
        return saved.session


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a lifelong run, or of one entrant in it."""
    return (folder / SPEC).is_file() or _is_entrant(folder)


def saved_runs(model: LoadedModel, folder: Path) -> tuple[SavedRun, ...]:
    """The states a run's checkpoints hold, or the one of an entrant's own folder.

    Raises:
        SessionError: no run, none of its checkpoints holds an edit, damaged, or made with another model.
    """
    whole, only = folder, None
    if _is_entrant(folder):
        whole, only = folder.parent.parent, folder.name
    spec = read_spec(whole)
    require_same_model(spec, model)
    found = []
    for entrant in spec.entrants:
        for seed in spec.config.seeds:
            place = run_folder(whole, entrant.label, seed)
            if only is not None and place.name != only:
                continue
            record = read_record(place / CHECKPOINT)
            if record is None or not record["position"]:
                continue
            label = entrant.label if len(spec.config.seeds) == 1 else f"{entrant.label}, seed {seed}"
            written = record["position"]
            label = f"{label}, {written} fact{'s' if written != 1 else ''}"
            facts = [spec.facts[index] for index in spec.orders()[seed]]
            found.append(SavedRun(label, place, record["digest"], facts))
    if not found:
        raise SessionError(
            f"The run {whole.name} has no checkpoint with edits.", "Let the run go on until it saved one."
        )
    return tuple(found)


def only_run(model: LoadedModel, folder: Path) -> SavedRun:
    """The only state a run's checkpoints hold, or the one of an entrant's own folder.

    Raises:
        SessionError: it holds several, named; or as :func:`saved_runs`.
    """
    found = saved_runs(model, folder)
    if len(found) > 1:
        names = ", ".join(f"runs/{one.folder.name}" for one in found)
        raise SessionError(
            f"The run {folder.name} holds {len(found)} edited models.", f"Name one of its folders: {names}."
        )
    return found[0]


def _is_entrant(folder: Path) -> bool:
    return (folder / CHECKPOINT).is_file() and (folder.parent.parent / SPEC).is_file()
