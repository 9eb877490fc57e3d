"""The memory estimate: every part counted, the sentence true, the container's limit seen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nmke import memory
from nmke.errors import ModelError
from nmke.memory import ModelShape, estimate_memory, shape_of

SMOL = ModelShape(n_params=134_515_008, n_layers=30, d_model=576, d_mlp=1536, d_vocab=49152)


def test_every_part_is_counted():
    estimate = estimate_memory(**vars(SMOL), dtype_bytes=4, edited_layers=5)
    assert estimate.weights == 134_515_008 * 4
    assert estimate.statistics == 5 * 1536 * 1536 * 8
    assert estimate.total == estimate.weights + estimate.statistics + estimate.workspace


def test_half_the_bytes_take_half_the_weights():
    assert estimate_memory(**vars(SMOL), dtype_bytes=2).weights * 2 == estimate_memory(**vars(SMOL)).weights


def test_no_more_layers_are_edited_than_there_are():
    few = ModelShape(**{**vars(SMOL), "n_layers": 2})
    assert estimate_memory(**vars(few), edited_layers=5).statistics == 2 * 1536**2 * 8


@pytest.mark.parametrize(("free", "words"), [(10**12, "it fits"), (10**6, "it does not fit")])
def test_the_sentence_says_whether_it_fits(monkeypatch, free, words):
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    estimate = estimate_memory(**vars(SMOL))
    assert estimate.fits == (words == "it fits")
    assert words in estimate.sentence
    assert "538 MB weights" in estimate.sentence


def test_free_memory_is_measured():
    assert 0 < memory.free_bytes("cpu") < 10**14


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_free_memory_of_a_gpu_is_measured():
    assert 0 < memory.free_bytes("cuda") <= memory.free_bytes("all")


def test_the_shape_is_read_from_a_folder_and_parameters_from_the_headers(tmp_path: Path):
    config = {"n_embd": 8, "n_layer": 3, "vocab_size": 11, "n_inner": None, "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "model.safetensors")
    assert shape_of(tmp_path) == ModelShape(n_params=22, n_layers=3, d_model=8, d_mlp=32, d_vocab=11)


def test_the_parameters_of_a_bare_configuration_are_near_the_truth():
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    assert shape_of(config).n_params == pytest.approx(SMOL.n_params, rel=0.01)


def test_the_language_part_of_a_larger_model_is_used():
    inner = {"hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 5, "intermediate_size": 6}
    assert shape_of({"text_config": inner}).d_mlp == 6


def test_a_configuration_without_sizes_is_refused_by_the_missing_one():
    with pytest.raises(ModelError, match="hidden_size"):
        shape_of({"model_type": "vision"})
