"""``nmke drift`` on a tiny random model: its files, and one line for every bad input."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from nmke.cli import app
from nmke.edit import Edit, WeightPatch
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.session import EditSession
from tests.tiny import make_tiny
from tests.unit.test_cli import fails_in_one_line

FAST = ["--set", "perplexity=5", "--set", "iterations=300", "--set", "components=8"]


@pytest.fixture(autouse=True)
def own_home(cache: Path) -> None:
    """Nothing of the user's cache is read or written."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("drift") / "llama"))


def save_edits(model: str, folder: Path, layers: tuple[int, ...], neuron: int, masked: bool = False) -> str:
    """A bundle of one edit that changes one neuron of some layers."""
    loaded = load_model(model, device="cpu")
    left = torch.zeros(loaded.d_mlp, 1)
    left[neuron] = 1.0
    patches = tuple(WeightPatch(layer, left, torch.ones(1, loaded.d_model)) for layer in layers)
    masks = {layer: (left[:, 0] != 0).float() for layer in layers} if masked else {}
    fact = Fact("The capital of France is", "France", "Rome", "Paris")
    session = EditSession(loaded)
    session.apply(Edit("memit", {}, (fact,), patches, {}, masks, {"total": 1.0}))
    return str(session.save(folder))


@pytest.fixture(scope="module")
def bundles(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("edits")
    return save_edits(model, folder / "a", (1, 2), 3), save_edits(model, folder / "b", (2,), 4)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["drift", *arguments])


def test_two_bundles_are_drawn_and_measured(model: str, bundles: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("-m", model, "-e", bundles[0], "-e", bundles[1], *FAST, "-o", str(out), "--layer", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["layer"] == 2
    assert summary["map"]["labels"] == ["MEMIT, 1 fact", "MEMIT, 1 fact (2)"]
    assert summary["map"]["points"] == 3 * 64
    assert summary["map"]["settings"]["perplexity"] == 5
    assert [(row["version"], row["layer"]) for row in summary["changes"]] == [
        ("MEMIT, 1 fact", 1),
        ("MEMIT, 1 fact", 2),
        ("MEMIT, 1 fact (2)", 2),
    ]
    assert summary["changes"][0]["untouched"] == 63 / 64
    assert summary["model"]["weight_hash"]
    assert len(pd.read_parquet(out / "neurons.parquet")) == 3 * 64
    assert len(pd.read_csv(out / "layers.csv")) == 3
    page = (out / "drift.html").read_text()
    assert "Plotly.newPlot" in page
    assert "https://cdn" not in page.split("<body>")[0]
    if summary["png"] == "drift.png":
        assert (out / "drift.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "not drawn" in summary["png"]
        assert "drift.png was not drawn" in " ".join(result.stderr.split())


def test_the_first_edited_layer_is_drawn_where_layer_8_is_not_edited(
    model: str, bundles: tuple[str, str], tmp_path: Path
) -> None:
    assert run("-m", model, "-e", bundles[1], *FAST, "-o", str(tmp_path)).exit_code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["layer"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--layer", "3"], "No edit changed layer 3"),
        (["--set", "sample=4"], "perplexity 5 is too large for 4 neurons"),
        (["--set", "perplexity=64"], "Choose a perplexity below 64"),
        (["--set", "perplexty=3"], "no setting 'perplexty'"),
        (["--set", "iterations=10"], "iterations"),
    ],
)
def test_bad_settings_are_told_in_one_line(
    model: str, bundles: tuple[str, str], tmp_path: Path, more: list[str], words: str
) -> None:
    fails_in_one_line(run("-m", model, "-e", bundles[0], *FAST, *more, "-o", str(tmp_path)), words)


def test_edits_of_another_model_are_refused(
    bundles: tuple[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = str(make_tiny("gpt2", tmp_path / "gpt2"))
    fails_in_one_line(run("-m", other, "-e", bundles[0], "-o", str(tmp_path / "out")), "was made for")


def test_a_folder_without_edits_is_refused(model: str, tmp_path: Path) -> None:
    fails_in_one_line(
        run("-m", model, "-e", str(tmp_path / "none"), "-o", str(tmp_path)), "There is no folder"
    )
    loaded = load_model(model, device="cpu")
    empty = EditSession(loaded).save(tmp_path / "empty")
    fails_in_one_line(run("-m", model, "-e", str(empty), "-o", str(tmp_path / "out")), "holds no edits")


def test_edits_must_be_named(model: str, tmp_path: Path) -> None:
    assert run("-m", model, "-o", str(tmp_path)).exit_code == 2


def test_kinds_of_a_method_without_masks_are_said_to_be_unknown(
    model: str, bundles: tuple[str, str], tmp_path: Path
) -> None:
    result = run("-m", model, "-e", bundles[0], *FAST, "--kinds", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "has no masks" in " ".join(result.stderr.split())
