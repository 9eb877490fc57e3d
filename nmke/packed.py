"""Linear maps of a handful of tokens on a CPU, with the weights laid out once for the kernel that reads them.

A z optimisation runs the same layers dozens of times on some ten tokens. A matrix product that small spends most of its
time rearranging the weights, each time anew. oneDNN can rearrange them once; measured on the default model that halves
the product. It costs a second and, for gradients, a third copy of the weights, so only layers that gradients run
through are packed, and only where the copies are small (:data:`MOST_BYTES`).

The plain form is ``torch.nn.functional.linear``; it is what runs everywhere else, and wherever torch lacks the kernel.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Weights whose packed copies would together take more than this stay as they are.
MOST_BYTES = 3 * 2**29
#: With more tokens than this the product itself is the cost.
MOST_ROWS = 128
#: Tokens the layout is chosen for; measured best of 1 to 64 at 14 to 48 tokens.
_ROWS_HINT = 64


def pack_linears(model: nn.Module) -> None:
    """Let the model's ``nn.Linear`` modules use packed weights where that is possible and small enough."""
    linears = [
        (owner, name, part)
        for owner in model.modules()
        for name, part in owner.named_children()
        if type(part) is nn.Linear
    ]
    copies = sum(2 * part.weight.numel() * part.weight.element_size() for _, _, part in linears)
    if copies > MOST_BYTES or not is_available():
        return
    for owner, name, part in linears:
        if part.weight.device.type == "cpu" and part.weight.dtype == torch.float32:
            setattr(owner, name, PackedLinear(part))


def is_available() -> bool:
    """Whether this build of torch has the kernels and they work."""
    try:
        weight, x = torch.eye(16), torch.ones(2, 16)
        return torch.equal(_apply(x, _pack(weight), None), x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class PackedLinear(nn.Module):
    """``x @ weight^T + bias`` around an existing module's parameters; packed on the first use with gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._source: Tensor | None = None
        self._forth: Any = None
        self._back: Any = None

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        few = x.numel() <= MOST_ROWS * x.shape[-1]
        if not (few and x.requires_grad and torch.is_grad_enabled()):
            return nn.functional.linear(x, self.weight, self.bias)
        self._repack()
        out: Tensor = _PackedProduct.apply(x.reshape(-1, x.shape[-1]), self._forth, self._back, self.bias)
        return out.view(*x.shape[:-1], -1)

    def _repack(self) -> None:
        """Pack anew when a session put other weights in force; holding the source keeps its address from reuse."""
        weight = self.weight.data
        if self._source is not None and self._source.data_ptr() == weight.data_ptr():
            return
        self._source = weight
        self._forth, self._back = _pack(weight), _pack(weight.T.contiguous())


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Any, back: Any, bias: Tensor | None) -> Tensor:
        ctx.back = back
        return _apply(x, forth, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _apply(gradients[0].contiguous(), ctx.back, None), None, None, None


def _pack(weight: Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_HINT)


def _apply(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
