"""The z optimisation against a plain loop over a plain model."""

from pathlib import Path

import pytest
import torch

from nmke.errors import Cancelled, EditError
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.progress import Progress
from nmke.sites import FINAL
from nmke.target import TargetConfig, optimise_target
from nmke.tokens import encode, encode_continuation, find_subject_last
from tests.tiny import make_tiny

FACT = Fact("The capital of France is", "France", "the boat")
TEMPLATES = ("{}", "Because the river. {}")
LAYER = 1


def plain_loss(
    model: LoadedModel,
    delta: torch.Tensor,
    start: torch.Tensor,
    kl_from: torch.Tensor | None,
    config: TargetConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row at a time, without padding, every term written out."""
    tokenizer = model.tokenizer

    def logits(ids: list[int], place: int) -> torch.Tensor:
        from nmke.sites import RESID_POST
        from nmke.tokens import pad

        def add(resid: torch.Tensor) -> torch.Tensor:
            bump = torch.zeros_like(resid)
            bump[0, place] = 1.0
            return resid + bump * delta

        final = model.run(pad([ids], 0), [FINAL], hooks={(RESID_POST, LAYER): add})[FINAL]
        return model.logits(final[0])

    answer = encode_continuation(tokenizer, FACT.prompt, FACT.target_new)
    total = torch.zeros(())
    for template in TEMPLATES:
        prompt = encode(tokenizer, template.replace("{}", FACT.prompt))
        out = logits(prompt + answer[:-1], find_subject_last(tokenizer, FACT, template)).log_softmax(-1)
        own = [out[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
        total = total - torch.stack(own).mean() / len(TEMPLATES)
    essence = encode(tokenizer, "France is a")
    place = find_subject_last(tokenizer, Fact("{} is a", "France", "x"))
    now = logits(essence, place)[place].log_softmax(-1)
    reference = now.detach() if kl_from is None else kl_from
    kl = (now.exp() * (now - reference)).sum()
    decay = config.weight_decay * delta.norm() / start.norm() ** 2
    return total + config.kl_factor * kl + decay, now.detach()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_loss_at_each_delta_equals_the_plain_one(tiny: LoadedModel, steps: int) -> None:
    config = TargetConfig.make(steps=steps, stop_loss=0.0, kl_factor=0.3)
    found = optimise_target(tiny, FACT, LAYER, TEMPLATES, config)
    with torch.no_grad():
        _, kl_from = plain_loss(tiny, torch.zeros(tiny.d_model), found.start, None, config)
        loss, _ = plain_loss(tiny, found.z - found.start, found.start, kl_from, config)
    assert len(found.losses) == steps
    assert found.losses[-1][0] == pytest.approx(float(loss), abs=1e-4)


def test_the_first_step_is_adams_clamped(tiny: LoadedModel) -> None:
    config = TargetConfig.make(steps=2, stop_loss=0.0, learning_rate=0.01, kl_factor=0.0)
    found = optimise_target(tiny, FACT, LAYER, TEMPLATES, config)
    delta = torch.zeros(tiny.d_model, requires_grad=True)
    plain_loss(tiny, delta, found.start, None, config)[0].backward()
    assert delta.grad is not None
    # Adam's first step is the learning rate in every coordinate, against the gradient's sign.
    expected = -0.01 * delta.grad / (delta.grad.abs() + 1e-8)
    expected = expected * min(1.0, float(config.clamp_norm_factor * found.start.norm() / expected.norm()))
    assert torch.allclose(found.z - found.start, expected, atol=1e-5)


def test_the_targets_probability_rises_and_delta_stays_within_the_clamp(tiny: LoadedModel) -> None:
    config = TargetConfig.make(weight_decay=0.0, learning_rate=0.05, clamp_norm_factor=0.5, kl_factor=0.0)
    found = optimise_target(tiny, FACT, LAYER, TEMPLATES, config)
    assert found.losses[-1][1] < found.losses[0][1] - 0.01
    assert float((found.z - found.start).norm()) == pytest.approx(0.5 * float(found.start.norm()), rel=1e-3)


def test_it_stops_once_the_loss_is_small_enough(tiny: LoadedModel) -> None:
    found = optimise_target(tiny, FACT, LAYER, TEMPLATES, TargetConfig.make(stop_loss=1e9))
    assert len(found.losses) == 1
    assert torch.equal(found.z, found.start)


def test_a_diverging_optimisation_is_refused_with_a_remedy(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.target._decay", lambda *_: torch.tensor([float("nan")]))
    with pytest.raises(EditError, match="diverged at step 1.*Lower the learning rate"):
        optimise_target(llama, FACT, LAYER, TEMPLATES)


def test_cancelling_leaves_the_weights_alone(llama: LoadedModel) -> None:
    class Third(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 2:
                raise Cancelled

    before = [parameter.clone() for parameter in llama.bridge.parameters()]
    with pytest.raises(Cancelled):
        optimise_target(llama, FACT, LAYER, TEMPLATES, progress=Third())
    assert all(torch.equal(a, b) for a, b in zip(before, llama.bridge.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in llama.bridge.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox", "qwen2", "mistral"])
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("I think that France and Italy, and the river, is", "France"),
        ("I take", "I"),  # nothing lies before the subject, in the bare prompt and in the essence
    ],
)
def test_reusing_the_prefix_gives_the_same_z_as_whole_prompts(
    kind: str, prompt: str, subject: str, tmp_path: Path
) -> None:
    model = load_model(str(make_tiny(kind, tmp_path)), device="cpu")
    fact = Fact(prompt, subject, "the boat")
    config = TargetConfig.make(steps=5, stop_loss=0.0, learning_rate=0.02)
    fast = optimise_target(model, fact, LAYER, TEMPLATES, config)
    plain = optimise_target(model, fact, LAYER, TEMPLATES, config, plain=True)
    assert [loss[0] for loss in fast.losses] == pytest.approx([loss[0] for loss in plain.losses], abs=1e-4)
    assert torch.allclose(fast.z, plain.z, atol=1e-3)
