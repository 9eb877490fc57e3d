"""One user's edits of a shared model: apply, undo, redo, history.

The session is the only thing that changes what the model computes, and only inside :meth:`EditSession.active`. It owns
float32 masters of the matrices it changed. Masters are replaced, never written, so an undo that still has the former
masters puts back the very same tensors; older undos replay the history from the loaded weights and compare digests.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.edit import Edit
from nmke.errors import SessionError
from nmke.history import KeyHistory
from nmke.model import EditableModel
from nmke.modules import ModulePatch
from nmke.moments import NullSpace
from nmke.prompting import PromptPatch
from nmke.state import EditedState, loaded_matrix

#: At most so many undo steps keep their tensors in memory, and at most this many bytes; older ones are replayed.
UNDO_DEPTH = 8
UNDO_BYTES = 2**30


class EditSession:
    """Edits on one model, invisible to every other session on it.

    Example:
        >>> session = EditSession(model)
        >>> session.apply(edit)
        >>> with session.active():
        ...     model.generate(["The capital of France is"])
        >>> session.undo()
    """

    def __init__(self, model: EditableModel, undo_depth: int = UNDO_DEPTH) -> None:
        self.model = model
        self.undo_depth = undo_depth
        self._guard = threading.RLock()
        self._edits: list[Edit] = []
        self._redo: list[Edit] = []
        self._digests: list[str] = [EditedState().digest()]
        self._states: dict[int, EditedState] = {0: EditedState()}
        self._history = KeyHistory()
        self._settled = 0

    # ---- state ------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """How many edits are in force."""
        return len(self._edits)

    @property
    def latest(self) -> int:
        """The version redo can reach."""
        return len(self._edits) + len(self._redo)

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(self._edits)

    @property
    def redoable(self) -> tuple[Edit, ...]:
        """Edits that redo would apply, the next one first."""
        return tuple(reversed(self._redo))

    @property
    def digest(self) -> str:
        """SHA-256 of the changed matrices, modules and prompt: equal digests mean the same model to the bit."""
        return self._digests[-1]

    @property
    def _current(self) -> EditedState:
        return self._states[self.version]

    @property
    def changed_layers(self) -> tuple[int, ...]:
        """Layers whose weights differ from the loaded ones."""
        return tuple(sorted(self._current.masters))

    @property
    def modules(self) -> Mapping[int, ModulePatch]:
        """Per layer what stands beside its down projection."""
        return self._current.modules

    @property
    def prompt(self) -> PromptPatch | None:
        """What stands in front of every text that is read; None: nothing does."""
        return self._current.prompt

    def master(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The layer's down projection as this session has it, float32. Do not write."""
        if layer in self._current.masters:
            return self._current.masters[layer]
        return loaded_matrix(self.model, layer)

    def history_keys(self, layer: int) -> Float[Tensor, "d_mlp past"]:
        """``K_p``: the keys of all edits in force, in order."""
        kept = [edit.keys[layer].to(self.model.device) for edit in self._edits if layer in edit.keys]
        if not kept:
            return torch.zeros(self.model.d_mlp, 0, device=self.model.device)
        return torch.cat(kept, dim=1)

    def solve_update(
        self,
        layer: int,
        K: Float[Tensor, "d_mlp fact"],
        R: Float[Tensor, "d_model fact"],
        space: NullSpace,
        ridge: float,
    ) -> tuple[Float[Tensor, "d_mlp fact"], Float[Tensor, "fact d_model"]]:
        """AlphaEdit's update on top of the keys in force, as thin factors; see :meth:`KeyHistory.solve`.

        The running inverse behind it is a function of those keys to the bit; nothing else of the session changes.

        Raises:
            EditError: the keys do not allow a solution.
        """
        with self._guard:
            blocks = [edit.keys[layer] for edit in self._edits if layer in edit.keys]
            return self._history.solve(layer, blocks, K, R, space, ridge)

    # ---- running ----------------------------------------------------------------------------------------

    @contextmanager
    def active(
        self,
        instead: Mapping[int, Tensor] | None = None,
        modules: Mapping[int, ModulePatch | None] | None = None,
    ) -> Iterator[None]:
        """Inside the block the model computes with this session's edits, and nobody else can run it.

        Args:
            instead: float32 matrices [d_mlp, d_model] to try in place of the session's; the scratch of a plan.
            modules: module patches to try in place of the session's at their layers; None: nothing stands there.
        """
        stored = dict(self._current.stored)
        for layer, matrix in (instead or {}).items():
            stored[layer] = self.model.as_stored(layer, matrix)
        beside = {**self._current.modules, **(modules or {})}
        there = {layer: each for layer, each in beside.items() if each is not None}
        with self.model.weights_in(stored, there, self._current.prompt):
            yield

    @contextmanager
    def trying(self, edit: Edit) -> Iterator[None]:
        """Inside the block the model computes as applying the edit would make it, to the bit.

        Raises:
            EditError: when the edit is not finite or does not fit the model.
        """
        state = self._current.after(edit, self.model)
        with self.model.weights_in(state.stored, state.modules, state.prompt):
            yield

    @contextmanager
    def original(self) -> Iterator[None]:
        """Inside the block the model computes as it was loaded."""
        with self.model.weights_in({}):
            yield

    # ---- changing ---------------------------------------------------------------------------------------

    def apply(self, edit: Edit) -> int:
        """Put an edit in force and return the new version; what could be redone is dropped.

        Raises:
            EditError: when the edit is not finite or does not fit the model.
        """
        with self._guard:
            self._advance(edit)
            self._redo.clear()
            return self.version

    def undo(self) -> Edit:
        """Take the last edit back, exact to the bit, its keys with it.

        Raises:
            SessionError: nothing to undo, or the earlier weights could not be reproduced bit by bit.
        """
        with self._guard:
            if not self._edits:
                raise SessionError("There is no edit to undo.", "Apply one first.")
            target = self.version - 1
            if target < self._settled:
                self.require_unsettled()
            state = self._states.get(target) or self._replay(target)
            if state.digest() != self._digests[target]:
                raise SessionError(
                    f"Version {target} could not be reproduced bit by bit; the session was left as it is.",
                    "Load the model anew and apply the edits again.",
                )
            edit = self._edits.pop()
            self._states.pop(target + 1, None)
            self._states[target] = state
            self._digests.pop()
            self._redo.append(edit)
            return edit

    def redo(self) -> Edit:
        """Apply the edit that was undone last.

        Raises:
            SessionError: nothing to redo.
        """
        with self._guard:
            if not self._redo:
                raise SessionError("There is no edit to redo.", "Undo one first.")
            self._advance(self._redo[-1])
            return self._redo.pop()

    def reset(self) -> None:
        """Drop every edit; the model computes as it was loaded."""
        with self._guard:
            self._edits.clear()
            self._redo.clear()
            self._states = {0: EditedState()}
            self._digests = [EditedState().digest()]
            self._settled = 0
            self._history.clear()

    def settle(self, keep: int = 0) -> None:
        """Give up the undo of all but the last ``keep`` edits; what they needed for it is dropped.

        What the model computes stays as it is, and so do the keys that later edits are solved with. For runs of
        thousands of edits, whose dense updates would otherwise pile up in memory.
        """
        with self._guard:
            settled = max(self._settled, self.version - keep)
            if settled == self._settled:
                return
            if settled not in self._states:
                self._states[settled] = self._replay(settled)
            for number in range(self._settled, settled):
                self._edits[number] = _settled(self._edits[number])
            self._states = {known: state for known, state in self._states.items() if known >= settled}
            self._settled = settled

    def require_unsettled(self) -> None:
        """Refuse what needs every edit's own update.

        Raises:
            SessionError: when edits are settled.
        """
        if self._settled:
            raise SessionError(
                f"The first {self._settled} edits are settled: their updates were dropped, so they can no longer be "
                "undone or saved one by one.",
                "Reset the session to come back to the loaded model.",
            )

    def state(self) -> tuple[Mapping[int, Tensor], Mapping[int, ModulePatch]]:
        """The changed matrices [d_mlp, d_model], float32, and the modules: with :attr:`prompt` and the edits' keys,
        all there is to put the session together again (:meth:`restored`). Do not write."""
        return self._current.masters, self._current.modules

    @classmethod
    def restored(
        cls,
        model: EditableModel,
        edits: Sequence[Edit],
        masters: Mapping[int, Float[Tensor, "d_mlp d_model"]],
        modules: Mapping[int, ModulePatch],
        prompt: PromptPatch | None = None,
    ) -> "EditSession":
        """A session whose edits are settled, from a checkpoint: the same bits as the session that wrote it.

        Args:
            edits: all edits in order, of which only facts, keys, method and figures are kept.
        """
        session = cls(model)
        state = EditedState.of(model, masters, modules, prompt)
        session._edits = [_settled(edit) for edit in edits]
        session._settled = len(edits)
        session._states = {len(edits): state}
        session._digests = [""] * len(edits) + [state.digest()]
        return session

    def save(self, folder: Path) -> Path:
        """Write the edits in force to a folder; see :func:`nmke.bundle.save_session`."""
        from nmke.bundle import save_session  # bundles are made of sessions, so they import this module

        return save_session(self, folder)

    @classmethod
    def load(cls, model: EditableModel, folder: Path) -> "EditSession":
        """A session with a bundle's edits applied; see :func:`nmke.bundle.load_session`."""
        from nmke.bundle import load_session

        return load_session(model, folder)[0]

    def history(self) -> list[dict[str, Any]]:
        """One row per edit, the oldest first, undone ones last: version, method, facts, seconds, in force."""
        rows = [*self._edits, *self.redoable]
        return [
            {
                "version": number,
                "method": edit.method,
                "facts": [f"{fact.prompt} {fact.target_new}" for fact in edit.facts],
                "seconds": edit.seconds.get("total"),
                "in_force": number <= self.version,
            }
            for number, edit in enumerate(rows, 1)
        ]

    def verify_undo(self) -> bool:
        """Undo everything, compare every down projection with the loaded one bit by bit, and redo everything.

        Raises:
            SessionError: when edits are settled.
        """
        with self._guard:
            self.require_unsettled()
            layers = range(self.model.n_layers)
            before = {layer: loaded_matrix(self.model, layer).clone() for layer in layers}
            undone = 0
            while self._edits:
                self.undo()
                undone += 1
            with self.active():
                exact = all(torch.equal(before[layer], self.model.W_out(layer).float()) for layer in layers)
            for _ in range(undone):
                self.redo()
            return exact

    def _advance(self, edit: Edit) -> None:
        following = self._current.after(edit, self.model)
        self._edits.append(edit)
        self._states[self.version] = following
        self._digests.append(following.digest())
        self._forget_old()

    def _forget_old(self) -> None:
        depth = min(self.undo_depth, max(1, UNDO_BYTES // max(self._current.size(), 1)))
        for known in list(self._states):
            if self._settled < known < self.version - depth:
                del self._states[known]

    def _replay(self, version: int) -> EditedState:
        """The state after ``version`` edits, from the nearest earlier one still in memory."""
        start = max(known for known in self._states if known <= version)
        state = self._states[start]
        for edit in self._edits[start:version]:
            state = state.after(edit, self.model)
        return state


def _settled(edit: Edit) -> Edit:
    """The edit without what only its undo needs."""
    return replace(edit, patches=(), masks={}, modules=(), prompt=None)
