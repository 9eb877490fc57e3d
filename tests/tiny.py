"""Tiny random models of several architectures, with a real byte-level tokenizer, saved as folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 320
TEXT = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid. "
    "A cat says meow and a dog says woof. Because the river is wide, you and I take the boat. "
    "Therefore the city of London is in England, and the language of Germany is German."
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def _config(kind: str) -> Any:
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    grouped = {**sizes, "num_key_value_heads": 2}
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_inner=64, n_layer=4, n_head=4, n_positions=256, **common)
    if kind == "gptneox":
        return GPTNeoXConfig(**sizes, **common)
    if kind == "gptneox-serial":
        return GPTNeoXConfig(use_parallel_residual=False, **sizes, **common)
    family = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[kind]
    return family(**grouped, **common)


def make_tiny(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of an architecture (llama, gpt2, qwen2, gptneox, gptneox-serial, mistral)."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(kind))
    with torch.no_grad():
        # Untrained weights are so small that every answer looks alike; larger ones make the tests tell more.
        for name, parameter in model.named_parameters():
            if "embed" in name or "wte" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim == 2:
                parameter.mul_(5.0)
            elif "bias" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tiny_llama(folder: Path) -> Path:
    return make_tiny("llama", folder)


def make_tiny_gpt2(folder: Path) -> Path:
    return make_tiny("gpt2", folder)
