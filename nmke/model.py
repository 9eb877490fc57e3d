"""A language model whose neurons can be read and whose down projections can be exchanged.

Stands on TransformerLens' ``TransformerBridge``, which wraps a Hugging Face model in place. The loaded weights
are never written: :meth:`EditableModel.weights_in` puts other tensors in their place under the model's lock and
takes them out again, so that sessions sharing one model never see each other's edits. Neurons are switched off in
the same way, by :meth:`EditableModel.holding`.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nmke.errors import ModelError
from nmke.held import Held, held_at
from nmke.modules import ModulePatch
from nmke.past import Past, attention_inputs
from nmke.prompting import PromptPatch
from nmke.readout import Readout
from nmke.sites import (
    RESID_MID,
    Site,
    SiteHook,
    hook_name,
    keeping,
    replacing,
    sites_to_hook,
    value_at,
)
from nmke.tokens import Batch, encode_batch, pad_id

if TYPE_CHECKING:
    from nmke.fronts import Fronts
    from nmke.replay import Unhooked


class EditableModel:
    """One loaded model, shared by every session that edits it.

    Args:
        bridge: the TransformerBridge around the model.
        tokenizer: its fast tokenizer.
        name: how the user named it.
    """

    def __init__(self, bridge: Any, tokenizer: Any, name: str) -> None:
        self.bridge = bridge
        self.tokenizer = tokenizer
        self.name = name
        self.lock = threading.RLock()
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        self.d_mlp: int = bridge.cfg.d_mlp
        self.context_length: int = bridge.cfg.n_ctx
        self._parameters: dict[int, nn.Parameter] = {}
        self._pristine: dict[int, Tensor] = {}
        self._active: dict[int, Tensor] = {}
        self._modules: dict[int, ModulePatch] = {}
        self._handles: list[Any] = []
        self._holds = 0
        self._fronts: Fronts | None = None
        self.refusal = (
            ""  #: why attribution and editing would be wrong on this model; set by the gate at load
        )
        self.readout = Readout.of(bridge)
        for parameter in bridge.parameters():
            parameter.requires_grad_(False)

    # ---- facts about the model -------------------------------------------------------------------------

    @property
    def d_vocab(self) -> int:
        return int(self.readout.unembedding.shape[0])

    @cached_property
    def n_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self._distinct_parameters())

    @property
    def device(self) -> str:
        return str(self.readout.unembedding.device)

    @property
    def dtype(self) -> str:
        return str(self.readout.unembedding.dtype).removeprefix("torch.")

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 over every parameter's bytes: what statistics, edits and caches are filed under."""
        with self.weights_in({}), ThreadPoolExecutor(max_workers=2) as pool:
            digests = list(pool.map(_tensor_digest, self._distinct_parameters()))
        return hashlib.sha256(b"".join(digests)).hexdigest()

    @cached_property
    def has_resid_mid(self) -> bool:
        """False where attention and MLP run side by side; the residual is then ``resid_post - mlp_out``."""
        return hook_name((RESID_MID, 0)) in self.bridge.hook_dict

    @property
    def unhooked(self) -> "Unhooked | None":
        """The layers without hook points, for :mod:`nmke.replay`; None where they do not compute the same.

        That is where they cannot be told apart, and while module patches, held neurons or a prompt are in force, which
        they might miss.
        """
        return None if self._modules or self._holds or self._fronts else self._unhooked

    @property
    def fronts(self) -> "Fronts | None":
        """What stands in front of every text while a prompt patch is in force; ask for it under the model's lock."""
        return self._fronts

    @cached_property
    def _unhooked(self) -> "Unhooked | None":
        from nmke.replay import unhook  # replays are made of models, so it imports this module

        return unhook(self)

    def require_conformance(self) -> None:
        """Refuse work whose mathematics does not hold for this architecture.

        Raises:
            ModelError: naming the failed checks.
        """
        if self.refusal:
            raise ModelError(self.refusal, "Load a model whose checks pass.")

    def check_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The layers in rising order.

        Raises:
            ModelError: when the list is empty or names a layer the model does not have.
        """
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong or not layers:
            named = f"layer {', '.join(map(str, wrong))}" if wrong else "no layer"
            raise ModelError(
                f"The settings name {named}, but {self.name} has layers 0 to {self.n_layers - 1}.",
                "Choose layers in that range.",
            )
        return tuple(sorted(set(layers)))

    def _distinct_parameters(self) -> list[nn.Parameter]:
        return list({id(parameter): parameter for parameter in self.bridge.parameters()}.values())

    # ---- weights ----------------------------------------------------------------------------------------

    def down_projection(self, layer: int) -> nn.Parameter:
        """The stored parameter of a layer's down projection, in whichever orientation the model keeps it."""
        if layer not in self._parameters:
            view = self.bridge.blocks[layer].mlp.W_out
            candidates = self.bridge.blocks[layer].mlp.parameters()
            found = [p for p in candidates if p.data_ptr() == view.data_ptr() and p.ndim == 2]
            if not found:
                raise ModelError(
                    f"The down projection of layer {layer} cannot be exchanged in {self.name}.",
                    "Load the model without offloading or quantisation.",
                )
            self._parameters[layer] = found[0]
            self._pristine[layer] = found[0].data
        return self._parameters[layer]

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The down projection now active: row ``i`` is neuron ``i``'s value vector. A view; do not write."""
        parameter = self.down_projection(layer)
        return parameter.data.T if self.is_transposed(layer) else parameter.data

    def is_transposed(self, layer: int) -> bool:
        """Whether the stored parameter is ``W_out`` turned around."""
        # A square matrix hides its orientation in its shape, so the bridge's own view decides by its strides.
        parameter = self.down_projection(layer)
        view: Tensor = self.bridge.blocks[layer].mlp.W_out
        return view.stride() != parameter.stride()

    def as_stored(self, layer: int, matrix: Float[Tensor, "d_mlp d_model"]) -> Tensor:
        """A matrix in the model's own orientation, dtype and device, laid out contiguously."""
        parameter = self.down_projection(layer)
        oriented = matrix.T if self.is_transposed(layer) else matrix
        return oriented.to(device=parameter.device, dtype=parameter.dtype).contiguous()

    @contextmanager
    def weights_in(
        self,
        stored: Mapping[int, Tensor],
        modules: Mapping[int, ModulePatch] | None = None,
        prompt: PromptPatch | None = None,
    ) -> Iterator[None]:
        """Let other down projections compute while the block runs; holds the model's lock.

        Args:
            stored: per layer a tensor as made by :meth:`as_stored`. Layers left out compute with the weights as
                loaded, also inside another such block; ``{}`` is therefore the unedited model.
            modules: per layer what stands behind the down projection; left out, none does.
            prompt: what stands in front of every text; left out, nothing does.

        The parameters' own storage is never written: only the pointers are exchanged, and put back in
        ``finally``, which makes the restoration exact to the bit.
        """
        with self.lock:
            outer = self._active, self._modules, self._fronts
            try:
                self._activate(dict(stored), dict(modules or {}), self._fronts_of(prompt))
                yield
            finally:
                self._activate(*outer)

    def _fronts_of(self, prompt: PromptPatch | None) -> "Fronts | None":
        from nmke.fronts import Fronts  # it runs models, so it imports this module

        return None if prompt is None else Fronts(self, prompt)

    @contextmanager
    def without_fronts(self) -> Iterator[None]:
        """Inside the block nothing more is put in front of what is read: for readers that have put it there."""
        with self.lock:
            self._fronts, outer = None, self._fronts
            try:
                yield
            finally:
                self._fronts = outer

    def _activate(
        self, stored: dict[int, Tensor], modules: dict[int, ModulePatch], fronts: "Fronts | None"
    ) -> None:
        for layer in {*self._active, *stored}:
            parameter = self.down_projection(layer)
            parameter.data = stored[layer] if layer in stored else self._pristine[layer]
        self._active = stored
        for handle in self._handles:
            handle.remove()
        # What fails to be put in place must not stay half in place, so the list is known before it is filled.
        self._modules, self._handles, self._fronts = modules, [], fronts
        if fronts is not None:
            self._handles.append(fronts.guard())
        for layer, patch in modules.items():
            self._handles.append(self._projecting_module(layer).register_forward_hook(_answering(patch)))

    @contextmanager
    def holding(self, held: Mapping[int, Held]) -> Iterator[None]:
        """Let neurons have fixed activations while the block runs; holds the model's lock.

        With 0 that is as if their rows of ``W_out`` were zero. What is replaced is the down projection's input, so it
        holds for :meth:`run`, for :meth:`generate` and for the Hugging Face model's own forward alike. It goes
        together with :meth:`weights_in`, within it and around it, and with another hold within it, whose values win
        where both name a neuron. A module patch sees the held activations; the site ``POST`` still tells what the
        neurons computed.

        Args:
            held: per layer the neurons, and their activation: one number, or one for each of them.

        Raises:
            ModelError: a layer or neuron the model does not have, as many values as there are not neurons, or a
                value that is no number.
        """
        with self.lock:
            hooks = {layer: held_at(self, layer, what) for layer, what in held.items() if len(what[0])}
            handles: list[Any] = []
            self._holds += 1
            self._forget_fronts()
            try:
                for layer, hook in hooks.items():
                    handles.append(self._projecting_module(layer).register_forward_pre_hook(hook))
                yield
            finally:
                self._holds -= 1
                self._forget_fronts()
                for handle in handles:
                    handle.remove()

    def _forget_fronts(self) -> None:
        if self._fronts is not None:
            self._fronts.forget()

    def _projecting_module(self, layer: int) -> nn.Module:
        """The module whose own parameter the down projection is."""
        parameter = self.down_projection(layer)
        for module in self.bridge.blocks[layer].mlp.modules():
            if any(own is parameter for own in module.parameters(recurse=False)):
                return module
        raise ModelError(
            f"Nothing can be put beside the down projection of layer {layer} in {self.name}.",
            "Choose a method that changes weights.",
        )

    # ---- running ----------------------------------------------------------------------------------------

    def run(
        self,
        batch: Batch,
        sites: Sequence[Site] = (),
        *,
        stop_after: int | None = None,
        hooks: Mapping[Site, SiteHook] | None = None,
        past: Past | None = None,
    ) -> dict[Site, Tensor]:
        """Run the model and return the values at ``sites``.

        Args:
            batch: padded token ids.
            sites: which values to keep, in the model's dtype, each ``[prompt, position, width]``.
                ``FINAL`` is the output of the final norm: what the unembedding reads.
            stop_after: stop once this layer is done.
            hooks: functions that may replace the value at a site.
            past: keys and values of tokens in front of the batch, from :meth:`remember`. Without one, a batch begins
                its texts, and a prompt patch in force is put in front; positions stay those of the batch.
        """
        kept: dict[Site, Tensor] = {}
        wanted = sites_to_hook(sites, self.has_resid_mid)
        with self.lock:
            if past is None and self._fronts is not None:
                batch, past = self._fronts.before(batch)
                with self.without_fronts():
                    return self.run(batch, sites, stop_after=stop_after, hooks=hooks, past=past)
            fwd: list[tuple[str, Callable[..., Any]]]
            fwd = [(hook_name(site), replacing(function)) for site, function in (hooks or {}).items()]
            fwd += [(hook_name(site), keeping(kept, site)) for site in wanted]
            stop = None if stop_after is None or stop_after + 1 >= self.n_layers else stop_after + 1
            moved = batch.to(self.bridge.cfg.device)
            with self.bridge.hooks(fwd_hooks=fwd):
                # One position of logits is the least the head can be asked for; readers use FINAL.
                self.bridge(moved.ids, stop_at_layer=stop, logits_to_keep=1, **attention_inputs(moved, past))
        return {site: value_at(kept, site, self.has_resid_mid) for site in sites}

    @torch.no_grad()
    def remember(self, batch: Batch, network: Any = None) -> Past:
        """Run tokens once and keep every layer's keys and values, for batches that go on after them.

        Rows are padded on the left here, so that what follows stands beside their last real token. They begin their
        texts: a prompt patch in force is put in front and remembered with them.

        Args:
            network: what runs; by default the model with its hook points, else :mod:`nmke.replay`'s without them.
        """
        with self.lock:
            if self._fronts is not None:
                joined = self._fronts.joined(batch)
                with self.without_fronts():
                    return self.remember(joined)
            left = batch.left_padded(pad_id(self.tokenizer))
            moved = left.to(self.bridge.cfg.device)
            positions = (moved.mask.cumsum(1) - 1).clamp_min(0)
            out = (network or self.bridge.original_model)(
                moved.ids,
                attention_mask=moved.mask,
                position_ids=positions,
                logits_to_keep=1,
                use_cache=True,
            )
        return Past(out.past_key_values, left.mask)

    def logits(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The unembedding of final-norm outputs, as float32."""
        return self.bridge.unembed(final).float()

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], max_new_tokens: int = 20) -> list[str]:
        """Greedy continuations, by whatever weights are active; each ends at the end-of-text token."""
        if not prompts or max_new_tokens == 0:
            return ["" for _ in prompts]
        batch = encode_batch(self.tokenizer, prompts).left_padded(pad_id(self.tokenizer))
        with self.lock:
            if self._fronts is not None:
                return self._fronts.generate(prompts, max_new_tokens)
            moved = batch.to(self.bridge.cfg.device)
            written = self.bridge.original_model.generate(
                moved.ids,
                attention_mask=moved.mask,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id(self.tokenizer),
            )
        return self.tokenizer.batch_decode(written[:, batch.ids.shape[1] :], skip_special_tokens=True)

    def unload(self) -> None:
        """Drop the weights; the object cannot run afterwards."""
        with self.lock:
            self._parameters.clear()
            self._pristine.clear()
            self.__dict__.pop("_unhooked", None)
            del self.bridge, self.readout
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _answering(patch: ModulePatch) -> Callable[..., Tensor]:
    def answer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return patch.answer(inputs[0], output)

    return answer


def _tensor_digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8)
    return hashlib.sha256(f"{tuple(tensor.shape)}{tensor.dtype}".encode() + flat.numpy().tobytes()).digest()
