"""The Abilities page's long work, without drawing: states of the model that can be compared, and measuring them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dashboard import bundles, jobs, state
from dashboard.abilities_tables import Result, keep, split
from nmke.ability import TITLES, AbilityConfig
from nmke.errors import Cancelled, ResourceError, SessionError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.ablation import AblationResults, NeuronSet
    from nmke.edit import Edit
    from nmke.lifelong.saved import SavedRun
    from nmke.loading import LoadedModel
    from nmke.prompting import PromptPatch
    from nmke.session import EditSession

PURPOSE = "abilities"
AS_LOADED = "the model as loaded"
#: Questions of each benchmark, and how many parts a limit applies to one by one.
SIZES: Mapping[str, tuple[int, int]] = {
    "mmlu": (14042, 57),
    "gsm8k": (1319, 1),
    "commonsense_qa": (1221, 1),
    "bbh": (6511, 27),
    "humaneval": (164, 1),
}


@dataclass(frozen=True)
class Choice:
    """A state of the model that can be measured.

    Attributes:
        key: identifies it on the page.
        edits: what is written in, in order.
        matrices, modules, prompt: the session's state where it is in memory already, so that no edit is applied again.
        neurons: what is switched off.
        run: an entrant of a lifelong run, opened while it is measured.
    """

    key: str
    kind: Literal["loaded", "session", "bundle", "run", "neurons"]
    label: str
    edits: "tuple[Edit, ...]" = ()
    matrices: Mapping[int, Any] | None = None
    modules: Mapping[int, Any] = field(default_factory=dict)
    neurons: "NeuronSet | None" = None
    prompt: "PromptPatch | None" = None
    run: "SavedRun | None" = None


@dataclass
class Watched:
    """What a job has measured so far; the worker adds to it, the page reads it while it grows."""

    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


# ---- states -----------------------------------------------------------------------------------------------------


def loaded() -> Choice:
    """The model without edits and ablation."""
    return Choice("loaded", "loaded", AS_LOADED)


def of_session(session: "EditSession") -> Choice | None:
    """The edits in force, as they are at this moment; None before the first edit."""
    if session.version == 0:
        return None
    facts = sum(len(edit.facts) for edit in session.edits)
    matrices, modules = session.state()
    label = f"edit version {session.version} ({_count(facts, 'fact')})"
    return Choice(
        f"session:{session.digest}", "session", label, session.edits, matrices, modules, prompt=session.prompt
    )


def read_choices(model: "LoadedModel", path: str) -> list[Choice]:
    """Edits saved on disk: a folder, the zip file of the Edit page, or each entrant of a lifelong run.

    Raises:
        SessionError: nothing there, damaged, or made for another model.
    """
    from nmke.lifelong.saved import is_run, saved_runs

    place = Path(path).expanduser()
    if place.is_file():
        return [from_zip(model, place.read_bytes(), place.stem)]
    if is_run(place):
        return [
            Choice(f"run:{run.digest}", "run", f"{run.label} (run {_whole(run).name})", run=run)
            for run in saved_runs(model, place)
        ]
    if not place.is_dir():
        raise SessionError(
            f"There is no folder or file {place}.",
            "Name the folder or the zip file that edits were saved to, or the folder of a lifelong run.",
        )
    return [_of_bundle(model, place, place.name)]


def _whole(run: "SavedRun") -> Path:
    """The folder of the run that an entrant's belongs to."""
    return run.folder.parent.parent


def from_zip(model: "LoadedModel", data: bytes, name: str) -> Choice:
    """Edits saved on the Edit page.

    Raises:
        SessionError: no zip file of edits, damaged, or made for another model.
    """
    return bundles.with_unzipped(data, lambda folder: _of_bundle(model, folder, name))


