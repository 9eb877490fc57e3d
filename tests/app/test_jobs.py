"""The job registry: a queue per lane, progress, cancel, ownership, errors as sentences."""

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dashboard.jobs import JobBusy, JobRegistry, JobState, Outcome, explain, say_progress
from nmke.errors import FactError
from nmke.progress import Progress


def ended(registry: JobRegistry, job_id: str, owner: str = "me") -> Outcome:
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        outcome = registry.take(owner, job_id)
        if outcome is not None:
            return outcome
        time.sleep(0.005)
    raise AssertionError("the job did not end")


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.005)


def state_of(registry: JobRegistry, job_id: str, owner: str = "me") -> JobState | None:
    shown = registry.view(owner, job_id)
    return None if shown is None else shown.state


def test_finished_work_hands_over_its_value_once() -> None:
    registry = JobRegistry()
    job = registry.submit("me", "sum", "Adding", lambda progress: 1 + 1)
    outcome = ended(registry, job)
    assert (outcome.state, outcome.value, outcome.name) == (JobState.DONE, 2, "Adding")
    assert registry.take("me", job) is None
    assert registry.view("me", job) is None


def test_a_result_waits_until_it_is_fetched() -> None:
    registry = JobRegistry()
    job = registry.submit("me", "sum", "Adding", lambda progress: "kept")
    until(lambda: state_of(registry, job) is JobState.DONE)
    registry.submit("me", "other", "Other", lambda progress: None)
    assert ended(registry, job).value == "kept"


def test_another_visitor_sees_nothing_of_a_job() -> None:
    registry = JobRegistry()
    go = threading.Event()
    job = registry.submit("me", "wait", "Waiting", lambda progress: go.wait(10))
    assert registry.view("you", job) is None
    registry.cancel("you", job)
    go.set()
    assert registry.take("you", job) is None
    assert ended(registry, job).state is JobState.DONE


def test_cancel_stops_running_work_at_its_next_item() -> None:
    registry = JobRegistry()
    items: list[int] = []

    def work(progress: Progress) -> None:
        for item in range(10_000):
            progress.update("counting", item, 10_000)
            items.append(item)
            time.sleep(0.001)

    job = registry.submit("me", "count", "Counting", work)
    until(lambda: len(items) > 3)
    registry.cancel("me", job)
    outcome = ended(registry, job)
    assert outcome.state is JobState.CANCELLED
    assert outcome.error == "Cancelled; nothing was changed."
    assert len(items) < 10_000


def test_one_lane_works_one_job_at_a_time_and_a_waiting_job_can_be_cancelled() -> None:
    registry = JobRegistry()
    go = threading.Event()
    order: list[str] = []

    def named(name: str) -> Callable[[Progress], Any]:
        def work(progress: Progress) -> None:
            order.append(name)
            go.wait(10)

        return work

    first = registry.submit("me", "a", "First", named("first"))
    second = registry.submit("me", "b", "Second", named("second"))
    third = registry.submit("you", "a", "Third", named("third"))
    until(lambda: order == ["first"])
    assert state_of(registry, second) is JobState.QUEUED
    registry.cancel("me", second)
    assert state_of(registry, second) is JobState.CANCELLED
    go.set()
    ended(registry, first)
    ended(registry, third, "you")
    assert order == ["first", "third"]


def test_lanes_do_not_wait_for_each_other() -> None:
    registry = JobRegistry()
    go = threading.Event()
    registry.submit("me", "a", "Long", lambda progress: go.wait(10), lane="model")
    job = registry.submit("me", "b", "Short", lambda progress: "short", lane="files")
    assert ended(registry, job).value == "short"
    go.set()


def test_the_same_purpose_is_not_started_twice() -> None:
    registry = JobRegistry()
    go = threading.Event()
    job = registry.submit("me", "edit", "Editing", lambda progress: go.wait(10))
    with pytest.raises(JobBusy, match="Editing.* is still running"):
        registry.submit("me", "edit", "Editing", lambda progress: None)
    go.set()
    ended(registry, job)
    ended(registry, registry.submit("me", "edit", "Editing", lambda progress: None))


def test_progress_says_stage_share_and_time_left() -> None:
    now = [0.0]
    registry = JobRegistry(clock=lambda: now[0])
    reached, go = threading.Event(), threading.Event()

    def work(progress: Progress) -> None:
        progress.update("reading layers", 0, 10)
        now[0] = 4.0
        progress.update("reading layers", 4, 10, "layer 4")
        reached.set()
        go.wait(10)

    job = registry.submit("me", "read", "Reading", work)
    reached.wait(10)
    shown = registry.view("me", job)
    assert shown is not None
    assert (shown.stage, shown.done, shown.total, shown.fraction, shown.remaining) == (
        "reading layers",
        4,
        10,
        0.4,
        6.0,
    )
    assert say_progress(shown) == "Reading layers, layer 4, about 6 s left"
    go.set()


def test_an_error_of_the_user_keeps_its_sentence_and_remedy() -> None:
    registry = JobRegistry()

    def work(progress: Progress) -> None:
        raise FactError("The subject is empty.", "Fill it in.")

    outcome = ended(registry, registry.submit("me", "read", "Reading", work))
    assert (outcome.state, outcome.error) == (JobState.FAILED, "The subject is empty. Fill it in.")


def test_an_unforeseen_error_is_one_sentence_and_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    registry = JobRegistry()
    job = registry.submit("me", "divide", "Dividing", lambda progress: 1 // 0)
    error = ended(registry, job).error
    assert error.startswith("Dividing failed unexpectedly (ZeroDivisionError")
    assert "Traceback" not in error
    assert "Traceback" in caplog.text


def test_after_a_failed_job_the_lane_goes_on() -> None:
    registry = JobRegistry()
    bad = registry.submit("me", "bad", "Bad", lambda progress: 1 // 0)
    good = registry.submit("me", "good", "Good", lambda progress: "fine")
    assert ended(registry, bad).state is JobState.FAILED
    assert ended(registry, good).value == "fine"


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (MemoryError(), "the memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "the memory ran out"),
    ],
)
def test_full_disk_and_memory_have_their_own_sentence(problem: Exception, words: str) -> None:
    assert words in explain(problem, "Loading")


def test_results_nobody_fetched_are_dropped_after_an_hour() -> None:
    now = [0.0]
    registry = JobRegistry(clock=lambda: now[0])
    old = registry.submit("gone", "a", "Old", lambda progress: "old")
    until(lambda: state_of(registry, old, "gone") is JobState.DONE)
    now[0] = 4000.0
    registry.submit("me", "a", "New", lambda progress: None)
    assert registry.view("gone", old) is None
