"""Asking: which questions are new, which are answered already.

Questions are asked in chunks, each kept on the disk when it is complete, so that a cancel or a kill costs at most one.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nmke.ability.cache import Answers, keep_answers, path_of, read_answers
from nmke.ability.config import TITLES, AbilityConfig
from nmke.ability.definitions import DEFINITIONS, make_task, require_room, settings_of, written_tokens
from nmke.ability.harness import Harness, load_harness
from nmke.ability.judged import make_judged, without_bars
from nmke.ability.origins import Document
from nmke.ability.results import SAMPLE_COLUMNS, AbilityReport, TaskScore
from nmke.ability.sandbox import CPU_SECONDS, find_isolation, run_program
from nmke.ability.sources import TaskData, digest_of, find_data
from nmke.errors import ConfigError, ResourceError
from nmke.intervals import wilson
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.store import content_key

#: Questions asked in one go; fewer where answers are written, which takes longer.
CHUNK, WRITTEN_CHUNK = 64, 32


@dataclass(frozen=True)
class _Chunk:
    """Some questions of one part, and their places in the source."""

    part: str
    numbers: Sequence[int]
    documents: Sequence[Document]


def state_of(session: EditSession | None = None, ablation: str = "") -> str:
    """What identifies the model's state for the cache: "" as loaded, else edits and ablation by their digests.

    Args:
        ablation: digest of the neurons held and of how, "" for none.
    """
    edited = session is not None and (session.changed_layers or session.modules or session.prompt)
    edits = session.digest if session is not None and edited else ""
    return f"{edits}+{ablation}" if ablation else edits


def judge_abilities(
    model: EditableModel,
    config: AbilityConfig,
    state: str = "",
    data: Path | None = None,
    progress: Progress | None = None,
) -> AbilityReport:
    """Ask every task of whatever weights and ablation are in force. Call it inside ``session.active()``.

    Args:
        state: from :func:`state_of`; the cache trusts it.
        data: a folder with local JSONL files (mmlu_test.jsonl, gsm8k_test.jsonl, commonsense_qa_dev.jsonl,
            bbh.jsonl, humaneval.jsonl).
        progress: told per batch; one stage a task.

    Raises:
        ResourceError: the harness is missing or of another version, or a task's questions cannot be found.
        ConfigError: HumanEval without ``run_code``, an unknown subject, or answers too long for the model.
        QuestionError: a file of questions that cannot be used.
        Cancelled: from ``progress``; chunks that are complete are kept.
    """
    progress = progress or Silent()
    require_consent(config)
    progress.update("Loading the harness", 0, 1)
    harness = load_harness()
    found = {task: read_task(task, config, data, progress) for task in config.tasks}
    with without_bars():
        for task, questions in found.items():
            part = next(iter(questions.parts))
            settings = settings_of(harness, task, part, config.fewshot(task), config.most_tokens)
            require_room(model.name, settings, make_judged(harness, model, 1, lambda _: None).max_length)
        judged = [_judge(harness, model, config, state, questions, progress) for questions in found.values()]
    samples = pd.DataFrame([row for _, rows in judged for row in rows], columns=list(SAMPLE_COLUMNS))
    return AbilityReport(model.name, model.weight_hash, state, tuple(score for score, _ in judged), samples)


def require_consent(config: AbilityConfig) -> None:
    """Refuse to run code nobody allowed, or where nothing keeps it in.

    Raises:
        ConfigError: the yes is missing.
        ResourceError: this machine offers nothing that keeps the code in.
    """
    if "humaneval" not in config.tasks:
        return
    if not config.run_code:
        raise ConfigError(
            "HumanEval runs the code that the model writes, and nobody allowed it for this run.",
            "Say yes to it (run_code, or --run-code), or leave HumanEval out. It runs in a separate process "
            "that has no network and little time, and can write no file.",
        )
    if not find_isolation().allowed:
        raise ResourceError(find_isolation().sentence, "Leave HumanEval out here.")


def read_task(task: str, config: AbilityConfig, data: Path | None, progress: Progress) -> TaskData:
    """The questions that are asked of a task: of the wanted subjects, and no more than the limit.

    Raises:
        ResourceError: they cannot be found; QuestionError: they cannot be used.
        ConfigError: an MMLU subject that is not there.
    """
    found = find_data(task, data, progress, examples=config.fewshot(task) > 0)
    if task != "mmlu":
        return found
    wanted = [subject.strip().replace(" ", "_") for subject in config.subjects] or list(found.parts)
    unknown = [subject for subject in wanted if subject not in found.parts]
    if unknown:
        raise ConfigError(
            f"MMLU has no questions about {', '.join(unknown)} in {found.source}",
            f"Choose among {', '.join(found.parts)}.",
        )
    few = [one for one in wanted if config.mmlu_fewshot > len(found.examples.get(one, ()))]
    if config.mmlu_fewshot and few:
        raise ConfigError(
            f"There are fewer than {config.mmlu_fewshot} solved examples about {', '.join(few[:5])}.",
            "Ask for fewer examples, or leave these subjects out.",
        )
    parts = {subject: found.parts[subject] for subject in wanted}
    return TaskData(task, parts, found.source, found.kind, found.examples)


def choose(count: int, limit: int | None, seed: int) -> list[int]:
    """Which of ``count`` questions a limit takes, in their order: seed 0 the first ones, others draw."""
    if limit is None or limit >= count:
        return list(range(count))
    return list(range(limit)) if seed == 0 else sorted(random.Random(seed).sample(range(count), limit))


def _chunks(questions: TaskData, config: AbilityConfig) -> Iterator[_Chunk]:
    size = CHUNK if questions.task in ("mmlu", "commonsense_qa") else WRITTEN_CHUNK
    for part, documents in questions.parts.items():
        chosen = choose(len(documents), config.limit, config.seed)
        for start in range(0, len(chosen), size):
            numbers = chosen[start : start + size]
            yield _Chunk(part, numbers, [documents[number] for number in numbers])


def _judge(
    harness: Harness,
    model: EditableModel,
    config: AbilityConfig,
    state: str,
    questions: TaskData,
    progress: Progress,
) -> tuple[TaskScore, list[Mapping[str, Any]]]:
    chunks = list(_chunks(questions, config))
    counter = _Counter(progress, TITLES[questions.task], sum(len(chunk.numbers) for chunk in chunks))
    rows: list[Mapping[str, Any]] = []
    seconds, truncated, computed = 0.0, 0, 0
    for chunk in chunks:
        counter.begin(len(rows), chunk.part)
        path = path_of(**_identity(harness, model, config, state, questions, chunk))
        known = read_answers(path, len(chunk.numbers))
        if known is None:
            known = _ask(harness, model, config, questions, chunk, counter.advance)
            keep_answers(path, known)
            computed += 1
        rows += known.rows
        seconds, truncated = seconds + known.seconds, truncated + known.truncated
    counter.begin(len(rows), "")
    asked = digest_of([[chunk.part, document] for chunk in chunks for document in chunk.documents])
    score = _score(harness, config, questions, rows)
    details: dict[str, Any] = (
        {"isolation": find_isolation().sentence} if questions.task == "humaneval" else {}
    )
    longest = written_tokens(
        settings_of(
            harness, questions.task, chunks[0].part, config.fewshot(questions.task), config.most_tokens
        )
    )
    if longest:
        details["longest_answer"] = longest
    return (
        TaskScore(
            **score,
            sha256=asked,
            truncated=truncated,
            seconds=seconds,
            cached=computed == 0,
            details=details,
        ),
        rows,
    )


def _identity(
    harness: Harness,
    model: EditableModel,
    config: AbilityConfig,
    state: str,
    questions: TaskData,
    chunk: _Chunk,
) -> dict[str, Any]:
    """Everything the answers depend on; the documents stand for limit and seed, which only choose them."""
    task = questions.task
    return {
        "weights": model.weight_hash,
        "device": model.device.split(":")[0],
        "state": state,
        "harness": harness.version,
        "task": task,
        "part": chunk.part,
        "fewshot": config.fewshot(task),
        "examples": digest_of(list(questions.examples.get(chunk.part, ()))) if config.fewshot(task) else "",
        "tokens": config.most_tokens,
        "numbers": list(chunk.numbers),
        "documents": digest_of(list(chunk.documents)),
        "seconds": CPU_SECONDS if task == "humaneval" else 0,
    }


class _Counter:
    """Tells progress how many questions of a task are answered."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self.progress, self.stage, self.total = progress, stage, total
        self.done, self.note = 0, ""

    def begin(self, done: int, note: str) -> None:
        self.done, self.note = done, note
        self.advance(0)

    def advance(self, answered: int) -> None:
        self.done = min(self.done + answered, self.total)
        self.progress.update(self.stage, self.done, self.total, self.note)


