"""The Edit page's long work, without Streamlit: plan an edit and measure it before anybody applies it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dashboard.binning import thin
from nmke.config import Config
from nmke.facts import Fact
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.edit import Edit
    from nmke.metrics import FactMeasure, FactReport
    from nmke.session import EditSession


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the keys' second moment per layer (thinned for drawing) and what the null space keeps."""

    eigenvalues: Mapping[int, NDArray[np.floating]]
    kept: Mapping[int, float]
    threshold: float


@dataclass(frozen=True)
class Measured:
    """An edit's effect, measured against the version it was planned on.

    Attributes:
        edit: the edit; None when facts of a loaded session were measured.
        based_on: digest of the session it was planned on.
        reports: one per fact.
        changes: per layer neurons, parameters and size of the change.
        spectrum: what the null space was made from, where the method uses one.
    """

    edit: "Edit | None"
    based_on: str
    reports: "tuple[FactReport, ...]"
    changes: tuple[Mapping[str, float], ...] = ()
    spectrum: Spectrum | None = None
    facts: tuple[Fact, ...] = field(default_factory=tuple)


def plan_and_measure(
    session: "EditSession", facts: Sequence[Fact], method: str, config: Config, words: int, progress: Progress
) -> Measured:
    """Plan the edit and measure its facts before and after; session and model stay as they are.

    The measures after come from a scratch that computes with the very weights that applying the edit will make.
    """
    from nmke.methods import get_method

    based_on = session.digest
    with session.active():
        before = _measure(session, facts, words, progress, "measuring before")
    edit = get_method(method).plan(session, facts, config, progress)
    masters = {patch.layer: session.master(patch.layer) for patch in edit.patches}
    with session.trying(edit):
        after = _measure(session, facts, words, progress, "measuring after")
    return Measured(
        edit,
        based_on,
        _reports(facts, before, after),
        tuple(edit.changes(masters)),
        _spectrum(session, config, edit),
        tuple(facts),
    )


def measure_now(session: "EditSession", facts: Sequence[Fact], words: int, progress: Progress) -> Measured:
    """Measure facts on the loaded model and on the session as it is now."""
    with session.original():
        before = _measure(session, facts, words, progress, "measuring the original")
    with session.active():
        after = _measure(session, facts, words, progress, "measuring the edited model")
    return Measured(None, session.digest, _reports(facts, before, after), facts=tuple(facts))


def _measure(
    session: "EditSession", facts: Sequence[Fact], words: int, progress: Progress, stage: str
) -> "list[FactMeasure]":
    from nmke.metrics import measure_fact

    measures = []
    for done, fact in enumerate(facts):
        progress.update(stage, done, len(facts), fact.subject)
        measures.append(measure_fact(session.model, fact, generate_tokens=words))
    progress.update(stage, len(facts), len(facts))
    return measures


def _reports(
    facts: Sequence[Fact], before: "Sequence[FactMeasure]", after: "Sequence[FactMeasure]"
) -> "tuple[FactReport, ...]":
    from nmke.metrics import compare

    return tuple(compare(*three) for three in zip(facts, before, after, strict=True))


def _spectrum(session: "EditSession", config: Any, edit: "Edit") -> Spectrum | None:
    """What the null space was made from; None for methods without one."""
    from nmke.moments import find_statistics

    settings = getattr(config, "statistics", None)
    rows = [row for row in edit.details.get("layers", ()) if "null_space_kept" in row]
    # Solved inside a mask, the null space is that of the selected neurons, not of the layer whose spectrum this is.
    whole = getattr(config, "mask_acts", "on the update") == "on the update"
    if settings is None or settings.text == "none" or not rows or not whole:
        return None
    statistics = find_statistics(session.model, settings, config.layers)
    if statistics is None:
        return None
    values = {layer: statistics.eigenvalues(layer).cpu().numpy() for layer in statistics.layers}
    kept = {row["layer"]: float(row["null_space_kept"]) for row in rows}
    threshold = float(config.null_space_threshold)
    for layer, found in values.items():
        kept.setdefault(layer, float((found < threshold).mean()))
    return Spectrum(
        {layer: thin(np.sort(found)[::-1])[1] for layer, found in values.items()}, kept, threshold
    )
