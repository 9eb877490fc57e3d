"""The forms in which data sets write a fact, one parser each; a form is recognised by its fields.

==============  ==================================================================================
form            fields
==============  ==================================================================================
CounterFact     ``requested_rewrite`` {prompt with ``{}``, subject, target_new.str, target_true.str},
                ``paraphrase_prompts``, ``neighborhood_prompts`` (their answer is target_true),
                ``portability``
ZsRE            ``subject``, ``src``, ``rephrase``, ``alt``, ``answers``, ``loc``, ``loc_ans``,
                ``portability``
KnowEdit        ``subject``, ``prompt``, ``target_new``, ``ground_truth``, ``rephrase_prompt``,
                ``locality`` and ``portability`` of groups of prompts; WikiBio: ``concept``,
                ``text``, ``labels``
EasyEdit        ``subject``, ``prompt``, ``target_new``, ``ground_truth``, ``rephrase_prompt``,
                ``locality_prompt``, ``locality_ground_truth``, ``portability_prompt``,
                ``portability_ground_truth``, ``locality`` and ``portability`` of groups
plain           the names of :class:`~nmke.facts.Fact`; in a table ``paraphrase_1``...,
                ``neighborhood_1``, ``neighborhood_answer_1``..., ``portability_1``,
                ``portability_answer_1``..., or ``paraphrases`` split at ``|``
==============  ==================================================================================

Portability questions (what else follows from an edit) are written as ``{group: {prompt, ground_truth}}`` (EasyEdit),
``{group: [{prompt, ground_truth}, ...]}`` (KnowEdit), or ``{"New Question", "New Answer"}`` (EasyEdit's CounterFact
and ZsRE, which it asks as its group ``one_hop``). All groups of a record become one list, where EasyEdit scores each
group by itself. Of several accepted spellings the first is taken. A data set's question without an answer is left out;
in the plain form it is an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nmke.errors import FactError
from nmke.facts import Consequence, Fact, Neighbor, is_blank
from nmke.readers_values import (
    Pairs,
    read_first,
    read_groups,
    read_list,
    read_number,
    read_pairs,
    read_text,
    read_texts,
)

ZsreTarget = Literal["alt", "answers"]
Record = Mapping[str, Any]

PLAIN_COLUMNS = (
    "prompt",
    "subject",
    "target_new",
    "target_true",
    "paraphrases",
    "neighborhood",
    "portability",
    "case_id",
    "relation",
    "subject_start",
)
_NUMBERED = re.compile(r"(paraphrase|(?:neighborhood|portability)(?:_answer)?)_(\d+)")


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
    answer = read_first(_inner(rewrite, "target_true"), "requested_rewrite.target_true")
    return Fact(
        prompt=_required(rewrite, "prompt"),
        subject=_required(rewrite, "subject"),
        target_new=read_first(_inner(rewrite, "target_new"), "requested_rewrite.target_new"),
        target_true=answer,
        paraphrases=read_texts(record.get("paraphrase_prompts"), "paraphrase_prompts"),
        neighborhood=_neighbors(record.get("neighborhood_prompts"), answer, "neighborhood_prompts"),
        portability=_consequences(record),
        case_id=read_first(record.get("case_id"), "case_id"),
        relation=read_first(rewrite.get("relation_id"), "requested_rewrite.relation_id"),
    )


def _zsre(record: Record, target: ZsreTarget) -> Fact:
    answer = read_first(record.get("answers"), "answers")
    return Fact(
        prompt=_required(record, "src"),
        subject=_required(record, "subject"),
        target_new=answer if target == "answers" else read_first(_required(record, "alt"), "alt"),
        # Edited to the right answer, nothing is known about what was said before.
        target_true="" if target == "answers" else answer,
        paraphrases=read_texts(record.get("rephrase"), "rephrase"),
        neighborhood=_neighborhood(read_pairs(record.get("loc"), record.get("loc_ans"), "loc")),
        # The questions follow from alt.
        portability=_consequences(record) if target == "alt" else (),
        case_id=read_first(record.get("case_id"), "case_id"),
    )


def _easyedit(record: Record, _: ZsreTarget) -> Fact:
    prompt, subject, target = (
        ("text", "concept", "labels") if "labels" in record else ("prompt", "subject", "target_new")
    )
    neighbors = read_pairs(
        record.get("locality_prompt"), record.get("locality_ground_truth"), "locality_prompt"
    ) + read_groups(record.get("locality"), "locality")
    return Fact(
        prompt=read_first(_required(record, prompt), prompt),
        subject=read_first(_required(record, subject), subject),
        target_new=read_first(_required(record, target), target),
        target_true=read_first(record.get("ground_truth"), "ground_truth"),
        paraphrases=read_texts(record.get("rephrase_prompt"), "rephrase_prompt")
        + read_texts(record.get("rephrase"), "rephrase"),
        neighborhood=_neighborhood(neighbors),
        portability=_consequences(record),
        case_id=read_first(record.get("case_id"), "case_id"),
        relation=read_first(record.get("relation_id"), "relation_id"),
    )


def _plain(record: Record, _: ZsreTarget) -> Fact:
    numbered: dict[str, dict[int, str]] = {}
    for key, value in record.items():
        if match := _NUMBERED.fullmatch(key):
            numbered.setdefault(match[1], {})[int(match[2])] = read_text(value, key)
    paraphrases = record.get("paraphrases")
    if isinstance(paraphrases, str):
        paraphrases = paraphrases.split("|")
    return Fact(
        prompt=_required(record, "prompt"),
        subject=_required(record, "subject"),
        target_new=_required(record, "target_new"),
        target_true=read_text(record.get("target_true"), "target_true"),
        paraphrases=read_texts(paraphrases, "paraphrases")
        + tuple(text for _, text in sorted(numbered.get("paraphrase", {}).items()) if not is_blank(text)),
        neighborhood=_neighbors(record.get("neighborhood"), "", "neighborhood")
        + _neighborhood(_numbered(numbered, "neighborhood")),
        portability=_plain_consequences(record, numbered),
        case_id=read_text(record.get("case_id"), "case_id"),
        relation=read_text(record.get("relation"), "relation"),
        subject_start=read_number(record.get("subject_start"), "subject_start"),
    )


def _numbered(numbered: Mapping[str, Mapping[int, str]], kind: str) -> Pairs:
    """The prompts of the columns ``kind_1``, ``kind_2``... with those of ``kind_answer_1``..."""
    prompts, answers = numbered.get(kind, {}), numbered.get(f"{kind}_answer", {})
    for number, answer in answers.items():
        if answer.strip() and not prompts.get(number, "").strip():
            raise FactError(
                f"{kind}_answer_{number} has no prompt.",
                f"Fill in {kind}_{number}.",
                f"{kind}_answer_{number}",
            )
    return [(text, answers.get(number, "")) for number, text in sorted(prompts.items()) if not is_blank(text)]


def _required(record: Record, key: str) -> str:
    if key not in record:
        raise FactError(f"The {key} is missing.", f"Add the field {key}.", key)
    return read_first(record[key], key)


def _inner(rewrite: Record, key: str) -> object:
    value = rewrite.get(key)
    return value.get("str") if isinstance(value, Mapping) else value


def _neighbors(value: object, answer: str, field: str) -> tuple[Neighbor, ...]:
    return _neighborhood(read_list(value, answer, field))


def _neighborhood(pairs: Pairs) -> tuple[Neighbor, ...]:
    return tuple(Neighbor(*pair) for pair in pairs)


def _consequences(record: Record) -> tuple[Consequence, ...]:
    """A data set's portability questions, as far as they have answers."""
    value = record.get("portability")
    if isinstance(value, Mapping) and "New Question" in value:
        value = {"prompt": value["New Question"], "ground_truth": value.get("New Answer")}
    pairs = read_pairs(
        record.get("portability_prompt"), record.get("portability_ground_truth"), "portability_prompt"
    ) + read_groups(value, "portability")
    return tuple(Consequence(*pair) for pair in pairs if not is_blank(pair[1]))


def _plain_consequences(record: Record, numbered: Mapping[str, Mapping[int, str]]) -> tuple[Consequence, ...]:
    value = record.get("portability")
    if isinstance(value, Mapping):  # only questions are written as EasyEdit does
        return _consequences(record)
    pairs = read_list(value, "", "portability") + _numbered(numbered, "portability")
    return tuple(Consequence(*pair) for pair in pairs)


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
    "portability_prompt",
    "portability_ground_truth",
}
_EASYEDIT_KNOWN = _EASYEDIT_ONLY | {
    "portability", "prompt", "subject", "target_new", "text", "concept", "labels", "case_id", "relation_id",
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
        {
            "requested_rewrite",
            "paraphrase_prompts",
            "neighborhood_prompts",
            "portability",
            "case_id",
        }.__contains__,
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
        {
            "subject",
            "src",
            "rephrase",
            "alt",
            "answers",
            "loc",
            "loc_ans",
            "portability",
            "case_id",
        }.__contains__,
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
