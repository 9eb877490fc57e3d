"""The solves: the thin one against the dense one, and both against numbers written out by hand."""

import pytest
import torch

from nmke.errors import EditError
from nmke.moments import NullSpace
from nmke.solve import absorb_keys, cholesky, ridge_factors, ridge_solve, woodbury_root


def test_one_key_without_protection_is_the_textbook_ridge() -> None:
    # K = (1, 2)^T, R = 3: X = K R / (K^T K + L2) = (3, 6) / 6.
    X = ridge_solve(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), torch.zeros(2, 0), torch.eye(2), 1.0)
    assert torch.allclose(X, torch.tensor([[0.5], [1.0]], dtype=torch.float64))


def test_the_projection_keeps_the_update_out_of_protected_directions() -> None:
    P = torch.diag(torch.tensor([1.0, 0.0]))
    X = ridge_solve(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), torch.zeros(2, 0), P, 1.0)
    # Only the first direction is left: X = 1 * 3 / (1 + 1).
    assert torch.allclose(X, torch.tensor([[1.5], [0.0]], dtype=torch.float64))


@pytest.mark.parametrize("past", [0, 1, 7, 40])
@pytest.mark.parametrize("facts", [1, 3])
@pytest.mark.parametrize("kept", [4, 14, 20])
def test_the_thin_solve_equals_the_dense_one(past: int, facts: int, kept: int) -> None:
    generator = torch.Generator().manual_seed(past + 10 * facts + kept)
    D, d = 20, 6
    K, K_p = torch.randn(D, facts, generator=generator), torch.randn(D, past, generator=generator)
    R = torch.randn(d, facts, generator=generator)
    basis = torch.linalg.qr(torch.randn(D, kept, generator=generator, dtype=torch.float64)).Q
    P = basis @ basis.T
    expected = ridge_solve(K, R, K_p, P, 0.7)
    left, right = ridge_factors(K, R, K_p, lambda k: P @ k, 0.7)
    assert left.shape == (D, facts) and right.shape == (facts, d)
    assert torch.allclose(left @ right, expected, atol=1e-10)


def test_both_sides_of_a_null_space_project_alike() -> None:
    vectors = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    kept, rest = vectors[:, :5], vectors[:, 5:]
    K = torch.randn(12, 3, dtype=torch.float64)
    thin, complement = NullSpace(kept, True, 5, 12), NullSpace(rest, False, 5, 12)
    assert torch.allclose(thin.project(K), complement.project(K))
    assert torch.allclose(thin.project(K), kept @ kept.T @ K)
    assert thin.kept_share == pytest.approx(5 / 12)


def test_the_identity_projection_changes_nothing() -> None:
    K = torch.randn(9, 2)
    assert torch.equal(NullSpace.everything(9).project(K), K)


def test_keys_that_break_the_solve_are_refused_with_a_remedy() -> None:
    K = torch.full((4, 1), float("nan"))
    with pytest.raises(EditError, match="Raise the ridge"):
        ridge_factors(K, torch.ones(3, 1), torch.zeros(4, 0), lambda k: k, 1.0)


def test_taking_in_one_key_by_hand() -> None:
    # M = 2 I, C = (1, 2)^T: (M + C C^T)^-1 C = C / (2 + 5), and G - (M + C C^T)^-1 = G C C^T G / (1 + C^T G C).
    C = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert torch.allclose(absorb_keys(C, C / 2), C / 7)
    Z = woodbury_root(C, C / 2)
    assert torch.allclose(Z.T @ Z, (C @ C.T / 4) / (1 + 5 / 2))


def test_taking_in_keys_equals_inverting_the_larger_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    root, C = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (8, 3))
    M = root @ root.T + torch.eye(8)
    G, larger = torch.linalg.inv(M), torch.linalg.inv(M + C @ C.T)
    Z = woodbury_root(C, G @ C)
    assert torch.allclose(G - Z.T @ Z, larger)
    assert torch.allclose(absorb_keys(C, G @ C), larger @ C)


def test_a_matrix_without_a_cholesky_factor_is_refused_with_a_remedy() -> None:
    with pytest.raises(EditError, match="Raise the ridge"):
        cholesky(-torch.eye(2))
