"""Made-up questions for the five abilities, in the files the program reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CHOICES = ["one", "two", "three", "four"]
_BBH = (
    ("boolean_expressions", "not True is", "False"),
    ("word_sorting", "Sort these. List: b a", "a b"),
    ("date_understanding", "When?\nOptions:\n(A) now\n(B) then", "(A)"),
    ("object_counting", "I have a cat. How many?", "1"),
    ("web_of_lies", "Ann lies. Does Ann tell the truth?", "No"),
)

ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "mmlu_test.jsonl": [
        {
            "subject": subject,
            "question": f"Which of these is number {k}?",
            "choices": _CHOICES,
            "answer": k % 4,
        }
        for subject in ("anatomy", "virology")
        for k in range(5)
    ],
    "mmlu_dev.jsonl": [
        {"subject": subject, "question": f"Which is solved {k}?", "choices": _CHOICES, "answer": 1}
        for subject in ("anatomy", "virology")
        for k in range(2)
    ],
    "gsm8k_test.jsonl": [
        {"question": f"I have {k} cats and buy 2. How many?", "answer": f"{k} + 2 = {k + 2}\n#### {k + 2}"}
        for k in range(4)
    ],
    "commonsense_qa_dev.jsonl": [
        {
            "question": f"Where is cat {k}?",
            "choices": {"label": list("ABCDE"), "text": ["in", "out", "up", "down", "away"]},
            "answerKey": "ABCDE"[k],
        }
        for k in range(4)
    ],
    "bbh.jsonl": [{"task": task, "input": asked, "target": target} for task, asked, target in _BBH],
    "humaneval.jsonl": [
        {
            "task_id": "Made/0",
            "prompt": 'def one():\n    """Give 1."""\n',
            "entry_point": "one",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        }
    ],
}


def write_data(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]] = ROWS) -> Path:
    """The files in a folder, as ``--data`` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kept in rows.items():
        (folder / name).write_text("\n".join(json.dumps(row) for row in kept), encoding="utf-8")
    return folder
