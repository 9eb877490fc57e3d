"""Cached loaders: the one place that touches nmke's models and sessions.

Base models are shared by every browser session that asks for the same one and are never written; edits live
in each browser session's own ``EditSession``. Nothing here imports torch until a model is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from dashboard import jobs, libraries, state
from dashboard.holder import ModelHolder, ModelKey
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.facts import Fact
    from nmke.loading import LoadedModel
    from nmke.resources import KnownModel
    from nmke.session import EditSession
    from nmke.tokens import TokenPreview

T = TypeVar("T")
EditKey = tuple[Any, ...]


@st.cache_resource(show_spinner=False)
def holder() -> ModelHolder:
    """The server's one holder."""
    return ModelHolder()


@dataclass(frozen=True)
class _Presence:
    owner: str
    holder: ModelHolder


@st.cache_resource(show_spinner=False, scope="session", on_release=lambda here: here.holder.away(here.owner))
def _presence(owner: str) -> _Presence:
    """Lives as long as the browser's connection, so that closed tabs do not keep models for ever."""
    found = _Presence(owner, holder())
    found.holder.here(owner)
    return found


def begin_run() -> None:
    """Called once by app.py: marks the tab as open and takes in a model that finished loading."""
    mine = state.get()
    libraries.are_ready()
    _presence(mine.owner)
    if mine.model_key is not None and holder().get(mine.model_key, mine.owner) is None:
        _forget_model(mine)
        mine.flash("info", "The model was freed while this tab was away. Load it again to go on.")
    outcome = jobs.take("load")
    if outcome is None:
        return
    if outcome.state == jobs.JobState.DONE:
        _forget_model(mine)
        mine.model_key = outcome.value
    else:
        mine.flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)


def _forget_model(mine: state.AppState) -> None:
    mine.model_key = mine.edit_session = None
    mine.kept.clear()


# ---- models -------------------------------------------------------------------------------------------------


def known_models() -> "list[KnownModel]":
    """Registry models, cached ones first."""
    from nmke.resources import list_models

    return sorted(list_models(), key=lambda model: not model.cached)


def start_loading(key: ModelKey) -> None:
    """Load the model as this browser session's job ``load``."""
    owner, models, imports = state.get().owner, holder(), libraries.warm_up()

    def load(progress: Progress) -> ModelKey:
        def loader() -> "LoadedModel":
            libraries.wait_for(imports, progress)
            from nmke.loading import load_model

            loaded = load_model(
                key.spec,
                device=key.device,
                dtype=key.dtype,
                trust_remote_code=key.trust_remote_code,
                progress=progress,
            )
            progress.update("fingerprinting the weights", 0, None)
            _ = loaded.weight_hash  # computed once here, so that no page waits for it
            return loaded

        models.load(key, owner, loader)
        return key

    jobs.start("load", f"Loading {key.spec}", load, lane="load")


def current_model() -> "LoadedModel | None":
    """The model this browser session works with."""
    mine = state.get()
    return None if mine.model_key is None else holder().get(mine.model_key, mine.owner)


def shared_with() -> int:
    """How many other browser sessions use the same loaded model."""
    mine = state.get()
    return 0 if mine.model_key is None else holder().others(mine.model_key, mine.owner)


def unload() -> None:
    """Let go of this browser session's model and its edits; the memory is freed when nobody else uses it."""
    mine = state.get()
    _forget_model(mine)
    holder().release(mine.owner)


# ---- edits --------------------------------------------------------------------------------------------------


def current_session() -> "EditSession | None":
    """This browser session's own edits of the current model."""
    mine, model = state.get(), current_model()
    if model is None:
        return None
    if mine.edit_session is None:
        from nmke.session import EditSession

        mine.edit_session = EditSession(model)
    return mine.edit_session


def adopt_session(session: "EditSession") -> None:
    """Take over a session loaded from disk in place of the current one."""
    state.get().edit_session = session


