"""EMMET's solve: by hand, against its twin, and against what it must equal."""

import pytest
import torch
from torch import Tensor

from nmke.errors import ConfigError
from nmke.methods.emmet import EMMETConfig
from nmke.methods.solvers import EqualityPrior, PriorRidge
from nmke.solve import equality_factors, equality_solve, steadied


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(size: int) -> Tensor:
    keys = random(size, 4 * size)
    return keys @ keys.T / keys.shape[1]


def test_one_softened_key_by_hand() -> None:
    # C^-1 k = (1, 0.5), k^T C^-1 k + 1 = 3, so X = (1, 0.5) / 3 * 3.
    k, R, C = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), torch.diag(torch.tensor([1.0, 4.0]))
    X = equality_solve(k, R, C, softening=1.0)
    assert torch.allclose(X.flatten(), torch.tensor([1.0, 0.5]).double())


def test_the_factors_equal_the_dense_form_when_softened() -> None:
    K, R, C = random(12, 3), random(5, 3, seed=1), second_moment(12)
    left, right = equality_factors(K, R, torch.linalg.solve(C, K), 0.3)
    assert torch.allclose(left @ right, equality_solve(K, R, C, softening=0.3), atol=1e-10)


def test_the_solver_weighs_the_text_and_adds_its_ridge() -> None:
    K, R, C = random(12, 3), random(5, 3, seed=1), second_moment(12)
    left, right = EqualityPrior({4: C}, weight=2.0, ridge=0.5, softening=0.1).solve(4, K, R)
    written_out = 2.0 * steadied(C) + 0.5 * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(left @ right, equality_solve(K, R, written_out, softening=0.1), atol=1e-9)


def test_softened_it_is_memit_with_the_softening_as_weight() -> None:
    K, R, C = random(12, 3), random(5, 3, seed=1), second_moment(12)
    left, right = EqualityPrior({4: C}, weight=1.0, ridge=0.0, softening=0.1).solve(4, K, R)
    memit_left, memit_right = PriorRidge({4: C}, weight=0.1).solve(4, K, R)
    assert torch.allclose(left @ right, memit_left @ memit_right, atol=1e-9)


def test_unsoftened_every_key_of_a_batch_is_mapped_exactly() -> None:
    K, R, C = random(12, 3), random(5, 3, seed=1), second_moment(12)
    left, right = EqualityPrior({4: C}, weight=1.0, ridge=0.0, softening=0.0).solve(4, K, R)
    assert torch.allclose(K.T @ left @ right, R.T, atol=1e-9)


def test_it_cannot_do_without_a_text() -> None:
    with pytest.raises(ConfigError, match="EMMET weighs its update"):
        EMMETConfig.make(statistics={"text": "none"})
