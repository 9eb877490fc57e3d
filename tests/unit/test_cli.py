"""The command line on a tiny random model: files, exit codes, one-line errors, Ctrl-C."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from nmke.cli import app, shelf
from nmke.cli.edit_run import EditRun, seconds_per_edit, seeds_in
from nmke.cli.options import change_settings, parse_layers
from nmke.errors import Cancelled, ConfigError, EditError, ResourceError
from nmke.methods.nmke import NMKE, NMKEConfig
from nmke.session import EditSession
from tests.tiny import make_tiny

QUICK = ["--set", "statistics.text=none", "--set", "target.steps=3", "--set", "layers=1-2"]
FACTS = [
    {
        "prompt": "The capital of France is",
        "subject": "France",
        "target_new": "Rome",
        "target_true": "Paris",
        "paraphrases": ["France has the capital"],
        "neighborhood": [{"prompt": "The capital of Spain is", "answer": "Madrid"}],
        "portability": [{"prompt": "The city of Rome is in", "answer": "France"}],
    },
    {"prompt": "The language of Germany is", "subject": "Germany", "target_new": "Italian"},
]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("llama", tmp_path_factory.mktemp("cli") / "llama"))


@pytest.fixture
def facts(tmp_path: Path) -> str:
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(json.dumps(fact) for fact in FACTS), encoding="utf-8")
    return str(file)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def fails_in_one_line(result: Result, words: str) -> None:
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in result.output


# ---- what there is


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["fetch", "models", "methods", "neurons", "edit", "lifelong", "NMKE_HOME"]),
        (("lifelong",), ["--data", "--methods", "--entrant", "--eval-at", "--seeds", "--out"]),
        (("fetch",), ["smollm2-135m", "wikipedia"]),
        (("models",), ["cached"]),
        (("methods",), ["methods"]),
        (("neurons",), ["--model", "--facts", "--limit", "--layers", "--attribution", "--target", "--out"]),
        (
            ("edit",),
            ["--model", "--facts", "--method", "--limit", "--independent", "--sequential", "--set", "--out"],
        ),
    ],
)
def test_help_names_what_can_be_given(command, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert all(word in result.output for word in words)


def test_the_version_is_printed():
    assert run("--version").stdout.strip() == "0.1.0"


def test_models_tells_what_is_known_cached_and_where(tmp_path):
    result = run("models")
    assert result.exit_code == 0
    name, _, cached, _, folder = result.stdout.splitlines()[1].split("\t")
    assert (name, cached) == ("smollm2-135m", "no")
    assert folder == str(tmp_path / "home" / "models" / "smollm2-135m")


def test_methods_lists_nmke():
    result = run("methods")
    assert result.exit_code == 0
    assert "nmke\tNMKE\t" in result.stdout


def test_fetch_prints_where_the_model_lies(monkeypatch):
    monkeypatch.setattr(shelf, "fetch_model", lambda name, _: Path("/cache") / name)
    assert run("fetch").stdout.strip() == "/cache/smollm2-135m"


def test_fetching_an_unknown_name_lists_the_known_ones():
    fails_in_one_line(run("fetch", "gpt-17"), "Known: smollm2-135m")


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (Cancelled(), 130), (ResourceError("x"), 1), (ZeroDivisionError(), 1)],
)
def test_every_way_to_stop_has_its_exit_code(monkeypatch, error, code):
    def stop(*_):
        raise error

    monkeypatch.setattr(shelf, "fetch_model", stop)
    result = run("fetch")
    assert result.exit_code == code
    assert "Traceback" not in result.output


# ---- values


@pytest.mark.parametrize(
    ("text", "layers"), [("4-8", [4, 5, 6, 7, 8]), ("8,4, 10-11", [4, 8, 10, 11]), ("0", [0]), ("all", None)]
)
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["8-4", "", "a", "1,,2", "-1", "1-2-3", "1-99999999"])
def test_layers_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="names no layers"):
        parse_layers(text)


def test_settings_are_changed_by_dotted_names():
    config = change_settings(
        NMKEConfig(), ["mask.alpha=20", "layers=3-5", "mask.ties=score", "statistics.text=none", "ridge=2.5"]
    )
    assert (config.mask.alpha, config.layers, config.mask.ties) == (20, (3, 4, 5), "score")
    assert (config.statistics.text, config.ridge) == ("none", 2.5)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("alpha=20", "no setting 'alpha'"),
        ("masks.alpha=20", "no setting 'masks.alpha'.*Did you mean mask.alpha"),
        ("mask=20", "no setting 'mask'"),
        ("mask.alpha", "no key=value"),
        ("mask.alpha=0", "mask.alpha"),
        ("mask.alpha=-3", "mask.alpha"),
        ("mask.general_low=0.9", "above their highest share"),
        ("ridge=many", "ridge"),
    ],
)
def test_a_bad_setting_is_refused_by_name(assignment, words):
    with pytest.raises(ConfigError, match=words):
        change_settings(NMKEConfig(), [assignment])


def test_seeds_are_found_by_their_dotted_names():
    assert seeds_in({"context_seed": 1, "statistics": {"seed": 2, "tokens": 3}}) == {
        "context_seed": 1,
        "statistics.seed": 2,
    }


def test_preparation_is_told_apart_from_the_seconds_per_edit():
    edits = [
        {"total": 12.0, "statistics": 10.0, "target": 1.0},
        {"total": 4.0, "statistics": 0.0, "target": 3.0},
    ]
    means = seconds_per_edit(edits)
    assert (means["total"], means["target"], means["preparation"]) == (3.0, 2.0, 10.0)
    assert set(seconds_per_edit([])) >= {"total", "target", "attribution", "keys", "solve"}


# ---- neurons


def test_neurons_writes_scores_masks_and_a_summary(model, facts, tmp_path):
    out = tmp_path / "out"
    result = run(
        "neurons", "-m", model, "-f", facts, "--layers", "1-2", "-o", str(out), "--set", "mask.alpha=10"
    )
    assert result.exit_code == 0, result.output
    scores, masks = pd.read_parquet(out / "scores.parquet"), pd.read_parquet(out / "masks.parquet")
    assert len(scores) == 2 * 2 * 64
    assert {"layer", "prompt", "neuron", "score", "activation"} <= {*scores.columns}
    assert len(masks) == 2 * 64
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["mask"]["alpha"] == 10
    for layer in summary["layers"]:
        here = masks[masks.layer == layer["layer"]]
        assert layer["counts"]["selected"] == (here.weight != 0).sum()
        assert layer["counts"]["both"] == (here.kind == "both").sum()
        assert 0 <= layer["entropy_general"] <= 1
        assert layer["seconds"] > 0
    assert "weight_hash" in summary["model"]
    assert summary["versions"]["torch"] == torch.__version__


def test_a_single_prompt_is_enough(model, facts, tmp_path):
    assert run("neurons", "-m", model, "-f", facts, "-n", "1", "-o", str(tmp_path / "out")).exit_code == 0


def test_a_bad_row_is_told_and_the_good_ones_are_used(model, tmp_path):
    file = tmp_path / "facts.jsonl"
    bad = {"prompt": "The capital of France is", "subject": "Peru", "target_new": "Lima"}
    file.write_text("\n".join(json.dumps(fact) for fact in [bad, *FACTS]))
    result = run("neurons", "-m", model, "-f", str(file), "--layers", "1", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "Note: row 1" in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["facts"]["count"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--facts": "/nowhere/facts.csv"}, "facts.csv cannot be read"),
        ({"--model": "/nowhere/model"}, "no file or folder"),
        ({"--layers": "9-12"}, "layers 0 to 3"),
        ({"--layers": "x"}, "names no layers"),
        ({"--set": "mask.alpha=0"}, "mask.alpha"),
        ({"--device": "cuda:99"}, "not available"),
        ({"--dtype": "float8"}, "float8"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(model, facts, tmp_path, change, words):
    given = {"--model": model, "--facts": facts, "--out": str(tmp_path / "out"), **change}
    fails_in_one_line(run("neurons", *(part for pair in given.items() for part in pair)), words)


def test_a_folder_for_results_that_is_a_file_is_refused(model, facts):
    fails_in_one_line(run("neurons", "-m", model, "-f", facts, "-o", facts), "is a file")


# ---- edit


def edit(model: str, facts: str, out: Path, *more: str) -> tuple[Result, dict]:
    result = run("edit", "-m", model, "-f", facts, "-o", str(out), *QUICK, *more)
    report = out / "report.json"
    return result, json.loads(report.read_text()) if report.is_file() else {}


def test_independent_edits_are_measured_undone_and_reported(model, facts, tmp_path):
    result, report = edit(model, facts, tmp_path / "out", "--independent")
    assert result.exit_code == 0, result.output
    assert report["complete"]
    assert report["undo_exact"]
    assert report["undone_one_by_one"] == {"count": 2, "exact": 2}
    assert report["config"]["layers"] == [1, 2]
    assert (report["preset"]["name"], report["preset"]["status"]) == ("standard", "guessed")
    assert {"reliability", "generalization", "locality"} <= set(report["means"])
    assert {"total", "target", "attribution", "keys", "solve"} <= set(report["seconds_per_edit"])
    first, second = report["facts"]
    assert first["target_probability"]["after"] != first["target_probability"]["before"]
    assert first["continuation"]["before"]
    assert second["locality"] is None
    asked = [first[when]["portability"][0] for when in ("before", "after")]
    assert [answer["target"] for answer in asked] == ["France", "France"]
    assert (
        first["portability"]
        == report["means"]["portability"]
        == sum(asked[1]["hits"]) / len(asked[1]["hits"])
    )
    assert f"portability {first['portability']:.3f}" in result.output
    assert second["portability"] is None and "follow from the edit" in report["formulas"]["portability"]
    assert [change["layer"] for change in first["changes"]] == [1, 2]
    assert report["seeds"]["context_seed"] == 0
    for folder in ("0001", "0002"):
        assert any((tmp_path / "out" / "edits" / folder).iterdir())


def test_sequential_edits_are_measured_again_at_the_end(model, facts, tmp_path):
    result, report = edit(model, facts, tmp_path / "out", "--sequential")
    assert result.exit_code == 0, result.output
    assert report["undo_exact"]
    assert "means_at_the_end" in report
    first, last = report["facts"]
    assert last["final"]["reliability"] == last["reliability"]
    assert first["final"]["target_probability"] != first["target_probability"]["after"]
    assert any((tmp_path / "out" / "bundle").iterdir())


@pytest.mark.parametrize("mode", ["--independent", "--sequential"])
def test_ctrl_c_keeps_what_is_done(model, facts, tmp_path, monkeypatch, mode):
    plan, calls = NMKE.plan, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plan(self, *arguments)

    monkeypatch.setattr(NMKE, "plan", interrupted)
    result, report = edit(model, facts, tmp_path / "out", mode)
    assert result.exit_code == 130
    assert report["complete"] is False
    assert len(report["facts"]) == 1
    assert report["undo_exact"]


def test_a_fact_that_cannot_be_edited_is_reported_and_the_others_go_on(model, facts, tmp_path, monkeypatch):
    plan = NMKE.plan

    def refusing(self, session, chosen, *rest):
        if chosen[0].subject == "France":
            raise EditError("It diverged.", "Lower the learning rate.")
        return plan(self, session, chosen, *rest)

    monkeypatch.setattr(NMKE, "plan", refusing)
    result, report = edit(model, facts, tmp_path / "out", "--independent")
    assert result.exit_code == 0
    assert [entry["index"] for entry in report["facts"]] == [1]
    assert report["failures"][0]["error"] == "It diverged. Lower the learning rate."


def test_weights_that_do_not_come_back_are_never_called_exact(model, facts, tmp_path, monkeypatch):
    undo = EditSession.undo

    def careless(self):
        edit = undo(self)
        self.model.down_projection(1).data[0, 0] += 1e-3
        return edit

    monkeypatch.setattr(EditSession, "undo", careless)
    for mode in ("--independent", "--sequential"):
        _, report = edit(model, facts, tmp_path / mode, mode)
        assert report["undo_exact"] is False


def test_an_unknown_method_lists_the_known_ones(model, facts, tmp_path):
    result, _ = edit(model, facts, tmp_path / "out", "--method", "telepathy")
    fails_in_one_line(result, "Methods: nmke")


def test_an_unknown_setting_is_told_before_the_model_is_loaded(facts, tmp_path):
    result, _ = edit("/nowhere", facts, tmp_path / "out", "--set", "speed=9")
    fails_in_one_line(result, "no setting 'speed'")


def test_a_fact_the_model_says_already_is_pointed_out(model, tmp_path):
    from nmke.loading import load_model

    said = load_model(model, "cpu").generate(["The capital of France is"], 1)[0]
    file = tmp_path / "known.jsonl"
    fact = {"prompt": "The capital of France is", "subject": "France", "target_new": said.strip()}
    file.write_text(json.dumps(fact))
    _, report = edit(model, str(file), tmp_path / "out")
    if report["facts"][0]["before"]["new"]["hits"] == [True]:
        assert report["facts"][0]["known_before"]


def test_the_run_is_a_plain_object_that_needs_no_command_line():
    assert {"model", "method", "config", "facts", "out", "independent"} <= set(EditRun.__dataclass_fields__)
