"""``nmke roles`` on a tiny random model: files, re-assigning from the cache, bad input in one line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nmke.roles import ROLES, load_roles, load_scores
from tests.tiny import make_tiny
from tests.unit.test_cli import fails_in_one_line, run

SUBJECTS = ("high_school_biology", "college_biology", "college_chemistry")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("roles") / "llama"))


def rows(each: int = 4) -> list[dict[str, Any]]:
    return [
        {"subject": subject, "question": f"Is the cat {n}?", "choices": ["yes", "no"], "answer": n % 2}
        for subject in SUBJECTS
        for n in range(each)
    ]


def write(tmp_path: Path, lines: list[dict[str, Any]]) -> str:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(file)


def roles(model: str, file: str, out: Path, *more: str) -> Any:
    return run("roles", "-m", model, "-q", file, "-o", str(out), "--set", "form=cloze", *more)


@pytest.mark.parametrize("kind", ["mpc", "lps"])
def test_roles_writes_a_table_and_a_summary(model: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    result = roles(model, write(tmp_path, rows()), out, "--attribution", kind, "--set", "resamples=20")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    table = pd.read_parquet(out / "roles.parquet")
    assert len(table) == 4 * 64
    summary = json.loads((out / "summary.json").read_text())
    assert [row["role"] for row in summary["roles"]] == list(ROLES)
    assert all(row["low"] <= row["count"] <= row["high"] for row in summary["roles"])
    assert sum(row["count"] for row in summary["roles"]) == len(table)
    counts = table["role"].value_counts()
    assert {row["role"]: row["count"] for row in summary["roles"]} == {role: counts[role] for role in ROLES}
    assert [(row["task"], row["domain"], row["questions"]) for row in summary["questions"]["tasks"]] == [
        ("high_school_biology", "biology", 4),
        ("college_biology", "biology", 4),
        ("college_chemistry", "chemistry", 4),
    ]
    assert summary["stability"]["resamples"] == 20
    assert summary["config"]["attribution"]["kind"] == kind
    assert summary["model"]["weight_hash"] == summary["model_hash"]
    assert summary["versions"]["torch"]
    assert "top q" in summary["formula"]["active"]
    assert load_roles(out).totals() == {row["role"]: row["count"] for row in summary["roles"]}


def test_another_rule_takes_the_scores_from_the_cache(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, rows())
    assert roles(model, file, tmp_path / "one", "--attribution", "mpc").exit_code == 0

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("nmke.roles.files.score_questions", never)
    again = roles(
        model, file, tmp_path / "two", "--attribution", "mpc", "--set", "top_share=0.5", "--keep-scores"
    )
    assert again.exit_code == 0, again.output
    assert load_roles(tmp_path / "two").config.top_share == 0.5
    one, two = load_roles(tmp_path / "one").totals(), load_roles(tmp_path / "two").totals()
    assert one["inactive"] > two["inactive"]
    kept = load_scores(tmp_path / "two")
    assert kept is not None and kept.config.top_share == 0.5


def test_limit_and_subjects_choose_the_questions(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = (
        "--attribution",
        "mpc",
        "--limit",
        "2",
        "--subjects",
        f"{SUBJECTS[2]},{SUBJECTS[0]}",
        "--layers",
        "1-2",
    )
    assert roles(model, write(tmp_path, rows()), out, *asked).exit_code == 0
    found = load_roles(out)
    assert (found.tasks, found.sizes, found.layers) == ((SUBJECTS[2], SUBJECTS[0]), (2, 2), (1, 2))


def test_a_missing_choice_is_one_line(model: str, tmp_path: Path) -> None:
    lines = rows()
    lines[1]["choices"] = ["yes", ""]
    fails_in_one_line(roles(model, write(tmp_path, lines), tmp_path / "out"), "Choice B is missing")


def test_an_answer_out_of_range_is_one_line(model: str, tmp_path: Path) -> None:
    lines = rows()
    lines[1]["answer"] = 7
    fails_in_one_line(roles(model, write(tmp_path, lines), tmp_path / "out"), "out of range")


def test_an_unknown_subject_is_one_line(model: str, tmp_path: Path) -> None:
    result = roles(model, write(tmp_path, rows()), tmp_path / "out", "--subjects", "alchemy,college_biology")
    fails_in_one_line(result, "alchemy")


def test_zero_questions_are_one_line(model: str, tmp_path: Path) -> None:
    result = roles(model, write(tmp_path, []), tmp_path / "out")
    assert result.exit_code == 1
    fails_in_one_line(result, "question")


def test_one_subject_is_one_line(model: str, tmp_path: Path) -> None:
    result = roles(model, write(tmp_path, rows()), tmp_path / "out", "--subjects", SUBJECTS[0])
    fails_in_one_line(result, "at least two subjects")
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_is_one_line(model: str, tmp_path: Path) -> None:
    result = roles(model, write(tmp_path, rows()), tmp_path / "out", "--set", "top_shar=0.2")
    fails_in_one_line(result, "top_shar")


def test_the_default_settings_say_their_tolerance(model: str, tmp_path: Path) -> None:
    assert roles(model, write(tmp_path, rows()), tmp_path / "out", "--layers", "1").exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["config"]["attribution"]["tolerance"] == 0.01
