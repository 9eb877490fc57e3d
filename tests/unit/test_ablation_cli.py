"""``nmke ablate`` on a tiny model: what it writes, where neurons come from, and what is refused in one line."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from nmke.answers import AnswersConfig
from nmke.cli import app
from nmke.edit import Edit
from nmke.loading import load_model
from nmke.questions import QuestionSet, load_questions
from nmke.roles import RolesConfig, assign_roles, save_roles, score_questions
from nmke.session import EditSession
from tests.tiny import make_tiny
from tests.unit.test_ablation import QUESTIONS
from tests.unit.test_cli import fails_in_one_line
from tests.unit.test_modules import FACTS


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("cli") / "llama"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    file.write_text("\n".join(json.dumps(question.to_dict()) for question in QUESTIONS.questions))
    return str(file)


@pytest.fixture(scope="module")
def roles(model: str, questions: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as `nmke roles` writes it."""
    folder = tmp_path_factory.mktemp("roles")
    config = RolesConfig.make(attribution={"kind": "mpc"}, resamples=0)
    asked: QuestionSet = load_questions(questions)
    save_roles(assign_roles(score_questions(load_model(model, device="cpu"), asked, config=config)), folder)
    return str(folder)


@pytest.fixture
def facts(tmp_path: Path) -> str:
    file = tmp_path / "facts.jsonl"
    file.write_text(
        json.dumps({"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"})
    )
    return str(file)


def test_written_answers_have_the_length_they_have_on_the_page() -> None:
    (tokens,) = [one for one in get_command(app).commands["ablate"].params if one.name == "tokens"]  # type: ignore[attr-defined]
    assert tokens.default == AnswersConfig().written_tokens


def ablate(model: str, questions: str, out: Path, *more: str) -> Result:
    given = ["ablate", "-m", model, "-q", questions, "-o", str(out), "--tokens", "3", "--controls", "2"]
    return CliRunner().invoke(app, [*given, *more])


def summary_of(out: Path) -> dict:
    found: dict = json.loads((out / "summary.json").read_text())
    return found


def names_of(out: Path) -> Sequence[str]:
    return [one["name"] for one in summary_of(out)["conditions"]]


def test_roles_are_ablated_at_each_k_beside_none_and_random_sets(
    model: str, questions: str, roles: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = ablate(model, questions, out, "--roles", roles, "--role", "general,inactive", "--k", "2,3")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out / "summary.json")
    assert "the unablated model" in done.stderr and "chance" in done.stderr
    sets = [f"{role}, k = {k}" for role in ("general", "inactive") for k in (2, 3)]
    assert names_of(out) == ["none", *sets, *(f"{one}, random {seed}" for seed in (0, 1) for one in sets)]
    summary = summary_of(out)
    assert summary["complete"] and summary["model"]["weight_hash"] and summary["questions"]["sha256"]
    for one in summary["conditions"]:
        for score in ("letters", "cloze", "written", "loss"):
            assert (
                one["scores"][score]["low"] <= one["scores"][score]["value"] <= one["scores"][score]["high"]
            )
            if one["kind"] != "none":
                assert {"value", "low", "high"} <= set(one["change"][score])
        assert set(one["subjects"]) == set(QUESTIONS.subjects)
    assert summary["conditions"][1]["against_random"]["loss"]["n"] == len(QUESTIONS)
    table = pd.read_parquet(out / "answers.parquet")
    assert len(table) == len(summary["conditions"]) * len(QUESTIONS)
    assert table["written"].map(type).eq(str).all()
    before = summary
    again = ablate(model, questions, out, "--roles", roles, "--role", "general,inactive", "--k", "2,3")
    assert again.exit_code == 0
    for one, other in zip(summary_of(out)["conditions"], before["conditions"], strict=True):
        assert one["scores"] == other["scores"]
        assert one["seconds"] is None, "it was answered anew"


def test_neurons_come_from_facts_by_kind_and_layers(
    model: str, questions: str, facts: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ("--facts", facts, "--role", "general,specific", "--k", "2", "--per-layer", "--layers", "1-2")
    done = ablate(model, questions, out, *more, "--how", "mean", "--scores", "cloze", "--controls", "0")
    assert done.exit_code == 0, done.output
    assert names_of(out) == [
        "none",
        "knowledge-general, k = 2 per layer",
        "knowledge-specific, k = 2 per layer",
    ]
    chosen = summary_of(out)["conditions"][1]
    assert {layer: len(found) for layer, found in chosen["neurons"].items()} == {"1": 2, "2": 2}
    assert summary_of(out)["config"]["how"] == "mean"
    assert list(chosen["scores"]) == ["cloze"]


def test_neurons_come_from_a_file_and_edits_are_in_force(model: str, questions: str, tmp_path: Path) -> None:
    neurons = tmp_path / "mine.txt"
    neurons.write_text("1:5\n2:7\n")
    loaded = load_model(model, device="cpu")
    session = EditSession(loaded)
    session.apply(Edit("test", {}, FACTS, (), {}))
    session.save(tmp_path / "bundle")
    more = ("--neurons", str(neurons), "--scores", "letters", "--controls", "1")
    done = ablate(model, questions, tmp_path / "out", *more, "--edits", str(tmp_path / "bundle"))
    assert done.exit_code == 0, done.output
    assert names_of(tmp_path / "out") == ["none", "mine, k = 2", "mine, k = 2, random 0"]
    assert summary_of(tmp_path / "out")["session"]["edits"] == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "not said where the neurons come from"),
        (("--facts", "examples", "--roles", "there"), "come from one place"),
        (("--facts", "examples", "--role", "domain"), "no role 'domain'"),
        (("--roles", "ROLES", "--role", "specific"), "no role 'specific'"),
        (("--roles", "ROLES", "--role", "domain:physics"), "no domain 'physics'"),
        (("--roles", "ROLES", "--k", "10,x"), "--k 10,x is no list"),
        (("--roles", "ROLES", "--role", "general,inactive", "--k", "9999"), "Ask for at most"),
        (("--roles", "nowhere"), "holds no roles"),
        (("--neurons", "nowhere.txt"), "cannot be read"),
        (("--roles", "ROLES", "--subjects", "high_school_biologie"), "Did you mean high_school_biology"),
        (("--roles", "ROLES", "--scores", "lettres"), "scores"),
        (("--roles", "ROLES", "--layers", "4"), "no layer 4"),
    ],
)
def test_bad_input_is_told_in_one_line(
    model: str, questions: str, roles: str, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    given = [roles if part == "ROLES" else part for part in more]
    fails_in_one_line(ablate(model, questions, tmp_path / "out", *given), words)


def test_a_set_of_another_model_is_refused(model: str, questions: str, tmp_path: Path) -> None:
    from nmke.ablation import by_hand, save_set

    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=1)), device="cpu")
    save_set(by_hand(other, "1:5"), tmp_path / "set.json")
    found = ablate(model, questions, tmp_path / "out", "--neurons", str(tmp_path / "set.json"))
    fails_in_one_line(found, "chosen on another model")


def test_ctrl_c_keeps_finished_conditions(
    model: str, questions: str, roles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.answers import answer_questions

    calls: list[int] = []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer_questions(*arguments, **more)

    monkeypatch.setattr("nmke.ablation.running.answer_questions", interrupted)
    given = ("--roles", roles, "--k", "1", "--scores", "letters")
    assert ablate(model, questions, tmp_path / "out", *given).exit_code == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    assert ablate(model, questions, tmp_path / "out", *given).exit_code == 0
    assert len(calls) == 3 + 2, "none and the set were kept"
