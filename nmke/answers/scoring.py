"""Asking questions: every score of each, in batches, in the order of the questions.

Questions are taken a few at a time, so that the first answers are there early. Within these, prompts of similar
length are read together; each is read once a form, and its options and written answer go on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.answers.early import EarlyLayers
from nmke.answers.items import Answered, AnswersConfig
from nmke.answers.reading import (
    Reading,
    group_by_length,
    join,
    log_probabilities,
    nats_of_all,
    read_prompts,
    shared_length,
    write_greedily,
)
from nmke.answers.written import recognise
from nmke.errors import QuestionError
from nmke.model import EditableModel
from nmke.past import Past
from nmke.progress import Progress, Silent
from nmke.questions.items import Question
from nmke.questions.prompts import CLOZE_START, Form, message_of, options_of, prompt_of
from nmke.tokens import encode, encode_continuation

#: Questions that are answered together, before the next ones begin.
WINDOW = 24

#: Prompts that were read: their places in the window, the logits after them, their keys and values. Several such
#: groups stand in one list, each of its own length.
_Begun = tuple[list[int], Float[Tensor, "_ d_vocab"], Past]


def answer_questions(
    model: EditableModel,
    questions: Sequence[Question],
    config: AnswersConfig | None = None,
    progress: Progress | None = None,
    on_answered: Callable[[Answered], None] | None = None,
    stage: str = "answering questions",
    early: EarlyLayers | None = None,
) -> list[Answered]:
    """Every score of each question, by whatever weights, modules and ablation are active.

    Args:
        on_answered: told each answer as soon as it is whole, in order.
        stage: the progress stage's name.
        early: what the early layers computed for the same questions and settings before, or where to keep it.

    Raises:
        QuestionError: a question does not fit the model's context.
        Cancelled: from ``progress``, between batches; answers that were told stay told.
    """
    config, progress = config or AnswersConfig(), progress or Silent()
    require_questions_fit(model, questions, config)
    done: list[Answered] = []
    with model.lock:  # what is active now stays so for all questions
        for start in range(0, len(questions), WINDOW):
            window = questions[start : start + WINDOW]
            clock = _Clock(progress, stage, start, len(window), len(questions), early)
            for answered in _answer_window(model, window, config, clock):
                done.append(answered)
                if on_answered is not None:
                    on_answered(answered)
    progress.update(stage, len(questions), len(questions))
    return done


def too_long(
    model: EditableModel, questions: Sequence[Question], config: AnswersConfig | None = None
) -> tuple[str, ...]:
    """Names of the questions whose prompt and options do not fit the model's context."""
    config = config or AnswersConfig()
    return tuple(
        question.id for question, need in _needs(model, questions, config) if need > model.context_length
    )


@dataclass(frozen=True)
class _Asked:
    """One question in one form, as tokens."""

    prompt: list[int]
    options: list[list[int]]

    @classmethod
    def of(cls, model: EditableModel, question: Question, form: Form) -> "_Asked":
        prompt = prompt_of(question, form)
        ids = encode(model.tokenizer, prompt)
        options = [
            encode_continuation(model.tokenizer, prompt, option[1:]) for option in options_of(question, form)
        ]
        return cls(ids, options)


@dataclass
class _Clock:
    """Tells the progress of one window and lets the user cancel; holds the window's early layers."""

    progress: Progress
    stage: str
    start: int
    size: int
    total: int
    early: EarlyLayers | None = None
    note: str = ""

    def tick(self) -> None:
        self.progress.update(self.stage, self.start, self.total, self.note)


def _answer_window(
    model: EditableModel, questions: Sequence[Question], config: AnswersConfig, clock: _Clock
) -> list[Answered]:
    answers = [
        Answered(question.id, question.subject, question.answer, len(question.choices))
        for question in questions
    ]
    if "letters" in config.scores:
        answers = _by_letters(model, questions, answers, config, clock)
    if "written" in config.scores:
        answers = _by_writing(model, questions, answers, config, clock)
    if config.clozed:
        answers = _by_cloze(model, questions, answers, config, clock)
    return answers


def _by_letters(
    model: EditableModel,
    questions: Sequence[Question],
    answers: Sequence[Answered],
    config: AnswersConfig,
    clock: _Clock,
) -> list[Answered]:
    found = list(answers)
    asked = [_Asked.of(model, question, "letters") for question in questions]
    clock.note = "letters"
    for group in group_by_length([len(one.prompt) for one in asked], config.batch_tokens):
        clock.tick()
        reading = read_prompts(model, [asked[index].prompt for index in group], early=clock.early)
        options = [asked[index].options for index in group]
        logp = log_probabilities(model, reading, options, config.batch_tokens, clock.tick, clock.early)
        for index, own in zip(group, logp, strict=True):
            found[index] = replace(found[index], letters=_best(own), letters_logp=tuple(own))
    return found


def _by_writing(
    model: EditableModel,
    questions: Sequence[Question],
    answers: Sequence[Answered],
    config: AnswersConfig,
    clock: _Clock,
) -> list[Answered]:
    found = list(answers)
    prompts = [ids_to_write_after(model, question, config) for question in questions]
    clock.note = "written answers"
    readings: list[_Begun] = []
    for group in group_by_length(list(map(len, prompts)), config.batch_tokens):
        clock.tick()
        reading = read_prompts(model, [prompts[index] for index in group], early=clock.early)
        readings.append((group, reading.next, reading.past))
    for index, text in _texts(model, readings, config, clock).items():
        choice = recognise(text, questions[index].choices)
        found[index] = replace(found[index], written=text, written_choice=choice)
    return found


