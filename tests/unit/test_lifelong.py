"""The lifelong benchmark on a tiny model: what is measured, how it goes on, what is refused."""

import hashlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nmke.errors import (
    Cancelled,
    ConfigError,
    EditError,
    FactError,
    FactRefused,
    NmkeError,
    ResourceError,
    SessionError,
)
from nmke.facts import Consequence, Fact, Neighbor
from nmke.lifelong import Entrant, LifelongConfig, Results, Spec, read, read_data, run, start
from nmke.lifelong.files import CHECKPOINT, EVENTS, EventLog, held
from nmke.lifelong.results import FIGURES
from nmke.lifelong.spec import order_of, repeats
from nmke.loading import LoadedModel
from nmke.methods import methods
from nmke.methods.nmke import NMKE, NMKEConfig
from nmke.progress import Progress
from nmke.session import EditSession

PLACES = ("France", "Italy", "Spain", "Germany", "England", "London", "Madrid", "Rome")
FACTS = tuple(
    Fact(
        "The capital of {} is",
        place,
        answer,
        target_true="Paris",
        paraphrases=(f"You and I take the boat. {place} has the capital",),
        neighborhood=(Neighbor("A cat says", "meow"), Neighbor("The river is")),
        portability=(Consequence(f"The boat that you take to {place} is in", answer),),
    )
    for place, answer in zip(
        PLACES, ("Rome", "Madrid", "the boat", "meow", "dog", "wide", "woof", "German"), strict=True
    )
)
TIMES = ("seconds", "preparation", "stages", "peak_memory", "versions")


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    pass


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"The river {n} is wide, and cat {n * 7} says meow to dog {n * 3}." for n in range(60)]
    file.write_text("\n".join(lines))
    return str(file)


def settings(text: str, **changed: Any) -> NMKEConfig:
    values = {
        "layers": (1, 2),
        "null_space_threshold": 1e6,
        "statistics": {"text": text, "tokens": 400, "window": 32},
        "target": {"steps": 3, "weight_decay": 0.0, "learning_rate": 0.1},
        "attribution": {"kind": "mpc"},
    }
    return NMKEConfig.make(**{**values, **changed})


def config(text: str, **changed: Any) -> LifelongConfig:
    values = {
        "edits": 5,
        "marks": (1, 3, 5),
        "checkpoint_every": 2,
        "perplexity_tokens": 64,
        "perplexity_text": text,
    }
    return LifelongConfig.make(**{**values, **changed})


def entrants(text: str) -> list[Entrant]:
    return [Entrant("nmke", "nmke", settings(text)), Entrant("timid", "nmke", settings(text, ridge=50.0))]


def go(
    folder: Path, model: LoadedModel, text: str, progress: Progress | None = None, **changed: Any
) -> Results:
    start(folder, model, FACTS, entrants(text)[:1], config(text, **changed), "here")
    run(folder, model, progress)
    return read(folder)


def timeless(value: Any) -> Any:
    """Without what differs between two runs of the same: seconds, memory, versions, and resumes."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith(TIMES)}
    if isinstance(value, list):
        return [
            timeless(v)
            for v in value
            if not (isinstance(v, dict) and v.get("event") in ("resume", "stopped"))
        ]
    return value


def same(one: Results, other: Results) -> None:
    drop = [name for name in FIGURES if name.startswith(TIMES)]
    pd.testing.assert_frame_equal(
        one.table().drop(columns=drop), other.table().drop(columns=drop), check_exact=True
    )
    for row in one.table().itertuples():
        pd.testing.assert_frame_equal(
            one.predictions(row.label, row.seed, row.T), other.predictions(row.label, row.seed, row.T)
        )
    for label, seed in {(row["label"], row["seed"]) for row in one.status}:
        assert timeless(one.events(label, seed)) == timeless(other.events(label, seed))
    summaries = [json.loads((results.folder / "summary.json").read_text()) for results in (one, other)]
    assert timeless(summaries[0]) == timeless(summaries[1])


class StopsAt(Progress):
    """Cancels at one of its updates."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count, self.stages = at, 0, []

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        assert total is None or 0 <= done <= total
        if stage not in self.stages:
            self.stages.append(stage)
        self.count += 1
        if self.count == self.at:
            raise Cancelled


