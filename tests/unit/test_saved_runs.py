"""A lifelong run's checkpoints as edited models: which are there, opened to the bit, and never another's."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nmke.cli import app
from nmke.errors import SessionError
from nmke.lifelong.checkpoint import read_record, save_checkpoint
from nmke.lifelong.files import CHECKPOINT
from nmke.lifelong.saved import is_run, only_run, saved_runs
from nmke.loading import LoadedModel, load_model
from nmke.session import EditSession
from tests.ability_data import write_data
from tests.finished_run import finish_run
from tests.tiny import make_tiny


@pytest.fixture(autouse=True)
def own_home(cache: Path) -> Path:
    return cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("saved") / "llama")


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu")


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run of two methods over two facts."""
    return finish_run(tmp_path / "run", folder, seeds=(0,))


def test_every_entrants_edited_model_is_found_and_opened_to_the_bit(model: LoadedModel, run: Path) -> None:
    found = saved_runs(model, run)
    assert [one.label for one in found] == ["ROME, 2 facts", "FT-M, 2 facts"]
    for one in found:
        session = one.open(model)
        assert session.digest == one.digest and session.version == 2
    assert found[0].digest != found[1].digest


def test_one_entrants_folder_is_that_entrant_alone(model: LoadedModel, run: Path) -> None:
    place = run / "runs" / "FT-M-seed0"
    assert is_run(run) and is_run(place) and not is_run(run / "runs")
    assert only_run(model, place) == saved_runs(model, run)[1]


def test_where_there_are_several_their_folders_are_named(model: LoadedModel, run: Path) -> None:
    with pytest.raises(SessionError, match=r"2 edited models.*runs/ROME-seed0, runs/FT-M-seed0"):
        only_run(model, run)


def test_a_run_that_went_on_is_not_taken_for_what_it_was(model: LoadedModel, run: Path) -> None:
    before = only_run(model, run / "runs" / "ROME-seed0")
    save_checkpoint(EditSession(model), 1, before.folder / CHECKPOINT)
    with pytest.raises(SessionError, match="The run went on"):
        before.open(model)
    (before.folder / CHECKPOINT).unlink()
    with pytest.raises(SessionError, match="The run went on"):
        before.open(model)


def test_a_run_of_another_model_without_edits_or_damaged_is_refused(
    model: LoadedModel, run: Path, tmp_path: Path
) -> None:
    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(SessionError, match="another model"):
        saved_runs(other, run)
    (run / "runs" / "ROME-seed0" / CHECKPOINT).write_bytes(b"no tensors")
    with pytest.raises(SessionError, match="checkpoint of ROME-seed0 is damaged"):
        saved_runs(model, run)
    for name in ("ROME-seed0", "FT-M-seed0"):
        (run / "runs" / name / CHECKPOINT).unlink()
    with pytest.raises(SessionError, match=r"no checkpoint with edits.*Let the run go on"):
        saved_runs(model, run)
    assert read_record(run / "runs" / "ROME-seed0" / CHECKPOINT) is None


def test_abilities_of_a_runs_edited_model_are_judged(folder: Path, run: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    given = ["ability", "-m", str(folder), "--data", str(data), "-n", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--edits", str(run / "runs" / "ROME-seed0")])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["edits"]["bundle"] == "ROME, 2 facts" and summary["edits"]["count"] == 2
    assert summary["state"] == summary["edits"]["digest"]
    refused = CliRunner().invoke(app, [*given, "--edits", str(run)])
    assert refused.exit_code != 0 and "Name one of its folders" in refused.output
