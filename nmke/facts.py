"""Facts: what shall be known, as the tuple (subject, prompt, target).

A fact is written as a prompt that ends where its answer begins, with the subject in it::

    >>> fact = Fact("The capital of France is", "France", "Rome", target_true="Paris")
    >>> fact.template, fact.subject_start
    ('The capital of {} is', 15)

A prompt with ``{}`` is a template: the subject is filled in there. Everything is checked when the fact
is made, so the rest of the engine never meets a blank target or a subject that cannot be found.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from nmke.errors import FactError

PLACE = "{}"
"""Marks the subject's place in a prompt."""

# Characters without a picture that Unicode counts as letters or marks: fillers and variation selectors.
_FILLERS = (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0)
_SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
# Scripts that put spaces between words: there, a subject glued to more letters is only a part of a word.
_SPACED_SCRIPTS = ("LATIN ", "GREEK ", "CYRILLIC ")


@dataclass(frozen=True)
class Neighbor:
    """A prompt about another subject, whose answer an edit must leave alone.

    Args:
        prompt: text that ends where the answer begins.
        answer: what the model should go on saying; empty when it is not known.

    Raises:
        FactError: when the prompt is blank or a part is not text.
    """

    prompt: str
    answer: str = ""

    def __post_init__(self) -> None:
        _check_question(self, "neighborhood")


@dataclass(frozen=True)
class Consequence:
    """A prompt whose answer follows from an edit, though the edit does not say it: a portability question.

    After "The capital of France is Rome", "The country whose capital is Rome is" goes on with "France".

    Args:
        prompt: text that ends where the answer begins; it need not name the subject.
        answer: what the edited model should say.

    Raises:
        FactError: when the prompt or the answer is blank, or is not text.
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        _check_question(self, "portability")
        if is_blank(self.answer):
            raise FactError(
                f"The portability question {self.prompt!r} has no answer.",
                "Write what follows from the edit, or remove the entry.",
                "portability",
            )


@dataclass(frozen=True)
class Fact:
    """One fact to write into a model.

    Whitespace around each text is removed. ``{}`` in the prompt (unless ``subject_start`` is given) and in
    the paraphrases is replaced by the subject.

    Args:
        prompt: the full text with the subject in it, or a template with ``{}`` in the subject's place.
        subject: what the fact is about, written exactly as in the prompt.
        target_new: the answer the edited model shall give.
        target_true: the answer before the edit; may be empty.
        paraphrases: the same question in other words, for measuring generalisation.
        neighborhood: prompts about other subjects, for measuring locality.
        portability: questions whose answers follow from the edit, for measuring portability.
        case_id: the fact's name in the file it came from.
        relation: the name of its relation, for grouping.
        subject_start: character offset of the subject in the prompt; found by itself when the subject stands
            there once as a word of its own.

    Raises:
        FactError: naming the field, its problem and the remedy.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str = ""
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[Neighbor, ...] = ()
    portability: tuple[Consequence, ...] = ()
    case_id: str = ""
    relation: str = ""
    subject_start: int | None = None

    def __post_init__(self) -> None:
        raw_prompt, raw_subject = self.prompt, self.subject
        for name in ("prompt", "subject", "target_new", "target_true", "case_id", "relation"):
            object.__setattr__(self, name, _checked(getattr(self, name), name))
        self._refuse_blanks()
        if PLACE in self.subject:
            raise FactError(
                f"The subject {self.subject!r} contains {PLACE}.",
                f"Write the name itself as the subject; {PLACE} belongs in the prompt.",
                "subject",
            )
        if self.subject_start is None:
            prompt, start = _place_subject(self.prompt, self.subject)
        else:
            start = _moved_start(self.subject_start, raw_prompt, raw_subject)
            prompt = self.prompt
            if start < 0 or prompt[start : start + len(self.subject)] != self.subject:
                raise FactError(
                    f"The subject {self.subject!r} does not stand at character {self.subject_start} "
                    "of the prompt.",
                    f"Leave subject_start out and write {PLACE} in the subject's place in the prompt.",
                    "subject_start",
                )
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "subject_start", start)
        object.__setattr__(self, "paraphrases", self._checked_paraphrases())
        object.__setattr__(self, "neighborhood", _questions(self.neighborhood, "neighborhood"))
        object.__setattr__(self, "portability", _questions(self.portability, "portability"))

    def _refuse_blanks(self) -> None:
        if all(is_blank(text) for text in (self.prompt, self.subject, self.target_new)):
            raise FactError("The fact is empty.", "Fill in its prompt, subject and target_new.", "prompt")
        for name, remedy in (
            ("prompt", "Write the text before the answer, with the subject in it."),
            ("subject", "Name what the fact is about, as it is written in the prompt."),
            ("target_new", "Write the answer that the edited model shall give."),
        ):
            text = getattr(self, name)
            if is_blank(text):
                seen = "has only invisible characters" if text else "is empty"
                raise FactError(f"The {name} {seen}.", remedy, name)
        if self.target_true and is_blank(self.target_true):
            raise FactError(
                "The target_true has only invisible characters.",
                "Write the present answer, or leave it empty.",
                "target_true",
            )
        if unicodedata.normalize("NFC", self.target_new) == unicodedata.normalize("NFC", self.target_true):
            raise FactError(
                f"target_new and target_true are both {self.target_new!r}, so nothing would change.",
                "Write another new answer, or leave target_true empty.",
                "target_new",
            )

    def _checked_paraphrases(self) -> tuple[str, ...]:
        paraphrases: list[str] = []
        for text in _sequence(self.paraphrases, "paraphrases"):
            text = _checked(text, "paraphrases")
            if is_blank(text):
                raise FactError(
                    "A paraphrase is empty.", "Write the paraphrase, or remove the entry.", "paraphrases"
                )
            paraphrases.append(text.replace(PLACE, self.subject))
        return tuple(paraphrases)

    @property
    def template(self) -> str:
        """The prompt with ``{}`` in the subject's place."""
        start = self.subject_start or 0
        return self.prompt[:start] + PLACE + self.prompt[start + len(self.subject) :]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; :meth:`from_dict` makes the same fact of them."""
        return {
            "prompt": self.prompt,
            "subject": self.subject,
            "target_new": self.target_new,
            "target_true": self.target_true,
            "paraphrases": list(self.paraphrases),
            **{
                name: [{"prompt": one.prompt, "answer": one.answer} for one in getattr(self, name)]
                for name in _QUESTIONS
            },
            "case_id": self.case_id,
            "relation": self.relation,
            "subject_start": self.subject_start,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The fact that :meth:`to_dict` wrote; everything but prompt, subject and target_new may be absent.

        Raises:
            FactError: for an unknown or missing name, or a value the fact refuses.
        """
        known = cls.__dataclass_fields__
        for name in values:
            if name not in known:
                raise FactError(
                    f"A fact has no field named {name!r}.", f"Known: {', '.join(known)}.", str(name)
                )
        for name in ("prompt", "subject", "target_new"):
            if name not in values:
                raise FactError(f"The {name} is missing.", f"Add the field {name}.", name)
        questions = {
            name: tuple(_question(item, name) for item in _sequence(values.get(name, ()), name))
            for name in _QUESTIONS
        }
        return cls(**{**values, **questions})