# ---- a whole run


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


# ---- going on


def test_a_run_cancelled_at_random_points_equals_one_that_never_stopped(
    tiny: LoadedModel, tmp_path: Path, text: str
) -> None:
    changed = {"generate_tokens": 2, "checkpoint_every": 4}
    counting = StopsAt()
    straight = go(tmp_path / "straight", tiny, text, counting, **changed)
    chance = random.Random(7)
    for _ in range(4):
        try:
            stopped = go(
                tmp_path / "stopped", tiny, text, StopsAt(chance.randrange(5, counting.count)), **changed
            )
            break
        except Cancelled:
            assert read(tmp_path / "stopped").status[0]["state"] == "waiting"
    else:
        stopped = go(tmp_path / "stopped", tiny, text, **changed)
    assert stopped.complete
    same(straight, stopped)
    assert not list((tmp_path / "stopped").rglob(".partial-*"))


def test_what_came_after_the_last_checkpoint_is_done_again_alike(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = go(tmp_path / "straight", llama, text, marks=(2, 5), checkpoint_every=2)
    folder, plan, seen = tmp_path / "killed", NMKE.plan, []

    def dying(self, session, facts, *rest):
        seen.append(facts[0].subject)
        if len(seen) == 4:
            raise SystemExit  # nothing in the program answers to this, as to a kill
        return plan(self, session, facts, *rest)

    monkeypatch.setattr(NMKE, "plan", dying)
    with pytest.raises(SystemExit):
        go(folder, llama, text, marks=(2, 5), checkpoint_every=2)
    log = folder / "runs" / "nmke-seed0" / EVENTS
    with log.open("a") as file:
        file.write('{"event": "edit", "posit')  # cut off in the middle
    assert read(folder).status[0] | {"message": ""} == {
        "label": "nmke", "method": "nmke", "seed": 0, "edits_done": 3, "state": "waiting", "message": "",
    }  # fmt: skip
    again = go(folder, llama, text, marks=(2, 5), checkpoint_every=2)
    assert seen == [*PLACES[:4], *PLACES[2:5]]  # from the checkpoint after two
    same(straight, again)
    assert [event["event"] for event in again.events("nmke", 0)].count("resume") == 1
    measured = [event["position"] for event in again.events("nmke", 0) if event["event"] == "mark"]
    assert measured == [2, 5]


def test_a_mark_that_is_there_is_not_measured_again(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import running

    folder, measure, count = tmp_path / "run", running.measure_fact, []

    class AtFour(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage.startswith("editing") and done == 4:
                raise Cancelled

    with pytest.raises(Cancelled):
        go(folder, llama, text, AtFour())
    monkeypatch.setattr(running, "measure_fact", lambda *a: count.append(1) or measure(*a))
    go(folder, llama, text)
    assert len(count) == 5  # the mark at five alone


def test_an_entrant_that_fails_is_told_the_others_go_on_and_it_is_tried_again(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = entrants(text)
    straight = tmp_path / "straight"
    start(straight, llama, FACTS, both, config(text), "here")
    run(straight, llama)
    folder, plan = tmp_path / "failing", NMKE.plan

    def failing(problem):
        def planned(self, session, facts, given, progress):
            if given.ridge == 1.0 and facts[0].subject == "Germany":
                raise problem
            return plan(self, session, facts, given, progress)

        return planned

    start(folder, llama, FACTS, both, config(text), "here")
    for problem, words in (
        (
            EditError("It diverged.", "Lower the learning rate."),
            "Fact 4: It diverged. Lower the learning rate.",
        ),
        (MemoryError(), "Edit fewer layers"),
        (torch.OutOfMemoryError("CUDA out of memory"), "smaller dtype"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (ZeroDivisionError("x"), "unexpectedly (ZeroDivisionError: x)"),
    ):
        monkeypatch.setattr(NMKE, "plan", failing(problem))
        run(folder, llama)
        results = read(folder)
        assert [entry["state"] for entry in results.status] == ["failed", "done"]
        assert words in results.status[0]["message"]
        assert results.status[0]["edits_done"] == 3 and not results.complete
        assert list(results.table()["T"]) == [1, 3, 1, 3, 5]
        assert (folder / "runs" / "nmke-seed0" / CHECKPOINT).is_file()
        assert not json.loads((folder / "summary.json").read_text())["complete"]
    monkeypatch.setattr(NMKE, "plan", plan)
    run(folder, llama)
    assert read(folder).complete
    monkeypatch.undo()
    again, once = read(folder), read(straight)
    for label in ("nmke", "timid"):
        kept = [event for event in again.events(label, 0) if event["event"] != "failed"]
        assert timeless(kept) == timeless(once.events(label, 0))


def test_a_fact_the_method_finds_nothing_for_counts_as_not_written_and_the_run_goes_on(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = NMKE.plan

    def picky(self: NMKE, session: EditSession, facts: Any, *rest: Any) -> Any:
        if facts[0] == FACTS[1]:
            raise FactRefused("Nothing holds that.")
        return plan(self, session, facts, *rest)

    monkeypatch.setattr(NMKE, "plan", picky)
    whole = go(tmp_path / "whole", llama, text)
    assert [row["state"] for row in whole.status] == ["done"]
    edits = [event for event in whole.events("nmke", 0) if event["event"] == "edit"]
    assert ["refused" in event for event in edits] == [False, True, False, False, False]
    assert edits[1]["digest"] == edits[0]["digest"] != edits[2]["digest"]
    marks = [event for event in whole.events("nmke", 0) if event["event"] == "mark"]
    assert [mark["refused"] for mark in marks] == [0, 1, 1]
    with pytest.raises(Cancelled):
        go(tmp_path / "stopped", llama, text, StopsAt(whole_updates(llama, text, tmp_path) // 2))
    run(tmp_path / "stopped", llama)
    same(whole, read(tmp_path / "stopped"))


def whole_updates(llama: LoadedModel, text: str, tmp_path: Path) -> int:
    """How many times a whole run tells its progress."""
    count = StopsAt()
    go(tmp_path / "counted", llama, text, count)
    return count.count


def test_a_trained_editor_that_was_replaced_ends_its_entrant_also_after_a_stop(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, editor = NMKE.plan, {"digest": "first"}

    def trained(self: NMKE, *given: Any) -> Any:
        edit = plan(self, *given)
        return replace(edit, details={**edit.details, "editor": dict(editor)})

    monkeypatch.setattr(NMKE, "plan", trained)
    with pytest.raises(Cancelled):
        go(tmp_path / "run", llama, text, StopsAt(whole_updates(llama, text, tmp_path) // 2))
    editor["digest"] = "second"
    run(tmp_path / "run", llama)
    (status,) = read(tmp_path / "run").status
    assert status["state"] == "failed" and "not the one this run began with" in status["message"]
    editor["digest"] = "first"
    run(tmp_path / "run", llama)
    last = [
        [event for event in read(tmp_path / name).events("nmke", 0) if event["event"] == "edit"][-1]
        for name in ("counted", "run")
    ]
    assert last[0]["position"] == 5 and timeless(last[0]) == timeless(last[1])


def test_an_optimisation_without_numbers_ends_its_entrant(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    plan = NMKE.plan

    def broken(self, *arguments):
        edit = plan(self, *arguments)
        patches = tuple(replace(patch, left=patch.left * float("nan")) for patch in edit.patches)
        return replace(edit, patches=patches)

    monkeypatch.setattr(NMKE, "plan", broken)
    assert "not finite" in go(tmp_path / "patches", llama, text).status[0]["message"]
    monkeypatch.setattr(
        NMKE, "plan", lambda *a: replace(plan(*a), details={"target_probability": [float("nan")]})
    )
    assert go(tmp_path / "target", llama, text).status[0]["message"] == (
        "Fact 1: The optimisation of the target gave no number. Lower its learning rate or its clamp."
    )


def test_a_collapsed_entrant_stops_and_stays_stopped(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    results = go(tmp_path / "reliability", llama, text, stop_reliability=1.0)
    assert results.complete
    status = results.status[0]
    assert status["state"] == "collapsed" and "Reliability" in status["message"]
    marks = list(results.table()["T"])
    assert marks[-1] == status["edits_done"] < 5 and results.table().iloc[-1]["reliability"] < 1
    assert (tmp_path / "reliability" / "runs" / "nmke-seed0" / CHECKPOINT).is_file()
    again = go(tmp_path / "reliability", llama, text, stop_reliability=1.0)
    assert again.events("nmke", 0) == results.events("nmke", 0)


@pytest.mark.parametrize(
    "stop", [{"stop_reliability": 1.0}, {"stop_perplexity": 1.5}], ids=["reliability", "perplexity"]
)
def test_a_collapse_is_found_again_when_a_kill_came_before_it_was_written(
    llama: LoadedModel, tmp_path: Path, text: str, stop: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import running

    monkeypatch.setattr(running, "mean_nll", lambda *a: float("nan"))
    results = go(tmp_path / "run", llama, text, **stop)
    log = results.folder / "runs" / "nmke-seed0" / EVENTS
    lines = log.read_text().splitlines(keepends=True)
    assert '"collapsed"' in lines[-1] and '"mark"' in lines[-2]
    log.write_text("".join(lines[:-1]))
    again = go(results.folder, llama, text, **stop)
    assert again.status == results.status and again.complete


def test_ctrl_c_between_an_edit_and_its_line_does_the_edit_again(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = go(tmp_path / "straight", llama, text)
    real = EventLog.append

    def interrupted(log: EventLog, event: str, position: int, **values: Any) -> None:
        if event == "edit" and position == 4:
            raise KeyboardInterrupt
        real(log, event, position, **values)

    monkeypatch.setattr(EventLog, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", llama, text)
    monkeypatch.setattr(EventLog, "append", real)
    same(straight, go(tmp_path / "stopped", llama, text))


def test_memory_that_runs_out_while_saving_ends_its_entrant_alone_and_a_cancel_stays_a_cancel(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import running

    real, fails = running.save_checkpoint, []

    def failing(session: EditSession, position: int, path: Path) -> None:
        if position == 4 and "nmke-seed0" in str(path):
            fails.append(position)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        real(session, position, path)

    class AtFour(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage.startswith("editing") and done == 4:
                raise Cancelled

    straight, folder = tmp_path / "straight", tmp_path / "run"
    start(straight, llama, FACTS, entrants(text), config(text), "here")
    run(straight, llama)
    monkeypatch.setattr(running, "save_checkpoint", failing)
    start(folder, llama, FACTS, entrants(text), config(text, checkpoint_every=3), "here")
    with pytest.raises(Cancelled):
        run(folder, llama, AtFour())
    assert fails == [4]
    assert [entry["state"] for entry in read(folder).status] == ["waiting", "waiting"]
    other = tmp_path / "other"
    start(other, llama, FACTS, entrants(text), config(text, checkpoint_every=4, marks=(5,)), "here")
    run(other, llama)
    assert [entry["state"] for entry in read(other).status] == ["failed", "done"]
    assert read(other).status[0]["message"].startswith("Saving after 4: The memory ran out.")
    monkeypatch.setattr(running, "save_checkpoint", real)
    run(folder, llama)
    pd.testing.assert_frame_equal(
        read(straight).table().drop(columns=["seconds_per_edit", "peak_memory_mb"]),
        read(folder).table().drop(columns=["seconds_per_edit", "peak_memory_mb"]),
        check_exact=True,
    )


def test_a_judge_may_hand_back_any_number_and_none_where_a_model_is_broken(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    asked: list[int] = []

    def judge(model: LoadedModel) -> dict[str, Any]:
        asked.append(1)
        odd = {"odd": 1.0} if len(asked) % 2 else {}
        return {"float32": torch.tensor(0.25), "broken": float("nan") if len(asked) == 2 else 1.0, **odd}

    start(tmp_path / "run", llama, FACTS, entrants(text)[:1], config(text, seeds=(0, 4), marks=(5,)), "here")
    run(tmp_path / "run", llama, ability=judge)
    assert len(asked) == 3
    mark = json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]["nmke"]["marks"]["5"]
    assert mark["ability"] == {"float32": 0.25, "broken": None, "odd": None}


def test_a_perplexity_too_large_for_a_number_is_infinite_and_no_mean_leaves_it_out(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import running

    told = iter([1.0, 2000.0])
    monkeypatch.setattr(running, "mean_nll", lambda *a: next(told))
    results = go(tmp_path / "run", llama, text, seeds=(0, 4), marks=(5,))
    assert results.table()["perplexity"].tolist() == [pytest.approx(2.718281828), float("inf")]
    mark = json.loads((tmp_path / "run" / "summary.json").read_text())["methods"]["nmke"]["marks"]["5"]
    assert mark["perplexity"] is None and mark["perplexity_nll"] == 1000.5


def test_too_little_text_for_the_perplexity_names_a_way_out_that_exists(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    with pytest.raises(EditError, match="Ask for at most .* Then start the run in a new folder"):
        go(tmp_path / "run", llama, text, perplexity_tokens=10**6)


def test_perplexity_over_the_ratio_stops_a_run(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import running

    told = iter([1.0, 2.0, 9.0])
    base = running.mean_nll
    monkeypatch.setattr(running, "mean_nll", lambda *a: base(*a) + next(told))
    results = go(tmp_path / "run", llama, text, stop_perplexity=50.0)
    assert results.status[0]["state"] == "collapsed"
    assert "Perplexity at 5" in results.status[0]["message"]
    monkeypatch.setattr(running, "mean_nll", lambda *a: float("nan"))
    broken = go(tmp_path / "nan", llama, text, stop_perplexity=50.0)
    assert broken.status[0]["state"] == "collapsed" and broken.status[0]["edits_done"] == 1
    assert broken.table()["perplexity"].isna().all()


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


def test_two_processes_cannot_work_on_one_folder(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    start(folder, llama, FACTS, entrants(text), config(text), "here")
    with held(folder), pytest.raises(SessionError, match="running already"):
        run(folder, llama)
    assert not read(folder).complete


# ---- what is refused


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"marks": (3, 1)}, "in order they are 1, 3"),
        ({"marks": (1, 3, 3)}, "in order they are 1, 3"),
        ({"marks": (1, 10)}, "mark 10 lies after the last of 5 edits; keep 1"),
        ({"marks": (0, 1)}, "start at 1"),
        ({"marks": ()}, "at least one mark"),
        ({"batch": 2, "marks": (1, 5)}, "mark 1 lies inside an edit of 2"),
        ({"seeds": (1, 1)}, "different"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "from 0 on"),
        ({"edits": 0}, "edits"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"perplexity_tokens": 3}, "at least 16"),
        ({"perplexity_tokens": 0, "stop_perplexity": 5.0}, "needs perplexity_tokens"),
        ({"stop_reliability": 2.0}, "stop_reliability"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config("wikipedia", **changed)


def test_every_setting_is_titled_and_described() -> None:
    assert all(field.title and field.description for field in LifelongConfig.model_fields.values())


@pytest.mark.parametrize("label", ["", "a/b", "..", "a\n", "x" * 61, " a"])
def test_a_label_that_cannot_name_a_folder_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        Entrant(label, "nmke", NMKEConfig())


def test_what_cannot_be_run_is_refused_before_anything_is_written(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, given = entrants(text)[:1], config(text)
    long = Fact("The capital of {} is", "France", "Rome", paraphrases=("France " * 300,))
    asks_much = replace(FACTS[0], portability=(Consequence("The boat is in", "wide river " * 200),))

    def refused(kind: type[NmkeError], words: str, facts: Any, chosen: Any, settings_: Any) -> None:
        with pytest.raises(kind, match=words):
            start(tmp_path / "run", llama, facts, chosen, settings_, "here")
        assert not (tmp_path / "run").exists()

    refused(FactError, "5 edits are wanted.*only 3 facts", FACTS[:3], one, given)
    refused(FactError, "Fact 2: the prompt 'France", (FACTS[0], long, *FACTS), one, given)
    refused(FactError, "Fact 1: the prompt 'The boat is in'", (asks_much, *FACTS), one, given)
    with monkeypatch.context() as patch:
        patch.setattr(llama, "context_length", 100)
        wordy = config(text, generate_tokens=98)
        refused(FactError, "Fact 1: .* or 98 tokens of free text.*less free text", FACTS, one, wordy)
    refused(ConfigError, "No method is named", FACTS, [], given)
    refused(
        ConfigError,
        "Two entrants have the label 'NMKE'",
        FACTS,
        [*one, Entrant("NMKE", "nmke", NMKEConfig())],
        given,
    )
    refused(EditError, "Methods: .*nmke", FACTS, [Entrant("a", "telepathy", NMKEConfig())], given)
    refused(ConfigError, "settings of another method", FACTS, [Entrant("a", "nmke", given)], given)
    refused(NmkeError, "layers 0 to 3", FACTS, [Entrant("a", "nmke", settings(text, layers=(9,)))], given)
    monkeypatch.setattr(type(methods()["nmke"]), "facts_at_once", 1)
    refused(
        EditError,
        "NMKE writes one fact an edit; the batch is 5",
        FACTS,
        one,
        config(text, batch=5, marks=(5,)),
    )


def test_a_folder_of_something_else_is_refused(
    llama: LoadedModel, gpt2: LoadedModel, tmp_path: Path, text: str
) -> None:
    folder, one = tmp_path / "run", entrants(text)[:1]
    start(folder, llama, FACTS, one, config(text), "here")
    for words, arguments in {
        "edits is 5 there and 4 here.*new folder, or repeat": (llama, FACTS, one, config(text, edits=4, marks=(1,))),
        "model.weight_hash is": (gpt2, FACTS, one, config(text)),
        "fact 1.prompt is The capital of France is there and The capital of Italy is here": (
            llama, FACTS[1:], one, config(text),
        ),
        "nmke.config.ridge is 1.0 there and 2.0 here": (
            llama, FACTS, [Entrant("nmke", "nmke", settings(text, ridge=2.0))], config(text),
        ),
        "entrants is nmke there and nmke, timid here": (llama, FACTS, entrants(text), config(text)),
    }.items():  # fmt: skip
        with pytest.raises(SessionError, match=words):
            start(folder, *arguments, "here")
    with pytest.raises(SessionError, match="another model.*weight_hash"):
        run(folder, gpt2)
    # The same facts of a file that is called and laid out otherwise and holds more are the same run.
    begun = (folder / "spec.json").read_bytes()
    start(folder, llama, (*FACTS, FACTS[0]), one, config(text), {"source": "elsewhere", "sha256": "0" * 64})
    assert (folder / "spec.json").read_bytes() == begun
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(SessionError, match="no lifelong run .cat.jpg.*new folder"):
        start(tmp_path / "photos", llama, FACTS, one, config(text), "here")


def test_a_folder_half_written_is_begun_again_and_a_damaged_one_refused(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    folder, one = tmp_path / "run", entrants(text)[:1]
    folder.mkdir()
    (folder / "facts.jsonl").write_text('{"half')
    (folder / ".partial-x").mkdir()
    start(folder, llama, FACTS, one, config(text), "here")
    assert read(folder).status[0]["state"] == "waiting" and read(folder).table().empty
    orders = (folder / "orders.json").read_text()
    (folder / "orders.json").write_text(orders.replace("0, 1", "1, 0"))
    with pytest.raises(SessionError, match="orders.json of the run run was changed"):
        run(folder, llama)
    (folder / "facts.jsonl").unlink()
    with pytest.raises(SessionError, match="not whole: facts.jsonl.*Choose a new folder"):
        start(folder, llama, FACTS, one, config(text), "here")
    (folder / "spec.json").write_text("{")
    with pytest.raises(ResourceError, match="damaged"):
        read(folder)
    with pytest.raises(ResourceError, match="spec.json cannot be read"):
        read(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_told_with_its_remedy(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    class AtFour(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage.startswith("editing") and done == 4:
                raise Cancelled

    folder = tmp_path / "run"
    with pytest.raises(Cancelled):
        go(folder, llama, text, AtFour())
    (folder / "runs" / "nmke-seed0" / CHECKPOINT).write_bytes(b"no")
    status = go(folder, llama, text).status[0]
    assert status["state"] == "failed" and "Remove the folder nmke-seed0" in status["message"]


def test_a_line_cut_off_at_the_end_is_passed_over_and_one_in_the_middle_is_not(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS)
    log.append("edit", 1, value=float("inf"))
    with log.path.open("a") as file:
        file.write('{"event"')
    assert log.read() == [{"event": "edit", "position": 1, "value": None}]
    log.mend()
    log.append("mark", 1)
    assert [event["event"] for event in log.read()] == ["edit", "mark"]
    log.path.write_text("{\n" + log.path.read_text())
    with pytest.raises(ResourceError, match="damaged"):
        log.read()


# ---- facts


def test_facts_about_one_subject_are_counted() -> None:
    several = [
        Fact("{} speaks", "Ada", "German"),
        Fact("{} speaks", "Ada", "Italian"),
        Fact("{} lives in", "Ada", "Italian"),
        Fact("{} lives in", "Bob", "Rome"),
        Fact("{} eats in", "Bob", "Rome"),
    ]
    assert repeats(several) == {
        "repeated_subjects": 2,
        "subjects_with_several_targets": 1,
        "prompts_with_several_targets": 1,
    }


def test_facts_are_read_from_named_files_and_the_name_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zsre = tmp_path / "zsre.jsonl"
    zsre.write_text(
        json.dumps({"subject": "Ada", "src": "Who is Ada?", "alt": "A poet", "answers": ["A countess"]})
    )
    found = read_data(f"zsre:{zsre}")
    assert found.facts[0].target_new == "A poet" and found.about["name"] == "zsre"
    assert len(found.about["sha256"]) == 64
    with pytest.raises(FactError, match="called counterfact, but its records are ZsRE"):
        read_data(f"counterfact:{zsre}")
    with pytest.raises(FactError, match="nothing.jsonl cannot be read"):
        read_data(str(tmp_path / "nothing.jsonl"))
    assert len(read_data("examples").facts) >= 60
    from nmke.lifelong import data

    asked = []
    monkeypatch.setattr(data, "_hub_records", lambda name, _: asked.append(name) or zsre.read_bytes())
    assert read_data("owner/name").facts == read_data("hf:owner/name").facts == found.facts
    assert asked == ["owner/name"] * 2


def test_a_hub_that_fails_without_a_word_is_told_by_the_kind_of_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def failing(name: str) -> list[str]:
        raise RuntimeError

    monkeypatch.setattr(datasets, "get_dataset_split_names", failing)
    with pytest.raises(ResourceError, match="'owner/name' could not be read: RuntimeError"):
        read_data("hf:owner/name")
