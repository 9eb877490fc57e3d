"""Some layers of a model as a function of the residual stream that enters the first of them.

An edit changes the model in the middle: a z optimisation adds to the residual after the edited layer, the layer loop
rewrites one down projection after the other. What lies before stays as it was, so each step needs only the layers from
there on. Which further arguments those layers take (masks, positions, rotary tables, keys and values) differs between
architectures and does not depend on the residual; so one ordinary forward pass records them, and every later run hands
them over again. Nothing here knows an architecture.

The layers that run are the model's own classes around the very same parameters, without TransformerLens' hook points,
which cost more than the arithmetic on a handful of tokens. :func:`unhook` compares once per model what they give with
what the model gives; where that differs there is no replay, and callers run whole models instead, and say so.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from nmke.model import EditableModel
from nmke.packed import pack_linears
from nmke.past import Past, attention_inputs
from nmke.sites import FINAL
from nmke.tokens import Batch, pad

#: Largest difference, relative to the largest value, at which a replay counts as the model's own computation.
AGREEMENT = 1e-3
#: Written by TransformerLens between a module's name and those of its parts.
_WRAPPING = "_original_component."


@dataclass(frozen=True)
class Unhooked:
    """The model around its own parameters, without hook points.

    Attributes:
        network: all of it; layers, norm, head: its layers, final norm and unembedding.
    """

    network: Any
    layers: Sequence[nn.Module]
    norm: nn.Module
    head: nn.Module


def unhook(model: EditableModel) -> Unhooked | None:
    """The Hugging Face model that TransformerLens wrapped, built anew around the same parameters; none is copied.

    Returns:
        None where the names of modules or parameters cannot be matched one to one, or where replays of these layers do
        not give what the model gives.
    """
    found = _match(model)
    try:
        return found if found is not None and _agrees(model, found) else None
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # a layer that needs more than its arguments
        return None


def _match(model: EditableModel) -> Unhooked | None:
    wrapped: nn.Module = model.bridge.original_model
    places = {id(module): name.replace(_WRAPPING, "") for name, module in wrapped.named_modules()}
    wanted = [*model.bridge.blocks, model.bridge.ln_final]
    if not all(id(module) in places for module in wanted):
        return None
    clean: Any = _skeleton(wrapped)
    shared = {name.replace(_WRAPPING, ""): p for name, p in wrapped.named_parameters(remove_duplicate=False)}
    for name, _ in list(clean.named_parameters(remove_duplicate=False)):
        if name not in shared:
            return None
        owner, _, leaf = name.rpartition(".")
        clean.get_submodule(owner)._parameters[leaf] = shared[name]
    *layers, norm = (clean.get_submodule(places[id(module)]) for module in wanted)
    pack_linears(clean)
    return Unhooked(clean, layers, norm, clean.get_output_embeddings())


@torch.no_grad()
def _agrees(model: EditableModel, unhooked: Unhooked) -> bool:
    """Whether whole replays, with and without tokens in front, end where the model does; rows of unequal length."""
    rows = [[(7 * place + 3) % model.d_vocab for place in range(length)] for length in (9, 6)]
    whole, cut = pad(rows, 0), 4
    wanted = model.run(whole, [FINAL])[FINAL]
    # Half-precision layers round differently with other kernels, by a unit or so a layer.
    limit = max(AGREEMENT, 8 * torch.finfo(wanted.dtype).eps)
    with model.lock:
        past = model.remember(pad([row[:cut] for row in rows], 0), unhooked.network)
        rest = pad([row[cut:] for row in rows], 0)
        for batch, before, expected in ((whole, None, wanted), (rest, past, wanted[:, cut:])):
            replay = Replay.record(model, batch, 0, model.n_layers - 1, before, unhooked)
            if replay is None:
                return False
            real = batch.mask.bool().to(expected.device)
            found = replay.final(replay.run(replay.entry))[real].float()
            if (found - expected[real].float()).abs().max() > limit * expected[real].float().abs().max():
                return False
    return True


def _skeleton(wrapped: Any) -> nn.Module:
    """The same class without weights, its buffers on the model's device."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(wrapped.config)
    config._attn_implementation = "sdpa" if getattr(wrapped, "_supports_sdpa", False) else "eager"
    with init_empty_weights(include_buffers=False):
        clean: nn.Module = type(wrapped)(config)
    for module in clean.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(wrapped.device)
    return clean.eval()


