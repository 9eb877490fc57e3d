"""MEND's gradient transform: from the gradient of a fact's loss to a useful edit (Mitchell et al., 2110.11309).

The gradient of a loss with respect to a down projection is a sum over tokens of rank-one terms ``u delta^T``: ``u`` the
layer's input, ``delta`` the loss's gradient at its output. The transform (section 3.2) works on these factors, never on
the matrix. Both are normalised feature by feature, joined, and passed through residual blocks of low rank::

    z = [norm(u), norm(delta)]           norm(x) = (x - mean) / (std + 1e-7)
    h = z + relu(s_l * (U V z + b) + o_l)        per block; s_l, o_l belong to the layer l
    [u~, delta~] = h
    W_l <- W_l - alpha_l sum_tokens u~ delta~^T

``alpha_l`` is learned too. ``U`` begins as zero, so an untrained transform hands on its normalised input. Mean and
standard deviation are running figures of all tokens seen in training (Welford), frozen afterwards. As published, all
layers of one shape share them and ``U, V, b``; down projections all have one shape. Tokens whose input or gradient
is zero are left out. The derivative of relu at exactly 0 is 1, as published: with ``U = 0`` everything begins there.

The published code adds ``alpha`` times the transformed gradient instead of taking it away, and relies on training to
turn the sign; here the sign is the paper's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from nmke.config import Config

_EPS = 1e-7


class TransformConfig(Config):
    """What shapes the editor's tensors; defaults are the published ones, layers those of a model of 32."""

    layers: tuple[int, ...] = Field(
        (29, 30, 31), title="Edited layers", description="Which layers' down projections are changed."
    )
    rank: int = Field(
        1920,
        ge=1,
        le=65536,
        title="Rank",
        description="Rank of each block of the transform; at most the neurons plus the model's width.",
    )
    n_hidden: int = Field(
        1, ge=0, le=8, title="Hidden blocks", description="Blocks of the transform before its last."
    )

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers:
            raise ValueError("name at least one layer")
        return tuple(sorted(set(layers)))

    @property
    def shape(self) -> dict[str, object]:
        """The settings an editor is filed under."""
        return {name: getattr(self, name) for name in TransformConfig.model_fields}


@dataclass(frozen=True)
class Factors:
    """The rank-one terms of one layer's gradient, one a token, those that are zero left out.

    Attributes:
        u: down-projection inputs.
        delta: gradients of the loss at the down projection's output.
    """

    u: Float[Tensor, "token d_mlp"]
    delta: Float[Tensor, "token d_model"]

    @classmethod
    def of(cls, u: Float[Tensor, "row d_mlp"], delta: Float[Tensor, "row d_model"]) -> "Factors":
        """Of all tokens, as float32, without those that add nothing."""
        telling = (u != 0).any(-1) & (delta != 0).any(-1)
        return cls(u[telling].float(), delta[telling].float())


@dataclass(frozen=True)
class Update:
    """A change of one down projection, ``left @ right``; gradients flow to the transform."""

    left: Float[Tensor, "d_mlp token"]
    right: Float[Tensor, "token d_model"]


class Block(nn.Module):
    """``x + relu(scale * (U V x + b) + shift)``, scale and shift one row a layer.

    Args:
        width: of ``x``.
        rank: of ``U V``; no more than the width.
        layers: how many layers share it.
    """

    def __init__(self, width: int, rank: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, width)
        self.U = nn.Parameter(torch.zeros(width, rank))
        self.V = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.shift = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Float[Tensor, "token width"], place: int) -> Float[Tensor, "token width"]:
        """Args:
        place: which of the layers the tokens belong to.
        """
        inner = (x @ self.V.T) @ self.U.T + self.bias
        # clamp, whose derivative at 0 is 1, where relu's is 0.
        return x + (inner * self.scale[place] + self.shift[place]).clamp(min=0)


class GradientTransform(nn.Module):
    """The editor: normalisation, blocks and learned edit rates.

    Args:
        layers: the edited layers in rising order.
        edit_rate: what every ``alpha`` begins with.
        seed: of the blocks' ``V``.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        d_mlp: int,
        d_model: int,
        layers: Sequence[int],
        rank: int,
        n_hidden: int,
        edit_rate: float = 1e-4,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.d_mlp, self.layers = d_mlp, tuple(layers)
        width = d_mlp + d_model
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(
            Block(width, rank, len(self.layers), generator) for _ in range(n_hidden + 1)
        )
        self.rates = nn.Parameter(torch.full((len(self.layers),), edit_rate))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(width))
        #: Sum of squared distances to the mean.
        self.register_buffer("spread", torch.zeros(width))

    def observe(self, factors: Factors) -> None:
        """Let tokens join the running figures."""
        x = torch.cat([factors.u, factors.delta], dim=1)
        if not len(x):
            return
        old, new = int(self.count), len(x)
        mean = x.mean(0)
        away = mean - self.mean
        self.spread += ((x - mean) ** 2).sum(0) + away**2 * (old * new / (old + new))
        self.mean += away * (new / (old + new))
        self.count += new

    def normalised(self, factors: Factors) -> Float[Tensor, "token width"]:
        """``u`` and ``delta`` side by side, each feature by its running mean and standard deviation."""
        x = torch.cat([factors.u, factors.delta], dim=1)
        std = (self.spread / max(int(self.count) - 1, 1)).sqrt()
        return (x - self.mean) / (std + _EPS)

    def forward(self, factors: Factors, layer: int) -> Factors:
        """The transformed factors ``u~, delta~`` of one layer."""
        place = self.layers.index(layer)
        x = self.normalised(factors)
        for block in self.blocks:
            x = block(x, place)
        return Factors(x[:, : self.d_mlp], x[:, self.d_mlp :])

    def updates(self, factors: Mapping[int, Factors], training: bool = False) -> dict[int, Update]:
        """``-alpha_l sum u~ delta~^T`` per layer, in thin factors.

        Args:
            training: let the tokens join the running figures first, layer after layer.
        """
        found = {}
        for place, layer in enumerate(self.layers):
            if training:
                self.observe(factors[layer])
            transformed = self(factors[layer], layer)
            found[layer] = Update(-self.rates[place] * transformed.u.T, transformed.delta)
        return found
