"""How far a down projection moved, in numbers that depend on no seed; all in float64.

``W_0`` is the loaded matrix, ``W`` the edited one, both [d_mlp, d_model]; row ``i`` is neuron ``i``'s value vector.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class NeuronChanges(NamedTuple):
    """Per neuron; NaN where a vector is zero, which has no direction and no relative size.

    Attributes:
        cosine: between the original and the edited vector.
        norm_change: ``(|w| - |w_0|) / |w_0|``.
        step: ``|w - w_0| / |w_0|``: how far the vector moved, as a share of its length.
    """

    cosine: Float[Tensor, " d_mlp"]
    norm_change: Float[Tensor, " d_mlp"]
    step: Float[Tensor, " d_mlp"]


class Subspace(NamedTuple):
    """The k directions of the residual stream that a matrix writes most strongly.

    Attributes:
        basis: orthonormal columns, the strongest first.
        singular: all singular values of the matrix, largest first.
    """

    basis: Float[Tensor, "d_model k"]
    singular: Float[Tensor, " direction"]

    @property
    def gap(self) -> float:
        """The k-th singular value over the next one: near 1 the subspace is hardly defined; infinite without a next."""
        return gap_after(self.singular, self.basis.shape[1])


def in_double(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The matrix in float64, on the CPU where its device has none."""
    return W.to(device="cpu" if W.device.type == "mps" else W.device, dtype=torch.float64)


def relative_norm(W: Float[Tensor, "d_mlp d_model"], W_0: Float[Tensor, "d_mlp d_model"]) -> float:
    """``|W - W_0|_F / |W_0|_F``: the size of the change against the matrix."""
    return float((in_double(W) - in_double(W_0)).norm() / in_double(W_0).norm())


def untouched(
    W: Float[Tensor, "d_mlp d_model"], W_0: Float[Tensor, "d_mlp d_model"]
) -> Bool[Tensor, " d_mlp"]:
    """Neurons whose vectors are equal in every number (a zero equals a negative zero)."""
    same: Tensor = (W == W_0).all(1)
    return same


def neuron_changes(W: Float[Tensor, "d_mlp d_model"], W_0: Float[Tensor, "d_mlp d_model"]) -> NeuronChanges:
    """Cosine, change of length and relative step of every neuron's vector.

    The cosine comes from the angle's half chord, ``1 - |u - u_0|^2 / 2`` of the unit vectors, which keeps its digits
    for vectors that hardly turned.
    """
    W, W_0 = in_double(W), in_double(W_0)
    length, length_0 = W.norm(dim=1), W_0.norm(dim=1)
    turned = W / length[:, None] - W_0 / length_0[:, None]
    cosine = 1 - turned.square().sum(1) / 2
    change = (length - length_0) / length_0
    step = (W - W_0).norm(dim=1) / length_0
    none = length_0 == 0
    nan = torch.full_like(length, float("nan"))
    return NeuronChanges(
        torch.where(none | (length == 0), nan, cosine).clamp(-1, 1),
        torch.where(none, nan, change),
        torch.where(none, nan, step),
    )


def leading_subspace(W: Float[Tensor, "d_mlp d_model"], k: int) -> Subspace:
    """The k leading right singular vectors, from the eigenvectors of ``W^T W``."""
    W = in_double(W)
    values, vectors = torch.linalg.eigh(W.T @ W)  # rising
    values = values.clamp_min(0).flip(0)
    return Subspace(vectors.flip(1)[:, : min(k, len(values))], values.sqrt())


def gap_after(singular: Float[Tensor, " direction"], k: int) -> float:
    """``sigma_k / sigma_{k+1}``: how well the k leading directions are told from the rest."""
    rest = float(singular[k]) if k < len(singular) else 0.0
    return float(singular[k - 1]) / rest if rest else float("inf")


def clearest_k(singular: Float[Tensor, " direction"], most: int = 50) -> int:
    """The k up to ``most`` with the widest gap after it: the subspace whose angles say most."""
    return max(range(1, min(most, len(singular) - 1) + 1), key=lambda k: gap_after(singular, k), default=1)


def principal_angles(
    basis: Float[Tensor, "d_model k"], basis_0: Float[Tensor, "d_model k"]
) -> Float[Tensor, " k"]:
    """Angles in degrees between two subspaces given by orthonormal columns, the smallest first.

    Small angles come from their sines and large ones from their cosines (Björck and Golub, 1973): the arc cosine of a
    number near 1 has lost half of its digits.
    """
    overlap = basis_0.T @ basis
    cosines = torch.linalg.svdvals(overlap).clamp(0, 1)  # falling: smallest angle first
    sines = torch.linalg.svdvals(basis - basis_0 @ overlap).clamp(0, 1).flip(0)
    return torch.rad2deg(torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin()))


def change_spectrum(
    W: Float[Tensor, "d_mlp d_model"], W_0: Float[Tensor, "d_mlp d_model"]
) -> Float[Tensor, " direction"]:
    """The singular values of ``W - W_0``, largest first, without those that are zero up to rounding.

    From the eigenvalues of the smaller Gram matrix of the neurons that moved, so values below about 1e-7 of the
    largest are not told from zero.
    """
    change = in_double(W) - in_double(W_0)
    change = change[(change != 0).any(1)]
    if not len(change):
        return torch.zeros(0, dtype=torch.float64, device=change.device)
    gram = change @ change.T if change.shape[0] <= change.shape[1] else change.T @ change
    values = torch.linalg.eigvalsh(gram).flip(0)
    floor = values[0] * len(values) * torch.finfo(torch.float64).eps
    return values[values > floor].sqrt()


def effective_rank(singular: Float[Tensor, " direction"]) -> float:
    """``exp(H(sigma / sum sigma))``: how many directions share the change (Roy and Vetterli, 2007); 0 without any."""
    if not len(singular):
        return 0.0
    share = singular / singular.sum()
    return float((-(share * share.log()).nan_to_num()).sum().exp())


def stable_rank(singular: Float[Tensor, " direction"]) -> float:
    """``|Delta|_F^2 / sigma_1^2``: the same, weighed by energy; 0 without any."""
    return float((singular / singular[0]).square().sum()) if len(singular) else 0.0
