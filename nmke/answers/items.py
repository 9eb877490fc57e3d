"""What a model answered to one question, by every score, and the settings of asking."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator

from nmke.config import Config

Score = Literal["letters", "cloze", "written", "loss"]
SCORES: tuple[Score, ...] = get_args(Score)

#: Score name -> how it is computed, in words a reader of the field understands.
FORMULAS: Mapping[str, str] = {
    "letters": 'the choice whose letter has the largest log P(" A"), log P(" B")... after lm-evaluation-harness\' '
    "zero-shot MMLU prompt (its acc)",
    "cloze": 'the choice with the largest log P(" " + its text) after "Question: ... Answer:", divided by its number '
    "of characters (lm-evaluation-harness' acc_norm); the choices are not shown",
    "written": "the choice named by the greedy answer to the question with its lettered choices (a chat message where "
    "the tokenizer has a chat template, else the letters prompt): its first line with an answer begins with a letter "
    "that stands by itself, or with a choice's text, or holds one choice's text and no other; where none is "
    "recognised the answer is wrong, so this can fall below chance",
    "loss": "mean negative log-likelihood per token, in nats, of the right choice's text after \"Question: ... "
    'Answer:"; lower is better',
    "text_loss": 'mean negative log-likelihood per token, in nats, of the question\'s own text after "Question:"; '
    "lower is better; a question without a token of its own, because it is one with the line break, has none",
}


class AnswersConfig(Config):
    """Which scores are taken, and how."""

    scores: tuple[Score, ...] = Field(
        default=SCORES,
        title="Scores",
        description="letters: the likeliest letter; cloze: the likeliest choice's text; written: what the model "
        "writes; loss: nats per token of the right choice and of the question's text.",
    )
    written_tokens: int = Field(
        default=20,
        ge=1,
        le=256,
        title="Tokens written",
        description="How many tokens the model writes in answer to each question, for the written score.",
    )
    written_prompt: Literal["chat", "letters"] = Field(
        default="chat",
        title="Prompt of the written answer",
        description="chat: the question as a message, in the model's own chat template (the letters prompt where it "
        "has none); letters: always the letters prompt.",
    )
    batch_tokens: int = Field(
        default=1024,
        ge=1,
        le=65536,
        title="Tokens read at once",
        description="How many tokens go through the model together. More is faster on a GPU and needs more memory.",
    )

    @field_validator("scores")
    @classmethod
    def _in_order(cls, scores: tuple[Score, ...]) -> tuple[Score, ...]:
        if not scores:
            raise ValueError(f"choose at least one of {', '.join(SCORES)}")
        return tuple(score for score in SCORES if score in scores)

    @property
    def clozed(self) -> bool:
        """Whether the prompt without the choices is read."""
        return "cloze" in self.scores or "loss" in self.scores


@dataclass(frozen=True)
class Answered:
    """One question as the model answered it. What was not asked for is None or empty.

    Attributes:
        question, subject, answer: of the question: its id, its subject, the right choice's index.
        choices: how many choices it has.
        letters, cloze: index of the choice with the best score; of equal ones the first.
        letters_logp: log P of each letter after the letters prompt, in nats.
        cloze_logp: log P of each choice's whole text after the cloze prompt, in nats.
        cloze_score: ``cloze_logp`` divided by the choice's number of characters.
        written: what the model writes in answer; None when it was not asked to.
        written_choice: the choice recognised in it; None for none, which counts as wrong.
        loss: nats per token of the right choice's text.
        text_loss: nats per token of the question's own text; None also where no token is its own.
    """

    question: str
    subject: str
    answer: int
    choices: int
    letters: int | None = None
    letters_logp: tuple[float, ...] = ()
    cloze: int | None = None
    cloze_logp: tuple[float, ...] = ()
    cloze_score: tuple[float, ...] = ()
    written: str | None = None
    written_choice: int | None = None
    loss: float | None = None
    text_loss: float | None = None

    def chosen(self, score: str) -> int | None:
        """The index chosen by letters, cloze or written; None where none was."""
        return {"letters": self.letters, "cloze": self.cloze, "written": self.written_choice}[score]

    def right(self, score: str) -> bool | None:
        """Whether letters, cloze or written is right; None where it was not asked for, and for the losses."""
        if score in ("loss", "text_loss") or (score == "written" and self.written is None):
            return None
        chosen = self.chosen(score)
        return None if chosen is None and score != "written" else chosen == self.answer

    def value(self, score: str) -> float | None:
        """What is averaged over questions: 1 or 0 for right and wrong, nats for a loss; None where not asked for."""
        if score in ("loss", "text_loss"):
            found: float | None = getattr(self, score)
            return found
        right = self.right(score)
        return None if right is None else float(right)

    def to_row(self) -> dict[str, Any]:
        """Plain values for a table; the log-probabilities of all choices are JSON texts."""
        row = asdict(self)
        return {name: json.dumps(value) if isinstance(value, tuple) else value for name, value in row.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Back from :meth:`to_row`, also after a table turned None into NaN and counts into floats."""
        values = {name: _plain(row.get(name)) for name in cls.__dataclass_fields__}
        for name in ("letters_logp", "cloze_logp", "cloze_score"):
            value = values[name]
            values[name] = tuple(json.loads(value) if isinstance(value, str) else (value or ()))
        for name in ("answer", "choices", "letters", "cloze", "written_choice"):
            values[name] = None if values[name] is None else int(values[name])
        return cls(**values)


def _plain(value: Any) -> Any:
    # NaN is the one value that differs from itself.
    return None if isinstance(value, float) and value != value else value
