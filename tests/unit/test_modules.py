"""What stands beside a down projection: who it answers, who never sees it, and that it leaves when it should."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError, SessionError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.modules import ModulePatch, load_module
from nmke.replay import Replay
from nmke.session import EditSession
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.target import TargetConfig, optimise_targets
from nmke.tokens import encode, encode_batch, pad

LAYER = 1
TEXTS = ("The capital of France is", "A dog says", "Because the river is wide, you take")
FACTS = (Fact("The capital of France is", "France", "the boat"),)


class Shift(ModulePatch):
    """Adds ``inputs @ matrix`` times a factor: what any method's patch might do."""

    kind = "test shift"

    def answer(self, inputs: Tensor, output: Tensor) -> Tensor:
        return output + self.settings["factor"] * (inputs @ self.tensors["matrix"]).to(output.dtype)


def shift(model: LoadedModel, seed: int = 0, factor: float = 1.0, layer: int = LAYER) -> Shift:
    generator = torch.Generator().manual_seed(seed)
    matrix = 0.5 * torch.randn(model.d_mlp, model.d_model, generator=generator)
    return Shift(layer, {"matrix": matrix}, {"factor": factor, "names": ["a", "b"]})


def edit_of(*modules: ModulePatch, patches: tuple[WeightPatch, ...] = ()) -> Edit:
    return Edit("test", {}, FACTS, patches, {}, modules=modules)


def logits(model: LoadedModel, texts: Sequence[str] = TEXTS) -> Tensor:
    batch = encode_batch(model.tokenizer, texts)
    final = model.run(batch, [FINAL])[FINAL]
    return model.logits(final)[batch.mask.bool()]


def hooks_left(model: LoadedModel) -> int:
    return sum(len(module._forward_hooks) for module in model.bridge.modules())


@pytest.fixture
def session(tiny: LoadedModel) -> EditSession:
    """One with a module in force."""
    session = EditSession(tiny)
    session.apply(edit_of(shift(tiny)))
    return session


def test_a_module_answers_for_the_down_projection_in_whole_runs(session: EditSession) -> None:
    model = session.model
    batch, sites = encode_batch(model.tokenizer, TEXTS), [(POST, LAYER), (MLP_OUT, LAYER)]
    plain = model.run(batch, sites)
    with session.active():
        edited = model.run(batch, sites)
    assert torch.equal(edited[sites[0]], plain[sites[0]])
    matrix = session.modules[LAYER].tensors["matrix"]
    expected = plain[sites[1]].double() + plain[sites[0]].double() @ matrix.double()
    assert torch.allclose(edited[sites[1]].double(), expected, atol=1e-4)


def test_a_module_answers_what_the_weights_it_stands_for_would(session: EditSession) -> None:
    """The same change written into the weights gives the same logits."""
    model, other = session.model, EditSession(session.model)
    matrix = session.modules[LAYER].tensors["matrix"]
    other.apply(edit_of(patches=(WeightPatch(LAYER, matrix, torch.eye(model.d_model)),)))
    with session.active():
        beside = logits(model)
    with other.active():
        written = logits(model)
    assert torch.allclose(beside, written, atol=1e-3)
    assert not torch.allclose(beside, logits(model), atol=1e-1)


def test_a_module_sees_the_sessions_weight_patches_of_its_layer(session: EditSession) -> None:
    model = session.model
    batch, site = encode_batch(model.tokenizer, TEXTS), (MLP_OUT, LAYER)
    with session.active():
        before = model.run(batch, [site])[site]
    patch = WeightPatch(LAYER, torch.ones(model.d_mlp, 1), torch.ones(1, model.d_model))
    session.apply(edit_of(patches=(patch,)))
    with session.active():
        kept = model.run(batch, [site, (POST, LAYER)])
    added = kept[(POST, LAYER)].sum(-1, keepdim=True)
    assert torch.allclose(kept[site], before + added, atol=1e-3)


def test_a_module_answers_while_text_is_written(session: EditSession) -> None:
    model = session.model
    with session.active():
        written = model.generate(TEXTS, 6)
        for text, continuation in zip(TEXTS, written, strict=True):
            ids = encode(model.tokenizer, text)
            start = len(ids)
            for _ in range(6):
                final = model.run(pad([ids], 0), [FINAL])[FINAL]
                ids.append(int(model.logits(final[0, -1]).argmax()))
                if ids[-1] == model.tokenizer.eos_token_id:
                    break
            assert model.tokenizer.decode(ids[start:], skip_special_tokens=True) == continuation
    assert written != model.generate(TEXTS, 6)


