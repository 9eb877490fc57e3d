"""What each task's questions look like, and where they are to be had: file, wheel, data set of the hub."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nmke.registry import HUMANEVAL, MMLU, WheelMember

#: One question in the harness's form.
Document = Mapping[str, Any]

BBH_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)


@dataclass(frozen=True)
class Origin:
    """Where a task's questions are to be had.

    Attributes:
        file: its name in a local folder.
        hub: the data set; split: of it; names: its configurations, each a part, or the one that holds everything.
        part: the field of a row that names its part, "" where the task is one.
        fields: what a document keeps of a row.
        check: says what is wrong with a document, or "".
        wheel: where that has it.
    """

    file: str
    hub: str
    split: str
    names: Sequence[str | None]
    part: str
    fields: Sequence[str]
    check: Callable[[Document], str]
    wheel: WheelMember | None = None


def half_characters(document: Document) -> str:
    """What no tokenizer reads and no file takes: JSON can name half of a character that is written as two."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it contains half a character (a lone surrogate)"
    return ""


def _texts(document: Document, *names: str) -> str:
    empty = [name for name in names if not isinstance(document[name], str) or not document[name].strip()]
    return f"{empty[0]} is no text" if empty else ""


def _check_mmlu(document: Document) -> str:
    choices, answer = document["choices"], document["answer"]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(one, str) for one in choices):
        return "it needs four choices"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < 4:
        return "the answer is not one of 0 to 3"
    return _texts(document, "question")


def _check_gsm8k(document: Document) -> str:
    wrong = _texts(document, "question", "answer")
    return wrong or ("" if "####" in document["answer"] else "the answer has no #### before its number")


def _check_commonsense_qa(document: Document) -> str:
    choices = document["choices"]
    texts = choices.get("text") if isinstance(choices, dict) else None
    if not isinstance(texts, list) or len(texts) != 5 or not all(isinstance(one, str) for one in texts):
        return "it needs five choices"
    if document["answerKey"] not in ("A", "B", "C", "D", "E"):
        return "the answerKey is not one of A to E"
    return _texts(document, "question")


def _check_bbh(document: Document) -> str:
    return _texts(document, "input", "target")


def _check_humaneval(document: Document) -> str:
    return _texts(document, "task_id", "prompt", "entry_point", "test")


_MMLU_FIELDS = ("question", "choices", "answer")
ORIGINS: Mapping[str, Origin] = MappingProxyType(
    {
        "mmlu": Origin(
            "mmlu_test.jsonl", "cais/mmlu", "test", ("all",), "subject", _MMLU_FIELDS, _check_mmlu, MMLU
        ),
        "gsm8k": Origin(
            "gsm8k_test.jsonl", "openai/gsm8k", "test", ("main",), "", ("question", "answer"), _check_gsm8k
        ),
        "commonsense_qa": Origin(
            "commonsense_qa_dev.jsonl",
            "tau/commonsense_qa",
            "validation",
            (None,),
            "",
            ("question", "choices", "answerKey"),
            _check_commonsense_qa,
        ),
        "bbh": Origin(
            "bbh.jsonl", "SaylorTwift/bbh", "test", BBH_TASKS, "task", ("input", "target"), _check_bbh
        ),
        "humaneval": Origin(
            "humaneval.jsonl",
            "openai/openai_humaneval",
            "test",
            (None,),
            "",
            ("task_id", "prompt", "entry_point", "test"),
            _check_humaneval,
            HUMANEVAL,
        ),
    }
)
#: Solved examples of MMLU; the wheel has none.
MMLU_DEV = Origin("mmlu_dev.jsonl", "cais/mmlu", "dev", ("all",), "subject", _MMLU_FIELDS, _check_mmlu)
