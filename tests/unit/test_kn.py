"""Integrated gradients one step at a time, refining by hand, and the value vectors' update in float64."""

from pathlib import Path

import pytest
import torch

from nmke.errors import ConfigError, EditError, FactError
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.methods.integrated import integrate_gradients
from nmke.methods.kn import KN, KNConfig, embed, find_answers, find_prompts, keep_coarse, refine, write_values
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import FINAL, POST
from nmke.tokens import encode, encode_continuation, pad
from tests.tiny import make_tiny

FACT = Fact("The capital of France is", "France", "the boat", target_true="Paris")
TEXTS = ("The capital of France is", "You and I take the boat. The capital of France is", "I")


def prompts_of(model: LoadedModel, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    return [encode(model.tokenizer, text) for text in texts]


def probability(model: LoadedModel, ids: list[int], answer: int, layer: int, w: torch.Tensor) -> torch.Tensor:
    """P(answer) with the layer's activations at the last token set to ``w``; one prompt, no batch."""

    def put(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[:, :-1], w[None, None]], dim=1)

    final = model.run(pad([ids], 0), [FINAL], hooks={(POST, layer): put})[FINAL]
    return model.logits(final[0, -1]).double().softmax(-1)[answer]


def activations(model: LoadedModel, ids: list[int], layer: int) -> torch.Tensor:
    return model.run(pad([ids], 0), [(POST, layer)])[(POST, layer)][0, -1]


def riemann(model: LoadedModel, ids: list[int], answer: int, layer: int, steps: int) -> torch.Tensor:
    """The paper's sum, one step at a time, summed in float64."""
    w = activations(model, ids, layer)
    total = torch.zeros(len(w), dtype=torch.float64)
    for k in range(1, steps + 1):
        scaled = (k / steps * w).requires_grad_(True)
        (gradient,) = torch.autograd.grad(probability(model, ids, answer, layer, scaled), scaled)
        total += gradient.double()
    return w.double() / steps * total


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox", "gptneox-serial", "qwen2", "mistral"])
@pytest.mark.parametrize("texts", [TEXTS, ("I",)])
def test_batched_scalings_of_last_tokens_are_the_riemann_sum(
    kind: str, texts: tuple[str, ...], tmp_path: Path
) -> None:
    model = load_model(str(make_tiny(kind, tmp_path)), device="cpu")
    prompts, answer, layers = prompts_of(model, texts), 7, (0, 2, 3)
    fast = integrate_gradients(model, prompts, answer, layers, 4)
    plain = integrate_gradients(model, prompts, answer, layers, 4, plain=True)
    assert (fast.ran, plain.ran) == ("later layers", "whole prompts")
    for row, ids in enumerate(prompts):
        for place, layer in enumerate(layers):
            expected = riemann(model, ids, answer, layer, 4)
            scale = float(expected.abs().max())
            for found in (fast, plain):
                assert torch.allclose(found.scores[row, place].double(), expected, atol=1e-3 * scale)
                own = activations(model, ids, layer)
                assert torch.allclose(found.activations[row, place], own, atol=1e-4)


