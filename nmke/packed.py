"""Linear maps of a handful of tokens on a CPU, with the weights laid out once for the kernel that reads them.

A z optimisation runs the same layers dozens of times on some ten tokens. A matrix product that small spends most of its
time rearranging the weights, each time anew. oneDNN can rearrange them once; measured on the default model that halves
the product. It costs a second and, for gradients, a third copy of the weights, so only layers that gradients run
through are packed, and only where the copies are small (:data:`MOST_BYTES`).

Maps of one input, such as the queries, keys and values of an attention, are laid out as one: fewer and larger products,
measured a tenth of a step. Which maps those are is seen in a pass beforehand, so no architecture is named.

The plain form is ``torch.nn.functional.linear``; it is what runs everywhere else, and wherever torch lacks the kernel.
"""

import weakref
from collections.abc import Sequence
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
    beside: dict[int, list[PackedLinear]] = {}
    for owner, name, part in linears:
        if part.weight.device.type == "cpu" and part.weight.dtype == torch.float32:
            packed = PackedLinear(part)
            setattr(owner, name, packed)
            beside.setdefault(id(owner), []).append(packed)
    for parts in beside.values():
        for kind in {part.kind for part in parts}:
            _Neighbours([part for part in parts if part.kind == kind])


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
        self.neighbours = _Neighbours([self])

    @property
    def kind(self) -> tuple[int, bool]:
        """What maps must share to be laid out as one: the width they read, and whether they have a bias."""
        return self.weight.shape[1], self.bias is None

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        few = x.numel() <= MOST_ROWS * x.shape[-1]
        if few and x.requires_grad and torch.is_grad_enabled():
            return self.neighbours.product(self, x)
        self.neighbours.watch(self, x)
        return nn.functional.linear(x, self.weight, self.bias)


class _Neighbours:
    """Maps of one module that might read one input.

    Which do is seen in a pass without gradients (:func:`nmke.replay.unhook` makes one). With the first product it is
    settled for good, because maps laid out as one may round differently: the same edit must always have the same bits.
    """

    def __init__(self, parts: Sequence[PackedLinear]) -> None:
        self._parts = list(parts)
        self._seen: dict[PackedLinear, int] = {}
        self._layouts = {part: _Layout([part]) for part in parts}
        self._input: Tensor | None = None
        self._settled = len(parts) == 1
        for part in parts:
            # Past nn.Module's bookkeeping: the neighbours are no parts of this part.
            object.__setattr__(part, "neighbours", self)

    def product(self, part: PackedLinear, x: Tensor) -> Tensor:
        self._settled, self._input = True, None
        return self._layouts[part].product(part, x)

    def watch(self, part: PackedLinear, x: Tensor) -> None:
        """Note which maps are given the same input one after the other."""
        if self._settled:
            return
        if part in self._seen:  # another pass began before every map was asked
            self._seen.clear()
            self._input = None
        number = max(self._seen.values(), default=0)
        self._seen[part] = number if self._input is x else number + 1
        self._input = x
        if len(self._seen) == len(self._parts):
            self._settled, self._input = True, None
            for one in set(self._seen.values()):
                group = [each for each, number in self._seen.items() if number == one]
                self._layouts |= dict.fromkeys(group, _Layout(group))


class _Layout:
    """Packed weights of some maps of one input, and what the maps not yet asked for the last input will answer."""

    def __init__(self, parts: Sequence[PackedLinear]) -> None:
        self._parts = list(parts)
        self._sources: list[Tensor] = []
        self._forth: Any = None
        self._back: Any = None
        self._bias: Tensor | None = None
        self._waiting: dict[PackedLinear, Tensor] = {}
        self._input: Any = None
        self._version = -1

    def product(self, part: PackedLinear, x: Tensor) -> Tensor:
        known = self._input is not None and self._input() is x and self._version == x._version
        if not (known and part in self._waiting and self._is_current()):
            self._compute(x)
        return self._waiting.pop(part)

    def _compute(self, x: Tensor) -> None:
        if not self._is_current():
            self._pack()
        out: Tensor = _PackedProduct.apply(x.reshape(-1, x.shape[-1]), self._forth, self._back, self._bias)
        answers = out.view(*x.shape[:-1], -1).split([len(part.weight) for part in self._parts], dim=-1)
        self._waiting = dict(zip(self._parts, answers, strict=True))
        self._input, self._version = weakref.ref(x), x._version

    def _is_current(self) -> bool:
        """Whether the weights in force are those laid out; holding these keeps their addresses from reuse."""
        return len(self._sources) == len(self._parts) and all(
            source.data_ptr() == part.weight.data_ptr()
            for source, part in zip(self._sources, self._parts, strict=True)
        )

    def _pack(self) -> None:
        self._sources = [part.weight.data for part in self._parts]
        weight = self._sources[0] if len(self._parts) == 1 else torch.cat(self._sources)
        self._forth, self._back = _pack(weight), _pack(weight.T.contiguous())
        biases: list[Tensor] = [part.bias for part in self._parts if part.bias is not None]
        self._bias = torch.cat(biases) if len(biases) > 1 else next(iter(biases), None)


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
