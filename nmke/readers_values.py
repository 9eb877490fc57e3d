"""Values of a data set's record: texts, their accepted spellings, and prompts with their answers."""

from collections.abc import Mapping

from nmke.errors import FactError
from nmke.facts import is_blank

Pairs = list[tuple[str, str]]
"""Prompts, each with its answer, which may be empty."""


def read_text(value: object, field: str) -> str:
    """Text, or a whole number such as a year written as text; nothing is empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise FactError(f"The {field} is of type {type(value).__name__}, not text.", "Write it as text.", field)


def read_first(value: object, field: str) -> str:
    """The first of several accepted spellings, however deep they are nested in lists."""
    while isinstance(value, list):
        value = value[0] if value else None
    return read_text(value, field)


def read_texts(value: object, field: str) -> tuple[str, ...]:
    """One text or a list of them; blank ones are left out."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = (read_text(item, field) for item in items)
    return tuple(text for text in texts if not is_blank(text))


def read_number(value: object, field: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        return int(read_text(value, field))
    except ValueError:
        raise FactError(
            f"The {field} {value!r} is not a whole number.", "Leave it empty or give a number.", field
        ) from None


def read_list(value: object, answer: str, field: str) -> Pairs:
    """A list of prompts that share one answer, or of objects with their own."""
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise FactError(f"The {field} are not a list.", "Write them as a list.", field)
    pairs = []
    for item in value:
        if isinstance(item, Mapping):
            own = next((item[key] for key in ("answer", "target", "ground_truth") if key in item), answer)
            pairs.append((read_text(item.get("prompt"), field), read_first(own, field)))
        elif not is_blank(read_text(item, field)):
            pairs.append((read_text(item, field), answer))
    return pairs


def read_groups(value: object, field: str) -> Pairs:
    """KnowEdit's ``{group: [{prompt, ground_truth}, ...]}`` and EasyEdit's ``{group: {prompt, ground_truth}}``."""
    groups = value.values() if isinstance(value, Mapping) and "prompt" not in value else [value]
    pairs: Pairs = []
    for group in groups:
        for item in group if isinstance(group, list) else [group]:
            if item is None:
                continue
            if not isinstance(item, Mapping):
                raise FactError(
                    f"A {field} entry is not an object with prompt and ground_truth.",
                    "Write each as an object with prompt and ground_truth.",
                    field,
                )
            pairs += read_pairs(item.get("prompt"), item.get("ground_truth"), field)
    return pairs


def read_pairs(prompts: object, answers: object, field: str) -> Pairs:
    """One prompt with the spellings of its answer, or as many prompts as answers."""
    if not isinstance(prompts, list):
        text = read_text(prompts, field)
        return [] if is_blank(text) else [(text, read_first(answers, field))]
    if len(prompts) == 1:
        return read_pairs(prompts[0], answers, field)
    given = answers if isinstance(answers, list) else [answers] * len(prompts)
    if len(given) != len(prompts):
        raise FactError(
            f"The {field} has {len(prompts)} prompts but {len(given)} answers.",
            "Give one answer for each prompt.",
            field,
        )
    return [(read_text(p, field), read_first(a, field)) for p, a in zip(prompts, given, strict=True)]
