"""Base models are shared by browser sessions and freed when nobody uses them."""

from typing import Any

import pytest

from dashboard.holder import GONE_AFTER, ModelHolder, ModelKey


class Stub:
    """Counts how often it is unloaded."""

    def __init__(self) -> None:
        self.unloaded = 0

    def unload(self) -> None:
        self.unloaded += 1


def fail() -> Any:
    raise AssertionError("must not be loaded again")


A, B = ModelKey("a"), ModelKey("b")


def test_a_second_visitor_gets_the_same_model() -> None:
    models, stub = ModelHolder(), Stub()
    first = models.load(A, "me", lambda: stub)  # type: ignore[arg-type, return-value]
    second = models.load(A, "you", fail)
    assert first is second
    assert models.others(A, "me") == 1


def test_a_model_is_freed_when_the_last_visitor_lets_go() -> None:
    models, stub = ModelHolder(), Stub()
    models.load(A, "me", lambda: stub)  # type: ignore[arg-type, return-value]
    models.load(A, "you", fail)
    models.release("me")
    assert models.get(A, "me") is None
    assert stub.unloaded == 0
    models.release("you")
    assert stub.unloaded == 1
    assert models.get(A, "you") is None


def test_a_failed_load_leaves_the_earlier_model() -> None:
    models, stub = ModelHolder(), Stub()
    models.load(A, "me", lambda: stub)  # type: ignore[arg-type, return-value]

    def broken() -> Any:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        models.load(B, "me", broken)
    assert models.get(A, "me") is stub
    assert stub.unloaded == 0


def test_loading_another_model_frees_the_earlier_one() -> None:
    models, old, new = ModelHolder(), Stub(), Stub()
    models.load(A, "me", lambda: old)  # type: ignore[arg-type, return-value]
    models.load(B, "me", lambda: new)  # type: ignore[arg-type, return-value]
    assert old.unloaded == 1
    assert models.get(B, "me") is new


def test_a_closed_tab_keeps_its_model_for_a_while_only() -> None:
    now = [0.0]
    models, stub = ModelHolder(clock=lambda: now[0]), Stub()
    models.load(A, "me", lambda: stub)  # type: ignore[arg-type, return-value]
    models.away("me")
    now[0] = GONE_AFTER / 2
    models.release_gone()
    assert models.get(A, "me") is stub
    now[0] = GONE_AFTER * 2
    models.release_gone()
    assert stub.unloaded == 1


def test_a_tab_that_came_back_keeps_its_model() -> None:
    now = [0.0]
    models, stub = ModelHolder(clock=lambda: now[0]), Stub()
    models.load(A, "me", lambda: stub)  # type: ignore[arg-type, return-value]
    models.away("me")
    models.here("me")
    now[0] = GONE_AFTER * 2
    models.release_gone()
    assert models.get(A, "me") is stub
