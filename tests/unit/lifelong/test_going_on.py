"""A lifelong run that was stopped goes on as if it had not been."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nmke.errors import (
    Cancelled,
    SessionError,
)
from nmke.lifelong import read, run, start
from nmke.lifelong.files import EVENTS, EventLog, held
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKE
from nmke.progress import Progress
from nmke.session import EditSession
from tests.unit.lifelong.runs import (
    FACTS,
    PLACES,
    StopsAt,
    config,
    entrants,
    go,
    same,
    timeless,
    whole_updates,
)


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


def test_two_processes_cannot_work_on_one_folder(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    start(folder, llama, FACTS, entrants(text), config(text), "here")
    with held(folder), pytest.raises(SessionError, match="running already"):
        run(folder, llama)
    assert not read(folder).complete


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
