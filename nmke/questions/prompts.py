"""How a question is put to a model, in two forms.

*Letters*: MMLU's own form, to the letter lm-evaluation-harness' zero-shot prompt: a line that names the subject, the
question, the lettered choices, "Answer:"; the model goes on with a letter.

*Cloze*: "Question: ... Answer:" on two lines without the choices, and the model goes on with a choice's text, as in
lm-evaluation-harness' ARC tasks. Small models that cannot yet read letters show here what they know.
"""

from typing import Literal

from nmke.questions.items import LETTERS, Question

Form = Literal["letters", "cloze"]

#: What stands before the question in the cloze form.
CLOZE_START = "Question:"


def prompt_of(question: Question, form: Form) -> str:
    """The text before the answer; it ends with "Answer:"."""
    if form == "cloze":
        return f"{CLOZE_START} {question.text.strip()}\nAnswer:"
    about = question.subject.replace("_", " ")
    return (
        f"The following are multiple choice questions (with answers) about {about}.\n\n"
        f"{message_of(question)}\nAnswer:"
    )


def message_of(question: Question) -> str:
    """The question and its lettered choices alone, as one would send them to a chat model."""
    # The harness strips the question and leaves the choices as they are; so does this.
    lettered = (f"{a}. {choice}" for a, choice in zip(LETTERS, question.choices, strict=False))
    return "\n".join([question.text.strip(), *lettered])


def options_of(question: Question, form: Form) -> tuple[str, ...]:
    """What may follow the prompt, each with the space in front of it; in the order of the choices."""
    if form == "letters":
        return tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])
    return tuple(f" {choice.strip()}" for choice in question.choices)
