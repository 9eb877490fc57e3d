"""The running inverse: equal to the dense solve, flat in memory, and a function of the keys in force to the bit."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmke import history
from nmke.edit import Edit
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.history import KeyHistory, RunningInverse, history_bytes, last_refactorisation
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKE, NMKEConfig
from nmke.moments import NullSpace
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.solve import ridge_solve

D, d = 24, 5
FACTS = [
    Fact(f"The capital of {country} is", country, target)
    for country, target in [("France", "Rome"), ("Spain", "Oslo"), ("Italy", "Bern"), ("Norway", "Kiev")]
]


def null_space(kept: int, seed: int = 0, size: int = D) -> NullSpace:
    """The thinner side of a random space, in the precision of the solves."""
    if kept == size:
        return NullSpace.everything(size)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    thin = kept <= size // 2
    return NullSpace(vectors[:, :kept] if thin else vectors[:, kept:], thin, kept, size)


def random_blocks(widths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(D, width, generator=generator) for width in widths]


def dense(K: Tensor, R: Tensor, blocks: list[Tensor], space: NullSpace, ridge: float) -> Tensor:
    K_p = torch.cat(blocks, dim=1) if blocks else torch.zeros(D, 0)
    P = space.project(torch.eye(D, dtype=torch.float64))
    return ridge_solve(K, R, K_p, P, ridge)


def distance(factors: tuple[Tensor, Tensor], expected: Tensor) -> float:
    return float((factors[0] @ factors[1] - expected).norm() / expected.norm())


def identical(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# ---- against the dense solve ------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [3, 9, 12, 17, 24])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("ridge", [1.0, 0.05])
def test_every_step_of_a_growing_history_equals_the_dense_solve(kept: int, width: int, ridge: float) -> None:
    # Windows of 4 columns and a refactorisation every 20: 60 edits come by each kind of step many times.
    solver, space, blocks = KeyHistory(fold=4, refactor=20), null_space(kept), random_blocks([width] * 60)
    R = torch.randn(d, width, generator=torch.Generator().manual_seed(1))
    for past, K in enumerate(blocks):
        left, right = solver.solve(0, blocks[:past], K, R, space, ridge)
        assert left.shape == (D, width) and right.shape == (width, d)
        assert distance((left, right), dense(K, R, blocks[:past], space, ridge)) < 1e-10


@pytest.mark.parametrize("kept", [9, 17])
def test_batches_of_any_size_may_follow_each_other(kept: int) -> None:
    solver, space = KeyHistory(fold=4, refactor=20), null_space(kept)
    blocks = random_blocks([1, 5, 2, 30, 1, 1, 3, 1, 12, 2])
    for past, K in enumerate(blocks):
        R = torch.ones(d, K.shape[1])
        factors = solver.solve(0, blocks[:past], K, R, space, 0.3)
        assert distance(factors, dense(K, R, blocks[:past], space, 0.3)) < 1e-10


@pytest.mark.parametrize("kept", [9, 17, 24])
def test_a_thousand_keys_that_nearly_repeat_do_not_make_it_drift(kept: int) -> None:
    generator = torch.Generator().manual_seed(2)
    base = 3 * torch.randn(D, 1, generator=generator)
    blocks = [base + 1e-3 * torch.randn(D, 1, generator=generator) for _ in range(1000)]
    solver, space, R = KeyHistory(), null_space(kept), torch.ones(d, 1)
    for K in (base, blocks[7], torch.randn(D, 1, generator=generator)):
        assert distance(solver.solve(0, blocks, K, R, space, 1.0), dense(K, R, blocks, space, 1.0)) < 1e-9


def test_an_inverse_never_made_anew_stays_within_rounding_of_one_that_is() -> None:
    blocks, space = random_blocks([1] * 1500), null_space(17)
    K = random_blocks([1], seed=9)[0].double()
    running = RunningInverse(blocks, space, 1.0, K, fold=8, refactor=10**9)
    anew = RunningInverse(blocks, space, 1.0, K, fold=8, refactor=1496)  # ends with 4 keys in the window
    running.follow(blocks)
    anew.follow(blocks)
    assert running.since and not anew.since
    assert torch.allclose(running.solve(K)[0], anew.solve(K)[0], rtol=1e-9, atol=1e-14)


def test_keys_that_lie_in_the_protected_directions_get_no_update() -> None:
    space = null_space(17)
    K = space.basis[:, :1] @ torch.ones(1, 1, dtype=torch.float64)
    left, _ = KeyHistory().solve(0, random_blocks([1] * 10), K, torch.ones(d, 1), space, 1.0)
    assert float(left.norm()) < 1e-12


@pytest.mark.parametrize("past", [0, 3, 40])
def test_keys_that_are_not_finite_are_refused_and_leave_nothing_behind(past: int) -> None:
    solver, space, blocks, R = KeyHistory(), null_space(17), random_blocks([1] * 40), torch.ones(d, 1)
    K = random_blocks([1], seed=9)[0]
    expected = solver.solve(0, blocks[:past], K, R, space, 1.0)
    with pytest.raises(EditError, match="Raise the ridge"):
        solver.solve(0, blocks[:past], torch.full((D, 1), float("nan")), R, space, 1.0)
    assert identical(solver.solve(0, blocks[:past], K, R, space, 1.0), expected)


# ---- repair -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [9, 17])
@pytest.mark.parametrize("damaged", ["G", "MV", "window", "images"])
def test_a_damaged_inverse_is_noticed_and_made_anew_to_the_same_bits(kept: int, damaged: str) -> None:
    solver, space, blocks, R = KeyHistory(), null_space(kept), random_blocks([1] * 30), torch.ones(d, 1)
    K = random_blocks([1], seed=9)[0]
    sound = solver.solve(0, blocks, K, R, space, 1.0)
    before = solver._inverses[0]
    part = getattr(before, damaged)
    (part[0] if isinstance(part, list) else part)[3, 0] += 1e-3
    assert identical(solver.solve(0, blocks, K, R, space, 1.0), sound)
    assert solver._inverses[0] is not before


def test_a_sound_inverse_is_kept_from_edit_to_edit() -> None:
    solver, space, blocks, R = KeyHistory(), null_space(17), random_blocks([1] * 40), torch.ones(d, 1)
    solver.solve(0, blocks[:20], blocks[20], R, space, 1.0)
    kept = solver._inverses[0]
    for past in range(20, 40):
        solver.solve(0, blocks[:past], blocks[past], R, space, 1.0)
    assert solver._inverses[0] is kept


def test_where_no_inverse_holds_the_update_is_solved_from_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "RESIDUAL_BOUND", -1.0)
    solver, space, blocks, R = KeyHistory(), null_space(17), random_blocks([1] * 20), torch.ones(d, 1)
    K = random_blocks([1], seed=9)[0]
    for _ in range(2):
        factors = solver.solve(0, blocks, K, R, space, 1.0)
        assert distance(factors, dense(K, R, blocks, space, 1.0)) < 1e-10


def test_another_ridge_or_null_space_gets_another_inverse() -> None:
    solver, blocks, R = KeyHistory(), random_blocks([1] * 20), torch.ones(d, 1)
    K = random_blocks([1], seed=9)[0]
    for space in (null_space(17), null_space(17, seed=1), null_space(9), NullSpace.everything(D)):
        for ridge in (1.0, 2.0):
            factors = solver.solve(0, blocks, K, R, space, ridge)
            assert distance(factors, dense(K, R, blocks, space, ridge)) < 1e-10
            kept = solver._inverses[0]
            copy = NullSpace(space.basis.clone(), space.keeps_basis, space.kept, space.d_mlp)
            solver.solve(0, blocks, K, R, copy, ridge)
            assert solver._inverses[0] is kept, "an equal copy of the null space is the same null space"


# ---- the same bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [9, 17, 24])
def test_bits_depend_on_the_keys_in_force_and_not_on_the_way_there(kept: int) -> None:
    """A random walk of edits, undos and branches, against a history that starts anew at every step."""
    choice = random.Random(kept)
    walking, space = KeyHistory(fold=4, refactor=16), null_space(kept)
    in_force: list[Tensor] = []
    for step in range(150):
        if in_force and choice.random() < 0.4:
            del in_force[-choice.randint(1, min(6, len(in_force))) :]
        else:
            in_force += random_blocks([choice.choice([1, 1, 1, 2, 6])] * choice.randint(1, 3), seed=step)
        if choice.random() < 0.3:
            continue  # some versions are never planned on
        K, R = random_blocks([1], seed=10_000 + step)[0], torch.ones(d, 1)
        anew = KeyHistory(fold=4, refactor=16).solve(0, in_force, K, R, space, 0.5)
        assert identical(walking.solve(0, in_force, K, R, space, 0.5), anew)


def test_keys_round_alike_however_they_lie_in_memory() -> None:
    blocks = random_blocks([3] * 10)
    turned = [block.T.contiguous().T for block in blocks]
    assert turned[0].stride() != blocks[0].stride()
    K, R, space = random_blocks([3], seed=9)[0], torch.ones(d, 3), null_space(17)
    assert identical(
        KeyHistory().solve(0, blocks, K, R, space, 1.0),
        KeyHistory().solve(0, turned, K.T.contiguous().T, R, space, 1.0),
    )


def test_the_keys_are_never_written_to() -> None:
    blocks = random_blocks([1] * 30)
    copies = [block.clone() for block in blocks]
    KeyHistory(fold=4, refactor=16).solve(0, blocks, blocks[0], torch.ones(d, 1), null_space(17), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(blocks, copies, strict=True))


def test_the_last_refactorisation_is_where_a_growing_history_had_it() -> None:
    choice = random.Random(0)
    widths = [choice.choice([1, 2, 5]) for _ in range(80)]
    blocks, space = random_blocks(widths), null_space(9)
    grown = RunningInverse([], space, 1.0, blocks[0].double(), fold=4, refactor=16)
    reached = 0
    for number in range(1, 81):
        grown.follow(blocks[:number])
        if grown.folded == number and grown.since == 0:
            reached = number
        assert last_refactorisation([block.shape[1] for block in blocks[:number]], 4, 16) == reached
    assert reached > 16


# ---- sessions ---------------------------------------------------------------------------------------------


@pytest.fixture
def config(cache: Path) -> NMKEConfig:
    return NMKEConfig.make(
        layers=(1, 2), statistics={"text": "none"}, target={"steps": 3, "learning_rate": 0.1}
    )


def same_edit(a: Edit, b: Edit) -> bool:
    factors = [(p.left, q.left, p.right, q.right) for p, q in zip(a.patches, b.patches, strict=True)]
    return all(torch.equal(p, q) and torch.equal(r, s) for p, q, r, s in factors) and all(
        torch.equal(a.keys[layer], b.keys[layer]) for layer in a.keys
    )


def test_a_plan_after_undo_and_a_plan_after_a_restart_are_the_same_edit(
    llama: LoadedModel, config: NMKEConfig, tmp_path: Path
) -> None:
    """Uninterrupted, undone and planned again, and killed and resumed from the saved edits: one result."""

    def plan(session: EditSession, fact: Fact) -> Edit:
        return NMKE().plan(session, [fact], config, Silent())

    session = EditSession(llama)
    session._history = KeyHistory(fold=2, refactor=3)
    for fact in FACTS[:3]:
        first = plan(session, fact)
        session.apply(first)
        plan(session, FACTS[3])
        session.undo()
        again = plan(session, fact)
        assert same_edit(first, again)
        session.apply(again)
    expected = plan(session, FACTS[3])
    resumed = EditSession.load(llama, session.save(tmp_path / "bundle"))
    resumed._history = KeyHistory(fold=2, refactor=3)
    assert same_edit(plan(resumed, FACTS[3]), expected)


# ---- memory -----------------------------------------------------------------------------------------------


def test_five_layers_of_a_large_model_fit_a_card_of_80_gigabytes() -> None:
    """D = 14336, d = 4096 and 8.03 billion parameters in bfloat16, at the least favourable null space."""
    need = history_bytes(d_mlp=14336, kept=14336 // 2 + 1, layers=5, past=2000)
    assert need["inverse"] == 14336**2 * 8 == 1_644_167_168
    assert need["basis"] == 14336 * 7167 * 8
    assert need["held"] == 5 * (need["inverse"] + need["basis"])
    assert round(need["held"] / 1e9, 1) == 12.3
    model, masters, undo = 8.03e9 * 2, 5 * 14336 * 4096 * (4 + 2), 2**30
    assert need["peak"] + model + masters + undo < 40e9


@pytest.mark.parametrize("kept", [9, 17, 24])
def test_the_bytes_told_are_the_bytes_held(kept: int) -> None:
    space = null_space(kept)
    inverse = RunningInverse([], space, 1.0, torch.zeros(D, 1, dtype=torch.float64), fold=4, refactor=100)
    assert inverse.G is None, "a session with few keys holds no matrix"
    inverse.follow(random_blocks([1] * 40))
    assert inverse.G is not None
    told = history_bytes(D, kept, layers=1)
    assert told["inverse"] == inverse.G.numel() * 8
    assert told["basis"] == inverse.space.basis.numel() * 8
    assert sum(A.shape[1] for A in inverse.window) < 4
