"""The forms in which data sets write a fact, one parser each; a form is recognised by its fields.

==============  ==================================================================================
form            fields
==============  ==================================================================================
CounterFact     ``requested_rewrite`` {prompt with ``{}``, subject, target_new.str, target_true.str},
                ``paraphrase_prompts``, ``neighborhood_prompts`` (their answer is target_true)
ZsRE            ``subject``, ``src``, ``rephrase``, ``alt``, ``answers``, ``loc``, ``loc_ans``
KnowEdit        ``subject``, ``prompt``, ``target_new``, ``ground_truth``, ``rephrase_prompt``,
                ``locality`` of groups of prompts; WikiBio: ``concept``, ``text``, ``labels``
EasyEdit        ``subject``, ``prompt``, ``target_new``, ``ground_truth``, ``rephrase_prompt``,
                ``locality_prompt``, ``locality_ground_truth``
plain           the names of :class:`~nmke.facts.Fact`; in a table ``paraphrase_1``...,
                ``neighborhood_1``, ``neighborhood_answer_1``..., or ``paraphrases`` split at ``|``
==============  ==================================================================================

Portability questions (what else follows from an edit) have no place in a fact and are not read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nmke.errors import FactError
from nmke.facts import Fact, Neighbor, is_blank

ZsreTarget = Literal["alt", "answers"]
Record = Mapping[str, Any]

PLAIN_COLUMNS = (
    "prompt",
    "subject",
    "target_new",
    "target_true",
    "paraphrases",
    "neighborhood",
    "case_id",
    "relation",
    "subject_start",
)
_NUMBERED = re.compile(r"(paraphrase|neighborhood|neighborhood_answer)_(\d+)")


@dataclass(frozen=True)
class Form:
    """One way to write a fact.

    Attributes:
        title: its name, for the user.
        recognise: whether a record with these fields has this form.
        parse: makes the fact; raises FactError.
        names: what this form calls the fields of a Fact, for row problems.
        known: whether a field is read.
    """

    title: str
    recognise: Callable[[Record], bool]
    parse: Callable[[Record, ZsreTarget], Fact]
    names: Mapping[str, str]
    known: Callable[[str], bool]


def form_of(record: Record) -> Form | None:
    """The form this record has, or None when it is no fact."""
    return next((form for form in FORMS if form.recognise(record)), None)


def _counterfact(record: Record, _: ZsreTarget) -> Fact:
    rewrite = record["requested_rewrite"]
    if isinstance(rewrite, list) and len(rewrite) == 1:
        rewrite = rewrite[0]
    if not isinstance(rewrite, Mapping):
        what = f"a list of {len(rewrite)} rewrites" if isinstance(rewrite, list) else "not an object"
        raise FactError(
            f"requested_rewrite is {what}.", "Write one rewrite in each record.", "requested_rewrite"
        )
    answer = _first_text(_inner(rewrite, "target_true"), "requested_rewrite.target_true")
    return Fact(
        prompt=_required(rewrite, "prompt"),
        subject=_required(rewrite, "subject"),
        target_new=_first_text(_inner(rewrite, "target_new"), "requested_rewrite.target_new"),
        target_true=answer,
        paraphrases=_texts(record.get("paraphrase_prompts"), "paraphrase_prompts"),
        neighborhood=_neighbors(record.get("neighborhood_prompts"), answer, "neighborhood_prompts"),
        case_id=_first_text(record.get("case_id"), "case_id"),
        relation=_first_text(rewrite.get("relation_id"), "requested_rewrite.relation_id"),
    )


def _zsre(record: Record, target: ZsreTarget) -> Fact:
    answer = _first_text(record.get("answers"), "answers")
    return Fact(
        prompt=_required(record, "src"),
        subject=_required(record, "subject"),
        target_new=answer if target == "answers" else _first_text(_required(record, "alt"), "alt"),
        # Edited to the right answer, nothing is known about what was said before.
        target_true="" if target == "answers" else answer,
        paraphrases=_texts(record.get("rephrase"), "rephrase"),
        neighborhood=_paired(record.get("loc"), record.get("loc_ans"), "loc"),
        case_id=_first_text(record.get("case_id"), "case_id"),
    )


def _easyedit(record: Record, _: ZsreTarget) -> Fact:
    prompt, subject, target = (
        ("text", "concept", "labels") if "labels" in record else ("prompt", "subject", "target_new")
    )
    neighbors = _paired(
        record.get("locality_prompt"), record.get("locality_ground_truth"), "locality_prompt"
    ) + _locality(record.get("locality"))
    return Fact(
        prompt=_first_text(_required(record, prompt), prompt),
        subject=_first_text(_required(record, subject), subject),
        target_new=_first_text(_required(record, target), target),
        target_true=_first_text(record.get("ground_truth"), "ground_truth"),
        paraphrases=_texts(record.get("rephrase_prompt"), "rephrase_prompt")
        + _texts(record.get("rephrase"), "rephrase"),
        neighborhood=neighbors,
        case_id=_first_text(record.get("case_id"), "case_id"),
        relation=_first_text(record.get("relation_id"), "relation_id"),
    )


def _plain(record: Record, _: ZsreTarget) -> Fact:
    numbered: dict[str, dict[int, str]] = {}
    for key, value in record.items():
        if match := _NUMBERED.fullmatch(key):
            numbered.setdefault(match[1], {})[int(match[2])] = _text(value, key)
    paraphrases = record.get("paraphrases")
    if isinstance(paraphrases, str):
        paraphrases = paraphrases.split("|")
    prompts, answers = numbered.get("neighborhood", {}), numbered.get("neighborhood_answer", {})
    for number, answer in answers.items():
        if answer.strip() and not prompts.get(number, "").strip():
            raise FactError(
                f"neighborhood_answer_{number} has no prompt.",
                f"Fill in neighborhood_{number}.",
                f"neighborhood_answer_{number}",
            )
    return Fact(
        prompt=_required(record, "prompt"),
        subject=_required(record, "subject"),
        target_new=_required(record, "target_new"),
        target_true=_text(record.get("target_true"), "target_true"),
        paraphrases=_texts(paraphrases, "paraphrases")
        + tuple(text for _, text in sorted(numbered.get("paraphrase", {}).items()) if not is_blank(text)),
        neighborhood=_neighbors(record.get("neighborhood"), "", "neighborhood")
        + tuple(Neighbor(p, answers.get(n, "")) for n, p in sorted(prompts.items()) if not is_blank(p)),
        case_id=_text(record.get("case_id"), "case_id"),
        relation=_text(record.get("relation"), "relation"),
        subject_start=_whole_number(record.get("subject_start"), "subject_start"),
    )


def _text(value: object, field: str) -> str:
    """Text, or a whole number such as a year written as text; nothing is empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise FactError(f"The {field} is of type {type(value).__name__}, not text.", "Write it as text.", field)


