"""The linear solves of closed-form editing, in float64.

Down projections are [d_mlp, d_model] here, so an update is ``X`` with ``K^T X ~ R^T``: keys ``K`` [D, m] in columns,
residuals ``R`` [d, m] in columns. :func:`ridge_solve` is written to be read, :func:`ridge_factors` needs nothing but
the keys, and :mod:`nmke.history` keeps an inverse by the identities at the end, so that an edit's cost stays flat.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.errors import EditError

Projection = Callable[[Tensor], Tensor]


def ridge_solve(
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    K_p: Float[Tensor, "d_mlp past"],
    P: Float[Tensor, "d_mlp d_mlp"],
    ridge: float,
) -> Float[Tensor, "d_mlp d_model"]:
    """AlphaEdit's update by one dense D x D solve: the plain twin of :func:`ridge_factors`.

    ``(P (K_p K_p^T + K K^T) + ridge I) X = P K R^T`` (AlphaEdit, eq. 14).
    """
    K, R, K_p, P = K.double(), R.double(), K_p.double(), P.double()
    identity = torch.eye(len(K), dtype=torch.float64, device=K.device)
    return torch.linalg.solve(P @ (K_p @ K_p.T + K @ K.T) + ridge * identity, P @ K @ R.T)


def ridge_factors(
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    K_p: Float[Tensor, "d_mlp past"],
    project: Projection,
    ridge: float,
) -> tuple[Float[Tensor, "d_mlp fact"], Float[Tensor, "fact d_model"]]:
    """The same update as two thin factors, by a solve whose size is the number of keys instead of D.

    With ``A = P [K_p K]``, the push-through identity ``(A A^T + ridge I)^-1 A = A (A^T A + ridge I)^-1`` gives
    ``X = A S R^T``, ``S`` being the last m columns of ``(A^T A + ridge I)^-1``.

    Args:
        project: applies the null-space projection ``P`` to columns of keys.

    Returns:
        ``left`` [d_mlp, fact] and ``right`` [fact, d_model], with ``X = left @ right``; float64.
    """
    projected = project(torch.cat([K_p, K], dim=1).to(exact_dtype(K)))
    gram = projected.T @ projected
    gram.diagonal().add_(ridge)
    new = torch.zeros(len(gram), K.shape[1], dtype=gram.dtype, device=gram.device)
    new[K_p.shape[1] :] = torch.eye(K.shape[1], dtype=gram.dtype, device=gram.device)
    return projected @ torch.cholesky_solve(new, cholesky(gram)), R.T.to(gram.dtype)


def absorb_keys(
    C: Float[Tensor, "coordinate fact"], solved: Float[Tensor, "coordinate fact"]
) -> Float[Tensor, "coordinate fact"]:
    """``(M + C C^T)^-1 C = M^-1 C (I + C^T M^-1 C)^-1`` for any positive definite ``M`` (push-through).

    Args:
        C: new keys, projected where there is a projection.
        solved: ``M^-1 C``.

    Raises:
        EditError: the small matrix is not positive definite.
    """
    S = C.T @ solved
    S.diagonal().add_(1.0)
    return torch.cholesky_solve(solved.T, cholesky(S)).T.contiguous()


def woodbury_root(
    A: Float[Tensor, "coordinate key"], GA: Float[Tensor, "coordinate key"]
) -> Float[Tensor, "key coordinate"]:
    """``Z`` with ``(M + A A^T)^-1 = G - Z^T Z``, ``G = M^-1`` (Woodbury).

    Raises:
        EditError: ``I + A^T G A`` is not positive definite.
    """
    S = A.T @ GA
    S.diagonal().add_(1.0)
    return torch.linalg.solve_triangular(cholesky(S), GA.T, upper=False)


def cholesky(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The lower Cholesky factor.

    Raises:
        EditError: the matrix is not positive definite, or not finite.
    """
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        raise EditError(
            "The keys are so alike that the update cannot be solved for.",
            "Raise the ridge L2, or leave out facts that repeat each other.",
        ) from None


def exact_dtype(like: Tensor) -> torch.dtype:
    """float64, except on devices that have none (MPS), where the most there is."""
    return torch.float32 if like.device.type == "mps" else torch.float64
