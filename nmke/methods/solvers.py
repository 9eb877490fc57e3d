"""How one layer's update is solved for: what the layer loop is given by each method.

Every solver minimises ``|K^T X - R^T|^2`` plus a price on changing what the model does elsewhere; they differ in that
price. Updates come as two factors, ``X = left @ right``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmke.errors import EditError
from nmke.history import exactly
from nmke.moments import NullSpace
from nmke.session import EditSession
from nmke.solve import (
    equality_factors,
    exact_dtype,
    prior_factors,
    prior_root,
    ridge_factors,
    ridge_solve,
    steadied,
)


class LayerSolver(ABC):
    """Solves for one layer's update; asked once per layer, in rising order."""

    @abstractmethod
    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        """The layer's update for keys ``K`` and residuals ``R``.

        Raises:
            EditError: the keys do not allow a solution.
        """

    def figures(self, layer: int) -> dict[str, float]:
        """What is worth showing about the layer's solve, once it is done."""
        return {}


class NullSpaceRidge(LayerSolver):
    """AlphaEdit's: inside the null space, with a ridge, on top of the session's keys; see :mod:`nmke.history`."""

    def __init__(self, session: EditSession, spaces: Mapping[int, NullSpace], ridge: float) -> None:
        self._session, self._spaces, self._ridge = session, spaces, ridge

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        return self._session.solve_update(layer, K, R, self._spaces[layer], self._ridge)

    def figures(self, layer: int) -> dict[str, float]:
        return {"null_space_kept": self._spaces[layer].kept_share}


class DenseRidge(NullSpaceRidge):
    """The plain twin of :class:`NullSpaceRidge`: a D x D solve, its result a factor of its own."""

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        space = self._spaces[layer]
        P = space.project(torch.eye(space.d_mlp, dtype=exact_dtype(K), device=K.device))
        X = ridge_solve(K, R, self._session.history_keys(layer), P, self._ridge)
        return X, torch.eye(X.shape[1], dtype=X.dtype, device=X.device)


class PriorRidge(LayerSolver):
    """MEMIT's: ordinary keys weigh against the update by ``weight C``; with a history, the session's keys too.

    The matrix without the new keys is factorised once per layer and plan: D^3 / 3 operations, 0.06 to 0.13 s for
    D = 1536 on one core.

    Args:
        moments: per layer ``C`` [d_mlp, d_mlp].
        history: whose keys ``K_p`` are protected as well; None protects none.
    """

    def __init__(
        self,
        moments: Mapping[int, Tensor],
        weight: float,
        ridge: float = 0.0,
        history: EditSession | None = None,
    ) -> None:
        self._moments, self._weight, self._ridge, self._history = moments, weight, ridge, history

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        K = exactly(K)
        K_p = K[:, :0] if self._history is None else self._history.history_keys(layer).to(K)
        root = prior_root(steadied(self._moments[layer].to(K.device)), self._weight, K_p, self._ridge)
        return prior_factors(K, R.to(K), root)


class EqualityPrior(LayerSolver):
    """EMMET's: keys are mapped to their targets exactly, up to a softening, and ordinary keys moved least.

    ``X = C'^-1 K (K^T C'^-1 K + softening I)^-1 R^T`` with ``C' = weight C + ridge I``.

    Args:
        moments: per layer ``C`` [d_mlp, d_mlp].
    """

    def __init__(self, moments: Mapping[int, Tensor], weight: float, ridge: float, softening: float) -> None:
        self._moments, self._weight, self._ridge, self._softening = moments, weight, ridge, softening

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        K = exactly(K)
        C = steadied(self._moments[layer].to(K.device))
        direction = torch.cholesky_solve(K, prior_root(C, self._weight, K[:, :0], self._ridge))
        return equality_factors(K, R, direction, self._softening)


class SelectedRidge(LayerSolver):
    """Solves for the value vectors of some neurons only: keys, history and protection restricted to them.

    With ``S`` the neurons, ``X[S] = (M_S + K_S K_S^T)^-1 K_S R^T`` and every other row is zero. The target is reached
    as far as these neurons allow, where masking a finished update throws a part of it away.

    - Protected by the null space: of the restricted second moment ``C[S, S]``, eigenvalues strictly under the
      threshold. One eigendecomposition per layer and edit (0.2 to 0.25 s for 1000 neurons on one core), and a solve
      that grows with the history.
    - Protected by the prior: ``M_S = weight C[S, S] + K_p[S] K_p[S]^T + ridge I``. One Cholesky factor instead
      (0.012 s), whatever the history.

    Args:
        selected: per layer which neurons [d_mlp].
        moments: per layer ``C``; None protects nothing but the session's keys.
        threshold: of the null space; None protects by the prior.
        weight: of the prior.
    """

    def __init__(
        self,
        session: EditSession,
        selected: Mapping[int, Tensor],
        moments: Mapping[int, Tensor] | None,
        ridge: float,
        threshold: float | None,
        weight: float,
    ) -> None:
        self._session, self._selected, self._moments = session, selected, moments
        self._ridge, self._threshold, self._weight = ridge, threshold, weight
        self._kept: dict[int, float] = {}

    def solve(
        self, layer: int, K: Float[Tensor, "d_mlp fact"], R: Float[Tensor, "d_model fact"]
    ) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        K = exactly(K)
        chosen = chosen_neurons(self._selected[layer], layer).to(K.device)
        K_S, R = K[chosen], R.to(K)
        K_p = self._session.history_keys(layer).to(K)[chosen]
        C_S = None
        if self._moments is not None:
            C_S = self._moments[layer].to(K.device)[chosen][:, chosen]
        if C_S is not None and self._threshold is None:
            thin, right = prior_factors(K_S, R, prior_root(steadied(C_S), self._weight, K_p, self._ridge))
        else:
            space = NullSpace.everything(len(chosen))
            if C_S is not None and self._threshold is not None:
                space = restricted_null_space(C_S, self._threshold, layer)
            self._kept[layer] = space.kept_share
            thin, right = ridge_factors(K_S, R, K_p, space.project, self._ridge)
        left = torch.zeros(len(K), thin.shape[1], dtype=thin.dtype, device=thin.device)
        left[chosen] = thin
        return left, right

    def figures(self, layer: int) -> dict[str, float]:
        return {"null_space_kept": self._kept[layer]} if layer in self._kept else {}


def chosen_neurons(selected: Bool[Tensor, " d_mlp"], layer: int) -> Tensor:
    """Indices of the selected neurons.

    Raises:
        EditError: there are none.
    """
    chosen = selected.nonzero()[:, 0]
    if not len(chosen):
        raise EditError(
            f"The mask of layer {layer} keeps no neuron, so nothing can be written there.",
            "Raise the shares of neurons selected, or keep another kind of neuron.",
        )
    return chosen


def restricted_null_space(C: Float[Tensor, "neuron neuron"], threshold: float, layer: int) -> NullSpace:
    """The directions of some neurons whose eigenvalue of ``C`` lies strictly under ``threshold``.

    Raises:
        EditError: when no direction does.
    """
    values, vectors = torch.linalg.eigh(C.to(exact_dtype(C)))
    kept = int((values < threshold).sum())
    if kept == 0:
        raise EditError(
            f"No direction of the selected neurons of layer {layer} lies under the null-space threshold {threshold}.",
            f"Raise the threshold above {float(values[0]):.2g}.",
        )
    keeps_basis = kept <= len(values) // 2
    basis = vectors[:, :kept] if keeps_basis else vectors[:, kept:]
    return NullSpace(basis.contiguous(), keeps_basis, kept, len(values))
