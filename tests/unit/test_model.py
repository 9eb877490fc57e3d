"""The editable model: conformance, weights swapped in and out, running, generating."""

import threading
from pathlib import Path

import pytest
import torch

from nmke.attribution import Prompt, attribute
from nmke.errors import ModelError
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.methods import get_method
from nmke.methods.nmke import NMKEConfig
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import FINAL, MLP_OUT, POST, RESID_MID, RESID_POST
from nmke.tokens import encode_batch
from tests.tiny import make_tiny

PROMPTS = ["The capital of France is", "A cat says", "You and I"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "mistral", "gptneox", "gptneox-serial"])
def test_every_supported_shape_passes_the_conformance_gate(kind: str, tmp_path: Path) -> None:
    model = load_model(str(make_tiny(kind, tmp_path)), device="cpu")
    assert model.conformance.passed, model.conformance.checks
    assert len(model.conformance.checks) == 5


def test_a_model_whose_norm_is_not_read_right_fails_the_gate_and_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.readout import Readout

    right = Readout.scale
    monkeypatch.setattr(Readout, "scale", lambda self, final: 2 * right(self, final))
    model = load_model(str(make_tiny("llama", tmp_path)), device="cpu")
    assert [check.name for check in model.conformance.checks if not check.passed] == [
        "the final norm, frozen, gives the model's own logits"
    ]
    with pytest.raises(ModelError, match="Generation still works"):
        attribute(model, [Prompt("A cat says")])
    with pytest.raises(ModelError, match="Generation still works"):
        get_method("nmke").plan(
            EditSession(model), [Fact("A cat says", "cat", "woof")], NMKEConfig(), Silent()
        )
    assert model.generate(["A cat says"], 2)


def test_a_parallel_model_gives_the_residual_without_the_mlp(tmp_path: Path) -> None:
    model = load_model(str(make_tiny("gptneox", tmp_path)), device="cpu")
    batch = encode_batch(model.tokenizer, PROMPTS[:1])
    kept = model.run(batch, [(RESID_MID, 1), (MLP_OUT, 1), (RESID_POST, 1)])
    assert not model.has_resid_mid
    assert torch.allclose(kept[(RESID_MID, 1)] + kept[(MLP_OUT, 1)], kept[(RESID_POST, 1)], atol=1e-6)


def test_w_out_has_one_row_per_neuron_in_both_orientations(tiny: LoadedModel) -> None:
    assert tiny.W_out(2).shape == (tiny.d_mlp, tiny.d_model)
    batch = encode_batch(tiny.tokenizer, PROMPTS[:1])
    kept = tiny.run(batch, [(POST, 2), (MLP_OUT, 2)])
    silent = tiny.run(batch, [(MLP_OUT, 2)], hooks={(POST, 2): torch.zeros_like})[(MLP_OUT, 2)]
    assert torch.allclose(kept[(POST, 2)] @ tiny.W_out(2) + silent, kept[(MLP_OUT, 2)], atol=1e-5)


def test_stored_form_goes_back_to_the_same_matrix(tiny: LoadedModel) -> None:
    matrix = torch.randn(tiny.d_mlp, tiny.d_model)
    with tiny.weights_in({1: tiny.as_stored(1, matrix)}):
        assert torch.equal(tiny.W_out(1), matrix)


def test_a_square_down_projection_keeps_its_orientation(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.tiny import VOCABULARY, make_tokenizer

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert model.conformance.passed
    matrix = torch.randn(32, 32)
    with model.weights_in({0: model.as_stored(0, matrix)}):
        assert torch.equal(model.W_out(0), matrix)


def test_other_weights_compute_inside_the_block_and_the_loaded_ones_after_it(tiny: LoadedModel) -> None:
    batch = encode_batch(tiny.tokenizer, PROMPTS)
    before = tiny.run(batch, [FINAL])[FINAL]
    pointer = tiny.down_projection(1).data_ptr()
    with tiny.weights_in({1: tiny.as_stored(1, torch.randn(tiny.d_mlp, tiny.d_model))}):
        inside = tiny.run(batch, [FINAL])[FINAL]
    assert not torch.allclose(before, inside)
    assert torch.equal(tiny.run(batch, [FINAL])[FINAL], before)
    assert tiny.down_projection(1).data_ptr() == pointer


def test_the_loaded_weights_come_back_when_the_block_fails(tiny: LoadedModel) -> None:
    before = tiny.W_out(0).clone()
    with pytest.raises(RuntimeError), tiny.weights_in({0: torch.zeros_like(tiny.down_projection(0))}):
        raise RuntimeError
    assert torch.equal(tiny.W_out(0), before)


def test_an_empty_block_inside_another_is_the_unedited_model(tiny: LoadedModel) -> None:
    loaded = tiny.W_out(0).clone()
    zeros = torch.zeros_like(tiny.down_projection(0))
    with tiny.weights_in({0: zeros}):
        with tiny.weights_in({}):
            assert torch.equal(tiny.W_out(0), loaded)
        assert not tiny.W_out(0).any()


def test_another_thread_waits_instead_of_seeing_the_swapped_weights(tiny: LoadedModel) -> None:
    batch = encode_batch(tiny.tokenizer, PROMPTS[:1])
    expected = tiny.run(batch, [FINAL])[FINAL]
    answers: list[torch.Tensor] = []
    with tiny.weights_in({0: torch.zeros_like(tiny.down_projection(0))}):
        thread = threading.Thread(target=lambda: answers.append(tiny.run(batch, [FINAL])[FINAL]))
        thread.start()
        thread.join(0.2)
        assert not answers
    thread.join()
    assert torch.equal(answers[0], expected)


def test_padding_does_not_change_what_a_short_prompt_says(tiny: LoadedModel) -> None:
    batch = encode_batch(tiny.tokenizer, PROMPTS)
    together = tiny.run(batch, [FINAL])[FINAL]
    for row, prompt in enumerate(PROMPTS):
        alone = tiny.run(encode_batch(tiny.tokenizer, [prompt]), [FINAL])[FINAL]
        assert torch.allclose(together[row, batch.last[row]], alone[0, -1], atol=1e-5)


def test_generation_is_the_argmax_of_each_next_token(tiny: LoadedModel) -> None:
    from nmke.tokens import encode, pad

    written = []
    ids = encode(tiny.tokenizer, PROMPTS[0])
    for _ in range(5):
        final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
        ids.append(int(tiny.logits(final[0, -1]).argmax()))
        written.append(ids[-1])
        if ids[-1] == tiny.tokenizer.eos_token_id:
            break
    expected = tiny.tokenizer.decode(written, skip_special_tokens=True)
    assert tiny.generate(PROMPTS, 5)[0] == expected


def test_layers_out_of_range_are_refused_with_the_range(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"layer 7.*layers 0 to 3"):
        tiny.check_layers([1, 7])


def test_the_weight_hash_tells_models_apart_and_ignores_active_edits(
    llama: LoadedModel, tmp_path: Path
) -> None:
    other = load_model(str(make_tiny("llama", tmp_path, seed=1)), device="cpu")
    with other.weights_in({0: torch.zeros_like(other.down_projection(0))}):
        inside = other.weight_hash
    again = load_model(str(tmp_path), device="cpu")
    assert other.weight_hash != llama.weight_hash
    assert again.weight_hash == inside


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match="'cuda' is not available"):
        load_model(str(make_tiny("llama", tmp_path)), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_model_passes_the_gate_in_bfloat16(tmp_path: Path) -> None:
    model = load_model(str(make_tiny("llama", tmp_path)), device="cuda", dtype="bfloat16")
    assert model.conformance.passed, model.conformance.checks
