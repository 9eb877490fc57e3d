"""What the layers before an ablation compute, kept from one pass over the questions for the next.

Switching neurons off in layer L changes nothing before it. So while the questions are answered with nothing switched
off, the residual stream that enters layer L is kept, with the keys and values of the layers before; under every
condition that begins at L only the layers from there on run. The same operations on the same numbers in the same
batches: the answers are those of whole passes to the bit, which the tests compare.

What is kept is filed under the tokens and the past they follow. Where a condition writes another token than the model
did before, nothing is filed, and that pass runs whole on the past that is there.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nmke.model import EditableModel
from nmke.past import Past
from nmke.tokens import Batch


@dataclass(frozen=True)
class _Kept:
    """One pass: what each wanted layer was given by the one before it, and what the layers before put in the cache.

    Of a layer that keeps all keys and values only the new ones are here: whole ones for every written token would take
    gigabytes.
    """

    entering: Mapping[int, Any]
    layers: Sequence[tuple[Tensor, Tensor] | Any]


class EarlyLayers:
    """The early layers' part of passes over the same prompts.

    It belongs to one state of the model: whoever holds it sees to it that the same weights and modules are active
    whenever it is used, and that nothing is switched off before the layer a pass begins at.

    Args:
        model: whose passes are kept.
        begins: the layers at which later passes may begin.
    """

    def __init__(self, model: EditableModel, begins: Sequence[int]) -> None:
        self.model = model
        wanted = tuple(sorted({layer for layer in begins if layer > 0}))
        self.begins = wanted if wanted and can_skip(model) else ()
        self.reused = 0  #: passes that began later than at the first layer
        self._kept: dict[str, _Kept] = {}
        self._begin = 0

    @contextmanager
    def beginning_at(self, layer: int) -> Iterator[None]:
        """Inside the block passes that are known begin at that layer; others run whole, and none is kept."""
        self._begin, before = (layer if layer in self.begins else -1), self._begin
        try:
            yield
        finally:
            self._begin = before

    @contextmanager
    def around(self, batch: Batch, past: Past | None) -> Iterator["_Pass"]:
        """One pass of the Hugging Face model; tell its cache to :meth:`_Pass.done`.

        The model's lock must be held.
        """
        key = key_of(batch, past)
        known = self._kept.get(key) if self._begin > 0 else None
        one = _Pass(self, key, known, batch.ids.shape[1])
        if known is not None:
            with _skipped(self.model, self._begin, known.entering[self._begin]):
                yield one
        elif self._begin == 0 and self.begins and key:
            with _watched(self.model, self.begins, one.entering):
                yield one
        else:
            yield one

    def _keep(self, key: str, entering: Mapping[int, Any], cache: Any, positions: int) -> None:
        if len(entering) == len(self.begins):
            layers = [_newest(layer, positions) for layer in cache.layers[: self.begins[-1]]]
            self._kept[key] = _Kept(dict(entering), layers)

    def _restore(self, known: _Kept, cache: Any) -> None:
        for number, kept in enumerate(known.layers[: self._begin]):
            if isinstance(kept, tuple):
                cache.update(*kept, number)
            else:
                cache.layers[number] = copy.copy(kept)
        self.reused += 1


class _Pass:
    """One pass while it runs."""

    def __init__(self, early: EarlyLayers, key: str, known: _Kept | None, positions: int) -> None:
        self.key, self.entering = key, dict[int, Any]()
        self._early, self._known, self._positions = early, known, positions

    def done(self, cache: Any) -> None:
        """Keep this pass's early part, or put the early layers' keys and values into its cache."""
        if self._known is not None:
            self._early._restore(self._known, cache)
        elif self.entering:
            self._early._keep(self.key, self.entering, cache, self._positions)


def _newest(layer: Any, positions: int) -> tuple[Tensor, Tensor] | Any:
    """A cache layer's last keys and values; a whole copy where it keeps something else than all of them."""
    if type(layer).__name__ != "DynamicLayer":
        return copy.copy(layer)
    return layer.keys[..., -positions:, :].clone(), layer.values[..., -positions:, :].clone()


def can_skip(model: EditableModel) -> bool:
    """Whether the model's layers are modules of the Hugging Face model itself, which can be left out of a pass."""
    own = {id(module) for module in model.bridge.original_model.modules()}
    return all(id(block) in own for block in model.bridge.blocks)


def key_of(batch: Batch, past: Past | None) -> str:
    """Under what a pass is filed; empty after a past that nobody kept account of."""
    if past is not None and not past.key:
        return ""
    digest = hashlib.sha256(past.key.encode() if past is not None else b"")
    for tensor in (batch.ids, batch.mask):
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def key_of_rows(pasts: Sequence[Past], rows: Sequence[int] = ()) -> str:
    """The key of a past made of others', or of some rows of one; empty where one of them has none."""
    if not all(past.key for past in pasts):
        return ""
    return hashlib.sha256(repr(([past.key for past in pasts], list(rows))).encode()).hexdigest()


@contextmanager
def _watched(model: EditableModel, begins: Sequence[int], entering: dict[int, Any]) -> Iterator[None]:
    """Keeps what each of the layers ``begins`` is given: what the layer before it returns."""

    def keeping(layer: int) -> Any:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            entering[layer] = output

        return keep

    handles = [model.bridge.blocks[layer - 1].register_forward_hook(keeping(layer)) for layer in begins]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _skipped(model: EditableModel, begin: int, entering: Any) -> Iterator[None]:
    """The layers before ``begin`` hand on what they are given; the last of them gives what it gave before."""

    def hand_on(hidden: Tensor, *more: Any, **named: Any) -> Any:
        return hidden

    def give(*inputs: Any, **named: Any) -> Any:
        return entering

    blocks = [model.bridge.blocks[layer] for layer in range(begin)]
    try:
        for block in blocks:
            block.__dict__["forward"] = hand_on if block is not blocks[-1] else give
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
