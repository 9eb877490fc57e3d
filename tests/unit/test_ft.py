"""FT-L and FT-M against their formulas in float64 and against whole prompts through the whole model."""

from pathlib import Path

import pytest
import torch

from nmke.errors import Cancelled, EditError
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.methods import get_method
from nmke.methods.forced import Answers, Objective, forced_loss
from nmke.methods.ft import FTConfig, tune
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import encode, encode_continuation, pad
from tests.tiny import make_tiny

FACTS = (
    Fact("The capital of France is", "France", "the boat"),
    Fact("I think that the river in Germany is", "Germany", "a dog and a cat"),
)
LAYER = 1
OBJECTIVES: tuple[Objective, ...] = ("last token", "target")


def loss_by_hand(model: LoadedModel, fact: Fact, objective: Objective) -> float:
    """One token at a time, without padding, in float64."""
    prompt = encode(model.tokenizer, fact.prompt)
    answer = encode_continuation(model.tokenizer, fact.prompt, fact.target_new)
    assert len(answer) > 1
    total = 0.0
    for number, token in enumerate(answer):
        ids = prompt + (answer[:number] if objective == "target" else [])
        final = model.run(pad([ids], 0), [FINAL])[FINAL]
        total -= float(model.logits(final[0, -1]).double().log_softmax(-1)[token])
    return total / len(answer)


def gradient_by_parameter(session: EditSession, delta: torch.Tensor, objective: Objective) -> torch.Tensor:
    with session.active():
        batch = forced_loss(
            session, Answers.of(session.model.tokenizer, FACTS[:1], objective), LAYER, plain=True
        )
        assert batch.ran == "whole prompts"
        return batch.gradient(delta)[1].double()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("plain", [False, True])
def test_each_facts_loss_is_the_formula_with_and_without_a_change(
    tiny: LoadedModel, objective: Objective, plain: bool
) -> None:
    session = EditSession(tiny)
    answers = Answers.of(tiny.tokenizer, FACTS, objective)
    delta = 0.05 * torch.randn(tiny.d_mlp, tiny.d_model, generator=torch.Generator().manual_seed(0))
    for change in (torch.zeros_like(delta), delta):
        with session.active():
            found = forced_loss(session, answers, LAYER, plain).losses(change)
        with session.active(instead={LAYER: session.master(LAYER) + change}):
            expected = [loss_by_hand(tiny, fact, objective) for fact in FACTS]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("plain", [False, True])
