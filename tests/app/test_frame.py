"""The frame all pages share: the model, the edit version with undo and redo, running work, errors as sentences."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from dashboard import jobs
from nmke.edit import Edit, WeightPatch
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import encode_batch
from tests.app.conftest import clean, finish, go, load, state_of, words

Open = Callable[[], AppTest]


def session_of(at: AppTest) -> EditSession:
    session = state_of(at).edit_session
    assert session is not None
    return session


def apply_random_edit(at: AppTest, seed: int) -> None:
    """A large random change of one layer, so that every answer moves."""
    session = session_of(at)
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(session.model.d_mlp, 1, generator=draw)
    right = 5 * torch.randn(1, session.model.d_model, generator=draw)
    layer = session.model.n_layers - 1
    session.apply(Edit("random", {}, (), (WeightPatch(layer, left, right),), {layer: left}))


def answers(at: AppTest) -> pd.DataFrame:
    """The five likeliest next tokens as the Facts page shows them."""
    go(at, "facts")
    if not state_of(at).facts:
        at.button(key="facts.add").click().run()
    clean(at)
    shown: pd.DataFrame = at.dataframe[-1].value
    assert list(shown.columns) == ["Next token", "Probability"]
    return shown


def captions(at: AppTest) -> list[str]:
    return [caption.value for caption in at.sidebar.caption]


def test_the_sidebar_counts_edits_and_undoes_and_redoes_them(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    original = answers(app)
    apply_random_edit(app, 1)
    apply_random_edit(app, 2)
    app.run()
    assert "Edit version 2 of 2" in captions(app)
    edited = answers(app)
    assert not edited.equals(original)
    assert app.button(key="frame.redo").disabled
    app.button(key="frame.undo").click().run()
    assert "Edit version 1 of 2" in captions(app)
    app.button(key="frame.undo").click().run()
    assert "Edit version 0 of 2" in captions(app)
    assert app.button(key="frame.undo").disabled
    assert answers(app).equals(original)
    app.button(key="frame.redo").click().run()
    app.button(key="frame.redo").click().run()
    assert answers(app).equals(edited)


def test_visitors_with_different_edits_get_their_own_answers_while_others_compute(
    new_app: Open, tiny_llama: Path
) -> None:
    """The pages take turns, since AppTest puts a stand-in for Streamlit's runtime in place process-wide; what runs at
    once, in threads of their own, is the model with the other visitors' edits."""
    visitors = [new_app(), new_app(), new_app()]
    for at in visitors:
        load(at, tiny_llama)
    original = answers(visitors[2])
    apply_random_edit(visitors[0], 1)
    apply_random_edit(visitors[1], 2)
    own = [answers(at) for at in visitors]
    assert own[2].equals(original)
    assert not own[0].equals(original)
    assert not own[0].equals(own[1])

    stop = threading.Event()
    passes, wrong = [0, 0, 0], [0, 0, 0]

    def compute(number: int, session: EditSession, expected: torch.Tensor) -> None:
        while not stop.is_set():
            wrong[number] += not torch.equal(final_of(session), expected)
            passes[number] += 1
            time.sleep(0.01)

    sessions = [session_of(at) for at in visitors]
    threads = [
        threading.Thread(target=compute, args=(number, session, final_of(session)))
        for number, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            for at, expected in zip(visitors, own, strict=True):
                assert answers(at).equals(expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert min(passes) > 0
    assert wrong == [0, 0, 0]


def final_of(session: EditSession) -> torch.Tensor:
    """What the model, as this session has edited it, hands to its head after one prompt."""
    batch = encode_batch(session.model.tokenizer, ["The capital of France is"])
    with session.active():
        return session.model.run(batch, [FINAL])[FINAL]


def test_running_work_shows_progress_and_the_page_stays_usable(app: AppTest) -> None:
    go_on = threading.Event()

    def work(progress: Progress) -> None:
        while not go_on.is_set():
            progress.update("counting", 3, 10)
            time.sleep(0.01)

    mine = state_of(app)
    mine.job_ids["count"] = jobs.registry().submit(mine.owner, "count", "Counting sheep", work)
    time.sleep(0.1)
    app.run()
    assert "**Counting sheep**" in [text.value for text in app.sidebar.markdown]
    bar = app.sidebar.progress[0]
    assert bar.value == 30
    assert "Counting" in bar.text
    clean(go(app, "facts"))
    clean(app.button(key="facts.add").click().run())
    assert len(state_of(app).facts) == 6
    go_on.set()
    finish(app)
    clean(app.run())
    assert "**Counting sheep**" not in [text.value for text in app.sidebar.markdown]


def test_another_visitor_does_not_see_the_work(new_app: Open) -> None:
    first, second = new_app(), new_app()
    go_on = threading.Event()
    mine = state_of(first)
    mine.job_ids["wait"] = jobs.registry().submit(
        mine.owner, "wait", "Secret work", lambda progress: go_on.wait(30)
    )
    first.run()
    second.run()
    assert "**Secret work**" in words(first)
    assert "Secret work" not in words(second)
    go_on.set()
    finish(first)


def test_while_the_model_is_busy_the_facts_page_says_so(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    model = session_of(app).model
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with model.lock:
            taken.set()
            free.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(10)
    try:
        go(app, "facts")
        clean(app.button(key="facts.add").click().run())
        assert "The model is busy with other work" in words(app)
    finally:
        free.set()
        holder.join()
    assert "busy" not in words(clean(app.run()))
    assert len(answers(app)) == 5


def test_an_error_on_a_page_is_one_sentence_and_the_frame_stays(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dashboard import facts_table

    def broken(columns: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(facts_table, "edit", broken)
    go(app, "facts")
    assert not app.exception
    assert "Reading the table failed unexpectedly (KeyError: 'odd')" in app.error[0].value
    assert app.sidebar.markdown[0].value == "**No model loaded**"