def _required(record: Record, key: str) -> str:
    if key not in record:
        raise FactError(f"The {key} is missing.", f"Add the field {key}.", key)
    return _first_text(record[key], key)


def _inner(rewrite: Record, key: str) -> object:
    value = rewrite.get(key)
    return value.get("str") if isinstance(value, Mapping) else value


def _first_text(value: object, field: str) -> str:
    """The first of several accepted spellings, however deep they are nested in lists."""
    while isinstance(value, list):
        value = value[0] if value else None
    return _text(value, field)


def _texts(value: object, field: str) -> tuple[str, ...]:
    """One text or a list of them; blank ones are left out."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = (_text(item, field) for item in items)
    return tuple(text for text in texts if not is_blank(text))


def _neighbors(value: object, answer: str, field: str) -> tuple[Neighbor, ...]:
    """Neighbourhood prompts: texts that share one answer, or objects with their own."""
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise FactError(f"The {field} are not a list.", "Write them as a list.", field)
    neighbors = []
    for item in value:
        if isinstance(item, Mapping):
            own = next((item[key] for key in ("answer", "target", "ground_truth") if key in item), answer)
            neighbors.append(Neighbor(_text(item.get("prompt"), field), _first_text(own, field)))
        elif not is_blank(_text(item, field)):
            neighbors.append(Neighbor(item, answer))
    return tuple(neighbors)


def _locality(value: object) -> tuple[Neighbor, ...]:
    """KnowEdit's ``{group: [{prompt, ground_truth}, ...]}`` and EasyEdit's ``{group: {prompt, ground_truth}}``."""
    groups = value.values() if isinstance(value, Mapping) and "prompt" not in value else [value]
    neighbors: tuple[Neighbor, ...] = ()
    for group in groups:
        for item in group if isinstance(group, list) else [group]:
            if item is None:
                continue
            if not isinstance(item, Mapping):
                raise FactError(
                    "A locality entry is not an object with prompt and ground_truth.",
                    "Write each as an object with prompt and ground_truth.",
                    "locality",
                )
            neighbors += _paired(item.get("prompt"), item.get("ground_truth"), "locality")
    return neighbors


def _paired(prompts: object, answers: object, field: str) -> tuple[Neighbor, ...]:
    """One prompt with the spellings of its answer, or as many prompts as answers."""
    if not isinstance(prompts, list):
        text = _text(prompts, field)
        return () if is_blank(text) else (Neighbor(text, _first_text(answers, field)),)
    if len(prompts) == 1:
        return _paired(prompts[0], answers, field)
    given = answers if isinstance(answers, list) else [answers] * len(prompts)
    if len(given) != len(prompts):
        raise FactError(
            f"The {field} has {len(prompts)} prompts but {len(given)} answers.",
            "Give one answer for each prompt.",
            field,
        )
    return tuple(
        Neighbor(_text(p, field), _first_text(a, field)) for p, a in zip(prompts, given, strict=True)
    )


def _whole_number(value: object, field: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        return int(_text(value, field))
    except ValueError:
        raise FactError(
            f"The {field} {value!r} is not a whole number.", "Leave it empty or give a number.", field
        ) from None


def _has_groups(record: Record) -> bool:
    """Whether locality or portability holds groups of single questions, as KnowEdit writes them."""
    return any(
        isinstance(record.get(key), Mapping)
        and any(isinstance(group, list) for group in record[key].values())
        for key in ("locality", "portability")
    )


_EASYEDIT_NAMES = {
    "target_true": "ground_truth",
    "paraphrases": "rephrase_prompt",
    "neighborhood": "locality_prompt",
}
_EASYEDIT_ONLY = {
    "ground_truth",
    "rephrase_prompt",
    "rephrase",
    "locality_prompt",
    "locality_ground_truth",
    "locality",
}
_EASYEDIT_KNOWN = _EASYEDIT_ONLY | {
    "prompt", "subject", "target_new", "text", "concept", "labels", "case_id", "relation_id",
}  # fmt: skip

FORMS: tuple[Form, ...] = (
    Form(
        "CounterFact (ROME form)",
        lambda record: "requested_rewrite" in record,
        _counterfact,
        {
            **{
                name: f"requested_rewrite.{name}"
                for name in ("prompt", "subject", "target_new", "target_true")
            },
            "paraphrases": "paraphrase_prompts",
            "neighborhood": "neighborhood_prompts",
        },
        {"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "case_id"}.__contains__,
    ),
    Form(
        "ZsRE (MEND form)",
        lambda record: "src" in record and ("alt" in record or "answers" in record),
        _zsre,
        {
            "prompt": "src",
            "target_new": "alt",
            "target_true": "answers",
            "paraphrases": "rephrase",
            "neighborhood": "loc",
        },
        {"subject", "src", "rephrase", "alt", "answers", "loc", "loc_ans", "case_id"}.__contains__,
    ),
    Form(
        "KnowEdit",
        lambda record: (
            {"concept", "text", "labels"} <= record.keys() or ("prompt" in record and _has_groups(record))
        ),
        _easyedit,
        {**_EASYEDIT_NAMES, "neighborhood": "locality"},
        _EASYEDIT_KNOWN.__contains__,
    ),
    Form(
        "EasyEdit's form",
        lambda record: "prompt" in record and bool(_EASYEDIT_ONLY & record.keys()),
        _easyedit,
        _EASYEDIT_NAMES,
        _EASYEDIT_KNOWN.__contains__,
    ),
    Form(
        "plain facts",
        lambda record: "prompt" in record and ("subject" in record or "target_new" in record),
        _plain,
        {},
        lambda key: key in PLAIN_COLUMNS or _NUMBERED.fullmatch(key) is not None,
    ),
)
"""All forms, the most telling first."""