def _of_bundle(model: "LoadedModel", folder: Path, name: str) -> Choice:
    from nmke.bundle import read_bundle

    record, edits = read_bundle(folder)
    if record["model"]["weight_hash"] != model.weight_hash:
        raise SessionError(
            f"{name} was made for {record['model']['name']}, whose weights are not those of {model.name}.",
            f"Load {record['model']['name']} first.",
        )
    if not edits:
        raise SessionError(f"{name} holds no edit.", "Choose saved edits with at least one.")
    facts = sum(len(edit.facts) for edit in edits)
    return Choice(f"bundle:{record['digest']}", "bundle", f"{name} ({_count(facts, 'fact')})", tuple(edits))


def of_neurons(neurons: "NeuronSet") -> Choice:
    """The model as loaded with neurons switched off."""
    label = f"without {_count(neurons.count, 'neuron')} ({neurons.label})"
    return Choice(f"neurons:{neurons.digest}", "neurons", label, neurons=neurons)


def read_neurons(model: "LoadedModel", path: str) -> list[Choice]:
    """The neurons that an ablation switched off, or those of one saved set.

    Raises:
        AblationError: a set that is damaged, or of another model.
        ResourceError: no ablation there, or a damaged one.
    """
    from nmke.ablation import AblationResults, load_set

    place = Path(path).expanduser()
    sets = _sets_of(AblationResults.load(place)) if place.is_dir() else [load_set(place)]
    for found in sets:
        found.require_for(model)
    return [of_neurons(found) for found in sets]


def _sets_of(found: "AblationResults") -> "list[NeuronSet]":
    """The sets an ablation switched off, each followed by the first of the random ones beside it.

    Here they are zero; the label of those that the ablation held at their mean says that this differs.
    """
    from nmke.ablation import NeuronSet

    differs = "; by mean there, zero here" if found.about["config"]["how"] == "mean" else ""
    first = {found.controls(one.name)[0].name for one in found.conditions if found.controls(one.name)}
    return [
        NeuronSet(
            tuple((layer, each) for layer, neurons in one.neurons.items() for each in neurons),
            f"{one.name}{differs}",
            str(found.about["model"]["weight_hash"]),
            one.chosen_by,
            one.k,
        )
        for one in found.conditions
        if one.neurons and (one.kind == "set" or one.name in first)
    ]


def neuron_choices(model: "LoadedModel") -> list[Choice]:
    """The neurons that were switched off on the Ablation page, each set once."""
    from dashboard import ablation_results

    kept, _ = ablation_results.kept_results(model.weight_hash)
    # Of a set that was ablated both ways the label is that of zero, as it is here: the last of a key stays.
    ordered = sorted(kept.values(), key=lambda one: one.results.about["config"]["how"] == "zero")
    found = [of_neurons(each) for one in ordered for each in _sets_of(one.results)]
    return list({choice.key: choice for choice in found}.values())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


@contextmanager
def opened(model: "LoadedModel", choice: Choice, progress: Progress) -> Iterator[str]:
    """Inside the block the model computes as chosen; gives what identifies that state for the cache."""
    from nmke.ability import state_of
    from nmke.session import EditSession

    if choice.run is not None:
        progress.update(f"opening {choice.label}", 0, None)
        session = choice.run.open(model)
    elif choice.matrices is not None:
        session = EditSession.restored(model, choice.edits, choice.matrices, choice.modules, choice.prompt)
    else:
        session = EditSession(model)
        for done, edit in enumerate(choice.edits):
            progress.update("applying the edits", done, len(choice.edits))
            session.apply(edit)
    with ExitStack() as stack:
        stack.enter_context(session.active())
        ablation = ""
        if choice.neurons is not None:
            ablation = stack.enter_context(_silenced(model, choice.neurons))
        yield state_of(session, ablation)


@contextmanager
def _silenced(model: "LoadedModel", neurons: "NeuronSet") -> Iterator[str]:
    """Inside the block the neurons are zero; gives what identifies that."""
    neurons.require_for(model)
    held = {layer: (found, 0.0) for layer, found in neurons.neurons.items()}
    with model.holding(held):
        yield f"zero {neurons.digest}"


# ---- measuring --------------------------------------------------------------------------------------------------


