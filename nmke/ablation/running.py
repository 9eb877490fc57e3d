"""The work of an ablation: the same questions, answered under each condition.

Where a folder is given, each finished condition is written to it at once, and the same work again reads it instead of
answering again: a cancel costs the condition that was being answered. What a folder may be used for again is any
ablation of the same model, edits, questions, way of switching off and scores; the conditions may be others.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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
from nmke.answers import Answered, answer_questions
from nmke.errors import AblationError, SessionError
from nmke.model import POST, EditableModel, Held
from nmke.progress import Progress, Silent
from nmke.questions import QuestionSet, prompt_of
from nmke.session import EditSession
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
        folder: keeps finished conditions.

    Raises:
        AblationError: no sets, a set of another model, or one too large for random controls.
        SessionError: the session's edits were changed meanwhile, or the folder is of another ablation or in use.
        Cancelled: from ``progress``; finished conditions stay in the folder, the one at work is answered anew.
    """
    config, progress = config or AblationConfig(), progress or Silent()
    if not sets:
        raise AblationError("No neurons are chosen.", "Choose a role, or name neurons.")
    model = session.model
    model.require_conformance()
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

    def run(self, kept: AnswerFolder | None) -> AblationResults:
        answers: dict[str, list[Answered]] = {}
        seconds: dict[str, float] = {}
        known: dict[str, list[Answered]] = {}
        means: Mapping[int, Tensor] = {}
        for condition in self.conditions:
            found = known.get(condition.key) or (kept.read(condition.key) if kept else None)
            if found is not None:
                self._tell_kept(condition, found)
            else:
                if self.config.how == "mean" and not means and condition.kind != NONE:
                    means = self._means()
                started = time.perf_counter()
                found = self._answer(condition, means)
                seconds[condition.name] = time.perf_counter() - started
                if kept is not None:
                    kept.write(condition.key, found)
            answers[condition.name] = known[condition.key] = found
        return AblationResults(self.questions, self.conditions, answers, self.about(), seconds)

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

    def _answer(self, condition: Condition, means: Mapping[int, Tensor]) -> list[Answered]:
        held: dict[int, Held] = {
            layer: (neurons, means[layer][list(neurons)] if means else 0.0)
            for layer, neurons in condition.neurons.items()
        }
        with self.session.active(), self.model.holding(held):
            if self.session.digest != self.digest:
                raise SessionError(
                    "The edits were changed while the questions were being answered.",
                    "Start the ablation again with the edits as they are now.",
                )
            found = answer_questions(
                self.model,
                self.questions.questions,
                self.config.answers,
                _Whole(self, condition),
                lambda answered: self._tell(condition, answered),
            )
        return found

    def _tell(self, condition: Condition, answered: Answered) -> None:
        self.done += 1
        if self.on_answered is not None:
            self.on_answered(condition, answered)

    def _tell_kept(self, condition: Condition, found: Sequence[Answered]) -> None:
        for answered in found:
            self._tell(condition, answered)
        _Whole(self, condition).update("", 0, None)


class _Whole(Progress):
    """Progress over all conditions in place of that of one, so that the time left is that of everything."""

    def __init__(self, work: _Work, condition: Condition) -> None:
        self._work, self._name = work, condition.name

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        work = self._work
        whole = len(work.conditions) * len(work.questions)
        work.progress.update("answering the questions", work.done, whole, f"switched off: {self._name}")
