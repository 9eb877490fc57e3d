"""Which choice a written answer names, by an explicit rule."""

import re
from collections.abc import Sequence

from nmke.questions.items import LETTERS

_LEAD = re.compile(
    r"(?:so,? |thus,? |therefore,? )?(?:the )?(?:correct |right |best )?(?:answer|choice|option)\b(?: is\b)?[\s:]*",
    re.IGNORECASE,
)


def recognise(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a text names, or None.

    "The answer is", "Answer:" and the like in front are passed over, and the first line with more words than that is
    read. In this order:

    1. It begins with one of the choices' letters in capitals, bare or in brackets, and then ends, or goes on with one
       of ``. ) : , ]``, or with that very choice's text. ("A cell" is not the letter A.) Where the next line begins
       with another letter, the model lists the choices and has not answered: None.
    2. It begins with a choice's text, as whole words; of several the longest.
    3. It holds the text of one choice, as whole words, and of no other; a text inside a longer one that was found
       does not count.

    Case and spaces in choices' texts do not matter, nor does their full stop at the end.
    """
    lines = [_without_lead(line.strip()) for line in text.splitlines()]
    lines = [line for line in lines if re.search(r"\w", line)]
    if not lines:
        return None
    letter = _letter(lines[0], choices)
    if letter is not None:
        following = _letter(lines[1], choices) if len(lines) > 1 else None
        return letter if following in (None, letter) else None
    said, known = _normal(lines[0]), [_normal(choice) for choice in choices]
    begins = [index for index, choice in enumerate(known) if _begins(said, choice)]
    if begins:
        return max(begins, key=lambda index: len(known[index]))
    found = [index for index, choice in enumerate(known) if _holds(said, choice)]
    outer = [
        index
        for index in found
        if not any(other != index and _inside(said, known[index], known[other]) for other in found)
    ]
    return outer[0] if len(outer) == 1 else None


def _without_lead(line: str) -> str:
    match = _LEAD.match(line)
    return line[match.end() :] if match else line


def _letter(line: str, choices: Sequence[str]) -> int | None:
    match = re.match(r"[(\[\"'*]*([A-Z])(?![\w'’-])[\"'*]*", line)
    if not match or match[1] not in LETTERS[: len(choices)]:
        return None
    index, rest = LETTERS.index(match[1]), line[match.end() :]
    if not rest.strip() or rest[0] in ".):,]" or _begins(_normal(rest), _normal(choices[index])):
        return index
    return None


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .\"'*")


def _words(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def _begins(said: str, choice: str) -> bool:
    return bool(choice) and _words(choice).match(said) is not None


def _holds(said: str, choice: str) -> bool:
    return bool(choice) and _words(choice).search(said) is not None


def _inside(said: str, short: str, long: str) -> bool:
    """Whether the shorter text stands nowhere but inside the longer one."""
    return len(short) < len(long) and not _holds(_words(long).sub("\0", said), short)
