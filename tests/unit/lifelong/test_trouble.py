"""What a lifelong run does when an editor fails, finds nothing, or ruins the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmke.errors import (
    Cancelled,
    EditError,
    FactRefused,
)
from nmke.lifelong import read, run, start
from nmke.lifelong.files import CHECKPOINT, EVENTS
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKE
from nmke.session import EditSession
from tests.unit.lifelong.runs import FACTS, StopsAt, config, entrants, go, same, timeless, whole_updates


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


def test_an_optimisation_without_numbers_ends_its_entrant(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:

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
