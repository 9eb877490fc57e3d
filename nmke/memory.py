"""How much memory a model and an edit of it will take, before anything is loaded.

======================  =====================================================================
weights                 parameters x bytes of the dtype
statistics              one float64 second moment [D, D] per edited layer
workspace               float32 masters of the edited matrices [D, d], three float64 [D, D]
                        scratch matrices of the solve, logits of a batch and of its gradient
======================  =====================================================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from nmke.errors import ModelError
from nmke.resources import ResolvedModel, read_header
from nmke.storage import megabytes

BATCH_POSITIONS = 2048  # prompts x tokens whose logits are held at once
HEADROOM = 0.95  # the last few percent belong to the system


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide what a model needs."""

    n_params: int
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int


@dataclass(frozen=True)
class MemoryEstimate:
    """What is needed against what is free, in bytes, with a sentence for the user."""

    weights: int
    statistics: int
    workspace: int
    total: int
    free: int
    device: str
    fits: bool
    sentence: str


def estimate_memory(
    n_params: int,
    n_layers: int,
    d_model: int,
    d_mlp: int,
    d_vocab: int,
    dtype_bytes: int = 4,
    edited_layers: int = 5,
    device: str = "cpu",
) -> MemoryEstimate:
    """What a model of this shape needs on ``device`` (``all``: every CUDA device together).

    >>> estimate_memory(134_515_008, 30, 576, 1536, 49152).weights
    538060032
    """
    edited = min(edited_layers, n_layers)
    weights = n_params * dtype_bytes
    statistics = edited * d_mlp**2 * 8
    masters = edited * d_mlp * d_model * 4
    workspace = masters + 3 * d_mlp**2 * 8 + 2 * BATCH_POSITIONS * d_vocab * 4
    total = weights + statistics + workspace
    free = free_bytes(device)
    fits = total <= HEADROOM * free
    where = {"cpu": "in memory", "all": "on all GPUs together"}.get(device, f"on {device}")
    sentence = (
        f"About {megabytes(total)} are needed ({megabytes(weights)} weights, {megabytes(statistics)} statistics, "
        f"{megabytes(workspace)} workspace) and {megabytes(free)} are free {where}: "
        f"{'it fits' if fits else 'it does not fit'}."
    )
    return MemoryEstimate(weights, statistics, workspace, total, free, device, fits, sentence)


def free_bytes(device: str) -> int:
    """Memory that is free now on the device."""
    kind = device.partition(":")[0]
    if kind in {"cuda", "all"}:
        import torch

        if kind == "all":
            return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    if kind == "mps":
        import torch

        # Shared with the system, which recommends a share of it.
        recommended = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(min(available, recommended), 0)
    limit = _container_free()
    return available if limit is None else min(available, limit)


def _container_free() -> int | None:
    """What the container's own limit leaves (psutil sees the whole machine), or None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Cached files give way when memory is wanted.
    return None if limit == "max" else max(int(limit) - used + int(stat.get("inactive_file", 0)), 0)


def shape_of(source: ResolvedModel | str | Path | Mapping[str, Any]) -> ModelShape:
    """Read a model's sizes from its folder, hub id or configuration, without loading weights.

    Raises:
        ModelError: the configuration cannot be read or lacks a size.
    """
    config, folder = _config_of(source)
    config = _language_part(config)
    name = str(getattr(source, "name", None) or config.get("model_type") or "the model")
    d_model = _first(config, name, "hidden_size", "n_embd", "d_model", "n_embed", "dim")
    n_layers = _first(config, name, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    d_vocab = _first(config, name, "vocab_size", "n_vocab")
    d_mlp = _first(config, name, "intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * d_model)
    counted = _count_parameters(folder) if folder else None
    n_params = counted or _guess_parameters(config, d_model, n_layers, d_vocab, d_mlp)
    return ModelShape(n_params, n_layers, d_model, d_mlp, d_vocab)


def _config_of(source: ResolvedModel | str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    if isinstance(source, Mapping):
        return dict(source), None
    path, revision = (source.path, source.revision) if isinstance(source, ResolvedModel) else (source, None)
    folder = Path(path)
    if folder.is_dir():
        try:
            return dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))), folder
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"The config.json in {folder} cannot be read.", "Copy the model again."
            ) from error
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(str(path), revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"The configuration of {path} cannot be read.", "Check the name.") from error
    return config, None


def _language_part(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _first(config: Mapping[str, Any], model: str, *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is None:
        raise ModelError(
            f"The configuration of {model} does not say {keys[0]}.", "Choose a decoder-only language model."
        )
    return default


def _count_parameters(folder: Path) -> int | None:
    try:
        headers = [read_header(file) for file in folder.glob("*.safetensors")]
        return sum(prod(tensor["shape"]) for header in headers for tensor in header.values()) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _guess_parameters(config: Mapping[str, Any], d: int, layers: int, vocab: int, d_mlp: int) -> int:
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    key_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or d // heads
    attention = 2 * d * head * (heads + key_heads)
    gated = config.get("model_type") not in {
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "opt",
        "phi",
        "bloom",
        "falcon",
    }
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    feed_forward = (3 if gated else 2) * d * d_mlp * experts
    tables = 1 if config.get("tie_word_embeddings", not gated) else 2
    return layers * (attention + feed_forward) + tables * vocab * d