def test_a_module_answers_behind_remembered_tokens(session: EditSession) -> None:
    model, site = session.model, FINAL
    rows = [encode(model.tokenizer, text) for text in TEXTS]
    with session.active():
        whole = model.run(pad(rows, 0), [site])[site]
        past = model.remember(pad([row[:3] for row in rows], 0))
        rest = pad([row[3:] for row in rows], 0)
        after = model.run(rest, [site], past=past)[site]
    real = rest.mask.bool()
    assert torch.allclose(after[real], whole[:, 3:][real], atol=1e-4)


def test_a_module_is_invisible_outside_and_to_others_and_in_the_original(session: EditSession) -> None:
    model, other = session.model, EditSession(session.model)
    said = logits(model)
    with session.active():
        assert not torch.equal(logits(model), said)
        with session.original():
            assert torch.equal(logits(model), said)
        with other.active():
            assert torch.equal(logits(model), said)
        assert not torch.equal(logits(model), said)
        with session.active(modules={LAYER: None}):
            assert torch.equal(logits(model), said)
    assert torch.equal(logits(model), said)


def test_undo_puts_the_earlier_module_back(session: EditSession) -> None:
    model = session.model
    with session.active():
        first = logits(model)
    session.apply(edit_of(shift(model, seed=1)))
    with session.active():
        second = logits(model)
    assert not torch.equal(first, second)
    session.undo()
    with session.active():
        assert torch.equal(logits(model), first)
    session.redo()
    with session.active():
        assert torch.equal(logits(model), second)
    session.undo()
    session.undo()
    assert session.modules == {}
    with session.active():
        assert torch.equal(logits(model), logits(EditSession(model).model))


def test_an_undo_beyond_memory_replays_modules(tiny: LoadedModel) -> None:
    session = EditSession(tiny, undo_depth=1)
    said = []
    for seed in range(4):
        session.apply(edit_of(shift(tiny, seed)))
        with session.active():
            said.append(logits(tiny))
    for expected in reversed(said[:-1]):
        session.undo()
        with session.active():
            assert torch.equal(logits(tiny), expected)


def test_modules_at_two_layers_stand_side_by_side(session: EditSession) -> None:
    model = session.model
    session.apply(edit_of(shift(model, seed=1, layer=LAYER + 1)))
    assert set(session.modules) == {LAYER, LAYER + 1}
    with session.active():
        both = logits(model)
    with session.active(modules={LAYER: None}):
        one = logits(model)
    assert not torch.equal(both, one)


def test_a_saved_module_comes_back_with_tensors_and_settings(session: EditSession, tmp_path: Path) -> None:
    model = session.model
    session.apply(edit_of(shift(model, seed=1, factor=0.25)))
    session.save(tmp_path / "bundle")
    loaded = EditSession.load(model, tmp_path / "bundle")
    assert loaded.digest == session.digest
    mine, theirs = session.modules[LAYER], loaded.modules[LAYER]
    assert isinstance(theirs, Shift) and theirs.settings == mine.settings
    assert torch.equal(theirs.tensors["matrix"], mine.tensors["matrix"])
    with session.active():
        said = logits(model)
    with loaded.active():
        assert torch.equal(logits(model), said)
    loaded.undo()
    assert loaded.modules[LAYER].settings["factor"] == 1.0


def test_a_bundle_with_a_kind_nobody_knows_says_so(session: EditSession, tmp_path: Path) -> None:
    session.save(tmp_path / "bundle")
    record = tmp_path / "bundle" / "session.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["edits"][0]["modules"][0]["kind"] = "perpetuum mobile"
    record.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SessionError, match="kind 'perpetuum mobile'"):
        EditSession.load(session.model, tmp_path / "bundle")
    with pytest.raises(SessionError, match="Open the bundle with the version that wrote it"):
        load_module("perpetuum mobile", 0, {}, {})


def test_the_digest_tells_modules_apart_by_tensors_and_by_settings(tiny: LoadedModel) -> None:
    digests = []
    for module in (shift(tiny), shift(tiny, seed=1), shift(tiny, factor=2.0), shift(tiny)):
        session = EditSession(tiny)
        session.apply(edit_of(module))
        digests.append(session.digest)
    assert len(set(digests)) == 3 and digests[0] == digests[3]


