"""The inverse that a layer's solves share, kept while its history of keys grows.

With ``A = P K_p`` the keys in force inside the null space and ``C = P K`` the new ones, AlphaEdit's update is
``X = (M + C C^T)^-1 C R^T``, ``M = A A^T + ridge I``. A solve from the keys costs more with every edit. Here
``G = M^-1`` stands ready and follows the history by Woodbury, so that an edit reads ``G`` twice whatever came before:

- Keys gather in a *window* beside ``G`` until there are :data:`FOLD_COLUMNS` of them, then they are folded into it:
  ``G - Z^T Z``, ``Z = chol(I + A^T G A)^-1 (G A)^T``. Before the first fold ``G`` is ``I / ridge`` and not stored.
- After :data:`REFACTOR_COLUMNS` columns ``G`` is computed anew from all keys instead, which ends what rounding left.
- Every solve checks its residual at O(D) cost: for random ``V``, ``V^T (M Y - C) = (M V)^T Y - V^T C``, and ``M V``
  only ever grows by additions. Above :data:`RESIDUAL_BOUND` and what float64 allows at this condition, which bounds
  the dense solve alike, the inverse is made anew; if that does not help the update is solved from the keys.

When to fold and to refactor depends on the sequence of keys alone, and so do all bits of ``G``: a session that undid,
reloaded or resumed has the very inverse of one that never stopped.

Where at most half of the directions are kept, ``G`` lives in their coordinates and is smaller than D x D.

Memory for D = 14336 and five layers, by :func:`history_bytes`: one inverse is 14336^2 x 8 B = 1.64 GB, a basis of at
most half the directions 0.82 GB, five layers 12.3 GB; a refactorisation with 2000 keys adds 2.1 GB for a moment. Beside
a model of 16 GB (8 billion parameters in bfloat16), five float32 masters (1.2 GB) and their undo steps this fits a card
of 80 GB more than twice. All of it stays on the model's device; what an edit moves there is its keys.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import is_

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.moments import NullSpace
from nmke.solve import absorb_keys, cholesky, ridge_factors, woodbury_root

#: A window this wide is folded into the inverse; sessions with fewer keys never hold a D x D matrix.
FOLD_COLUMNS = 8
#: After so many columns the inverse is computed anew from the keys.
REFACTOR_COLUMNS = 1024
#: Random vectors that watch the residual.
PROBES = 4
#: The largest residual, relative to the keys, that is let through where the equations are well conditioned.
RESIDUAL_BOUND = 1e-9
#: Residuals of about the condition times the rounding unit are no drift; this many times that is.
ROUNDING = 4 * torch.finfo(torch.float64).eps


class KeyHistory:
    """The running inverses of one session, one a layer. Not thread-safe: the session guards it.

    Args:
        fold: columns of a full window.
        refactor: columns between two refactorisations.
    """

    def __init__(self, fold: int = FOLD_COLUMNS, refactor: int = REFACTOR_COLUMNS) -> None:
        self.fold = fold
        self.refactor = refactor
        self._inverses: dict[int, RunningInverse] = {}

    def solve(
        self,
        layer: int,
        blocks: Sequence[Tensor],
        K: Float[Tensor, "d_mlp fact"],
        R: Float[Tensor, "d_model fact"],
        space: NullSpace,
        ridge: float,
    ) -> tuple[Float[Tensor, "d_mlp fact"], Float[Tensor, "fact d_model"]]:
        """AlphaEdit's update (eq. 14) as two thin factors; what ``ridge_solve`` gives with ``K_p`` = ``blocks``.

        Args:
            layer: whose inverse to use; it is kept for the next call.
            blocks: the keys in force, one block [d_mlp, fact] an edit, oldest first. Never written to.
            K: the new keys, on the device that computes.
            R: their residuals.

        Returns:
            ``left`` [d_mlp, fact] and ``right`` [fact, d_model], with ``X = left @ right``; float64, where ``K`` lies
            or, for devices without float64, on the CPU.

        Raises:
            EditError: the keys do not allow a solution, because they are not finite or the ridge is too small.
        """
        K, R = exactly(K), exactly(R)
        # Taken out while it changes: whatever interrupts this leaves no half-made inverse behind.
        inverse = self._inverses.pop(layer, None)
        reused = inverse is not None and inverse.serves(blocks, space, ridge, K)
        if inverse is None or not reused:
            del inverse  # before the new one needs its place
            inverse = RunningInverse(blocks, space, ridge, K, self.fold, self.refactor)
        inverse.asked = space  # a copy asked with before can go, and this one is recognised at once
        inverse.follow(blocks)
        left, holds = inverse.solve(K)
        if reused and not holds:
            return self.solve(layer, blocks, K, R, space, ridge)
        self._inverses[layer] = inverse
        if not holds:
            return ridge_factors(K, R, _side_by_side(blocks, K), inverse.space.project, ridge)
        return left, R.T

    def clear(self) -> None:
        """Give the memory back; the next solve builds its inverse from the keys."""
        self._inverses.clear()


class RunningInverse:
    """``M^-1`` of one layer in the coordinates of its null space; see the module's text.

    It starts as it was when a growing history last came by a refactorisation; :meth:`follow` takes it on from there.

    Args:
        blocks: the keys in force.
        space: the null space; its basis is copied to where ``like`` lies, as float64.
        like: a float64 tensor on the device that computes.
    """

    def __init__(
        self, blocks: Sequence[Tensor], space: NullSpace, ridge: float, like: Tensor, fold: int, refactor: int
    ) -> None:
        self.asked = space
        self.ridge = ridge
        self.fold = fold
        self.refactor = refactor
        self.space = replace(space, basis=space.basis.to(like).contiguous())
        size = space.kept if space.keeps_basis else space.d_mlp
        generator = torch.Generator().manual_seed(0)
        self.V = torch.randn(size, PROBES, generator=generator, dtype=torch.float64).to(like)
        self.MV = ridge * self.V
        self.G: Tensor | None = None
        # How many blocks are in G, and how many columns were folded in since the last refactorisation.
        self.folded = last_refactorisation([block.shape[1] for block in blocks], fold, refactor)
        self.since = 0
        self.blocks = list(blocks[: self.folded])
        self.window: list[Tensor] = []  # A of the blocks that are not in G
        self.images: list[Tensor] = []  # G A of the first of them
        if self.folded:
            self._compute_anew()

    def serves(self, blocks: Sequence[Tensor], space: NullSpace, ridge: float, like: Tensor) -> bool:
        """Whether this inverse can follow to these keys: same projection, ridge and place, and all it folded in."""
        if like.device != self.V.device or ridge != self.ridge or not _same_space(space, self.asked):
            return False
        return len(blocks) >= self.folded and all(map(is_, self.blocks[: self.folded], blocks))

    def follow(self, blocks: Sequence[Tensor]) -> None:
        """Take in what joined the history and let go of what left it; nothing folded may have left."""
        same = list(map(is_, self.blocks, blocks))
        shared = same.index(False) if False in same else len(same)
        del self.blocks[shared:], self.window[shared - self.folded :], self.images[shared - self.folded :]
        for block in blocks[shared:]:
            self.blocks.append(block)
            self.window.append(self._coordinates(block))
            if sum(A.shape[1] for A in self.window) >= self.fold:
                self._close_window()

    def solve(self, K: Float[Tensor, "d_mlp fact"]) -> tuple[Float[Tensor, "d_mlp fact"], bool]:
        """``Y = (M + C C^T)^-1 C`` for new keys, by neurons, and whether its residual is as small as it should be."""
        C = self._coordinates(K)
        Y = absorb_keys(C, self._times(C))
        left = self.space.basis @ Y if self.space.keeps_basis else Y
        return left, self._holds(C, Y)

    # ---- parts ------------------------------------------------------------------------------------------

    def _coordinates(self, K: Float[Tensor, "d_mlp key"]) -> Float[Tensor, "coordinate key"]:
        """``P K``, by its coordinates where the basis spans the space kept."""
        # A copy in one fixed layout: sums round differently when the same keys lie differently in memory.
        K = torch.empty(K.shape, dtype=self.V.dtype, device=self.V.device).copy_(K)
        return self.space.basis.T @ K if self.space.keeps_basis else self.space.project(K)

    def _times_folded(self, C: Float[Tensor, "coordinate key"]) -> Float[Tensor, "coordinate key"]:
        """``G C`` with the keys folded in so far."""
        return C / self.ridge if self.G is None else self.G @ C

    def _times(self, C: Float[Tensor, "coordinate key"]) -> Float[Tensor, "coordinate key"]:
        """``M^-1 C``: ``G C`` less what the window takes away."""
        while len(self.images) < len(self.window):
            # Block by block, so that an image has the same bits whoever asks for it first.
            self.images.append(self._times_folded(self.window[len(self.images)]))
        solved = self._times_folded(C)
        if not self.window:
            return solved
        Z = woodbury_root(torch.cat(self.window, dim=1), torch.cat(self.images, dim=1))
        return solved - Z.T @ (Z @ C)

    def _close_window(self) -> None:
        A = torch.cat(self.window, dim=1)
        self.since += A.shape[1]
        if self.since >= self.refactor:
            self._compute_anew()
        else:
            self._fold(A)
        self.folded = len(self.blocks)
        self.window.clear()
        self.images.clear()

    def _fold(self, A: Float[Tensor, "coordinate key"]) -> None:
        Z = woodbury_root(A, self._times_folded(A))
        if self.G is None:
            self.G = torch.eye(len(A), dtype=A.dtype, device=A.device).div_(self.ridge)
        self.G.addmm_(Z.T, Z, alpha=-1)
        self.MV += A @ (A.T @ self.V)

    def _compute_anew(self) -> None:
        """``G = (A A^T + ridge I)^-1`` from all keys by Cholesky, D^3 operations."""
        self.G = None  # before the new one needs its place
        self.since = 0
        A = self._coordinates(_side_by_side(self.blocks, self.V))
        self.MV = A @ (A.T @ self.V) + self.ridge * self.V
        M = A @ A.T
        M.diagonal().add_(self.ridge)
        del A
        factor = cholesky(M)
        del M
        self.G = torch.cholesky_inverse(factor)

    def _holds(self, C: Float[Tensor, "coordinate fact"], Y: Float[Tensor, "coordinate fact"]) -> bool:
        """Whether ``|(M + C C^T) Y - C| / |C|`` is small for every column, as the probes see it."""
        MV = self.MV
        if self.window:
            A = torch.cat(self.window, dim=1)
            MV = MV + A @ (A.T @ self.V)
        missing = MV.T @ Y + (self.V.T @ C) @ (C.T @ Y) - self.V.T @ C
        condition = MV.norm() / PROBES**0.5 / self.ridge
        allowed = (RESIDUAL_BOUND + ROUNDING * condition) * C.norm(dim=0)
        return bool((missing.norm(dim=0) / PROBES**0.5 <= allowed).all())  # False for nan


def exactly(K: Float[Tensor, "row fact"]) -> Float[Tensor, "row fact"]:
    """As float64 where it lies, or on the CPU if it lies on a device that has none (MPS)."""
    return K.to(device="cpu" if K.device.type == "mps" else K.device, dtype=torch.float64)


def last_refactorisation(widths: Sequence[int], fold: int, refactor: int) -> int:
    """After how many of the blocks, given by their columns, an inverse that took them in turn was last made anew."""
    window = since = reached = 0
    for number, width in enumerate(widths, 1):
        window += width
        if window >= fold:
            since, window = since + window, 0
            if since >= refactor:
                since, reached = 0, number
    return reached


def history_bytes(d_mlp: int, kept: int, layers: int, past: int = 0) -> dict[str, int]:
    """Bytes the solves keep on the model's device once windows were folded, from shapes, in float64.

    Args:
        kept: directions of the null space.
        layers: edited layers.
        past: keys in the history.

    Returns:
        ``inverse`` and ``basis`` of one layer; ``held`` between edits by all layers; ``peak``, that and what one
        layer's refactorisation holds beside it: a second matrix, and the history's keys in float64.
    """
    thin = kept <= d_mlp // 2
    size = kept if thin else d_mlp
    inverse, basis = 8 * size**2, 8 * d_mlp * min(kept, d_mlp - kept)
    held = layers * (inverse + basis)
    return {
        "inverse": inverse,
        "basis": basis,
        "held": held,
        "peak": held + inverse + 2 * 8 * d_mlp * past,
    }


def _side_by_side(blocks: Sequence[Tensor], like: Tensor) -> Float[Tensor, "d_mlp past"]:
    if not blocks:
        return torch.zeros(len(like), 0).to(like)
    return torch.cat([block.to(like.device) for block in blocks], dim=1)


def _same_space(a: NullSpace, b: NullSpace) -> bool:
    if a is b:
        return True
    shapes = [(space.keeps_basis, space.kept, space.d_mlp, space.basis.dtype) for space in (a, b)]
    return shapes[0] == shapes[1] and torch.equal(a.basis, b.basis.to(a.basis.device))