def test_the_gradient_is_the_slope_of_the_mean_loss(
    tiny: LoadedModel, objective: Objective, plain: bool
) -> None:
    session = EditSession(tiny)
    generator = torch.Generator().manual_seed(1)
    delta = 0.02 * torch.randn(tiny.d_mlp, tiny.d_model, generator=generator)
    with session.active():
        batch = forced_loss(session, Answers.of(tiny.tokenizer, FACTS, objective), LAYER, plain)
        gradient = batch.gradient(delta)[1]
        along = gradient / gradient.norm() + 0.3 * torch.randn(delta.shape, generator=generator) / 45
        far = 2e-3
        ahead, behind = batch.losses(delta + far * along), batch.losses(delta - far * along)
    slope = float((ahead.double().mean() - behind.double().mean()) / (2 * far))
    assert slope == pytest.approx(float((gradient * along).sum()), rel=0.02)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_steps_are_adams_written_out(tiny: LoadedModel, objective: Objective) -> None:
    config = FTConfig.make(layer=LAYER, steps=2, learning_rate=0.01, weight_decay=0.03, stop_loss=0.0)
    session = EditSession(tiny)
    found = tune(session, FACTS[:1], objective, config, Silent()).delta.double()
    W = session.master(LAYER).double()
    delta, m, v = torch.zeros_like(W), torch.zeros_like(W), torch.zeros_like(W)
    for step in (1, 2):
        g = gradient_by_parameter(session, delta.float(), objective) + 0.03 * (W + delta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = delta - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    off = (found - delta).abs()
    # Adam divides by the gradient's own size, so where that is nearly nothing rounding decides.
    assert float((off < 1e-4).double().mean()) > 0.995
    assert float(off.mean()) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox", "gptneox-serial", "qwen2", "mistral"])
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_later_layers_alone_give_what_whole_prompts_give(
    kind: str, layer: int, objective: Objective, tmp_path: Path
) -> None:
    session = EditSession(load_model(str(make_tiny(kind, tmp_path)), device="cpu"))
    answers = Answers.of(session.model.tokenizer, FACTS, objective)
    delta = 0.05 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with session.active():
        fast, plain = (forced_loss(session, answers, layer, plain) for plain in (False, True))
        assert (fast.ran, plain.ran) == ("later layers", "whole prompts")
        (a, da), (b, db) = fast.gradient(delta), plain.gradient(delta)
    assert torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(da, db, atol=1e-4 * float(db.abs().max()))
    assert torch.allclose(fast.losses(delta), a, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_training_is_the_same_by_whole_prompts(tiny: LoadedModel, objective: Objective) -> None:
    config = FTConfig.make(layer=LAYER, steps=5, learning_rate=2e-3, stop_loss=0.0)
    fast, plain = (
        tune(EditSession(tiny), FACTS, objective, config, Silent(), plain) for plain in (False, True)
    )
    assert fast.losses == pytest.approx(plain.losses, abs=1e-3)
    assert fast.losses[-1] < fast.losses[0] - 0.1


@pytest.mark.parametrize("name", ["ft-l", "ft-m"])
def test_the_edit_is_to_the_bit_what_was_trained_and_keeps_the_norm_constraint(
    name: str, tiny: LoadedModel
) -> None:
    eps = 3e-3
    config = FTConfig.make(layer=LAYER, steps=6, learning_rate=1e-3, norm_constraint=eps)
    method, session = get_method(name), EditSession(tiny)
    W = session.master(LAYER).clone()
    edit = method.plan(session, FACTS, config, Silent())
    found = tune(session, FACTS, edit.details["objective"], config, Silent())
    assert torch.equal(edit.patches[0].matrix(), found.delta)
    bound = torch.tensor(eps)
    assert bool((found.delta.abs() <= bound).all()) and bool((found.delta.abs() == bound).any())
    session.apply(edit)
    after = session.master(LAYER)
    assert torch.equal(after, W + found.delta)
    assert bool((after >= W - bound).all()) and bool((after <= W + bound).all())
    with session.active():
        expected = [
            torch.tensor(-loss_by_hand(tiny, fact, edit.details["objective"])).exp() for fact in FACTS
        ]
    assert edit.details["target_probability"] == pytest.approx([float(p) for p in expected], rel=1e-3)


def test_without_a_constraint_the_change_goes_further(llama: LoadedModel) -> None:
    config = FTConfig.make(layer=LAYER, steps=6, learning_rate=1e-3)
    found = tune(EditSession(llama), FACTS, "target", config, Silent())
    assert float(found.delta.abs().max()) > 3.1e-3


def test_facts_take_their_steps_in_turn_unless_they_share_a_batch(llama: LoadedModel) -> None:
    def losses(facts: tuple[Fact, ...], batch_size: int, steps: int = 1) -> tuple[float, ...]:
        config = FTConfig.make(
            layer=LAYER, steps=steps, learning_rate=1e-2, batch_size=batch_size, stop_loss=0.0
        )
        return tune(EditSession(llama), facts, "target", config, Silent()).losses

    first, second = (loss_by_hand(llama, fact, "target") for fact in FACTS)
    assert losses(FACTS, 2)[0] == pytest.approx((first + second) / 2, abs=1e-4)
    config = FTConfig.make(layer=LAYER, steps=1, learning_rate=1e-2, stop_loss=0.0)
    session = EditSession(llama)
    one = tune(session, FACTS[:1], "target", config, Silent())
    with session.active(instead={LAYER: session.master(LAYER) + one.delta}):
        after = loss_by_hand(llama, FACTS[1], "target")
    assert abs(after - second) > 1e-2
    assert losses(FACTS, 1)[0] == pytest.approx((first + after) / 2, abs=1e-3)


def test_a_batch_that_is_good_enough_takes_no_step_and_a_good_pass_ends_it(llama: LoadedModel) -> None:
    low, high = sorted(loss_by_hand(llama, fact, "target") for fact in FACTS)
    between = FTConfig.make(layer=LAYER, steps=3, stop_loss=(3 * low + high) / 4, learning_rate=1e-5)
    easy = min(FACTS, key=lambda fact: loss_by_hand(llama, fact, "target"))
    alone = tune(EditSession(llama), [easy], "target", between, Silent())
    assert len(alone.losses) == 1 and not alone.delta.any()
    both = tune(EditSession(llama), FACTS, "target", between, Silent())
    other = tune(EditSession(llama), [fact for fact in FACTS if fact != easy], "target", between, Silent())
    assert len(both.losses) == 3 and torch.equal(both.delta, other.delta) and bool(both.delta.any())


def test_the_two_losses_agree_on_answers_of_one_token_and_on_no_others(llama: LoadedModel) -> None:
    config = FTConfig.make(layer=LAYER, steps=2)
    short = Fact("The capital of France is", "France", "the")
    assert len(encode_continuation(llama.tokenizer, short.prompt, "the")) == 1
    for fact, same in ((short, True), (FACTS[0], False)):
        one, other = (
            get_method(name).plan(EditSession(llama), [fact], config, Silent()) for name in ("ft-l", "ft-m")
        )
        assert torch.equal(one.patches[0].left, other.patches[0].left) == same


def test_a_diverging_training_is_refused_with_a_remedy(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "losses", lambda self, logits: logits.sum(-1)[:1] * float("nan"))
    with pytest.raises(EditError, match="France diverged at step 1.*Lower the learning rate"):
        tune(EditSession(llama), FACTS[:1], "target", FTConfig.make(layer=LAYER), Silent())


def test_a_last_step_that_breaks_the_model_is_refused(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nmke.methods.forced._LaterLayers.losses", lambda self, delta: torch.tensor([float("nan")])
    )
    with pytest.raises(EditError, match="France diverged at step 2"):
        tune(EditSession(llama), FACTS[:1], "target", FTConfig.make(layer=LAYER, steps=2), Silent())


def test_cancelling_whole_prompts_leaves_no_gradient_behind(tiny: LoadedModel) -> None:
    class Third(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 2:
                raise Cancelled

    before = [parameter.clone() for parameter in tiny.bridge.parameters()]
    with pytest.raises(Cancelled):
        tune(EditSession(tiny), FACTS[:1], "target", FTConfig.make(layer=LAYER), Third(), plain=True)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.bridge.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in tiny.bridge.parameters())


@pytest.mark.parametrize(("n_layers", "layer"), [(32, 21), (30, 20), (1, 0), (4, 3)])
def test_the_guessed_layer_lies_where_the_survey_trains(n_layers: int, layer: int) -> None:
    assert get_method("ft-m").guess(n_layers) == {"layer": layer}