def ids_to_write_after(model: EditableModel, question: Question, config: AnswersConfig) -> list[int]:
    """The prompt of the written answer: as a chat's message where the tokenizer has a template for it."""
    tokenizer = model.tokenizer
    if config.written_prompt == "letters" or not getattr(tokenizer, "chat_template", None):
        return encode(tokenizer, prompt_of(question, "letters"))
    messages = [{"role": "user", "content": message_of(question)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template writes the tokens that begin a text itself.
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _texts(
    model: EditableModel, readings: Sequence[_Begun], config: AnswersConfig, clock: _Clock
) -> dict[int, str]:
    """What the model writes after each prompt; all of a window together where their pasts can be joined."""
    joined = join([past for _, _, past in readings])
    if joined is None:
        parts = [(group, following, past.copy()) for group, following, past in readings]
    else:
        everyone = [index for group, _, _ in readings for index in group]
        parts = [(everyone, torch.cat([following for _, following, _ in readings]), joined)]
    texts: dict[int, str] = {}
    for group, following, past in parts:
        rows = write_greedily(model, following, past, config.written_tokens, clock.tick, clock.early)
        decoded = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts.update(zip(group, decoded, strict=True))
    return texts


def _by_cloze(
    model: EditableModel,
    questions: Sequence[Question],
    answers: Sequence[Answered],
    config: AnswersConfig,
    clock: _Clock,
) -> list[Answered]:
    asked = [_Asked.of(model, question, "cloze") for question in questions]
    found = list(answers)
    clock.note = "cloze and loss"
    for group in group_by_length([len(one.prompt) for one in asked], config.batch_tokens):
        clock.tick()
        reading = read_prompts(model, [asked[index].prompt for index in group], True, clock.early)
        # Without the cloze score only the right choice needs to be read.
        wanted = [
            asked[index].options
            if "cloze" in config.scores
            else [asked[index].options[questions[index].answer]]
            for index in group
        ]
        logp = log_probabilities(model, reading, wanted, config.batch_tokens, clock.tick, clock.early)
        losses: list[float | None] = [None] * len(group)
        if "loss" in config.scores:
            losses = _text_losses(
                model, reading, [asked[i].prompt for i in group], [questions[i] for i in group]
            )
        for row, index in enumerate(group):
            question, one = questions[index], asked[index]
            if "cloze" in config.scores:
                scores = tuple(
                    per_character(p, choice) for p, choice in zip(logp[row], question.choices, strict=True)
                )
                found[index] = replace(
                    found[index], cloze=_best(scores), cloze_logp=tuple(logp[row]), cloze_score=scores
                )
            if "loss" in config.scores:
                right = logp[row][question.answer if "cloze" in config.scores else 0]
                found[index] = replace(
                    found[index],
                    loss=-right / len(one.options[question.answer]),
                    text_loss=losses[row],
                )
    return found


def per_character(log_p: float, choice: str) -> float:
    """lm-evaluation-harness' normalisation of acc_norm: by the characters of the choice, without its space."""
    return log_p / len(choice.strip())


def _text_losses(
    model: EditableModel, reading: Reading, rows: Sequence[Sequence[int]], questions: Sequence[Question]
) -> list[float | None]:
    """Nats per token of each question's own text, read behind "Question:".

    Tokens that hold a part of "Question:" or of the line break behind the text are not the text's own. None where
    that leaves no token at all: such a question has no loss of its text, and means go over the others.
    """
    finals, own = [], []
    start = encode(model.tokenizer, CLOZE_START)
    for row, (ids, question) in enumerate(zip(rows, questions, strict=True)):
        first = max(shared_length(ids, start), 1)  # nothing is before the first token that could foretell it
        last = shared_length(ids, encode(model.tokenizer, f"{CLOZE_START} {question.text.strip()}"))
        last = max(first, last)
        finals.append(reading.final[row, -len(ids) :][first - 1 : last - 1])
        own.append(list(ids[first:last]))
    return [sum(nats) / len(nats) if nats else None for nats in nats_of_all(model, finals, own)]


def _best(scores: Sequence[float]) -> int:
    """The index of the largest; of equal ones the first, as the harness' argmax."""
    return max(range(len(scores)), key=lambda index: scores[index])


def _needs(
    model: EditableModel, questions: Sequence[Question], config: AnswersConfig
) -> list[tuple[Question, int]]:
    """How many tokens each question needs with its longest option; an upper bound where that is enough to tell."""
    forms: list[tuple[Form, bool]] = [("letters", "letters" in config.scores), ("cloze", config.clozed)]
    found = []
    for question in questions:
        need = len(ids_to_write_after(model, question, config)) + 1 if "written" in config.scores else 0
        for form in [form for form, wanted in forms if wanted]:
            longest = max(options_of(question, form), key=len)
            most = len((prompt_of(question, form) + longest).encode()) + 2  # a token has a byte or more
            if most > model.context_length:
                asked = _Asked.of(model, question, form)
                most = len(asked.prompt) + max(map(len, asked.options))
            need = max(need, most)
        found.append((question, need))
    return found


def require_questions_fit(model: EditableModel, questions: Sequence[Question], config: AnswersConfig) -> None:
    """Refuse questions whose prompt and options the model cannot read at once.

    Raises:
        QuestionError: naming the first one.
    """
    long = [
        (question, need) for question, need in _needs(model, questions, config) if need > model.context_length
    ]
    if long:
        question, need = long[0]
        others = f", and {len(long) - 1} more do not fit" if len(long) > 1 else ""
        raise QuestionError(
            f"The question {question.id} needs {need} tokens and {model.name} reads at most "
            f"{model.context_length}{others}.",
            "Leave such questions out, or choose a model with a longer context.",
            "text",
        )
