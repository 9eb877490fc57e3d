"""``nmke sweep``: the command line, a dry run, and mistakes in one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nmke.cli import app
from tests.sweeping import write_sweep
from tests.unit.test_cli import fails_in_one_line


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments])


def test_a_dry_run_prints_every_command_and_writes_nothing(tmp_path: Path) -> None:
    done = call(str(write_sweep(tmp_path, seeds="[0, 1]")), "--out", str(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "6 runs, 24 edits in all" in done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert all(line.startswith("nmke lifelong --model ") for line in done.stdout.splitlines())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_is_done_told_and_repeated_by_the_same_command(tmp_path: Path, cache: Path) -> None:
    arguments = (str(write_sweep(tmp_path)), "--out", str(tmp_path / "out"))
    for _ in range(2):
        done = call(*arguments)
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == str(tmp_path / "out" / "summary.json")
        assert "3 done" in done.stderr and "Best nmke of 2 at 4: nmke ridge" in done.stderr


def test_ten_thousand_runs_need_a_yes(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, seeds=str(list(range(5000))))
    refused = call(str(file), "--out", str(tmp_path / "out"), "--dry-run")
    fails_in_one_line(refused, "15,000 runs")
    assert "--yes" in refused.stderr
    assert call(str(file), "--out", str(tmp_path / "out"), "--dry-run", "--yes").exit_code == 0


def test_an_unknown_method_is_told_with_its_row(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    file.write_text(file.read_text().replace("name: nmke", "name: nmek"))
    told = call(str(file), "--out", str(tmp_path / "out"))
    fails_in_one_line(told, "Row 6: there is no method 'nmek'. Did you mean nmke?")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--address", "auto"), "--address is for Ray"),
        (("--gpus-per-run", "1"), "--gpus-per-run is for Ray"),
        (("--executor", "ray", "--address", "nonsense"), "HOST:PORT"),
        (("--executor", "ray", "--requirements", "none.txt"), "There is no file none.txt"),
    ],
)
def test_options_that_do_not_fit_are_told(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    pytest.importorskip("ray")
    told = call(str(write_sweep(tmp_path)), "--out", str(tmp_path / "out"), *options)
    fails_in_one_line(told, words)


def test_the_example_of_the_docs_is_the_papers_comparison() -> None:
    example = Path(__file__).parents[2] / "docs" / "paper.yaml"
    done = call(str(example), "--out", "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "12 runs, 24,000 edits in all" in done.stderr
