"""Sessions: apply, undo and redo exact to the bit; nothing leaks between sessions on one model."""

import random
import threading
from pathlib import Path

import pytest
import torch

from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError, SessionError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.moments import NullSpace
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.solve import ridge_solve
from nmke.tokens import encode_batch

FACT = Fact("The capital of France is", "France", "Rome")
PROMPT = "The capital of France is"


def make_edit(model: LoadedModel, seed: int = 0, layers: tuple[int, ...] = (1, 2), size: float = 1.0) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    patches = tuple(
        WeightPatch(
            layer,
            size * torch.randn(model.d_mlp, 1, generator=generator),
            torch.randn(1, model.d_model, generator=generator),
        )
        for layer in layers
    )
    keys = {layer: torch.randn(model.d_mlp, 1, generator=generator) for layer in layers}
    return Edit("nmke", {}, (FACT,), patches, keys)


def weights(model: LoadedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.bridge.parameters()]


def final(model: LoadedModel) -> torch.Tensor:
    return model.run(encode_batch(model.tokenizer, [PROMPT]), [FINAL])[FINAL]


def test_an_applied_edit_adds_its_factors_inside_the_block_only(tiny: LoadedModel) -> None:
    session, edit = EditSession(tiny), make_edit(tiny)
    before = tiny.W_out(1).clone()
    assert session.apply(edit) == 1
    assert torch.equal(tiny.W_out(1), before)
    with session.active():
        assert torch.equal(tiny.W_out(1), before + edit.patches[0].left @ edit.patches[0].right)
    assert torch.equal(tiny.W_out(1), before)


def test_undo_is_exact_to_the_bit_where_subtracting_would_not_be(tiny: LoadedModel) -> None:
    session, edit = EditSession(tiny), make_edit(tiny)
    loaded, before = weights(tiny), tiny.W_out(1).clone()
    update = edit.patches[0].matrix()
    assert not torch.equal((before + update) - update, before)
    session.apply(edit)
    session.undo()
    with session.active():
        assert all(torch.equal(a, b) for a, b in zip(weights(tiny), loaded, strict=True))
    assert session.version == 0


@pytest.mark.parametrize("undo_depth", [1, 8])
def test_every_version_comes_back_exactly_on_the_way_down_and_up(tiny: LoadedModel, undo_depth: int) -> None:
    session = EditSession(tiny, undo_depth=undo_depth)
    states = [[session.master(layer).clone() for layer in range(4)]]
    for seed in range(6):
        session.apply(make_edit(tiny, seed, layers=(seed % 3, 3)))
        states.append([session.master(layer).clone() for layer in range(4)])
    for version in range(5, -1, -1):
        session.undo()
        assert all(torch.equal(session.master(layer), states[version][layer]) for layer in range(4))
    for version in range(1, 7):
        session.redo()
        assert session.version == version
        assert all(torch.equal(session.master(layer), states[version][layer]) for layer in range(4))