def edit_state_key() -> EditKey | None:
    """Changes with the model and with every apply, undo and redo; equal keys compute the same."""
    model, session = current_model(), current_session()
    if model is None or session is None:
        return None
    return (model.weight_hash, model.device, model.dtype, session.digest)


def apply(edit: Any) -> bool:
    """Apply an edit to this browser session; False when it was refused, with the reason waiting as a flash."""
    return _change(lambda session: session.apply(edit))


def undo() -> bool:
    """Undo the last edit of this browser session."""
    return _change(lambda session: session.undo())


def redo() -> bool:
    """Apply the last undone edit again."""
    return _change(lambda session: session.redo())


def _change(step: "Callable[[EditSession], Any]") -> bool:
    mine, session = state.get(), current_session()
    if session is None:
        mine.flash("error", "No model is loaded, so there is nothing to edit. Load one on the Model page.")
        return False
    try:
        step(session)
    except Exception as problem:
        mine.flash("error", jobs.explain(problem, "Changing the edits"))
        return False
    return True


# ---- quick answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Busy:
    """The model was computing something else; falsy."""

    sentence: str = "The model is busy with other work; this is filled in when it is free."

    def __bool__(self) -> bool:
        return False


class BusyError(Exception):
    """Keeps a busy answer out of a cache; says the same sentence."""


def quick(work: Callable[[], T], wait: float = 0.4) -> T | Busy:
    """Run short work under the model's lock, if the lock is free within ``wait`` seconds."""
    model = current_model()
    if model is None:
        return Busy("No model is loaded.")
    if not model.lock.acquire(timeout=wait):
        return Busy()
    try:
        return work()
    finally:
        model.lock.release()


def quick_or_raise(work: Callable[[], T]) -> T:
    """Short work as in :func:`quick`, for what is kept.

    Raises:
        BusyError: the model was computing something else.
    """
    found = quick(work)
    if isinstance(found, Busy):
        raise BusyError(found.sentence)
    return found


def continuations(prompts: tuple[str, ...], max_new_tokens: int, edited: bool) -> list[str] | Busy:
    """Greedy continuations by the original or by this session's edited model."""
    session, model = current_session(), current_model()
    if session is None or model is None:
        return Busy("No model is loaded.")

    def work() -> list[str]:
        with session.active() if edited else session.original():
            return model.generate(list(prompts), max_new_tokens=max_new_tokens)

    key = ("continuations", _answers_key(edited), prompts, max_new_tokens)
    return _cached_or_busy(key, work)


def next_tokens(prompt: str, k: int, edited: bool) -> list[tuple[str, float]] | Busy:
    """The k likeliest next tokens with their probabilities."""
    session, model = current_session(), current_model()
    if session is None or model is None:
        return Busy("No model is loaded.")

    def work() -> list[tuple[str, float]]:
        from nmke.forcing import next_token_table

        with session.active() if edited else session.original():
            return next_token_table(model, prompt, k)

    return _cached_or_busy(("next tokens", _answers_key(edited), prompt, k), work)


def preview(fact: "Fact") -> "TokenPreview | None":
    """How the current model's tokenizer cuts the fact; None when no model is loaded.

    Raises:
        FactError: when the tokenizer drops the subject's end.
    """
    model = current_model()
    if model is None:
        return None
    from nmke.tokens import preview_fact

    return preview_fact(model.tokenizer, fact, model.context_length)


def _answers_key(edited: bool) -> EditKey | None:
    key = edit_state_key()
    return key if edited or key is None else key[:-1]


def _cached_or_busy(key: EditKey, work: Callable[[], T]) -> T | Busy:
    try:
        answer: T = _answer(key, work)
    except BusyError as busy:
        return Busy(str(busy))
    return answer


@st.cache_data(show_spinner=False, max_entries=400)
def _answer(key: EditKey, _work: Callable[[], Any]) -> Any:
    return quick_or_raise(_work)
