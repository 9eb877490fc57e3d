"""From a name, folder, file or hub id to a loaded model that passed the conformance gate."""

import logging
from typing import Any

import torch

from nmke.conformance import Conformance, check_conformance
from nmke.errors import ModelError
from nmke.memory import MemoryEstimate, estimate_memory, shape_of
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.resources import ResolvedModel, resolve_model
from nmke.tokens import Batch, encode_batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GATE_PROMPT = "The capital of France is the city of"


class LoadedModel(EditableModel):
    """An :class:`EditableModel` with how it was loaded.

    Attributes:
        conformance: the gate's checks; shown to the user.
        memory: what was estimated before loading.
        resolved: where the weights came from.
    """

    def __init__(
        self,
        bridge: Any,
        tokenizer: Any,
        resolved: ResolvedModel,
        memory: MemoryEstimate,
        plain_logits: torch.Tensor,
    ) -> None:
        super().__init__(bridge, tokenizer, resolved.name)
        self.resolved = resolved
        self.memory = memory
        self.conformance: Conformance = check_conformance(self, _gate_batch(tokenizer), plain_logits)
        self.refusal = "" if self.conformance.passed else self.conformance.sentence


def load_model(
    spec: str,
    device: str = "auto",
    dtype: str = "auto",
    *,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model and check that the engine's mathematics holds for it.

    Args:
        spec: a registry name (``smollm2-135m``), a folder with safetensors, a GGUF file, or a hub id.
        device: ``auto`` takes CUDA, then MPS, then CPU.
        dtype: ``auto`` takes the model's own on a GPU and float32 on CPU.
        device_map: ``auto`` spreads a model over several GPUs.
        trust_remote_code: run Python that comes with the model; off unless the user asks for this one load.
        progress: told about fetching, converting and loading.

    Raises:
        ModelError: not a model, does not fit, or cannot be wrapped.
        ResourceError: cannot be fetched or verified.
    """
    progress = progress or Silent()
    chosen_device = choose_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"The dtype {dtype!r} is not known.", f"Choose auto, {', '.join(DTYPES)}.")
    resolved = resolve_model(spec, progress)
    progress.update("checking memory", 0, 1)
    memory = estimate_load(resolved, chosen_device, dtype, device_map)
    if not memory.fits:
        raise ModelError(memory.sentence, "Choose a smaller model, bfloat16, or a device with more memory.")
    progress.update("loading weights", 0, 1)
    network, tokenizer = _read(resolved, chosen_device, dtype, device_map, trust_remote_code)
    gate = _gate_batch(tokenizer)
    with torch.no_grad():
        plain = network(gate.ids.to(network.device)).logits.float().cpu()
    progress.update("wrapping and checking", 0, 1)
    bridge = _wrap(resolved, network, tokenizer)
    model = LoadedModel(bridge, tokenizer, resolved, memory, plain)
    progress.update("wrapping and checking", 1, 1)
    return model


def choose_device(device: str) -> str:
    """``auto`` takes CUDA, then MPS, then CPU; anything else is checked.

    Raises:
        ModelError: when the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"The device {device!r} is not available here.", "Choose auto or cpu.") from None
    return device


def _gate_batch(tokenizer: Any) -> Batch:
    return encode_batch(tokenizer, [GATE_PROMPT])


def _pick_dtype(dtype: str, device: str) -> torch.dtype | str:
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if device == "cpu" else "auto"


def estimate_load(
    resolved: ResolvedModel, device: str, dtype: str, device_map: str | None = None
) -> MemoryEstimate:
    """What loading would need against what is free, without reading any weights.

    Args:
        device: as :func:`choose_device` gives it.

    Raises:
        ModelError: the model's configuration lacks its sizes.
    """
    shape = shape_of(resolved)
    picked = _pick_dtype(dtype, device)
    # "auto" on a GPU takes the dtype the weights are stored in; the large models are stored in two bytes.
    size = picked.itemsize if isinstance(picked, torch.dtype) else 2
    return estimate_memory(
        shape.n_params,
        shape.n_layers,
        shape.d_model,
        shape.d_mlp,
        shape.d_vocab,
        dtype_bytes=size,
        device="all" if device_map else device,
    )


def _read(
    resolved: ResolvedModel, device: str, dtype: str, device_map: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"revision": resolved.revision} if resolved.revision else {}
    options["trust_remote_code"] = trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, **options)
        if device_map:
            options["device_map"] = device_map
        network: Any = AutoModelForCausalLM.from_pretrained(
            resolved.path, dtype=_pick_dtype(dtype, device), use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as problem:
        logging.getLogger(__name__).info("loading %s failed", resolved.path, exc_info=True)
        first = str(problem).strip().split("\n")[0][:300]
        raise ModelError(
            f"{resolved.name} could not be loaded: {first}",
            "Give a registry name, a folder with config.json, tokenizer and safetensors, or a GGUF file.",
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer of {resolved.name} gives no character positions, so subjects cannot be located.",
            "Use the model's fast tokenizer (tokenizer.json).",
        )
    network.eval()
    return (network if device_map else network.to(device)), tokenizer


def _wrap(resolved: ResolvedModel, network: Any, tokenizer: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    device = str(network.device)
    try:
        return TransformerBridge.boot_transformers(
            resolved.path,
            hf_model=network,
            tokenizer=tokenizer,
            device=None if _is_spread(network) else device,
        )
    except Exception as problem:  # TransformerLens raises many kinds for what it does not know
        raise ModelError(
            f"TransformerLens cannot wrap {type(network).__name__}: {str(problem).splitlines()[0][:200]}",
            "Choose a decoder-only model with one feed-forward block a layer (Llama, Qwen, Mistral, GPT-2, NeoX).",
        ) from None


def _is_spread(network: Any) -> bool:
    return len(set(getattr(network, "hf_device_map", {}).values())) > 1