def test_earlier_keys_belong_to_the_history_and_leave_with_the_edit(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    first, second = make_edit(tiny, 1), make_edit(tiny, 2, layers=(2,))
    session.apply(first)
    session.apply(second)
    assert torch.equal(session.history_keys(2), torch.cat([first.keys[2], second.keys[2]], dim=1))
    assert torch.equal(session.history_keys(1), first.keys[1])
    session.undo()
    assert torch.equal(session.history_keys(2), first.keys[2])
    assert session.history_keys(0).shape == (tiny.d_mlp, 0)


def solved(session: EditSession, layer: int, seed: int = 99) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    K = torch.randn(session.model.d_mlp, 1, generator=generator)
    R = torch.randn(session.model.d_model, 1, generator=generator)
    return session.solve_update(layer, K, R, NullSpace.everything(session.model.d_mlp), 1.0)


def test_a_walk_of_edits_undos_and_redos_solves_like_a_session_that_went_straight_there(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    session, choice = EditSession(tiny), random.Random(3)
    for step in range(60):
        move = choice.random()
        if move < 0.25 and session.version:
            session.undo()
        elif move < 0.35 and session.redoable:
            session.redo()
        else:
            session.apply(make_edit(tiny, step, layers=(1, 2) if step % 3 else (2,), size=1e-3))
        if step % 4:
            continue
        digest, edits = session.digest, session.edits
        straight = EditSession(tiny)
        for edit in edits:
            straight.apply(edit)
        loaded = EditSession.load(tiny, session.save(tmp_path / "bundle"))
        for layer in (1, 2):
            factors = solved(session, layer)
            for other in (straight, loaded):
                assert all(torch.equal(a, b) for a, b in zip(factors, solved(other, layer), strict=True))
        assert session.digest == digest and session.edits == edits, "solving leaves the session as it was"
    assert session.version > 16


def test_a_solve_knows_the_keys_in_force_and_no_others(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for seed in range(12):
        before = solved(session, 1)
        session.apply(make_edit(tiny, seed))
        P = torch.eye(tiny.d_mlp)
        generator = torch.Generator().manual_seed(99)
        K = torch.randn(tiny.d_mlp, 1, generator=generator)
        R = torch.randn(tiny.d_model, 1, generator=generator)
        expected = ridge_solve(K, R, session.history_keys(1), P, 1.0)
        left, right = solved(session, 1)
        assert torch.allclose(left @ right, expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(left, before[0])
    session.reset()
    assert all(
        torch.equal(a, b) for a, b in zip(solved(session, 1), solved(EditSession(tiny), 1), strict=True)
    )


def test_threads_that_solve_in_one_session_get_the_same_bits(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for seed in range(20):
        session.apply(make_edit(tiny, seed))
    expected = {layer: solved(session, layer) for layer in (1, 2)}
    session.reset()
    for seed in range(20):
        session.apply(make_edit(tiny, seed))
    wrong: list[int] = []

    def drive() -> None:
        for layer in (1, 2) * 10:
            if not all(
                torch.equal(a, b) for a, b in zip(expected[layer], solved(session, layer), strict=True)
            ):
                wrong.append(layer)

    threads = [threading.Thread(target=drive) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_new_edit_drops_what_could_be_redone(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(make_edit(tiny, 1))
    session.undo()
    assert session.latest == 1
    session.apply(make_edit(tiny, 2))
    with pytest.raises(SessionError, match="no edit to redo"):
        session.redo()


def test_nothing_to_undo_is_said(tiny: LoadedModel) -> None:
    with pytest.raises(SessionError, match="no edit to undo"):
        EditSession(tiny).undo()


def test_an_update_that_is_not_finite_is_refused_before_it_is_applied(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    broken = make_edit(tiny)
    broken.patches[0].left[3] = float("nan")
    with pytest.raises(EditError, match="layer 1 is not finite"):
        session.apply(broken)
    assert session.version == 0


def test_an_edit_for_another_model_is_refused(llama: LoadedModel) -> None:
    edit = Edit("nmke", {}, (FACT,), (WeightPatch(0, torch.zeros(10, 1), torch.zeros(1, 4)),), {})
    with pytest.raises(EditError, match="for 10 neurons of width 4"):
        EditSession(llama).apply(edit)


def test_two_sessions_in_two_threads_get_their_own_answers(tiny: LoadedModel) -> None:
    sessions = [EditSession(tiny) for _ in range(3)]
    sessions[0].apply(make_edit(tiny, 1))
    sessions[1].apply(make_edit(tiny, 2))
    expected = []
    for session in sessions:
        with session.active():
            expected.append(final(tiny))
    wrong: list[int] = []

    def drive(number: int) -> None:
        for _ in range(20):
            with sessions[number].active():
                if not torch.equal(final(tiny), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.equal(expected[0], expected[1])


def test_masters_stay_in_float32_when_the_model_is_bfloat16(tiny_folder: Path, llama: LoadedModel) -> None:
    from nmke.loading import load_model

    half = load_model(str(tiny_folder / "llama"), device="cpu", dtype="bfloat16")
    assert half.conformance.passed, half.conformance.checks
    session = EditSession(half)
    start = session.master(1).clone()
    tiny_update = make_edit(half, 4, layers=(1,), size=1e-4)
    for _ in range(50):
        session.apply(tiny_update)
    moved = session.master(1) - start
    assert session.master(1).dtype == torch.float32
    # Each step alone is lost in bfloat16's 8 bits; fifty of them in a float32 master are not.
    assert torch.allclose(moved, 50 * tiny_update.patches[0].matrix(), rtol=1e-2, atol=1e-5)
    with session.active():
        assert half.W_out(1).dtype == torch.bfloat16


def test_verify_undo_compares_every_layer_and_leaves_the_session_as_it_was(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for seed in range(3):
        session.apply(make_edit(tiny, seed))
    digest = session.digest
    assert session.verify_undo()
    assert session.version == 3 and session.digest == digest


def test_an_undo_that_cannot_be_reproduced_is_refused_and_changes_nothing(tiny: LoadedModel) -> None:
    session = EditSession(tiny, undo_depth=1)
    for seed in range(4):
        session.apply(make_edit(tiny, seed))
    session.undo()
    session.undo()
    session.edits[0].patches[0].left.add_(1.0)
    with pytest.raises(SessionError, match="could not be reproduced"):
        session.undo()
    assert session.version == 2


def test_the_size_of_a_change_counts_only_touched_neurons(tiny: LoadedModel) -> None:
    left = torch.zeros(tiny.d_mlp, 1)
    left[:5] = 2.0
    edit = Edit("nmke", {}, (FACT,), (WeightPatch(1, left, torch.ones(1, tiny.d_model)),), {})
    change = edit.changes({1: tiny.W_out(1)})[0]
    assert change["neurons"] == 5
    assert change["parameters"] == 5 * tiny.d_model
    assert change["norm"] == pytest.approx((5 * tiny.d_model * 4) ** 0.5, rel=1e-5)


def test_settling_keeps_what_the_model_computes_and_drops_the_old_updates(tiny: LoadedModel) -> None:
    session = EditSession(tiny, undo_depth=1)
    for seed in range(6):
        session.apply(make_edit(tiny, seed))
    digest, keys = session.digest, session.history_keys(1)
    session.settle(keep=2)
    assert [len(edit.patches) for edit in session.edits] == [0, 0, 0, 0, 2, 2]
    assert (session.digest, session.version) == (digest, 6)
    assert torch.equal(session.history_keys(1), keys)
    session.undo()
    session.undo()
    with pytest.raises(SessionError, match=r"first 4 edits are settled.*Reset"):
        session.undo()
    assert session.version == 4
    session.redo()
    session.redo()
    assert session.digest == digest


def test_settling_more_later_and_less_again_changes_nothing_twice(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for seed in range(3):
        session.apply(make_edit(tiny, seed))
    session.settle()
    session.settle(keep=2)
    assert [edit.patches for edit in session.edits] == [(), (), ()]
    session.apply(make_edit(tiny, 9))
    digest = session.digest
    session.undo()
    session.redo()
    assert session.digest == digest


def test_a_settled_session_is_not_saved_as_if_it_were_whole(tiny: LoadedModel, tmp_path: Path) -> None:
    session = EditSession(tiny)
    session.apply(make_edit(tiny))
    session.settle()
    with pytest.raises(SessionError, match="settled"):
        session.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(SessionError, match="settled"):
        session.verify_undo()


def test_resetting_a_settled_session_gives_the_loaded_model_back(tiny: LoadedModel) -> None:
    session, before = EditSession(tiny), final(tiny)
    session.apply(make_edit(tiny))
    session.settle()
    session.reset()
    with session.active():
        assert torch.equal(final(tiny), before)
    assert session.digest == EditSession(tiny).digest


def test_a_restored_session_has_the_weights_keys_and_digest_of_the_one_it_was_taken_from(
    tiny: LoadedModel,
) -> None:
    session = EditSession(tiny)
    for seed in range(3):
        session.apply(make_edit(tiny, seed))
    again = EditSession.restored(tiny, session.edits, *session.state())
    assert again.digest == session.digest
    assert torch.equal(again.history_keys(2), session.history_keys(2))
    session.apply(make_edit(tiny, 7))
    again.apply(make_edit(tiny, 7))
    assert again.digest == session.digest
    again.undo()
    with pytest.raises(SessionError, match="settled"):
        again.undo()


def test_trying_an_edit_computes_what_applying_it_will_and_leaves_no_trace(tiny: LoadedModel) -> None:
    session, edit, loaded = EditSession(tiny), make_edit(tiny), final(tiny)
    session.apply(make_edit(tiny, 1))
    with session.trying(edit):
        tried = final(tiny)
    assert (session.version, len(session.edits)) == (1, 1)
    assert torch.equal(final(tiny), loaded)
    session.apply(edit)
    with session.active():
        assert torch.equal(final(tiny), tried)


def test_trying_an_edit_that_is_not_finite_is_refused(tiny: LoadedModel) -> None:
    with (
        pytest.raises(EditError, match="not finite"),
        EditSession(tiny).trying(make_edit(tiny, size=float("inf"))),
    ):
        pass