@dataclass(frozen=True)
class _Call:
    """What a layer was called with besides the residual; the cache, which each run gives anew, is marked."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "_Call":
        return cls(
            tuple(_marked(value) for value in args), {name: _marked(value) for name, value in kwargs.items()}
        )

    def on(self, layer: nn.Module, resid: Tensor, cache: Any) -> Tensor:
        args = [cache if value is _Cached else value for value in self.args]
        kwargs = {name: cache if value is _Cached else value for name, value in self.kwargs.items()}
        out = layer(resid, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class _Cached:
    """Stands where a recorded call was given the cache."""


def _marked(value: Any) -> Any:
    return _Cached if isinstance(value, Cache) else value


@dataclass(frozen=True)
class Replay:
    """Layers ``first`` to ``last`` on one batch.

    Attributes:
        entry: what entered layer ``first`` when it was recorded [prompt, position, d_model], in the model's dtype.
    """

    model: EditableModel
    first: int
    last: int
    entry: Float[Tensor, "prompt position d_model"]
    _unhooked: Unhooked
    _calls: Mapping[int, _Call]
    _past: Past | None

    @classmethod
    @torch.no_grad()
    def record(
        cls,
        model: EditableModel,
        batch: Batch,
        first: int,
        last: int,
        past: Past | None = None,
        unhooked: Unhooked | None = None,
    ) -> "Replay | None":
        """Run the batch up to layer ``last``, with the weights in force, and keep what these layers were given.

        The caller holds ``model.lock``.

        Args:
            past: keys and values of tokens in front of the batch.
            unhooked: by default the model's own.

        Returns:
            None where the model has no replay.
        """
        unhooked = unhooked or model.unhooked
        if unhooked is None:
            return None
        calls: dict[int, _Call] = {}
        entries: list[Tensor] = []
        moved = batch.to(model.bridge.cfg.device)
        with _watching(unhooked, range(first, last + 1), calls, entries):
            unhooked.network(moved.ids, logits_to_keep=1, **attention_inputs(moved, past))
        if len(calls) != last - first + 1:
            return None
        return cls(model, first, last, entries[0], unhooked, calls, past)

    def run(
        self,
        resid: Float[Tensor, "prompt position d_model"],
        start: int | None = None,
        stop: int | None = None,
    ) -> Float[Tensor, "prompt position d_model"]:
        """The residual after layer ``stop`` when ``resid`` enters layer ``start``; by default all of them.

        With whatever weights are in force; gradients flow. The caller holds ``model.lock``.
        """
        cache = None if self._past is None else self._past.copy().cache
        for layer in range(self.first if start is None else start, (self.last if stop is None else stop) + 1):
            resid = self._calls[layer].on(self._unhooked.layers[layer], resid, cache)
        return resid

    def keys(
        self, resid: Float[Tensor, "prompt position d_model"], layer: int
    ) -> tuple[Float[Tensor, "prompt position d_mlp"], Float[Tensor, "prompt position d_model"]]:
        """One layer's down-projection inputs and its output when ``resid`` enters it."""
        kept: list[Tensor] = []
        module = self._down_projection(layer)
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        try:
            out = self.run(resid, layer, layer)
        finally:
            handle.remove()
        return kept[0], out

    def logits(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The unembedding of final-norm outputs, as float32."""
        out: Tensor = self._unhooked.head(final)
        return out.float()

    def final(
        self, resid: Float[Tensor, "prompt position d_model"]
    ) -> Float[Tensor, "prompt position d_model"]:
        """The final norm's output."""
        out: Tensor = self._unhooked.norm(resid)
        return out

    def _down_projection(self, layer: int) -> nn.Module:
        parameter = self.model.down_projection(layer)
        return next(
            module
            for module in self._unhooked.layers[layer].modules()
            if getattr(module, "weight", None) is parameter
        )


class _SeenEnoughError(Exception):
    """Ends a recording run after its last layer."""


@contextmanager
def _watching(
    unhooked: Unhooked, layers: range, calls: dict[int, _Call], entries: list[Tensor]
) -> Iterator[None]:
    """Keep what the layers are called with, and what enters the first of them; stop before what follows."""

    def watch(layer: int) -> Any:
        def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer == layers.start:
                entries.append(args[0])
            calls[layer] = _Call.of(args[1:], kwargs)

        return record

    def stop(*_: Any) -> None:
        raise _SeenEnoughError

    handles = [
        unhooked.layers[layer].register_forward_pre_hook(watch(layer), with_kwargs=True) for layer in layers
    ]
    at_end = layers.stop == len(unhooked.layers)
    following = unhooked.norm if at_end else unhooked.layers[layers.stop]
    handles.append(following.register_forward_pre_hook(stop))
    try:
        yield
    except _SeenEnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
