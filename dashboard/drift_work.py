"""The Drift page's versions and its long work, without drawing anything."""

import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from dashboard import bundles, jobs, state
from nmke.drift.settings import DriftConfig
from nmke.errors import DriftError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.drift import DriftMap, DriftNumbers, Version
    from nmke.loading import LoadedModel
    from nmke.session import EditSession

PURPOSE, OPENING, SCORING = "drift", "drift.open", "drift.kinds"
#: Finished views kept in a tab.
MOST = 6
#: CPU seconds of 1000 iterations on 3072 points (benchmarked with scikit-learn 1.9).
_SECONDS, _POINTS = 25.0, 3072


@dataclass(frozen=True)
class Choice:
    """A version that can be chosen, known before its matrices are put together.

    Attributes:
        id: what the control holds.
        label: what figures call it.
        key: what its weights depend on, by content.
        layers: layers whose weights it changed.
        module_layers: layers beside which a module stands.
        number: of the tab's own session; None for an opened version.
    """

    id: str
    label: str
    key: tuple[Any, ...]
    layers: tuple[int, ...]
    module_layers: tuple[int, ...]
    has_kinds: bool
    number: int | None = None


@dataclass(frozen=True)
class Request:
    """What a view depends on; equal requests give the same picture and numbers."""

    weight_hash: str
    versions: tuple[tuple[Any, ...], ...]
    layer: int
    config: DriftConfig

    @property
    def of_numbers(self) -> tuple[Any, ...]:
        """What the numbers alone depend on."""
        return self.weight_hash, self.versions, self.config.directions


@dataclass(frozen=True)
class View:
    """A finished drift view."""

    request: Request
    choices: tuple[Choice, ...]
    numbers: "DriftNumbers"
    drawn: "DriftMap"


# ---- versions ---------------------------------------------------------------------------------------------------


def choices_of(session: "EditSession", weight_hash: str) -> list[Choice]:
    """The tab's own versions, the newest first, then the opened ones."""
    return [*_own(session), *_opened(weight_hash)]


def _own(session: "EditSession") -> list[Choice]:
    found, edits = [], session.edits
    for number in range(session.version, 0, -1):
        first = edits[:number]
        methods = " + ".join(_titles(dict.fromkeys(edit.method for edit in first)))
        facts = sum(len(edit.facts) for edit in first)
        found.append(
            Choice(
                id=f"own {number}",
                label=f"Version {number}: {methods}, {facts} fact{'s' if facts != 1 else ''}",
                key=("own", session.digest, number, tuple(edit.facts for edit in first)),
                layers=tuple(sorted({layer for edit in first for layer in edit.layers})),
                module_layers=tuple(sorted({module.layer for edit in first for module in edit.modules})),
                has_kinds=any(edit.masks for edit in first),
                number=number,
            )
        )
    return found


def _titles(names: Sequence[str] | Mapping[str, None]) -> list[str]:
    from nmke.methods import methods

    known = methods()
    return [known[name].title if name in known else name for name in names]


def _opened(weight_hash: str) -> list[Choice]:
    return [
        Choice(
            id=f"opened {version.digest[:12]} {version.label}",
            label=version.label,
            key=("opened", version.digest, version.label),
            layers=version.layers,
            module_layers=version.module_layers,
            has_kinds=any(edit.masks for edit in version.edits),
        )
        for version in opened(weight_hash)
    ]


def opened(weight_hash: str) -> "list[Version]":
    """Versions opened from disk in this tab, for this model."""
    kept: dict[str, list[Version]] = state.get().settings.setdefault("drift.opened", {})
    for other in [known for known in kept if known != weight_hash]:
        del kept[other]  # another model's matrices only take memory
    return kept.setdefault(weight_hash, [])


def _version(choice: Choice, session: "EditSession", weight_hash: str) -> "Version":
    from dataclasses import replace

    from nmke.drift import version_of

    if choice.number is not None:
        return version_of(session, choice.number, choice.label)
    found = next(each for each in opened(weight_hash) if ("opened", each.digest, each.label) == choice.key)
    return replace(found, label=choice.label)


def start_opening(model: "LoadedModel", source: "Path | bytes", name: str) -> None:
    """Read saved edits or a run's checkpoints as a job.

    Raises:
        JobBusy: the same work is running already.
    """

    def work(progress: Progress) -> "tuple[str, tuple[Version, ...]]":
        from nmke.drift import open_versions

        if isinstance(source, bytes):
            found = bundles.with_unzipped(source, lambda folder: open_versions(model, folder, progress))
        else:
            found = open_versions(model, source, progress)
        return model.weight_hash, found

    jobs.start(OPENING, f"Opening {name}", work)