def _ask(
    harness: Harness,
    model: EditableModel,
    config: AbilityConfig,
    questions: TaskData,
    chunk: _Chunk,
    advance: Callable[[int], None],
) -> Answers:
    started, task = time.perf_counter(), questions.task
    settings = settings_of(harness, task, chunk.part, config.fewshot(task), config.most_tokens)
    judged = make_judged(harness, model, config.batch_size, advance)
    notes: dict[str, str] = {}
    judge = _run_tests(notes, lambda: advance(0)) if task == "humaneval" else None
    asked = make_task(harness, settings, chunk.documents, questions.examples.get(chunk.part, ()), judge)
    asked.set_fewshot_seed(seed=config.seed)
    found = harness.evaluate(judged, {"tasks": {asked.task_name: asked}}, bootstrap_iters=0, log_samples=True)
    by_number: dict[int, list[Mapping[str, Any]]] = {}
    for sample in found["samples"][asked.task_name]:
        by_number.setdefault(sample["doc_id"], []).append(sample)
    rows = [
        _row(task, chunk.part, number, document, by_number[index], notes)
        for index, (number, document) in enumerate(zip(chunk.numbers, chunk.documents, strict=True))
    ]
    return Answers(rows, time.perf_counter() - started, judged.truncated)


def _run_tests(
    notes: dict[str, str], tick: Callable[[], None]
) -> Callable[[Document, str], dict[str, float]]:
    """The judge of HumanEval: the written program with the problem's tests, as the harness puts them together."""

    def judge(document: Document, written: str) -> dict[str, float]:
        program = f"{document['prompt']}{written}\n{document['test']}\ncheck({document['entry_point']})"
        verdict = run_program(program, tick=tick)
        notes[document["task_id"]] = verdict.reason
        return {"pass@1": float(verdict.passed)}

    return judge


