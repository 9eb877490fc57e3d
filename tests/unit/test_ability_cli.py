"""``nmke ability`` and the abilities of ``nmke lifelong`` on a tiny model: files, hooks and one-line refusals."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from nmke.ability import AbilityConfig, harness, judge_abilities, sources
from nmke.cli import app
from nmke.edit import Edit, WeightPatch
from nmke.errors import ConfigError, SessionError
from nmke.facts import Fact
from nmke.lifelong import LifelongConfig, read, run, start
from nmke.lifelong.abilities import Suite, settings_of
from nmke.lifelong.files import ABILITIES
from nmke.lifelong.spec import Entrant
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKEConfig
from nmke.session import EditSession
from tests.ability_data import ROWS, write_data
from tests.tiny import make_tiny
from tests.unit.test_cli import fails_in_one_line


@pytest.fixture(autouse=True)
def own_home(cache: Path) -> Path:
    return cache


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("cli") / "llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def ability(model: str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["ability", "-m", model, "-o", str(out), *more])


def test_a_summary_and_all_answers_are_written(model: str, data: Path, tmp_path: Path) -> None:
    given = ("--tasks", "mmlu,commonsense_qa", "--limit", "2", "--data", str(data), "--subjects", "virology")
    first = ability(model, tmp_path / "out", *given)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(tmp_path / "out" / "summary.json")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    mmlu = summary["tasks"]["mmlu"]
    assert mmlu["n"] == 2 and mmlu["parts"].keys() == {"virology"} and mmlu["limit"] == 2
    assert mmlu["interval"]["low"] <= mmlu["value"] <= mmlu["interval"]["high"]
    assert mmlu["source"] == "mmlu_test.jsonl in a local folder." and len(mmlu["sha256"]) == 64
    assert mmlu["harness_version"] and mmlu["fewshot"] == 0 and mmlu["seed"] == 0 and mmlu["seconds"] > 0
    assert mmlu["cached"] is False and summary["edits"] is None and summary["state"] == ""
    assert summary["model"]["weight_hash"] and summary["versions"]["torch"]
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    assert len(answers) == 4 and set(answers["task"]) == {"mmlu", "commonsense_qa"}
    again = ability(model, tmp_path / "again", *given)
    assert "mmlu: " in again.stderr and "known already" in again.stderr
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["tasks"]["mmlu"]["cached"]


def test_edits_are_judged_as_they_compute(llama: LoadedModel, data: Path, tmp_path: Path) -> None:
    session = EditSession(llama)
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.randn(*shape, generator=generator) for shape in ((llama.d_mlp, 1), (1, llama.d_model))
    )
    session.apply(Edit("nmke", {}, (Fact("A cat says", "cat", "woof"),), (WeightPatch(1, left, right),), {}))
    session.save(tmp_path / "bundle")
    given = ("--data", str(data), "-n", "3")
    done = ability(llama.resolved.path, tmp_path / "out", "--edits", str(tmp_path / "bundle"), *given)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["edits"] == {
        "bundle": "bundle",
        "count": 1,
        "digest": session.digest,
        "bit_identical": True,
    }
    assert summary["state"] == session.digest
    with session.active():
        # Another state's name, so that nothing is read from the cache.
        expected = judge_abilities(llama, AbilityConfig(limit=3), "by hand", data).samples
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    plain = judge_abilities(llama, AbilityConfig(limit=3), "", data).samples
    for mine, theirs, before in zip(
        answers["choices_logp"], expected["choices_logp"], plain["choices_logp"], strict=True
    ):
        assert list(mine) == pytest.approx(list(theirs), abs=1e-4)
        assert list(mine) != pytest.approx(list(before), abs=1e-3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--tasks", "sums"), "Input should be 'mmlu'"),
        (("--tasks", "humaneval"), "nobody allowed it for this run"),
        (("--tasks", "mmlu", "--limit", "0"), "limit"),
        (("--tasks", "mmlu", "--subjects", "alchemy"), "no questions about alchemy"),
        (("--tasks", "gsm8k"), "most_tokens"),
        (("--edits", "nothing"), "no edit bundle"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    more: tuple[str, ...], words: str, model: str, data: Path, tmp_path: Path
) -> None:
    fails_in_one_line(ability(model, tmp_path / "out", "--data", str(data), *more), words)


def test_no_data_and_no_hub_names_the_ways(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> str:
        raise ConnectionError

    monkeypatch.setattr(sources, "_hub_revision", away)
    fails_in_one_line(
        ability(model, tmp_path / "out", "--tasks", "gsm8k"),
        "holds gsm8k_test.jsonl; or connect to the Hugging Face hub",
    )


def test_a_missing_harness_is_told_before_a_model_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(harness, "version", missing)
    fails_in_one_line(ability("no-such-model", tmp_path / "out", "--data", str(data)), "pip install 'lm-eval")


# ---- lifelong ---------------------------------------------------------------------------------------------------

FACTS = [
    Fact(f"The capital of {place} is", place, target)
    for place, target in (("France", "Rome"), ("Italy", "Madrid"), ("Spain", "the boat"))
]
QUICK = NMKEConfig.make(
    layers=(1, 2), statistics={"text": "none"}, target={"steps": 2}, attribution={"kind": "mpc"}
)


def settings(data: Path, **changes: Any) -> LifelongConfig:
    values = {
        "edits": 3,
        "marks": (1, 3),
        "perplexity_tokens": 0,
        "ability_limit": 2,
        "ability_data": str(data),
    }
    return LifelongConfig.make(**{**values, "abilities": ("mmlu",), **changes})


def test_every_mark_carries_the_abilities_of_its_state(
    llama: LoadedModel, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    spec = start(folder, llama, FACTS, [Entrant("nmke", "nmke", QUICK)], settings(data), "made up")
    assert spec.config.abilities == ("mmlu",)
    run(folder, llama)
    results = read(folder)
    plain = judge_abilities(llama, AbilityConfig(limit=2), "", data)
    assert results.unedited["ability"] == plain.figures()
    marks = json.loads((folder / "summary.json").read_text())["methods"]["nmke"]["marks"]
    assert len(marks) == 2
    told = json.loads((folder / ABILITIES).read_text())
    assert told["mmlu"]["sha256"] == plain.score("mmlu").sha256 and told["mmlu"]["n"] == 4
    events = [
        json.loads(line)
        for line in (folder / "runs" / "nmke-seed0" / "events.jsonl").read_text().splitlines()
    ]
    figures = [event["ability"] for event in events if event["event"] == "mark"]
    assert [set(one) for one in figures] == [{"mmlu"}, {"mmlu"}]
    # Asked of the weights of each mark, not of the loaded ones: their answers lie under three states.
    answers = (Path(tmp_path) / "home" / "abilities" / "answers").glob("*.json")
    assert len(list(answers)) == 2 * 3


def test_the_abilities_are_the_runs_own_and_come_back_with_it(
    llama: LoadedModel, data: Path, tmp_path: Path
) -> None:
    folder, entrants = tmp_path / "run", [Entrant("nmke", "nmke", QUICK)]
    start(folder, llama, FACTS, entrants, settings(data), "made up")
    with pytest.raises(SessionError, match="abilities is"):
        start(folder, llama, FACTS, entrants, settings(data, abilities=("mmlu", "bbh")), "made up")
    assert start(folder, llama, FACTS, entrants, settings(data), "made up").config == settings(data)


def test_other_questions_in_the_middle_of_a_run_are_refused(
    llama: LoadedModel, data: Path, tmp_path: Path
) -> None:
    from nmke.progress import Silent

    Suite(settings(data), tmp_path, Silent()).at("")(llama)
    rows = [{**row, "question": "Other?"} for row in ROWS["mmlu_test.jsonl"]]
    other = write_data(tmp_path / "other", {**ROWS, "mmlu_test.jsonl": rows})
    with pytest.raises(SessionError, match="mmlu is asked with other questions"):
        Suite(settings(other), tmp_path, Silent()).at("")(llama)


def test_humaneval_needs_the_yes_of_the_run(data: Path) -> None:
    with pytest.raises(ConfigError, match="say yes to it for this run"):
        settings(data, abilities=("humaneval",))
    asked, folder = settings_of(settings(data, abilities=("humaneval",), ability_run_code=True))
    assert asked.run_code and folder == data


def test_abilities_that_cannot_be_judged_are_refused_at_the_start(llama: LoadedModel, tmp_path: Path) -> None:
    from nmke.errors import ResourceError

    with pytest.raises(ResourceError, match="There is no folder"):
        start(
            tmp_path / "run",
            llama,
            FACTS,
            [Entrant("nmke", "nmke", QUICK)],
            settings(tmp_path / "nothing"),
            "made up",
        )
    assert not (tmp_path / "run").exists()


def test_the_command_line_stores_the_abilities(model: str, data: Path, tmp_path: Path) -> None:
    given = [
        "lifelong",
        "-m",
        model,
        "-d",
        "examples",
        "-o",
        str(tmp_path / "run"),
        "-n",
        "1",
        "--methods",
        "ft-l",
    ]
    given += ["--perplexity-tokens", "0", "--set", "ft-l.layer=1", "--set", "ft-l.steps=1"]
    given += ["--abilities", "mmlu", "--ability-limit", "1", "--ability-data", str(data)]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert spec["config"]["abilities"] == ["mmlu"] and spec["config"]["ability_limit"] == 1
    fails_in_one_line(CliRunner().invoke(app, [*given, "--abilities", "humaneval"]), "say yes")
