"""The lifelong benchmark on a tiny model: what a whole run measures and leaves behind."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from nmke.errors import (
    ResourceError,
    SessionError,
)
from nmke.lifelong import Results, Spec, read, run, start
from nmke.lifelong.files import EVENTS
from nmke.lifelong.spec import order_of
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKE
from nmke.session import EditSession
from tests.unit.lifelong.runs import (
    FACTS,
    PLACES,
    StopsAt,
    config,
    entrants,
    go,
    settings,
)


@pytest.fixture(scope="module")
def whole(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory, text: str) -> Results:
    """Two entrants, two seeds, with everything measured. Not to be changed."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMKE_HOME", str(place / "home"))
        both = config(text, seeds=(0, 4), generate_tokens=2)
        start(place / "run", llama, FACTS, entrants(text), both, {"source": "here"})
        run(place / "run", llama, ability=lambda model: {"norm": float(model.W_out(1).norm())})
    return read(place / "run")


def test_a_run_measures_every_entrant_seed_and_mark(whole: Results) -> None:
    table = whole.table()
    assert whole.complete
    assert [entry["state"] for entry in whole.status] == ["done"] * 4
    assert [entry["edits_done"] for entry in whole.status] == [5] * 4
    assert [*zip(table["label"], table["seed"], table["T"], strict=True)] == [
        (label, seed, T) for seed in (0, 4) for label in ("nmke", "timid") for T in (1, 3, 5)
    ]
    assert list(table["n"]) == [1, 3, 5] * 4
    assert not table.isna().any().any()
    for name in ("reliability", "locality", "portability"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    assert (table["drift"] > 0).all() and (table["drift_cosine"] < 1).all()
    assert (table.groupby(["label", "seed"])["drift"].last() > 0).all()
    assert 0 <= whole.unedited["portability_low"] <= whole.unedited["portability"] <= 1
    assert whole.unedited["locality"] == 1.0 and whole.unedited["perplexity"] > 1
    # Another file, another order of events than in the table, but one truth: the weaker edits drift less.
    drift = table[table["T"] == 5].groupby("label")["drift"].mean()
    assert drift["timid"] < drift["nmke"]


def test_marks_carry_ability_and_layers_and_the_summary_means_over_seeds(whole: Results) -> None:
    marks = [event for event in whole.events("nmke", 4) if event["event"] == "mark"]
    assert [layer["layer"] for layer in marks[0]["layers"]] == [1, 2]
    norms = [mark["ability"]["norm"] for mark in marks]
    assert len({*norms, whole.unedited["ability"]["norm"]}) == 4
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["complete"] and set(summary["methods"]) == {"nmke", "timid"}
    mark = summary["methods"]["nmke"]["marks"]["3"]
    own = [mark["seeds"][seed] for seed in ("0", "4")]
    for name in ("reliability", "drift", "perplexity"):
        assert mark[name] == pytest.approx((own[0][name] + own[1][name]) / 2)
    assert mark["locality_low"] == min(one["locality_low"] for one in own)
    assert mark["locality_high"] == max(one["locality_high"] for one in own)
    assert summary["unedited"]["n"] == 5


def test_predictions_are_rows_per_fact_and_prompt_with_the_score_in_them(whole: Results) -> None:
    rows = whole.predictions("nmke", 4, 3)
    order = json.loads((whole.folder / "orders.json").read_text())["4"]
    assert list(rows["kind"].unique()) == ["prompt", "paraphrase", "neighborhood", "portability"]
    assert list(rows["fact"].unique()) == [0, 1, 2] and list(rows["position"].unique()) == [1, 2, 3]
    assert list(rows["file_index"].unique()) == order[:3]
    assert list(rows["subject"].unique()) == [PLACES[index] for index in order[:3]]
    table = whole.table()
    line = table[(table["label"] == "nmke") & (table["seed"] == 4) & (table["T"] == 3)].iloc[0]
    prompts = rows[rows["kind"] == "prompt"]
    assert prompts["share"].mean() == line["reliability"]
    assert (prompts["log_p_new"] > prompts["log_p_true"]).mean() == line["reliability_probability"]
    assert rows[rows["kind"] == "paraphrase"]["share"].mean() == pytest.approx(line["generalization"])
    assert prompts["continuation"].str.len().gt(0).all()
    assert rows[rows["kind"] == "neighborhood"]["kept"].notna().all()
    follows = rows[rows["kind"] == "portability"]
    assert follows["share"].mean() == pytest.approx(line["portability"])
    assert list(follows["target_new"]) == [FACTS[index].target_new for index in order[:3]]
    with pytest.raises(ResourceError, match="not measured at 2.*1, 3, 5"):
        whole.predictions("nmke", 4, 2)
    with pytest.raises(ResourceError, match="no rome with seed 0"):
        whole.events("rome", 0)


def test_the_last_mark_equals_a_session_edited_by_hand(whole: Results, llama: LoadedModel, text: str) -> None:
    from nmke.metrics import measure_fact
    from nmke.progress import Silent

    session = EditSession(llama)
    for fact in FACTS[:5]:
        session.apply(NMKE().plan(session, [fact], settings(text), Silent()))
    edits = [event for event in whole.events("nmke", 0) if event["event"] == "edit"]
    assert edits[-1]["digest"] == session.digest
    assert edits[-1]["target_probability"] == session.edits[-1].details["target_probability"]
    with session.active():
        shares = [measure_fact(llama, fact).new.share for fact in FACTS[:5]]
    assert whole.table().iloc[2]["reliability"] == sum(shares) / 5


def test_seeds_shuffle_the_same_facts_and_the_orders_are_kept(whole: Results) -> None:
    orders = json.loads((whole.folder / "orders.json").read_text())
    assert orders["0"] == [0, 1, 2, 3, 4] != orders["4"] == order_of(5, 4)
    assert sorted(orders["4"]) == orders["0"]
    facts = [json.loads(line) for line in (whole.folder / "facts.jsonl").read_text().splitlines()]
    assert [fact["subject"] for fact in facts] == list(PLACES[:5])
    edits = [event["facts"][0] for event in whole.events("timid", 4) if event["event"] == "edit"]
    assert edits == orders["4"]


def test_running_a_finished_run_again_changes_nothing(whole: Results, llama: LoadedModel) -> None:
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    run(whole.folder, llama)
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


def test_the_spec_survives_the_way_through_json(whole: Results, llama: LoadedModel, text: str) -> None:
    spec = start(
        whole.folder,
        llama,
        FACTS,
        entrants(text),
        config(text, seeds=(0, 4), generate_tokens=2),
        {"source": "here"},
    )
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.model["weight_hash"] == llama.weight_hash
    assert (spec.data["count"], spec.data["used"]) == (8, 5)
    assert "torch" in spec.versions


def test_a_run_from_before_portability_is_read_and_goes_on_as_it_was_begun(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "old"
    bare = tuple(replace(fact, portability=()) for fact in FACTS)
    start(folder, llama, bare, entrants(text)[:1], config(text), "here")
    run(folder, llama)
    finished = read(folder).table()
    # As it was written then: no field in the facts, no figures in the events, no score of the unedited model.
    _without_portability(folder)
    old = read(folder)
    assert old.complete and "portability" not in old.unedited
    assert old.table()[["portability", "portability_low", "portability_high"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(old.table(), finished)
    assert set(old.predictions("nmke", 0, 5)["kind"]) == {"prompt", "paraphrase", "neighborhood"}
    again = start(folder, llama, FACTS, entrants(text)[:1], config(text), "here")
    assert again.facts == bare[:5], "the file has questions now; this run is begun without"
    run(folder, llama)
    other = tuple(replace(fact, target_new="Lyon") for fact in FACTS)
    with pytest.raises(SessionError, match="another run.*fact 1.target_new"):
        start(folder, llama, other, entrants(text)[:1], config(text), "here")


def _without_portability(folder: Path) -> None:
    facts = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in fact.items() if name != "portability"} for fact in facts]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "facts.jsonl").write_text(text)
    spec = json.loads((folder / "spec.json").read_text())
    spec["files"]["facts.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "spec.json").write_text(json.dumps(spec))
    for file in (folder / "unedited.json", folder / "runs" / "nmke-seed0" / EVENTS):
        found = re.sub(r'"portability\w*": [^,}]*(, |,\n *)?', "", file.read_text())
        assert "portability" not in found and found != file.read_text()
        file.write_text(found)


def test_the_model_is_left_as_it_was(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    before = [parameter.detach().clone() for parameter in llama.bridge.parameters()]
    go(tmp_path / "run", llama, text)
    assert all(torch.equal(a, b) for a, b in zip(before, llama.bridge.parameters(), strict=True))


def test_stages_name_the_work_and_amounts_stay_within_bounds(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    progress = StopsAt()
    go(tmp_path / "run", llama, text, progress)
    assert progress.stages[-2:] == ["editing (nmke, seed 0)", "measuring (nmke, seed 0)"]


def test_a_batch_is_one_edit_of_consecutive_facts(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    results = go(tmp_path / "run", llama, text, batch=2, marks=(2, 5))
    edits = [event for event in results.events("nmke", 0) if event["event"] == "edit"]
    assert [event["facts"] for event in edits] == [[0, 1], [2, 3], [4]]
    assert [event["position"] for event in edits] == [2, 4, 5]
    assert [len(event["target_probability"]) for event in edits] == [2, 2, 1]
    rows = results.predictions("nmke", 0, 5)
    assert list(rows.groupby("fact")["position"].first()) == [1, 1, 2, 2, 3]
    since = [edit["seconds"] / len(edit["facts"]) for edit in edits[1:]]
    assert results.table().iloc[-1]["seconds_per_edit"] == pytest.approx(sum(since) / 2)