def test_settled_and_restored_sessions_keep_their_modules(session: EditSession) -> None:
    model = session.model
    session.apply(edit_of(shift(model, seed=1)))
    with session.active():
        said = logits(model)
    masters, modules = session.state()
    again = EditSession.restored(model, session.edits, masters, modules)
    session.settle()
    for each in (session, again):
        assert all(edit.modules == () for edit in each.edits)
        with each.active():
            assert torch.equal(logits(model), said)
        with pytest.raises(SessionError, match="settled"):
            each.undo()
        each.apply(edit_of(shift(model, seed=2)))
        each.undo()
        with each.active():
            assert torch.equal(logits(model), said)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_module_that_is_not_finite_is_refused(session: EditSession, broken: float) -> None:
    model, module = session.model, shift(session.model, seed=1)
    with session.active():
        said = logits(model)
    module.tensors["matrix"][0, 0] = broken
    with pytest.raises(
        EditError, match=r"test shift of layer 1 is not finite \(matrix\).*nothing was changed"
    ):
        session.apply(edit_of(module))
    assert session.version == 1
    with session.active():
        assert torch.equal(logits(model), said)


def test_an_exception_while_a_module_is_in_force_leaves_no_hook(session: EditSession) -> None:
    model, before = session.model, hooks_left(session.model)
    said = logits(model)
    with pytest.raises(ZeroDivisionError), session.active():
        assert hooks_left(model) == before + 1
        raise ZeroDivisionError
    assert hooks_left(model) == before
    assert torch.equal(logits(model), said)


def test_a_module_that_fails_while_it_answers_leaves_no_hook(tiny: LoadedModel) -> None:
    session, before, said = EditSession(tiny), hooks_left(tiny), logits(tiny)
    session.apply(edit_of(Shift(LAYER, {"matrix": torch.ones(3, 3)}, {"factor": 1.0})))
    with pytest.raises(RuntimeError), session.active():
        logits(tiny)
    assert hooks_left(tiny) == before and torch.equal(logits(tiny), said)


def test_a_module_for_a_layer_that_is_not_there_leaves_nothing_in_force(session: EditSession) -> None:
    model, before, said = session.model, hooks_left(session.model), logits(session.model)
    with pytest.raises((IndexError, KeyError)), model.weights_in({}, {LAYER: shift(model), 99: shift(model)}):
        pass
    assert hooks_left(model) == before and torch.equal(logits(model), said)


def test_there_is_no_replay_while_a_module_is_in_force(session: EditSession) -> None:
    model = session.model
    assert model.unhooked is not None
    with session.active():
        assert model.unhooked is None
        assert Replay.record(model, encode_batch(model.tokenizer, TEXTS), 1, 3) is None
        with session.active(modules={LAYER: None}):
            assert model.unhooked is not None
        with session.original():
            assert model.unhooked is not None
    assert model.unhooked is not None


@pytest.mark.parametrize("layer", [0, LAYER, 2])
def test_a_z_optimisation_on_top_of_a_module_is_the_plain_one(session: EditSession, layer: int) -> None:
    model, templates = session.model, ("{}", "You. {}")
    config = TargetConfig.make(steps=4, stop_loss=0.0, learning_rate=0.02)
    with session.active():
        (fast,) = optimise_targets(model, FACTS, layer, templates, config)
        (plain,) = optimise_targets(model, FACTS, layer, templates, config, plain=True)
    (without,) = optimise_targets(model, FACTS, layer, templates, config)
    assert fast.ran == "later positions" and plain.ran == "whole prompts"
    assert torch.allclose(fast.z, plain.z, atol=1e-3)
    assert not torch.allclose(fast.z, without.z, atol=1e-2)


def test_a_module_moves_to_a_device_only_when_it_is_elsewhere(tiny: LoadedModel) -> None:
    module = shift(tiny)
    assert module.on(torch.device("cpu")) is module
    moved = module.on(torch.device("meta"))
    assert isinstance(moved, Shift) and moved.tensors["matrix"].device.type == "meta"
    assert moved.settings == module.settings and moved.layer == module.layer


def test_a_module_counts_the_numbers_it_adds(tiny: LoadedModel) -> None:
    assert shift(tiny).n_parameters == tiny.d_mlp * tiny.d_model
