"""Scores of every neuron on every question, kept as small as the rules allow.

A rule asks two things of a question's scores in one layer: how high a neuron stands among its layer's neurons (its
rank), and whether it is above the layer's mean. So per question and layer the ranks are kept, two bytes a neuron, and
one number: how many neurons lie above the mean. Both rules follow from these exactly, for every setting; 400
questions on a model of 30 layers with 1536 neurons take 37 MB, on one of 32 layers with 14336 neurons 367 MB. Of the
scores themselves only each task's mean is kept.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmke.errors import QuestionError
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.questions import Question, QuestionSet, domain_of, options_of, prompt_of
from nmke.roles.config import RolesConfig
from nmke.roles.reading import read_last
from nmke.scores import Reading, score_layers
from nmke.tokens import encode, encode_continuation, token_texts

#: Questions scored together; they share the reading of the vocabulary.
TOGETHER = 32
#: Questions in one forward pass, of similar length.
FORWARD = 8
#: A pattern of tasks is a number with one bit a task.
MOST_TASKS = 62


@dataclass(frozen=True)
class QuestionScores:
    """What the rules need of the scores; ``question`` runs over all tasks, task by task.

    Attributes:
        tasks: the subjects, in order.
        domains: each task's domain.
        question_ids: every question's id.
        question_tasks: index in ``tasks`` of each question.
        targets: the token followed on each question; "" for MPC, which follows none.
        ranks: per layer, 0 for a question's highest score, 1 for the next ...; equal scores in order of index.
        above: per layer, how many neurons of a question score above its mean: those with the lowest ranks.
        strength: per layer the mean score over each task's questions, in the score's unit.
        activation: per layer the mean activation over each task's questions.
        edits: digest of the edits in force; "" for the model as loaded.
        source, sha256: where the questions are from, and their content.
        seconds: how long it took.
    """

    model_name: str
    model_hash: str
    edits: str
    tasks: tuple[str, ...]
    domains: Mapping[str, str]
    layers: tuple[int, ...]
    question_ids: tuple[str, ...]
    question_tasks: Int[Tensor, " question"]
    targets: tuple[str, ...]
    ranks: Mapping[int, Int[Tensor, "question d_mlp"]]
    above: Mapping[int, Int[Tensor, " question"]]
    strength: Mapping[int, Float[Tensor, "task d_mlp"]]
    activation: Mapping[int, Float[Tensor, "task d_mlp"]]
    config: RolesConfig
    source: str
    sha256: str
    seconds: float

    @cached_property
    def d_mlp(self) -> int:
        return int(self.ranks[self.layers[0]].shape[1])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Questions of each task."""
        return tuple(torch.bincount(self.question_tasks, minlength=len(self.tasks)).tolist())

    def rows(self, task: int) -> slice:
        """Where the questions of a task stand."""
        start = sum(self.sizes[:task])
        return slice(start, start + self.sizes[task])


@torch.no_grad()
def score_questions(
    model: EditableModel,
    questions: QuestionSet,
    layers: Sequence[int] | None = None,
    config: RolesConfig | None = None,
    progress: Progress | None = None,
    edits: str = "",
) -> QuestionScores:
    """Score every neuron of ``layers`` (all by default) on every question, by whatever weights are active.

    Args:
        config: only ``attribution``, ``form`` and ``target`` matter here. ``target`` decides which token is followed;
            ``attribution.target`` and ``attribution.read_position`` are not used: a question is read at its last token.
        edits: digest of the edits in force, kept with the scores.

    Raises:
        QuestionError: fewer than two subjects, more than 62, or a question longer than the model's context.
        ModelError: a layer the model does not have, or an architecture that failed the gate.
        Cancelled: from ``progress``; between layers, and between groups of questions.
    """
    config, progress = config or RolesConfig(), progress or Silent()
    model.require_conformance()
    chosen = model.check_layers(range(model.n_layers) if layers is None else layers)
    tasks = require_tasks(questions)
    ordered = [question for task in tasks for question in questions.of(task)]
    progress.update("reading the questions", 0, len(ordered))
    rows = [encode(model.tokenizer, prompt_of(question, config.form)) for question in ordered]
    _require_fits(model, ordered, rows)
    started = time.perf_counter()
    kept = _Kept.empty(len(ordered), chosen, model.d_mlp)
    targets = [""] * len(ordered)
    sums = {layer: torch.zeros(2, len(tasks), model.d_mlp, dtype=torch.float64) for layer in chosen}
    start = 0
    for number, task in enumerate(tasks):
        places = list(range(start, start + len(questions.of(task))))
        # Similar lengths waste least on padding; a fixed order, so that the same questions give the same scores.
        places.sort(key=lambda place: (len(rows[place]), place))
        for first in range(0, len(places), TOGETHER):
            group = places[first : first + TOGETHER]
            inner = _Inner(progress, config, start + first, len(ordered), task)
            read = _read(model, [rows[place] for place in group], chosen, config, inner)
            followed = _targets(model, [ordered[place] for place in group], read, config)
            names = token_texts(model.tokenizer, followed.tolist()) if len(followed) else [""] * len(group)
            for place, name in zip(group, names, strict=True):
                targets[place] = name
            at = torch.tensor(group)
            for layer, score, _ in score_layers(model, chosen, read, followed, config.attribution, inner):
                inner.scored(len(group), layer, chosen)
                kept.put(layer, at, score)
                sums[layer][0, number] += score.double().sum(0)
                sums[layer][1, number] += read.activations[layer].cpu().double().sum(0)
        start += len(places)
    progress.update(_stage(config), len(ordered), len(ordered))
    sizes = torch.tensor([len(questions.of(task)) for task in tasks]).double()[:, None]
    return QuestionScores(
        model_name=model.name,
        model_hash=model.weight_hash,
        edits=edits,
        tasks=tasks,
        domains={task: domain_of(task) for task in tasks},
        layers=chosen,
        question_ids=tuple(question.id for question in ordered),
        question_tasks=torch.tensor([tasks.index(question.subject) for question in ordered]),
        targets=tuple(targets),
        ranks=kept.ranks,
        above=kept.above,
        strength={layer: (total[0] / sizes).float() for layer, total in sums.items()},
        activation={layer: (total[1] / sizes).float() for layer, total in sums.items()},
        config=config,
        source=questions.source,
        sha256=questions.sha256,
        seconds=time.perf_counter() - started,
    )


