"""``nmke lifelong`` on a tiny model: what can be written on the command line, and what is refused in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nmke.cli import app
from nmke.cli.lifelong import default_marks, read_entrants
from nmke.errors import ConfigError, EditError
from nmke.lifelong import read
from nmke.methods.nmke import NMKE
from tests.tiny import make_tiny
from tests.unit.test_cli import fails_in_one_line

QUICK = ("statistics.text=none", "target.steps=2", "layers=1-2", "attribution.kind=mpc")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("cli") / "llama"))


@pytest.fixture
def facts(tmp_path: Path) -> str:
    rows = [
        {"prompt": f"The capital of {place} is", "subject": place, "target_new": target}
        for place, target in (
            ("France", "Rome"),
            ("Italy", "Madrid"),
            ("Spain", "the boat"),
            ("France", "woof"),
        )
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def lifelong(model: str, facts: str, out: Path, *more: str) -> Result:
    given = ["lifelong", "-m", model, "-d", facts, "-o", str(out), "-n", "4", "--perplexity-tokens", "0"]
    given += [part for setting in QUICK for part in ("--set", f"nmke.{setting}")]
    return CliRunner().invoke(app, [*given, "--methods", "nmke", *more])


def test_a_run_is_written_told_and_resumed_by_the_same_command(
    model: str, facts: str, tmp_path: Path
) -> None:
    more = ("--entrant", "firm=nmke:ridge=0.5,layers=1,2", "--eval-at", "2,4")
    first = lifelong(model, facts, tmp_path / "out", *more)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(tmp_path / "out" / "summary.json")
    assert "1 subjects are edited to several targets, 1 prompts" in first.stderr
    assert "firm, seed 0: done after 4 facts; at 4: reliability" in first.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["complete"] and list(summary["methods"]) == ["nmke", "firm"]
    assert summary["methods"]["firm"]["config"]["ridge"] == 0.5
    assert summary["methods"]["nmke"]["config"]["layers"] == [1, 2]
    assert list(summary["methods"]["nmke"]["marks"]) == ["2", "4"]
    assert summary["data"]["sha256"] and summary["data"]["subjects_with_several_targets"] == 1
    again = lifelong(model, facts, tmp_path / "out", *more)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    fails_in_one_line(
        lifelong(model, facts, tmp_path / "out", *more, "--seeds", "0,1"), "seeds is (0,) there"
    )


def test_ctrl_c_keeps_every_edit_that_was_done(
    model: str, facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calls = NMKE.plan, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plan(self, *arguments)

    monkeypatch.setattr(NMKE, "plan", interrupted)
    assert lifelong(model, facts, tmp_path / "out").exit_code == 130
    assert read(tmp_path / "out").status[0]["edits_done"] == 3
    assert lifelong(model, facts, tmp_path / "out").exit_code == 0
    assert len(calls) == 5  # the interrupted edit alone was done again
    assert read(tmp_path / "out").complete


def test_a_failure_has_its_exit_code_and_is_told(
    model: str, facts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_):
        raise EditError("It diverged.", "Lower the learning rate.")

    monkeypatch.setattr(NMKE, "plan", failing)
    result = lifelong(model, facts, tmp_path / "out")
    assert result.exit_code == 1
    assert "nmke, seed 0: failed after 0 facts" in result.stderr
    assert "Fact 1: It diverged. Lower the learning rate." in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--methods", "nmke,telepathy"), "Methods: "),
        (("--methods", "nmke@reckless"), "no preset 'reckless' for this model. Presets: standard."),
        (("--methods", "nmke@"), "--methods nmke@ names no preset"),
        (("--batch", "0"), "batch: Input should be greater than or equal to 1"),
        (("--entrant", "soft=nmke:ridge"), "The setting 'ridge' is no key=value"),
        (("--set", "nmke.mask.general_low=0.9"), "lowest share 0.9 is above their highest share 0.4"),
        (("--eval-at", "3,1"), "in order they are 1, 3"),
        (("--eval-at", "1,5"), "mark 5 lies after the last of 4 edits"),
        (("--eval-at", "soon"), "no list of whole numbers"),
        (("-n", "9"), "9 edits are wanted, but there are only 4 facts"),
        (("--set", "rome.layers=1"), "for none of the methods (nmke)"),
        (("--set", "nmke.speed=9"), "no setting 'speed'"),
        (("--entrant", "soft"), "names no entrant"),
        (("--entrant", "nmke=nmke"), "Two entrants have the label 'nmke'"),
        (("--entrant", "a/b=nmke"), "cannot name a folder"),
        (("-d", "/nowhere/facts.csv"), "facts.csv cannot be read"),
        (("--stop-perplexity", "2"), "needs perplexity_tokens"),
        (("--batch", "3", "--eval-at", "1,4"), "lies inside an edit of 3"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    model: str, facts: str, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    fails_in_one_line(lifelong(model, facts, tmp_path / "out", *more), words)
    assert not (tmp_path / "out" / "spec.json").exists()


def test_entrants_take_shared_settings_first_and_their_own_after() -> None:
    found = read_entrants(
        "nmke", ["soft = nmke:mask.alpha=20,layers=4,5,6,ridge=2"], ["nmke.ridge=1", "nmke.context_seed=3"]
    )
    assert [(one.label, one.method) for one in found] == [("nmke", "nmke"), ("soft", "nmke")]
    assert found[0].changes == ["ridge=1", "context_seed=3"]
    assert found[1].changes == ["ridge=1", "context_seed=3", "mask.alpha=20", "layers=4,5,6", "ridge=2"]
    with pytest.raises(ConfigError, match="No method is named"):
        read_entrants(" ", None, None)


@pytest.mark.parametrize(
    ("edits", "batch", "marks"),
    [
        (2000, 1, (1, 10, 100, 500, 1000, 1500, 2000)),
        (120, 1, (1, 10, 100, 120)),
        (1, 1, (1,)),
        (250, 100, (100, 250)),
    ],
)
def test_marks_are_the_papers_and_the_end(edits: int, batch: int, marks: tuple[int, ...]) -> None:
    assert default_marks(edits, batch) == marks