def test_groups_of_prompts_do_not_matter(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = integrate_gradients(llama, prompts_of(llama), 7, range(4), 3).scores
    monkeypatch.setattr("nmke.methods.integrated.PROMPTS_TOGETHER", 2)
    assert torch.allclose(
        integrate_gradients(llama, prompts_of(llama), 7, range(4), 3).scores, whole, atol=1e-6
    )


def test_attributions_add_up_to_what_the_layer_does_for_the_answer(tiny: LoadedModel) -> None:
    ids = prompts_of(tiny)[0]
    final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
    answer = int(tiny.logits(final[0, -1]).argmax())
    for layer in range(tiny.n_layers):
        w = activations(tiny, ids, layer)
        p, p0 = (float(probability(tiny, ids, answer, layer, v)) for v in (w, torch.zeros_like(w)))
        off = [
            abs(float(integrate_gradients(tiny, [ids], answer, [layer], steps).scores.sum()) - (p - p0))
            for steps in (2, 20, 200)
        ]
        assert off[2] < 5e-3 and off[2] < 0.2 * off[0] + 1e-4
        assert off[1] < off[0] + 1e-4


def test_coarse_neurons_are_counted_against_the_prompts_own_largest() -> None:
    scores = torch.tensor([[[1.0, 0.2, 0.19], [0.0, -3.0, 0.5]], [[-1.0, -2.0, -3.0], [-1.0, 0.0, -1.0]]])
    kept = keep_coarse(scores, 0.2)
    assert kept[0].tolist() == [[True, True, False], [False, False, True]]
    assert not kept[1].any()


def shared_by(*counts: int, of: int = 10) -> torch.Tensor:
    """One layer's scores where neuron ``i`` is kept by ``counts[i]`` of the prompts."""
    rows = torch.arange(of)[:, None]
    return (rows < torch.tensor(counts)).float()[:, None]


@pytest.mark.parametrize(
    ("counts", "neurons", "share"),
    [
        ((10, 7, 6), (0, 1), 0.7),
        ((10, 6, 5), (0, 1), 0.6),  # two more are found by asking for less
        ((10, 8, 8, 8, 7, 7, 7), (0, 1, 2, 3), 0.75),  # seven are too many at 0.7
        ((10, 4), (0,), 0.45),  # the share moves five times, then what is found counts
        ((10,) * 6, tuple(range(6)), 0.95),
    ],
)
def test_the_share_moves_until_few_but_some_neurons_are_left(
    counts: tuple[int, ...], neurons: tuple[int, ...], share: float
) -> None:
    found = refine(shared_by(*counts), KNConfig())
    assert found.neurons == tuple((0, neuron) for neuron in neurons)
    assert found.share == pytest.approx(share)


@pytest.mark.parametrize("share", [0.8, 0.9, 1.0])
def test_neurons_that_all_prompts_share_are_found_however_many(share: float) -> None:
    found = refine(shared_by(*(10,) * 6), KNConfig.make(share=share))
    assert len(found.neurons) == 6 and found.share == 1.0


def test_fewest_above_most_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewest neurons, 6, are more than the most, 5"):
        KNConfig.make(fewest=6)


def test_a_hardly_possible_answer_is_attributed_in_half_precision_too(tmp_path: Path) -> None:
    folder, found = str(make_tiny("gpt2", tmp_path)), []
    exact, half = (load_model(folder, device="cpu", dtype=dtype) for dtype in ("float32", "float16"))
    ids = prompts_of(exact)[0]
    final = exact.run(pad([ids], 0), [FINAL])[FINAL]
    p = exact.logits(final[0, -1]).softmax(-1)
    answer = int(p.argmin())
    assert float(p[answer]) < 1e-8
    for model, plain in ((exact, False), (half, False), (half, True)):
        scores = integrate_gradients(model, [ids], answer, (0, 2), 4, plain=plain).scores.double().flatten()
        found.append(scores / scores.norm())
    assert float(found[0] @ found[1]) > 0.98 and float(found[0] @ found[2]) > 0.98


@pytest.mark.parametrize("scale", ["value norm", "none"])
@pytest.mark.parametrize("tokens", ["first", "mean"])
@pytest.mark.parametrize("follow_sign", [False, True])
def test_value_vectors_change_by_the_formula(
    tiny: LoadedModel, scale: str, tokens: str, follow_sign: bool
) -> None:
    config = KNConfig.make(lambda_old=1.5, lambda_new=6, scale=scale, tokens=tokens, follow_sign=follow_sign)
    session, neurons, old, new = EditSession(tiny), [3, 40], [5, 6], [7, 8, 9]
    patch = write_values(session, 1, neurons, torch.tensor([-2.0, 0.5]), old, new, config)
    W = session.master(1).double()
    table = tiny.bridge.original_model.get_input_embeddings().weight.double()
    e_old, e_new = (table[ids].mean(0) if tokens == "mean" else table[ids[0]] for ids in (old, new))
    expected = W.clone()
    for neuron, sign in zip(neurons, (-1 if follow_sign else 1, 1), strict=True):
        size = W[neuron].norm()
        by_old = size / e_old.norm() if scale == "value norm" else 1.0
        by_new = size / e_new.norm() if scale == "value norm" else 1.0
        expected[neuron] += sign * (-1.5 * by_old * e_old + 6 * by_new * e_new)
    assert torch.allclose(patch.added_to(session.master(1)).double(), expected, atol=1e-5)
    assert patch.neurons == 2 and patch.left.shape[1] == 2


def test_embeddings_may_be_the_unembeddings_rows(llama: LoadedModel) -> None:
    table = llama.bridge.original_model
    output, entered = (embed(llama, [5], KNConfig.make(embedding=kind)) for kind in ("output", "input"))
    assert torch.equal(output, table.get_output_embeddings().weight[5].float())
    assert torch.equal(entered, table.get_input_embeddings().weight[5].float())
    assert not torch.equal(output, entered)


def test_the_present_answer_is_the_true_one_or_else_the_models_own(llama: LoadedModel) -> None:
    old, new = find_answers(llama, FACT)
    assert old == encode_continuation(llama.tokenizer, FACT.prompt, "Paris")
    assert new == encode_continuation(llama.tokenizer, FACT.prompt, "the boat")
    ids = encode(llama.tokenizer, FACT.prompt)
    final = llama.run(pad([ids], 0), [FINAL])[FINAL]
    own = find_answers(llama, Fact(FACT.prompt, "France", "the boat"))[0]
    assert own == [int(llama.logits(final[0, -1]).argmax())]


def test_prompts_are_contexts_or_paraphrases_or_both(llama: LoadedModel, cache: Path) -> None:
    fact = Fact("The capital of France is", "France", "Rome", paraphrases=("France has the city of",))
    counts = {
        kind: len(find_prompts(llama, fact, KNConfig.make(prompts=kind), Silent()))
        for kind in ("contexts", "paraphrases", "both")
    }
    assert counts == {"contexts": 6, "paraphrases": 2, "both": 7}
    long = Fact("The capital of France is", "France", "Rome", paraphrases=("wide " * 300 + "France",))
    assert len(find_prompts(llama, long, KNConfig(), Silent())) == 6
    with pytest.raises(FactError, match="paraphrase.*reads at most 256"):
        find_prompts(llama, long, KNConfig.make(prompts="both"), Silent())


def test_only_the_neurons_named_in_the_details_change(tiny: LoadedModel, cache: Path) -> None:
    session = EditSession(tiny)
    edit = KN().plan(session, [FACT], KNConfig.make(steps=5), Silent())
    named = {(layer, neuron) for layer, neuron in edit.details["neurons"]}
    assert named
    changed = set()
    for patch in edit.patches:
        moved = (patch.added_to(session.master(patch.layer)) != session.master(patch.layer)).any(1)
        changed |= {(patch.layer, neuron) for neuron in moved.nonzero()[:, 0].tolist()}
    assert changed == named
    session.apply(edit)
    with session.active():
        p = 1.0
        answer = encode_continuation(tiny.tokenizer, FACT.prompt, FACT.target_new)
        ids = encode(tiny.tokenizer, FACT.prompt)
        for number, token in enumerate(answer):
            final = tiny.run(pad([ids + answer[:number]], 0), [FINAL])[FINAL]
            p *= float(tiny.logits(final[0, -1]).softmax(-1)[token]) ** (1 / len(answer))
    assert edit.details["target_probability"] == pytest.approx([p], rel=1e-3)


def test_prompts_that_share_no_neuron_are_refused(
    llama: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = torch.eye(64)[:6][:, None].expand(6, 4, 64)
    monkeypatch.setattr("nmke.methods.kn.keep_coarse", lambda *_: apart.bool())
    with pytest.raises(EditError, match="share no neuron.*Lower the share"):
        KN().plan(EditSession(llama), [FACT], KNConfig.make(steps=1, share=0.9), Silent())