def take_opened() -> list[str] | None:
    """Take in what a finished job opened: the ids to choose now; None while no job ended."""
    outcome = jobs.take(OPENING)
    if outcome is None:
        return None
    if outcome.state != jobs.JobState.DONE:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
        return []
    from nmke.drift.versions import with_own_labels

    weight_hash, found = outcome.value
    kept = opened(weight_hash)
    known = {version.digest for version in kept}
    fresh = [version for version in found if version.digest not in known]
    kept[:] = with_own_labels([*kept, *fresh])
    digests = {version.digest for version in found}
    return [choice.id for choice in _opened(weight_hash) if choice.key[1] in digests]


# ---- drawing ----------------------------------------------------------------------------------------------------


def views() -> "OrderedDict[Request, View]":
    """The last views of this tab."""
    kept: OrderedDict[Request, View] = state.get().settings.setdefault("drift.views", OrderedDict())
    return kept


def newest(weight_hash: str) -> View | None:
    """The view that was drawn or shown last with this model."""
    found = [view for request, view in views().items() if request.weight_hash == weight_hash]
    return found[-1] if found else None


def start(model: "LoadedModel", session: "EditSession", request: Request, chosen: Sequence[Choice]) -> None:
    """Measure and draw as a job.

    Raises:
        JobBusy: the same work is running already.
    """
    measured = next(
        (
            view.numbers
            for view in views().values()
            if view.request.of_numbers == request.of_numbers
            and [choice.label for choice in view.choices] == [choice.label for choice in chosen]
        ),
        None,
    )
    parts = tuple(_maker(choice, session, request.weight_hash) for choice in chosen)

    def work(progress: Progress) -> View:
        from nmke.drift import draw_map, layers_of, measure_drift

        versions = []
        for done, make in enumerate(parts):
            progress.update("putting the versions together", done, len(parts))
            versions.append(make())
        config = request.config
        numbers = measured or measure_drift(model, versions, layers_of(versions), config.directions, progress)
        return View(
            request, tuple(chosen), numbers, draw_map(model, versions, request.layer, config, progress)
        )

    jobs.start(PURPOSE, f"Drawing layer {request.layer}", work)


def _maker(choice: Choice, session: "EditSession", weight_hash: str) -> Any:
    """Makes the version in the worker; what lies in this tab's state is fetched before."""
    if choice.number is None:
        version = _version(choice, session, weight_hash)
        return lambda: version
    edits = session.edits[: choice.number]

    def make() -> "Version":
        now = session.edits[: choice.number]
        if len(now) != len(edits) or any(one is not other for one, other in zip(now, edits, strict=True)):
            raise DriftError(
                "The edits were changed while the view waited for its turn.",
                "Draw it again with the edits as they are now.",
            )
        return _version(choice, session, weight_hash)

    return make


def take() -> bool:
    """Take in a finished view; whether there was one."""
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return False
    if outcome.state == jobs.JobState.DONE:
        keep(outcome.value)
    else:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
    return True


def keep(view: View) -> None:
    """The view is the newest now; the longest unused go."""
    kept = views()
    kept[view.request] = view
    kept.move_to_end(view.request)
    while len(kept) > MOST:
        kept.popitem(last=False)


def guess_seconds(points: int, iterations: int) -> float:
    """Rough seconds of a t-SNE, before one was drawn on this machine."""
    load = points * math.log(max(points, 2)) / (_POINTS * math.log(_POINTS))
    return 5.0 + 1.3 * _SECONDS * iterations / 1000 * load / min(os.cpu_count() or 1, 4)


# ---- kinds ------------------------------------------------------------------------------------------------------


def start_scoring(
    model: "LoadedModel", session: "EditSession", chosen: Sequence[Choice], weight_hash: str
) -> None:
    """Score the edits' prompts again, for the kinds of the neurons, as a job.

    Raises:
        JobBusy: the same work is running already.
    """
    wanted = [(choice.key, _maker(choice, session, weight_hash)) for choice in chosen if choice.has_kinds]

    def work(progress: Progress) -> Any:
        from nmke.drift.kinds import find_kinds, group_names

        return {
            key: {layer: group_names(codes) for layer, codes in find_kinds(model, make(), progress).items()}
            for key, make in wanted
        }

    jobs.start(SCORING, "Finding the kinds of the neurons", work)


def take_scored() -> bool:
    """Take in scored kinds; whether a job ended."""
    outcome = jobs.take(SCORING)
    if outcome is None:
        return False
    if outcome.state == jobs.JobState.DONE:
        kinds().update(outcome.value)
    else:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
    return True


def kinds() -> "dict[tuple[Any, ...], Mapping[int, NDArray[Any]]]":
    """Per version's key and layer the kind of every neuron, as far as it was asked for in this tab."""
    found: dict[tuple[Any, ...], Mapping[int, NDArray[Any]]] = state.get().settings.setdefault(
        "drift.kinds", {}
    )
    return found
