"""Replayed layers and the walk over keys against whole prompts through the whole model."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nmke.facts import Fact
from nmke.keys import KeyWalk, PlainKeys, average_contexts, key_source
from nmke.loading import LoadedModel, load_model
from nmke.methods.closed_form import ClosedFormConfig, Stopwatch, find_targets, write_layers
from nmke.moments import NullSpace
from nmke.progress import Silent
from nmke.replay import Replay, _Call
from nmke.session import EditSession
from nmke.sites import FINAL, POST, RESID_POST
from nmke.target import TargetConfig, optimise_targets
from nmke.tokens import Batch, encode, pad
from tests.tiny import make_tiny

KINDS = ("llama", "gpt2", "qwen2", "mistral", "gptneox", "gptneox-serial")
TEMPLATES = ("{}", "Because the river is wide. {}", "You. {}")
FACTS = (
    Fact("The capital of France is", "France", "the boat"),
    Fact("I think that the river is", "I", "wide"),  # the subject is the first token
    Fact("A dog and a cat in Italy say", "Italy", "meow and woof"),
)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp(request.param)
    return load_model(str(make_tiny(request.param, folder)), device="cpu")


def batch_of(model: LoadedModel, texts: Sequence[str]) -> Batch:
    return pad([encode(model.tokenizer, text) for text in texts], 0)


@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_replay_gives_what_the_model_gives(model: LoadedModel, first: int) -> None:
    batch = batch_of(model, ["The capital of France is", "A cat says meow and", "You"])
    replay = Replay.record(model, batch, first, 3)
    assert replay is not None
    wanted = model.run(batch, [FINAL])[FINAL]
    real = batch.mask.bool()
    assert torch.allclose(replay.final(replay.run(replay.entry))[real], wanted[real], atol=1e-4)


def test_a_replay_answers_to_the_weights_in_force(model: LoadedModel) -> None:
    batch = batch_of(model, ["The capital of France is"])
    replay = Replay.record(model, batch, 1, 2)
    assert replay is not None
    changed = model.as_stored(2, model.W_out(2) * 1.5)
    with model.weights_in({2: changed}):
        wanted = model.run(batch, [(RESID_POST, 2)], stop_after=2)[(RESID_POST, 2)]
        assert torch.allclose(replay.run(replay.entry), wanted, atol=1e-4)
    assert not torch.allclose(replay.run(replay.entry), wanted, atol=1e-4)


def test_a_replays_keys_are_the_down_projections_inputs(model: LoadedModel) -> None:
    batch = batch_of(model, ["The capital of France is", "A dog"])
    replay = Replay.record(model, batch, 1, 3)
    assert replay is not None
    wanted = model.run(batch, [(POST, 2)])[(POST, 2)]
    keys, _ = replay.keys(replay.run(replay.entry, 1, 1), 2)
    assert torch.allclose(keys[batch.mask.bool()], wanted[batch.mask.bool()], atol=1e-4)


def test_gradients_through_a_replay_are_the_models(model: LoadedModel) -> None:
    batch = batch_of(model, ["The capital of France is"])
    replay = Replay.record(model, batch, 2, 3)
    assert replay is not None
    fast = replay.entry.clone().requires_grad_()
    replay.final(replay.run(fast)).square().sum().backward()
    plain = torch.zeros_like(replay.entry, requires_grad=True)
    hooks = {(RESID_POST, 1): lambda resid: resid + plain}
    model.run(batch, [FINAL], hooks=hooks)[FINAL].square().sum().backward()
    assert fast.grad is not None and plain.grad is not None
    assert torch.allclose(fast.grad, plain.grad, atol=1e-3, rtol=1e-3)


def test_no_parameter_is_copied_for_a_replay(model: LoadedModel) -> None:
    assert model.unhooked is not None
    own = {parameter.data_ptr() for parameter in model.bridge.parameters()}
    assert all(p.data_ptr() in own for layer in model.unhooked.layers for p in layer.parameters())


def test_layers_that_give_something_else_are_not_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(make_tiny("llama", tmp_path)), device="cpu")
    on = _Call.on
    monkeypatch.setattr(_Call, "on", lambda call, layer, resid, cache: on(call, layer, resid, cache) * 1.01)
    assert model.unhooked is None
    assert Replay.record(model, batch_of(model, ["A cat"]), 1, 3) is None
    # Everything that stands on replays falls back on whole models, says so, and gives the same.
    session = EditSession(model)
    source = key_source(session, FACTS, (1, 2), TEMPLATES)
    assert isinstance(source, PlainKeys) and source.ran == "whole prompts"
    config = TargetConfig.make(steps=3, stop_loss=0.0, learning_rate=0.02)
    fallen = optimise_targets(model, FACTS, 1, TEMPLATES, config)
    plain = optimise_targets(model, FACTS, 1, TEMPLATES, config, plain=True)
    assert {target.ran for target in fallen} == {"later positions"}
    for one, other in zip(fallen, plain, strict=True):
        assert torch.allclose(one.z, other.z, atol=1e-3)


@pytest.mark.parametrize("facts", [FACTS[:1], FACTS[1:2], FACTS])
@pytest.mark.parametrize("templates", [TEMPLATES, ("{}",)])
@pytest.mark.parametrize("layers", [(1, 2), (0, 3), (2,)])
def test_the_walk_finds_the_keys_of_whole_prompts_with_the_layers_before_written(
    model: LoadedModel, facts: tuple[Fact, ...], templates: tuple[str, ...], layers: tuple[int, ...]
) -> None:
    session = EditSession(model)
    walk, plain = (
        KeyWalk.begin(session, facts, layers, templates),
        PlainKeys(session, facts, layers, templates),
    )
    assert walk is not None
    scratch: dict[int, torch.Tensor] = {}
    found = {}
    for layer in layers:
        fast, slow = walk.at(layer, scratch), plain.at(layer, scratch)
        assert torch.allclose(fast.K, slow.K, atol=1e-4)
        assert torch.allclose(fast.output, slow.output, atol=1e-4)
        found[layer] = fast.K
        torch.manual_seed(layer)
        scratch[layer] = session.master(layer) + 0.1 * torch.randn(model.d_mlp, model.d_model)
    for layer in layers:  # what joins the history: the keys with every layer written
        assert torch.allclose(found[layer], plain.at(layer, scratch).K, atol=1e-4)


def test_the_walk_does_not_go_back(llama: LoadedModel) -> None:
    walk = KeyWalk.begin(EditSession(llama), FACTS, (1, 2), TEMPLATES)
    assert walk is not None
    walk.at(2, {})
    with pytest.raises(ValueError, match="has passed layer 1"):
        walk.at(1, {})


def test_the_bare_prompt_weighs_half_of_the_average() -> None:
    activations = torch.tensor([[[8.0], [1.0], [3.0]]])
    assert average_contexts(activations).tolist() == [[5.0]]
    assert average_contexts(activations[:, :1]).tolist() == [[8.0]]


@pytest.mark.parametrize("threshold", [None, 20])
def test_written_layers_equal_the_published_procedure_step_by_step(
    model: LoadedModel, threshold: int | None
) -> None:
    layers = (1, 2)
    config = ClosedFormConfig.make(
        layers=layers, ridge=0.5, target={"steps": 4, "stop_loss": 0.0, "learning_rate": 0.05}
    )
    space = NullSpace.everything(model.d_mlp)
    if threshold:
        torch.manual_seed(0)
        basis = torch.linalg.qr(torch.randn(model.d_mlp, threshold, dtype=torch.float64)).Q
        space = NullSpace(basis, True, threshold, model.d_mlp)
    spaces = dict.fromkeys(layers, space)
    masks = {1: (torch.arange(model.d_mlp) % 2).float()}
    session = EditSession(model)
    targets = find_targets(session, FACTS, TEMPLATES, config, Silent())
    fast, plain = (
        write_layers(
            session, FACTS, targets, TEMPLATES, spaces, masks, config, Silent(), Stopwatch(), plain=is_plain
        )
        for is_plain in (False, True)
    )
    for one, other in zip(fast.patches, plain.patches, strict=True):
        assert torch.allclose(
            one.matrix(), other.matrix(), atol=1e-4 * float(other.matrix().abs().max()) + 1e-6
        )
        assert torch.allclose(fast.keys[one.layer], plain.keys[one.layer], atol=1e-4)
    for quick, slow in zip(fast.details["layers"], plain.details["layers"], strict=True):
        assert quick == pytest.approx(slow, rel=1e-3)
    assert plain.details["ran"]["keys"] == "whole prompts"


def test_facts_side_by_side_are_optimised_as_if_alone(model: LoadedModel) -> None:
    config = TargetConfig.make(steps=5, stop_loss=0.0, learning_rate=0.02)
    together = optimise_targets(model, FACTS, 1, TEMPLATES, config)
    for fact, target in zip(FACTS, together, strict=True):
        alone = optimise_targets(model, [fact], 1, TEMPLATES, config, plain=True)[0]
        assert [loss[0] for loss in target.losses] == pytest.approx(
            [loss[0] for loss in alone.losses], abs=1e-3
        )
        assert torch.allclose(target.z, alone.z, atol=2e-3)
        assert target.probabilities == pytest.approx(alone.probabilities, abs=1e-3)


def test_a_fact_that_is_done_waits_unchanged_for_the_others(llama: LoadedModel) -> None:
    first = optimise_targets(llama, FACTS, 1, TEMPLATES, TargetConfig.make(steps=1))
    losses = sorted(target.losses[0][0] for target in first)
    between = (losses[0] + losses[1]) / 2  # one fact is under it at once
    found = optimise_targets(llama, FACTS, 1, TEMPLATES, TargetConfig.make(steps=6, stop_loss=between))
    lengths = [len(target.losses) for target in found]
    assert min(lengths) == 1 and max(lengths) > 1
    for target, length in zip(found, lengths, strict=True):
        if length == 1:
            assert torch.equal(target.z, target.start)


def test_more_facts_than_go_side_by_side_are_all_found(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.target.FACTS_TOGETHER", 2)
    config = TargetConfig.make(steps=2, stop_loss=0.0, learning_rate=0.02)
    found = optimise_targets(llama, FACTS, 1, TEMPLATES, config)
    assert len(found) == 3
    alone = optimise_targets(llama, FACTS[2:], 1, TEMPLATES, config)[0]
    assert torch.allclose(found[2].z, alone.z, atol=1e-4)


def test_z_after_the_last_layer_needs_no_later_layers(llama: LoadedModel) -> None:
    config = TargetConfig.make(steps=2, stop_loss=0.0, learning_rate=0.02)
    last = optimise_targets(llama, FACTS[:1], 3, TEMPLATES, config)[0]
    plain = optimise_targets(llama, FACTS[:1], 3, TEMPLATES, config, plain=True)[0]
    assert last.ran == "later positions"
    # Adam divides by the gradient's size, so where that is nearly 0 its step magnifies rounding.
    assert torch.allclose(last.z, plain.z, atol=2e-3)
    assert [loss[0] for loss in last.losses] == pytest.approx([loss[0] for loss in plain.losses], abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_half_precision_layers_are_replayed_too(kind: str, tmp_path: Path) -> None:
    half = load_model(str(make_tiny(kind, tmp_path / kind)), device="cpu", dtype="bfloat16")
    assert half.unhooked is not None
    config = TargetConfig(steps=4, learning_rate=0.1)
    found = optimise_targets(half, FACTS[:1], 1, TEMPLATES, config)[0]
    plain = optimise_targets(half, FACTS[:1], 1, TEMPLATES, config, plain=True)[0]
    assert found.ran == "later layers"
    assert found.losses[0][0] == pytest.approx(plain.losses[0][0], rel=0.05)
