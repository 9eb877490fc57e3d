"""The work of an ablation: the same questions, answered under each condition.

The questions are taken a few at a time, and those are answered under every condition before the next few begin: what
the layers before an ablation compute is the same under all of them, so it is kept from the pass with nothing switched
off (:mod:`nmke.answers.early`), and the model is free for others in between.

Where a folder is given, every condition's answers are written to it as they grow, and the same work again goes on
after them: a cancel costs the few questions that were being answered. What a folder may be used for again is any
ablation of the same model, edits, questions, way of switching off and scores; the conditions may be others.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.ablation.conditions import NONE, Condition, conditions_of
from nmke.ablation.config import AblationConfig
from nmke.ablation.files import AnswerFolder
from nmke.ablation.results import AblationResults
from nmke.ablation.sets import NeuronSet
from nmke.answers import WINDOW, Answered, EarlyLayers, answer_questions, require_questions_fit
from nmke.errors import AblationError, SessionError
from nmke.held import Held
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.questions import QuestionSet, prompt_of
from nmke.session import EditSession
from nmke.sites import POST
from nmke.store import content_key
from nmke.tokens import encode, pad, pad_id
from nmke.versions import library_versions

#: Told of every answer as soon as it is there.
OnAnswered = Callable[[Condition, Answered], None]
_MEAN_BATCH = 8
_MEANS_OVER = "every token of the questions in the cloze form"


def run_ablation(
    session: EditSession,
    questions: QuestionSet,
    sets: Sequence[NeuronSet],
    config: AblationConfig | None = None,
    progress: Progress | None = None,
    on_answered: OnAnswered | None = None,
    folder: Path | None = None,
) -> AblationResults:
    """Answer the questions with nothing switched off, without each set, and without random sets beside it.

    The session's edits are in force in all conditions. Only ``how``, ``controls``, ``seed`` and ``answers`` of the
    settings matter here; the sets say what they hold.

    Args:
        on_answered: told of every answer, also of those that were kept from before; called on this thread.
        folder: keeps the answers.

    Raises:
        AblationError: no sets, a set of another model, or one too large for random controls.
        QuestionError: a question does not fit the model's context.
        SessionError: the session's edits were changed meanwhile, or the folder is of another ablation or in use.
        Cancelled: from ``progress``; the answers up to the few questions at work stay in the folder.
    """
    config, progress = config or AblationConfig(), progress or Silent()
    if not sets:
        raise AblationError("No neurons are chosen.", "Choose a role, or name neurons.")
    model = session.model
    model.require_conformance()
    # All of them before the first is answered: they are asked a few at a time.
    require_questions_fit(model, questions.questions, config.answers)
    conditions = conditions_of(model, sets, config)
    work = _Work(session, questions, conditions, config, progress, on_answered)
    if folder is None:
        return work.run(None)
    with AnswerFolder.open(folder, _spec(session, work.digest, questions, config)) as kept:
        return work.run(kept)


def dose_response(
    session: EditSession,
    questions: QuestionSet,
    sets: Sequence[NeuronSet],
    ks: Sequence[int],
    config: AblationConfig | None = None,
    progress: Progress | None = None,
    on_answered: OnAnswered | None = None,
    folder: Path | None = None,
) -> AblationResults:
    """Answer the questions without the first k neurons of each set, for every k: see :meth:`AblationResults.curve`.

    Raises:
        AblationError: a k larger than a set, and as :func:`run_ablation`.
    """
    smaller = [chosen.first(k) for k in sorted(set(ks)) for chosen in sets]
    return run_ablation(session, questions, smaller, config, progress, on_answered, folder)


def answers_key(session: EditSession, questions: QuestionSet, config: AblationConfig) -> str:
    """Equal for ablations whose answers can be kept in one folder."""
    return content_key(**_spec(session, session.digest, questions, config))


def _spec(
    session: EditSession, digest: str, questions: QuestionSet, config: AblationConfig
) -> dict[str, Any]:
    """What kept answers depend on, beside the neurons."""
    return {
        "model": session.model.weight_hash,
        "device": session.model.device,
        "dtype": session.model.dtype,
        "session": digest,
        "questions": questions.sha256,
        "how": config.how,
        "answers": config.answers.model_dump(mode="json"),
    }


@torch.no_grad()
def mean_activations(
    model: EditableModel,
    texts: Sequence[str],
    layers: Sequence[int],
    progress: Progress | None = None,
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """Every neuron's mean activation over all tokens of some texts, by whatever weights are active; float32.

    Raises:
        AblationError: no texts.
        ModelError: a layer the model does not have.
        Cancelled: from ``progress``, between batches.
    """
    progress, chosen = progress or Silent(), model.check_layers(layers)
    if not texts:
        raise AblationError("There are no texts to take mean activations over.", "Give some.")
    rows = sorted((encode(model.tokenizer, text)[: model.context_length] for text in texts), key=len)
    sums = {layer: torch.zeros(model.d_mlp, dtype=torch.float64) for layer in chosen}
    for start in range(0, len(rows), _MEAN_BATCH):
        progress.update("mean activations", start, len(rows))
        batch = pad(rows[start : start + _MEAN_BATCH], pad_id(model.tokenizer))
        kept = model.run(batch, [(POST, layer) for layer in chosen], stop_after=chosen[-1])
        real = batch.mask.bool()
        for layer in chosen:
            # The device may not have float64.
            sums[layer] += kept[(POST, layer)].float().cpu()[real].double().sum(0)
    count = sum(map(len, rows))
    return {layer: (total / count).float() for layer, total in sums.items()}


class _Work:
    def __init__(
        self,
        session: EditSession,
        questions: QuestionSet,
        conditions: Sequence[Condition],
        config: AblationConfig,
        progress: Progress,
        on_answered: OnAnswered | None,
    ) -> None:
        self.session, self.model = session, session.model
        self.questions, self.conditions, self.config = questions, tuple(conditions), config
        self.progress, self.on_answered = progress, on_answered
        self.digest = session.digest
        self.done = 0
        self.known: dict[str, list[Answered]] = {}
        self.seconds: dict[str, float] = {}
        self.means: Mapping[int, Tensor] = {}

    def run(self, kept: AnswerFolder | None) -> AblationResults:
        for condition in self.conditions:
            if condition.key not in self.known:
                found = (kept.read(condition.key) if kept else None) or []
                whole = len(found) == len(self.questions)
                self.known[condition.key] = found if whole else found[: len(found) // WINDOW * WINDOW]
            self._tell_kept(condition, self.known[condition.key])
        for start in range(0, len(self.questions), WINDOW):
            stop = min(start + WINDOW, len(self.questions))
            for condition in self._answer_window(start, stop):
                if kept is not None:
                    kept.write(condition.key, self.known[condition.key])
        answers = {condition.name: self.known[condition.key] for condition in self.conditions}
        return AblationResults(self.questions, self.conditions, answers, self.about(), self.seconds)

    def _answer_window(self, start: int, stop: int) -> Iterator[Condition]:
        """Answer some questions under every condition that lacks them; each one it is through with."""
        missing = [one for one in self.conditions if len(self.known[one.key]) < stop]
        if not missing:
            return
        early = EarlyLayers(self.model, [min(one.neurons) for one in missing if one.neurons])
        if missing[0].kind != NONE and _worth_keeping(early.begins, missing, self.model.n_layers):
            self._answer(self.conditions[0], start, stop, early, tell=False)
        for condition in missing:
            known = self.known[condition.key]
            if len(known) >= stop:  # the same neurons by another name
                self._tell_kept(condition, known[start:])
                continue
            if self.config.how == "mean" and not self.means and condition.kind != NONE:
                self.means = self._means()
            began = time.perf_counter()
            found = self._answer(condition, start, stop, early)
            took = time.perf_counter() - began
            self.seconds[condition.name] = self.seconds.get(condition.name, 0.0) + took
            self.known[condition.key] = [*known[:start], *found]
            yield condition

    def about(self) -> dict[str, Any]:
        """What results say of how they were made."""
        model = self.model
        return {
            "model": {
                "name": model.name,
                "weight_hash": model.weight_hash,
                "n_layers": model.n_layers,
                "d_mlp": model.d_mlp,
                "device": model.device,
                "dtype": model.dtype,
            },
            "session": {"digest": self.digest, "edits": self.session.version},
            "config": self.config.model_dump(mode="json"),
            "means": _MEANS_OVER if self.config.how == "mean" else None,
            "versions": library_versions(),
        }

    def _means(self) -> Mapping[int, Tensor]:
        layers = sorted({layer for condition in self.conditions for layer in condition.neurons})
        texts = [prompt_of(question, "cloze") for question in self.questions.questions]
        with self.session.active():
            return mean_activations(self.model, texts, layers, self.progress)

    def _answer(
        self, condition: Condition, start: int, stop: int, early: EarlyLayers, tell: bool = True
    ) -> list[Answered]:
        held: dict[int, Held] = {
            layer: (neurons, self.means[layer][list(neurons)] if self.means else 0.0)
            for layer, neurons in condition.neurons.items()
        }
        begin = early.beginning_at(min(held)) if held else nullcontext()
        with self.session.active(), self.model.holding(held), begin:
            if self.session.digest != self.digest:
                raise SessionError(
                    "The edits were changed while the questions were being answered.",
                    "Start the ablation again with the edits as they are now.",
                )
            return answer_questions(
                self.model,
                self.questions.questions[start:stop],
                self.config.answers,
                _Whole(self, condition),
                (lambda answered: self._tell(condition, answered)) if tell else None,
                early=early,
            )

    def _tell(self, condition: Condition, answered: Answered) -> None:
        self.done += 1
        if self.on_answered is not None:
            self.on_answered(condition, answered)

    def _tell_kept(self, condition: Condition, found: Sequence[Answered]) -> None:
        for answered in found:
            self._tell(condition, answered)
        if found:
            _Whole(self, condition).update("", 0, None)


def _worth_keeping(begins: Sequence[int], missing: Sequence[Condition], n_layers: int) -> bool:
    """Whether a pass with nothing switched off, whose answers are there, costs less than it saves the others."""
    saved = sum(min(one.neurons) for one in missing if one.neurons and min(one.neurons) in begins)
    return saved > n_layers


class _Whole(Progress):
    """Progress over all conditions in place of that of one, so that the time left is that of everything."""

    def __init__(self, work: _Work, condition: Condition) -> None:
        self._work, self._name = work, condition.name

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        work = self._work
        whole = len(work.conditions) * len(work.questions)
        work.progress.update("answering the questions", work.done, whole, f"switched off: {self._name}")