class _Told(Progress):
    """Says in every stage which state it is about, and its place among all."""

    def __init__(self, inner: Progress, label: str, place: int, of: int) -> None:
        self._inner, self._label = inner, f"{label}, {place} of {of}"

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self._inner.update(f"{stage} ({self._label})", done, total, note)


def start(
    model: "LoadedModel", choices: Sequence[Choice], config: AbilityConfig, data: Path | None
) -> Watched:
    """Measure every task on every state as this browser session's job.

    Raises:
        JobBusy: a measurement of this session is at work.
    """
    watched = Watched()

    def work(progress: Progress) -> int:
        measure(model, choices, config, data, progress, watched)
        return len(watched.results)

    jobs.start(PURPOSE, f"Measuring abilities: {', '.join(TITLES[task] for task in config.tasks)}", work)
    return watched


def measure(
    model: "LoadedModel",
    choices: Sequence[Choice],
    config: AbilityConfig,
    data: Path | None,
    progress: Progress,
    watched: Watched,
) -> None:
    """Task by task every state, so that before and after of a task stand together early.

    What cannot be measured is noted in ``watched.failures``; the rest goes on.

    Raises:
        Cancelled: from ``progress``; what is measured stays.
    """
    from nmke.ability import judge_abilities

    total = len(config.tasks) * len(choices)
    for number, task in enumerate(config.tasks):
        asked = config.changed(tasks=(task,))
        for place, choice in enumerate(choices):
            told = _Told(progress, choice.label, number * len(choices) + place + 1, total)
            try:
                with opened(model, choice, told) as state_:
                    report = judge_abilities(model, asked, state_, data, told)
            except Cancelled:
                raise
            except Exception as problem:
                watched.failures.append(
                    f"{TITLES[task]} on {choice.label}: {jobs.explain(problem, 'measuring')}"
                )
                if place == 0:  # the questions or the harness are at fault, which the next state shares
                    break
            else:
                watched.results += split(report, choice.label)


def questions_asked(config: AbilityConfig) -> dict[str, int]:
    """How many questions each chosen task asks of one state, as far as its usual size tells."""
    found: dict[str, int] = {}
    for task in config.tasks:
        all_of, parts = SIZES[task]
        if task == "mmlu" and config.subjects:
            all_of, parts = all_of * len(config.subjects) // 57, len(config.subjects)
        found[task] = all_of if config.limit is None else min(config.limit * parts, all_of)
    return found


# ---- what is known ----------------------------------------------------------------------------------------------


def results(model: "LoadedModel") -> list[Result]:
    """Everything measured on this model in this browser session, the newest last."""
    mine = state.get()
    known: list[Result] = mine.settings.get("abilities.results", [])
    watched: Watched | None = mine.settings.get("abilities.watched")
    if watched is not None:
        known = mine.settings["abilities.results"] = keep(known, list(watched.results))
    return [result for result in known if result.report.weight_hash == model.weight_hash]


def open_report(model: "LoadedModel", path: str) -> list[Result]:
    """The results that ``nmke ability`` wrote to a folder.

    Raises:
        ResourceError: nothing there, damaged, or measured on another model.
    """
    from nmke.ability import load_report

    folder = Path(path).expanduser()
    report = load_report(folder)
    if report.weight_hash != model.weight_hash:
        raise ResourceError(
            f"{folder.name} was measured on {Path(report.model_name).name}, whose weights are not those of "
            f"{model.name}.",
            "Load that model first.",
        )
    found = split(report, AS_LOADED if not report.state else f"report {folder.name}")
    mine = state.get()
    mine.settings["abilities.results"] = keep(mine.settings.get("abilities.results", []), found)
    return found


def expected_seconds(known: Sequence[Result], config: AbilityConfig, states: int) -> float | None:
    """How long the questions take at the pace of earlier measurements; None where a task has none."""
    pace = {result.task: result.score.seconds / max(result.score.n, 1) for result in known}
    asked = questions_asked(config)
    if not all(pace.get(task) for task in asked):
        return None
    return sum(pace[task] * count for task, count in asked.items()) * states