def require_tasks(questions: QuestionSet) -> tuple[str, ...]:
    """The subjects, when roles can be told from them.

    Raises:
        QuestionError: fewer than two, or too many.
    """
    tasks = questions.subjects
    if len(tasks) < 2:
        raise QuestionError(
            f"Roles compare tasks, and all questions are of one subject, {tasks[0]}.",
            "Choose at least two subjects.",
        )
    if len(tasks) > MOST_TASKS:
        raise QuestionError(f"There are {len(tasks)} subjects.", f"Choose at most {MOST_TASKS}.")
    return tasks


def rank_scores(score: Float[Tensor, "question d_mlp"]) -> Int[Tensor, "question d_mlp"]:
    """Each neuron's rank on each question, 0 the highest; equal scores in order of index."""
    order = score.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def count_above(score: Float[Tensor, "question d_mlp"]) -> Int[Tensor, " question"]:
    """How many neurons score above the question's mean: those whose standardised score is positive."""
    wide = score.double()
    return (wide > wide.mean(1, keepdim=True)).sum(1)


@dataclass(frozen=True)
class _Kept:
    """Ranks and counts as they fill up."""

    ranks: dict[int, Tensor]
    above: dict[int, Tensor]

    @classmethod
    def empty(cls, n: int, layers: Sequence[int], d_mlp: int) -> "_Kept":
        small = torch.int16 if d_mlp <= torch.iinfo(torch.int16).max else torch.int32
        return cls(
            {layer: torch.empty(n, d_mlp, dtype=small) for layer in layers},
            {layer: torch.empty(n, dtype=torch.int32) for layer in layers},
        )

    def put(self, layer: int, at: Tensor, score: Tensor) -> None:
        self.ranks[layer][at] = rank_scores(score).to(self.ranks[layer].dtype)
        self.above[layer][at] = count_above(score).int()


class _Inner(Progress):
    """The stages of one group of questions as steps of the whole: one stage, and so one estimate of the time left."""

    def __init__(self, progress: Progress, config: RolesConfig, done: int, total: int, task: str) -> None:
        self._progress, self._stage = progress, _stage(config)
        self._done, self._total, self._note = done, total, task.replace("_", " ")

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self._progress.update(self._stage, self._done, self._total, self._note)

    def scored(self, group: int, layer: int, layers: Sequence[int]) -> None:
        """One layer of a group is done."""
        share = group * (layers.index(layer) + 1) // len(layers)
        self._progress.update(self._stage, self._done + share, self._total, self._note)


def _stage(config: RolesConfig) -> str:
    return f"scoring neurons on questions ({config.attribution.kind.upper()})"


def _read(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    config: RolesConfig,
    inner: _Inner,
) -> Reading:
    parts = []
    for start in range(0, len(rows), FORWARD):
        inner.update("", start, None)
        some = rows[start : start + FORWARD]
        parts.append(read_last(model, some, layers, residuals=config.attribution.kind != "mpc"))

    def joined(name: str) -> dict[int, Tensor]:
        return {
            layer: torch.cat([getattr(part, name)[layer] for part in parts])
            for layer in getattr(parts[0], name)
        }

    return Reading(joined("activations"), joined("resid_mid"), torch.cat([part.final for part in parts]))


def _targets(
    model: EditableModel, questions: Sequence[Question], read: Reading, config: RolesConfig
) -> Int[Tensor, " some"]:
    if config.attribution.kind == "mpc":
        return torch.empty(0, dtype=torch.long, device=model.device)
    if config.target == "top1":
        return model.readout.logits(read.final, model.readout.scale(read.final)).argmax(-1)
    firsts = []
    for question in questions:
        prompt, option = prompt_of(question, config.form), options_of(question, config.form)[question.answer]
        firsts.append(encode_continuation(model.tokenizer, prompt, option.strip())[0])
    return torch.tensor(firsts, device=model.device)


def _require_fits(model: EditableModel, questions: Sequence[Question], rows: Sequence[Sequence[int]]) -> None:
    long = [place for place, row in enumerate(rows) if len(row) > model.context_length]
    if long:
        first = questions[long[0]]
        raise QuestionError(
            f"{len(long)} of {len(rows)} questions are longer than the {model.context_length} tokens {model.name} "
            f"reads; the first is {first.id!r} with {len(rows[long[0]])}.",
            "Leave them out, ask in the cloze form, or choose a model with a longer context.",
        )