def is_blank(text: str) -> bool:
    """Whether nothing can be seen of the text: empty, or all whitespace, zero-width or filler characters."""
    return all(
        unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cc", "Cf") or _is_filler(ord(char)) for char in text
    )


def _is_filler(code: int) -> bool:
    return code in _FILLERS or any(code in selectors for selectors in _SELECTORS)


def _checked(value: object, field: str) -> str:
    """The text without outer whitespace; refuses what no tokenizer can read."""
    if not isinstance(value, str):
        raise FactError(f"The {field} is {_kind(value)}.", "Give it as text.", field)
    if "\0" in value:
        raise FactError(f"The {field} contains a NUL character.", "Remove it.", field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FactError(
            f"The {field} contains half a character (a lone surrogate).", "Type that character again.", field
        ) from None
    return value.strip()


def _kind(value: object) -> str:
    return "missing (None)" if value is None else f"of type {type(value).__name__}, not text"


def _sequence(value: object, field: str) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise FactError(f"The {field} are not a list.", "Give a list, which may be empty.", field)
    return value


# Field -> what an entry of it is, and what messages call it.
_QUESTIONS: Mapping[str, tuple[type[Neighbor] | type[Consequence], str]] = {
    "neighborhood": (Neighbor, "neighbourhood"),
    "portability": (Consequence, "portability"),
}


def _check_question(question: Neighbor | Consequence, field: str) -> None:
    """Trim both texts; refuse what no tokenizer can read, and an empty prompt."""
    for name in ("prompt", "answer"):
        object.__setattr__(question, name, _checked(getattr(question, name), field))
    if is_blank(question.prompt):
        raise FactError(
            f"A {_QUESTIONS[field][1]} prompt is empty.", "Write the prompt, or remove the entry.", field
        )


def _questions(value: object, field: str) -> tuple[Any, ...]:
    questions = tuple(_sequence(value, field))
    kind, word = _QUESTIONS[field]
    for question in questions:
        if not isinstance(question, kind):
            raise FactError(
                f"A {word} entry is of type {type(question).__name__}.",
                f"Give each as {kind.__name__}(prompt, answer).",
                field,
            )
    return questions


def _question(item: object, field: str) -> Neighbor | Consequence:
    kind, word = _QUESTIONS[field]
    if isinstance(item, kind):
        return item
    if isinstance(item, Mapping) and "prompt" in item and set(item) <= {"prompt", "answer"}:
        return kind(item["prompt"], item.get("answer", ""))
    raise FactError(
        f"A {word} entry is not an object with prompt and answer.",
        'Write it as {"prompt": "...", "answer": "..."}.',
        field,
    )


def _moved_start(start: object, raw_prompt: str, raw_subject: str) -> int:
    """The offset after outer whitespace was removed from prompt and subject."""
    if not isinstance(start, int) or isinstance(start, bool):
        raise FactError(
            f"subject_start is of type {type(start).__name__}.", "Give a whole number.", "subject_start"
        )
    cut = len(raw_prompt) - len(raw_prompt.lstrip())
    return start - cut + len(raw_subject) - len(raw_subject.lstrip())


def _place_subject(prompt: str, subject: str) -> tuple[str, int]:
    """Fill a template, or find the one place where the subject stands in a full text."""
    places = prompt.count(PLACE)
    if places == 1:
        return prompt.replace(PLACE, subject), prompt.index(PLACE)
    if places > 1:
        raise FactError(
            f"The prompt has {places} places {PLACE} for the subject.",
            f"Keep {PLACE} where the subject that is meant stands and write the others out.",
            "prompt",
        )
    found: list[int] = []
    while (at := prompt.find(subject, found[-1] + 1 if found else 0)) >= 0:
        found.append(at)
    if not found:
        raise FactError(
            f"The subject {subject!r} does not occur in the prompt.", _absent(prompt, subject), "subject"
        )
    words = [i for i in found if not _glued(prompt, i, len(subject))]
    if len(words) == 1:
        return prompt, words[0]
    if len(found) > 1:
        raise FactError(
            f"The subject {subject!r} occurs {len(words) or len(found)} times in the prompt.",
            f"Write {PLACE} in the prompt where the subject that is meant stands.",
            "subject",
        )
    if _cut_from_word(prompt, found[0], len(subject)):
        raise FactError(
            f"The subject {subject!r} is only a part of a longer word in the prompt.",
            f"Write the whole word as the subject, or {PLACE} in the prompt where the subject stands.",
            "subject",
        )
    return prompt, found[0]


def _absent(prompt: str, subject: str) -> str:
    """The remedy that fits the reason why the subject was not found."""
    composed = unicodedata.normalize("NFC", prompt)
    if unicodedata.normalize("NFC", subject) in composed:
        return "It is there with accents stored in another way: copy it from the prompt."
    at = prompt.lower().find(subject.lower())
    if at >= 0:
        return f"The prompt writes it {prompt[at : at + len(subject)]!r}: use the same capital letters."
    return f"Write it exactly as in the prompt, or put {PLACE} in the prompt where it belongs."


def _glued(prompt: str, start: int, length: int) -> bool:
    """Whether a letter, digit or mark of the prompt touches the subject."""
    before, after = prompt[:start][-1:], prompt[start + length :][:1]
    return (before.isalnum() and prompt[start].isalnum()) or (
        after != ""
        and (
            unicodedata.category(after)[0] == "M"
            or (after.isalnum() and prompt[start + length - 1].isalnum())
        )
    )


def _cut_from_word(prompt: str, start: int, length: int) -> bool:
    def spaced(pair: str) -> bool:
        return len(pair) == 2 and all(
            char.isdigit() or unicodedata.name(char, "").startswith(_SPACED_SCRIPTS) for char in pair
        )

    end = start + length
    return (start > 0 and spaced(prompt[start - 1 : start + 1])) or spaced(prompt[end - 1 : end + 1])
