"""The linear solves of closed-form editing, in float64.

Down projections are [d_mlp, d_model] here, so an update is ``X`` with ``K^T X ~ R^T``: keys ``K`` [D, m] in columns,
residuals ``R`` [d, m] in columns. Each formula is here twice: the ``_solve`` is one dense solve, written to be read and
compared with; the ``_factors`` give the same as two thin factors.

- :func:`ridge_solve`, :func:`ridge_factors`: protection by a projection (AlphaEdit, NMKE). :mod:`nmke.history` keeps
  their inverse by :func:`absorb_keys` and :func:`woodbury_root`, so that an edit's cost stays flat.
- :func:`prior_solve`, :func:`prior_factors`: protection by a second moment ``C`` of ordinary keys (MEMIT).
- :func:`equality_solve`, :func:`equality_factors`: the keys are mapped exactly to their targets (ROME, EMMET).
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


def steadied(C: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A second moment in the precision of the solves, made safely positive definite.

    Second moments are kept in float32, which may have moved an eigenvalue by half of ``eps |C|_F`` and so a small one
    below zero. ``eps |C|_F`` is added to the diagonal, so every eigenvalue ends at half of that or above. The published
    codes invert ``C`` as it is; where it has a sound inverse the difference is that of the rounding.
    """
    C = C.to(exact_dtype(C), copy=True)
    C.diagonal().add_(torch.finfo(torch.float32).eps * C.norm())
    return C


def prior_solve(
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    K_p: Float[Tensor, "d_mlp past"],
    C: Float[Tensor, "d_mlp d_mlp"],
    weight: float,
    ridge: float = 0.0,
) -> Float[Tensor, "d_mlp d_model"]:
    """MEMIT's update by one dense D x D solve: the plain twin of :func:`prior_factors`.

    ``(weight C + K K^T + K_p K_p^T + ridge I) X = K R^T`` (MEMIT, eq. 14, which has neither ``K_p`` nor a ridge).
    """
    K, R, K_p, C = K.double(), R.double(), K_p.double(), C.double()
    identity = torch.eye(len(K), dtype=torch.float64, device=K.device)
    return torch.linalg.solve(weight * C + K @ K.T + K_p @ K_p.T + ridge * identity, K @ R.T)


def prior_root(
    C: Float[Tensor, "d_mlp d_mlp"], weight: float, K_p: Float[Tensor, "d_mlp past"], ridge: float = 0.0
) -> Float[Tensor, "d_mlp d_mlp"]:
    """The lower Cholesky factor of ``M = weight C + K_p K_p^T + ridge I``: what the new keys do not enter.

    Raises:
        EditError: ``M`` is not positive definite, or not finite.
    """
    M = weight * C.to(exact_dtype(C))
    if K_p.shape[1]:
        K_p = K_p.to(M)
        M.addmm_(K_p, K_p.T)
    M.diagonal().add_(ridge)
    return cholesky(M)


def prior_factors(
    K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"], root: Float[Tensor, "d_mlp d_mlp"]
) -> tuple[Float[Tensor, "d_mlp fact"], Float[Tensor, "fact d_model"]]:
    """MEMIT's update as two thin factors: ``(M + K K^T)^-1 K`` by :func:`absorb_keys`, and ``R^T``.

    Args:
        root: the Cholesky factor of ``M``, from :func:`prior_root`.
    """
    K = K.to(root)
    return absorb_keys(K, torch.cholesky_solve(K, root)), R.T.to(root)


def equality_solve(
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    C: Float[Tensor, "d_mlp d_mlp"],
    steered_by: Float[Tensor, "d_mlp fact"] | None = None,
    softening: float = 0.0,
) -> Float[Tensor, "d_mlp d_model"]:
    """The update with ``K^T X = R^T`` exactly, by a dense inverse: the plain twin of :func:`equality_factors`.

    ``X = C^-1 L (K^T C^-1 L + softening I)^-1 R^T``. With ``L = K`` it is the one that moves ordinary keys least, by
    ``tr(X^T C X)`` (ROME, eq. 2; EMMET, with the softening of its code).

    Args:
        steered_by: ``L``, the keys that give the direction, where they are others than ``K``.
        softening: above 0 the keys are mapped to their targets only nearly.
    """
    K, R, C = K.double(), R.double(), C.double()
    direction = torch.linalg.inv(C) @ (K if steered_by is None else steered_by.double())
    across = K.T @ direction + softening * torch.eye(K.shape[1], dtype=K.dtype, device=K.device)
    return direction @ torch.linalg.inv(across) @ R.T


def equality_factors(
    K: Float[Tensor, "d_mlp fact"],
    R: Float[Tensor, "d_model fact"],
    direction: Float[Tensor, "d_mlp fact"],
    softening: float = 0.0,
) -> tuple[Float[Tensor, "d_mlp fact"], Float[Tensor, "fact d_model"]]:
    """The same update as two thin factors.

    Args:
        direction: ``C^-1 L``; ``L`` itself where nothing is known of ordinary keys.
        softening: added to the diagonal of ``K^T C^-1 L``.

    Raises:
        EditError: the keys have nothing in common with the direction, so that no finite update maps them.
    """
    K, R = K.to(direction), R.to(direction)
    across = K.T @ direction
    across.diagonal().add_(softening)
    left = torch.linalg.solve_ex(across, direction, left=False).result
    if not torch.isfinite(left).all():
        raise EditError(
            "The keys have nothing in common with the direction the update may take.",
            "Use consistent keys, or leave out facts that repeat each other.",
        )
    return left, R.T


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