def _row(
    task: str,
    part: str,
    number: int,
    document: Document,
    samples: Sequence[Mapping[str, Any]],
    notes: Mapping[str, str],
) -> dict[str, Any]:
    """One question as it stands in the table; ``others`` holds the harness's further figures for it."""
    metric, _, chosen = DEFINITIONS[task].metric.partition(",")
    sample = next(one for one in samples if not chosen or one["filter"] == chosen)
    others = {f"{metric},{one['filter']}": float(one[metric]) for one in samples if one is not sample}
    row: dict[str, Any] = {
        "task": task,
        "part": part,
        "number": number,
        "question": content_key(document=dict(document)),
        "prompt": str(sample["arguments"][0][0]),
        "right": bool(sample[metric]),
        "choices_logp": None,
        "note": notes.get(str(document.get("task_id")), ""),
        "others": others,
    }
    if task in ("mmlu", "commonsense_qa"):
        scores = [float(answer[0]) for (answer,) in sample["resps"]]
        letters = [str(arguments[1]).strip() for arguments in sample["arguments"]]
        target = sample["target"]
        row |= {
            "target": letters[target] if isinstance(target, int) else str(target),
            "answer": letters[max(range(len(scores)), key=scores.__getitem__)],
            "choices_logp": scores,
        }
    else:
        # The harness' target of HumanEval is the whole of its tests.
        target = document["entry_point"] if task == "humaneval" else sample["target"]
        row |= {"target": str(target), "answer": str(sample["resps"][0][0])}
    return row


def _score(
    harness: Harness, config: AbilityConfig, questions: TaskData, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a :class:`TaskScore` says about the answers themselves."""
    task = questions.task
    parts: dict[str, list[bool]] = {}
    others: dict[str, list[float]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["right"])
        for name, value in row["others"].items():
            others.setdefault(name, []).append(value)
    fewshot = config.fewshot(task)
    cot = task == "gsm8k" and fewshot > 0
    return {
        "task": task,
        "metric": DEFINITIONS[task].metric,
        "formula": DEFINITIONS[task].formula
        + (" Asked as the harness's gsm8k_cot, with worked examples." if cot else ""),
        "interval": wilson(sum(row["right"] for row in rows), len(rows)),
        "parts": {part: (sum(right) / len(right), len(right)) for part, right in parts.items()},
        "others": {name: sum(values) / len(values) for name, values in others.items()},
        "source": questions.source,
        "limit": config.limit,
        "seed": config.seed,
        "fewshot": fewshot,
        "harness_version": harness.version,
    }
