"""Ablations in work, without drawing anything: what is asked, and the answers as they come."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dashboard import ablation_results, jobs, state
from nmke.errors import AblationError
from nmke.facts import Fact
from nmke.progress import Progress
from nmke.store import content_key

if TYPE_CHECKING:
    from nmke.ablation import AblationConfig, AblationResults, Condition, NeuronSet
    from nmke.answers import Answered
    from nmke.attribution import Attribution
    from nmke.model import EditableModel
    from nmke.questions import QuestionSet
    from nmke.roles import Roles
    from nmke.session import EditSession

PURPOSE = "ablation"
Source = Literal["Roles", "Facts", "By hand"]


@dataclass(frozen=True)
class Asked:
    """Which questions.

    Attributes:
        source: mmlu, builtin, or a file.
        limit: questions of each subject; None for all.
    """

    source: str
    subjects: tuple[str, ...]
    limit: int | None
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """Which neurons.

    Attributes:
        source: where they come from.
        roles: for roles and facts, as ``general``, ``domain:biology``.
        layers: those they are taken from.
        text: for a set by hand.
        found_roles: the Roles page's; None to find them on the questions asked.
        attribution: the Neurons page's; None to score the facts anew.
        facts: whose neurons, for facts.
    """

    source: Source
    roles: tuple[str, ...]
    layers: tuple[int, ...]
    text: str = ""
    found_roles: "Roles | None" = None
    attribution: "Attribution | None" = None
    facts: tuple[Fact, ...] = ()


class Live:
    """Answers as they come, handed from the worker to the page; every call is safe on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: AblationResults | None = None
        self._answers: dict[str, list[Answered]] = {}

    def begin(self, empty: "AblationResults") -> None:
        """What will be answered, once that is known."""
        with self._lock:
            self._begun, self._answers = empty, {}

    def add(self, condition: "Condition", answered: "Answered") -> None:
        """One more answer."""
        with self._lock:
            self._answers.setdefault(condition.name, []).append(answered)

    def results(self) -> "AblationResults | None":
        """What there is so far; None before anything is known."""
        with self._lock:
            if self._begun is None:
                return None
            answers = {name: tuple(found) for name, found in self._answers.items()}
            return replace(self._begun, answers=answers)


# ---- neurons ----------------------------------------------------------------------------------------------------


def role_options(subjects: Sequence[str], roles: "Roles | None") -> dict[str, str]:
    """What can be chosen, and what it is called: each role, and those of one domain or one task.

    Args:
        roles: found already, so that each can say how many neurons it has.
    """
    from nmke.questions import domain_of

    if roles is not None:
        tasks, domains = list(roles.tasks), list(dict.fromkeys(roles.domains.values()))
    else:
        tasks = list(subjects)
        domains = list(dict.fromkeys(map(domain_of, tasks)))
    several = [one for one in domains if sum(domain_of(task) == one for task in tasks) > 1]
    totals = roles.totals() if roles is not None else {}

    def named(role: str, text: str) -> str:
        return f"{text} ({totals[role]:,})" if role in totals else text

    found = {"general": named("general", "general")}
    if several:
        found["domain"] = named("domain", "any domain")
        found |= {f"domain:{one}": f"domain: {one.replace('_', ' ')}" for one in several}
    found["task"] = named("task", "any task")
    found |= {f"task:{task}": f"task: {task.replace('_', ' ')}" for task in tasks}
    found["mixed"] = named("mixed", "mixed")
    found["inactive"] = named("inactive", "inactive")
    return found


def sets_of(
    chosen: Chosen,
    ks: Sequence[int],
    counted: Literal["in all", "per layer"],
    session: "EditSession",
    questions: "QuestionSet",
    progress: Progress,
) -> "list[NeuronSet]":
    """The sets that are asked for, every k of every role; roles and scores that are not there yet are made first.

    Of neurons by hand it is the whole set, and its first k for every smaller k.

    Raises:
        NmkeError: saying which set cannot be made.
    """
    from nmke.ablation import of_kind, of_role

    model = session.model
    if chosen.source == "By hand":
        named = read_by_hand(model, chosen.text)
        return [*(named.first(k) for k in ks if k < named.count), named]
    if chosen.source == "Facts":
        scored = chosen.attribution or _score_facts(chosen, session, progress)
        layers = [layer for layer in chosen.layers if layer in scored.layers]
        return [
            of_kind(model, scored, kind, k, layers=layers, counted=counted)
            for k in ks
            for kind in chosen.roles
        ]
    roles = chosen.found_roles or find_roles(session, questions, progress)
    roles.require_for(model)
    sets = []
    for k in ks:
        for text in chosen.roles:
            role, _, which = text.partition(":")
            task = which if which in roles.tasks else None
            domain = which if which and task is None else None
            layers = [layer for layer in chosen.layers if layer in roles.layers]
            sets.append(of_role(roles, role, k, layers=layers, task=task, domain=domain, counted=counted))
    return sets


