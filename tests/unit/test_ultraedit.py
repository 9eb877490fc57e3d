"""UltraEdit's formulas by hand in float64, its gradients against the weights' own, its figures through a session."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmke.errors import EditError
from nmke.facts import Fact
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.methods.forced import Answers, forced_loss
from nmke.methods.ultraedit import (
    STATISTICS,
    Running,
    UltraEditConfig,
    as_columns,
    read_features,
    running_figures,
    shift_factors,
    shift_solve,
    wanted_change,
)
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.tokens import encode, encode_continuation
from tests.rows import tiny_config

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("I think that the language of Germany is", "Germany", "the boat"),
    Fact("The river in Italy is", "Italy", "a dog"),
)
CONFIG = UltraEditConfig(layers=(1, 2), learning_rate=1e-3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(width: int) -> Running:
    zeros = torch.zeros(width, dtype=torch.float64)
    return Running(0, zeros, zeros)


def edited(session: EditSession, *facts: Fact, config: UltraEditConfig = CONFIG) -> EditSession:
    for fact in facts:
        session.apply(get_method("ultraedit").plan(session, [fact], config, Silent()))
    return session


# ---- formulas -------------------------------------------------------------------------------------------


def test_the_figures_by_hand() -> None:
    # 1 and 3: mean 2, unbiased variance 2, spread 2 * 2. Then 5 alone: 3 tokens, mean 3, spread 4 + 2 * 1 / 3 * 9.
    first = nothing(1).with_pass(torch.tensor([[1.0], [3.0]]).double())
    assert (first.count, float(first.mean), float(first.spread)) == (2, 2.0, 4.0)
    both = first.with_pass(torch.tensor([[5.0]]).double())
    assert (both.count, float(both.mean)) == (3, pytest.approx(3.0))
    assert float(both.spread) == pytest.approx(10.0)
    hat = both.normalised(torch.tensor([[5.0]]).double())
    assert float(hat) == pytest.approx(2 / 5**0.5, rel=1e-6)


def test_the_figures_are_the_published_recurrence_pass_by_pass() -> None:
    n, mean, var = 0, torch.zeros(6).double(), torch.zeros(6).double()
    figures = nothing(6)
    for number, tokens in enumerate((4, 9, 2)):
        x = 3 + random(tokens, 6, seed=number)
        figures = figures.with_pass(x)
        delta = x.mean(0) - mean
        mean = mean + tokens * delta / (n + tokens)
        unbiased = ((x - x.mean(0)) ** 2).sum(0) / (tokens - 1)
        var = var + tokens * unbiased + n * tokens * delta**2 / (n + tokens)
        n += tokens
    assert figures.count == 15
    assert torch.allclose(figures.mean, mean) and torch.allclose(figures.spread, var)
    x = random(3, 6, seed=9)
    eps = 2.0**-23
    assert torch.allclose(figures.normalised(x), (x - mean) / ((var / 14).sqrt() + eps))


def test_the_mean_is_that_of_all_tokens_at_once() -> None:
    x = random(12, 5)
    figures = nothing(5).with_pass(x[:5]).with_pass(x[5:])
    assert torch.allclose(figures.mean, x.mean(0))
    # The published spread exceeds the sum of squares by each pass's own variance.
    assert torch.allclose(figures.spread, 11 * x.var(0) + x[:5].var(0) + x[5:].var(0))


def test_the_wanted_change_by_hand() -> None:
    h, g = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[10.0], [-1.0]])
    assert torch.allclose(wanted_change(h, g, 0.1), torch.tensor([[-5.0], [0.9]]))


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_the_factors_equal_the_dense_solve(tokens: int) -> None:
    H, V = random(tokens, 8), random(tokens, 3, seed=1)
    left, right = shift_factors(H, V, 0.7)
    assert left.shape[1] == tokens
    assert torch.allclose(left @ right, shift_solve(H, V, 0.7), atol=1e-10)
    by_hand = torch.linalg.inv(H.T @ H + 0.7 * torch.eye(8).double()) @ H.T @ V
    assert torch.allclose(left @ right, by_hand, atol=1e-10)


# ---- features -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_keys_times_gradients_are_the_gradient_of_the_down_projection(tiny: LoadedModel, layer: int) -> None:
    session = EditSession(tiny)
    features, loss = read_features(session, FACTS[1:2], [layer], "all")
    with session.active():
        answers = Answers.of(tiny.tokenizer, FACTS[1:2], "target")
        losses, gradient = forced_loss(session, answers, layer, plain=True).gradient(
            torch.zeros_like(session.master(layer))
        )
    found = features[layer].H.T @ features[layer].G
    assert loss == pytest.approx(float(losses[0]), abs=1e-5)
    assert torch.allclose(found, gradient, atol=1e-5 * float(gradient.abs().max()))


def test_the_loss_is_the_mean_over_answer_tokens_and_not_over_facts(llama: LoadedModel) -> None:
    session = EditSession(llama)
    counts = [len(encode_continuation(llama.tokenizer, f.prompt, f.target_new)) for f in FACTS[:2]]
    alone = [read_features(session, [fact], [1], "all")[1] for fact in FACTS[:2]]
    together = read_features(session, FACTS[:2], [1], "all")[1]
    assert counts[0] != counts[1]
    wanted = sum(n * loss for n, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert together == pytest.approx(wanted, abs=1e-5)


def test_tokens_are_prompt_and_answer_without_pads_or_those_that_predict(llama: LoadedModel) -> None:
    session = EditSession(llama)
    prompts = [len(encode(llama.tokenizer, fact.prompt)) for fact in FACTS[:2]]
    answers = [len(encode_continuation(llama.tokenizer, f.prompt, f.target_new)) for f in FACTS[:2]]
    everything = read_features(session, FACTS[:2], [1], "all")[0][1]
    predicting = read_features(session, FACTS[:2], [1], "answer")[0][1]
    assert len(everything.H) == sum(prompts) + sum(answers) - 2
    assert len(predicting.H) == sum(answers)
    first = read_features(session, FACTS[:1], [1], "all")[0][1]
    assert torch.allclose(everything.H[: len(first.H)], first.H, atol=1e-5)
    assert torch.allclose(predicting.H[0], first.H[prompts[0] - 1], atol=1e-5)


def test_the_edit_is_the_formula_written_out_over_two_edits(tiny: LoadedModel) -> None:
    """From the features of both edits, both layers in one running figure, dense and in float64."""
    session = EditSession(tiny)
    seen: list[Tensor] = []
    for fact in FACTS[:2]:
        features, _ = read_features(session, [fact], [1, 2], "all")
        edit = get_method("ultraedit").plan(session, [fact], CONFIG, Silent())
        seen += [torch.cat([features[layer].H, features[layer].G], dim=1).double() for layer in (1, 2)]
        session.apply(edit)
    everything = torch.cat(seen)
    spread = (everything - everything.mean(0)).square().sum(0) + sum(x.var(0) for x in seen)
    std = (spread / (len(everything) - 1)).sqrt() + 2.0**-23
    for patch, x in zip(edit.patches, seen[2:], strict=True):
        h, g = ((x - everything.mean(0)) / std).split([tiny.d_mlp, tiny.d_model], dim=1)
        H, V = x[:, : tiny.d_mlp], -1e-3 * h.square().sum(1)[:, None] * g
        expected = torch.linalg.solve(H.T @ H + torch.eye(tiny.d_mlp).double(), H.T @ V)
        assert torch.allclose(patch.matrix().double(), expected, atol=1e-4 * float(expected.abs().max()))


def test_facts_of_one_edit_go_through_in_passes_and_are_solved_together(llama: LoadedModel) -> None:
    method = get_method("ultraedit")
    one = method.plan(EditSession(llama), FACTS, CONFIG, Silent())
    three = method.plan(EditSession(llama), FACTS, CONFIG.changed(batch_size=1), Silent())
    assert (len(one.details["losses"]), len(three.details["losses"])) == (1, 3)
    assert one.details["tokens_counted"] == three.details["tokens_counted"]
    assert one.patches[0].left.shape == three.patches[0].left.shape
    assert not torch.equal(one.patches[0].left @ one.patches[0].right, three.patches[0].matrix())


def test_it_makes_the_answers_likelier(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    before = read_features(session, FACTS[:1], [1], "all")[1]
    edited(session, FACTS[0], config=CONFIG.changed(learning_rate=1e-2))
    assert read_features(session, FACTS[:1], [1], "all")[1] < before - 0.1


# ---- the running figures --------------------------------------------------------------------------------


def test_packing_and_reading_the_figures_loses_nothing_of_float32(llama: LoadedModel) -> None:
    session = edited(EditSession(llama), FACTS[0])
    kept = session.edits[0].keys[STATISTICS]
    figures = running_figures(session)
    assert kept.dtype == torch.float32 and figures.mean.dtype == torch.float64
    assert torch.equal(as_columns(figures, llama.d_mlp), kept)
    tokens = sum(len(found.H) for found in read_features(session, FACTS[:1], [1, 2], "all")[0].values())
    assert figures.count == tokens


def test_undo_takes_the_figures_back_and_other_methods_edits_leave_them(
    llama: LoadedModel, cache: Path
) -> None:
    session = edited(EditSession(llama), FACTS[0])
    first = running_figures(session)
    edited(session, FACTS[1])
    second = running_figures(session)
    assert second.count > first.count
    session.apply(get_method("ft-m").plan(session, FACTS[2:], tiny_config("ft-m", cache), Silent()))
    assert torch.equal(running_figures(session).spread, second.spread)
    session.undo()
    session.undo()
    assert running_figures(session).count == first.count
    assert torch.equal(running_figures(session).spread, first.spread)


def test_no_layers_history_sees_the_figures(llama: LoadedModel) -> None:
    session = edited(EditSession(llama), *FACTS)
    assert all(session.history_keys(layer).shape[1] == 0 for layer in range(llama.n_layers))


def test_methods_that_protect_keys_plan_beside_it_as_without_its_keys(
    llama: LoadedModel, cache: Path
) -> None:
    text = cache.parent / "text.txt"
    text.write_text(
        "\n".join(["The boat went to Rome and the dog went to the river."] * 20), encoding="utf-8"
    )
    method, config = get_method("alphaedit"), tiny_config("alphaedit", text)
    session = EditSession(llama)
    session.apply(method.plan(session, FACTS[:1], config, Silent()))
    protected = session.history_keys(1)
    edited(session, FACTS[1])
    assert torch.equal(session.history_keys(1), protected)
    session.apply(method.plan(session, FACTS[2:], config, Silent()))
    assert session.history_keys(1).shape[1] == 2


def test_a_settled_session_read_from_a_checkpoint_goes_on_with_the_same_bits(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    straight = edited(EditSession(tiny), *FACTS)
    stopped = edited(EditSession(tiny), *FACTS[:2])
    stopped.settle()
    save_checkpoint(stopped, 2, tmp_path / "checkpoint.safetensors")
    found = load_checkpoint(tiny, tmp_path / "checkpoint.safetensors", FACTS)
    assert found is not None
    resumed = edited(found.session, FACTS[2])
    assert resumed.digest == straight.digest
    assert torch.equal(running_figures(resumed).spread, running_figures(straight).spread)


# ---- bad input ------------------------------------------------------------------------------------------


def test_a_single_token_in_a_single_layer_is_refused_with_a_remedy(llama: LoadedModel) -> None:
    fact = next(
        Fact("The capital of France is", "France", word)
        for word in ("the", "dog", "boat")
        if len(encode_continuation(llama.tokenizer, "The capital of France is", word)) == 1
    )
    config = CONFIG.changed(layers=(1,), tokens="answer")
    with pytest.raises(EditError, match=r"no spread.*all tokens"):
        get_method("ultraedit").plan(EditSession(llama), [fact], config, Silent())


def test_naming_no_layer_is_refused() -> None:
    from nmke.errors import ConfigError

    with pytest.raises(ConfigError, match="at least one layer"):
        UltraEditConfig.make(layers=())


@pytest.mark.parametrize(("n_layers", "layers"), [(32, (29, 30)), (30, (27, 28)), (2, (0,)), (1, (0,))])
def test_the_guess_leaves_the_last_layer_alone(n_layers: int, layers: tuple[int, ...]) -> None:
    assert get_method("ultraedit").guess(n_layers) == {"layers": layers}