def find_roles(session: "EditSession", questions: "QuestionSet", progress: Progress) -> "Roles":
    """Roles by activation (MPC) over the questions asked: the quickest way to have some."""
    from nmke.attribution import AttributionConfig
    from nmke.roles import RolesConfig, assign_roles, score_once

    config = RolesConfig(attribution=AttributionConfig(kind="mpc"), resamples=0)
    edits = session.digest if session.version else ""
    with session.active():
        scores = score_once(session.model, questions, config=config, progress=progress, edits=edits)
    return assign_roles(scores, config)


def _score_facts(chosen: Chosen, session: "EditSession", progress: Progress) -> "Attribution":
    from nmke.attribution import AttributionConfig, attribute, prompts_of

    with session.active():
        return attribute(
            session.model, prompts_of(chosen.facts), chosen.layers, AttributionConfig(kind="mpc"), progress
        )


# ---- work -------------------------------------------------------------------------------------------------------


def start(
    session: "EditSession",
    asked: Asked,
    chosen: Chosen,
    config: "AblationConfig",
    ks: Sequence[int],
) -> None:
    """Ablate as this browser session's job; its answers so far are in :func:`live`.

    Raises:
        JobBusy: another ablation of this session is at work.
    """
    live = Live()

    def work(progress: Progress) -> tuple[str, Any]:
        from nmke.ablation import AblationResults, answers_key, conditions_of, run_ablation
        from nmke.questions import load_questions

        progress.update("reading the questions", 0, None)
        questions = load_questions(asked.source, asked.subjects, asked.limit, asked.seed, progress)
        sets = sets_of(chosen, ks, config.counted, session, questions, progress)
        about = {
            "config": config.model_dump(mode="json"),
            "session": {"digest": session.digest, "edits": session.version},
            "model": {"weight_hash": session.model.weight_hash},
        }
        live.begin(AblationResults(questions, conditions_of(session.model, sets, config), {}, about))
        folder = ablation_results.answers_folder() / answers_key(session, questions, config)
        results = run_ablation(session, questions, sets, config, progress, live.add, folder)
        name = content_key(folder=folder.name, conditions=[[one.name, one.key] for one in results.conditions])
        results.save(ablation_results.results_folder() / name)
        return name, ablation_results.title_of(results)

    jobs.start(PURPOSE, f"Ablation of {_say_chosen(chosen, ks)}", work)
    state.get().settings["ablation.live"] = live


def live() -> Live | None:
    """The answers of the ablation at work, or of the last one."""
    found: Live | None = state.get().settings.get("ablation.live")
    return found


def _say_chosen(chosen: Chosen, ks: Sequence[int]) -> str:
    if chosen.source == "By hand":
        return "neurons by hand"
    many = f"k = {ks[0]}" if len(ks) == 1 else f"{len(ks)} sizes"
    return f"{', '.join(chosen.roles)}, {many}"


# ---- what the form needs ----------------------------------------------------------------------------------------


def check_ks(text: str, most: int) -> tuple[int, ...]:
    """``1, 10, 50`` as numbers.

    Raises:
        AblationError: one sentence saying what is wrong with the text.
    """
    parts = [part for part in text.replace(",", " ").split() if part]
    bad = next((part for part in parts if not part.isdecimal() or not 1 <= int(part) <= most), None)
    if bad or not parts:
        raise AblationError(
            f"{bad!r} is not a number from 1 to {most}." if bad else "There is no k.",
            "Write for example 1, 10, 50.",
        )
    return tuple(sorted({int(part) for part in parts}))


SCORE_TITLES: Mapping[str, str] = {
    "letters": "Letters",
    "cloze": "Cloze",
    "written": "Written",
    "loss": "Loss of the answer",
    "text_loss": "Loss of the question",
}


def text_of_file(name: str, data: bytes) -> str:
    """An uploaded set or table as lines for the text box.

    Raises:
        AblationError: it is neither.
    """
    import json

    from nmke.ablation import NeuronSet

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AblationError(f"{name} is no text.", "Choose a saved set, or a table as CSV.") from None
    if not name.lower().endswith(".json"):
        return text
    try:
        values = json.loads(text)
    except ValueError:
        values = {}
    chosen = NeuronSet.from_json(values if isinstance(values, dict) else {})
    lines = "\n".join(f"{layer}:{neuron}" for layer, neuron in chosen.ranked)
    return f"# model {chosen.model_hash}\n{lines}"


def read_by_hand(model: "EditableModel", text: str) -> "NeuronSet":
    """The neurons of the text box; a first line ``# model HASH`` says whose they are.

    Raises:
        AblationError: a line names no neuron, or they are another model's.
    """
    from nmke.ablation import by_hand

    first, _, rest = text.strip().partition("\n")
    if not first.startswith("# model "):
        return by_hand(model, text)
    chosen = replace(by_hand(model, rest), model_hash=first.removeprefix("# model ").strip())
    chosen.require_for(model)
    return chosen


def guess_pace(model: "EditableModel", scores: Sequence[str]) -> float:
    """Rough seconds a question, before any was answered on this machine: forward passes, and writing word by word."""
    tokens = {"letters": 120, "cloze": 90, "written": 120, "loss": 40}
    flops = 1e13 if not model.device.startswith("cpu") else 8e10
    return sum(tokens[score] for score in scores) * 2.0 * model.n_parameters / flops
