"""Packed linear maps against torch's own."""

import copy

import pytest
import torch
from torch import nn

from nmke.loading import LoadedModel
from nmke.packed import MOST_ROWS, PackedLinear, is_available, pack_linears

needs_kernels = pytest.mark.skipif(not is_available(), reason="this build of torch has no packed kernels")


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 8), (2, 1, 40), (MOST_ROWS + 1, 8)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [1, 17, 64])
def test_output_and_gradient_are_the_plain_ones(shape: tuple[int, ...], bias: bool, d_out: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(shape[-1], d_out, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    packed = PackedLinear(plain)
    assert torch.allclose(packed(one), plain(other), atol=1e-5)
    packed(one).square().sum().backward()
    plain(other).square().sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-4)


@needs_kernels
def test_other_weights_in_force_are_the_ones_that_compute() -> None:
    plain = nn.Linear(8, 8).requires_grad_(False)
    packed, x = PackedLinear(plain), torch.randn(2, 8, requires_grad=True)
    first, kept = packed(x), plain.weight.data
    plain.weight.data = torch.randn(8, 8)
    assert torch.allclose(packed(x), plain(x), atol=1e-5)
    plain.weight.data = kept
    assert torch.equal(packed(x), first)


def test_nothing_is_packed_without_gradients() -> None:
    packed = PackedLinear(nn.Linear(8, 8).requires_grad_(False))
    packed(torch.randn(2, 8))
    assert not packed.neighbours._layouts[packed]._sources


def test_a_model_too_large_for_the_copies_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmke.packed.MOST_BYTES", 100)
    model = nn.Sequential(nn.Linear(8, 8))
    pack_linears(model)
    assert type(model[0]) is nn.Linear


def test_half_precision_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.ReLU())
    pack_linears(model)
    assert type(model[0]) is nn.Linear


def test_a_torch_without_the_kernels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr("nmke.packed._pack", missing)
    assert not is_available()


class Attention(nn.Module):
    """Three maps of one input and one of another, as in an attention."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, width, bias=bias) for width in (8, 4, 4))
        self.o = nn.Linear(8, 8, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.q(x) * torch.cat([self.k(x), self.v(x)], -1))


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
def test_maps_of_one_input_are_laid_out_as_one_and_give_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    plain = Attention(bias).requires_grad_(False)
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    with torch.no_grad():
        packed(torch.randn(1, 8))
    for _ in range(2):
        x = torch.randn(2, 5, 8)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        for module, given in ((packed, one), (plain, other)):
            module(given).square().sum().backward()
        assert torch.allclose(one.grad, other.grad, atol=1e-4)
        assert torch.allclose(packed(one), plain(other), atol=1e-5)
    layout = packed.q.neighbours._layouts
    assert layout[packed.q] is layout[packed.k] is layout[packed.v]
    assert layout[packed.o] is not layout[packed.q]
    assert not layout[packed.q]._waiting


@needs_kernels
def test_an_answer_laid_out_as_one_is_never_taken_for_another_input_or_other_weights() -> None:
    torch.manual_seed(0)
    plain = Attention(True).requires_grad_(False)
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    inputs = [torch.randn(2, 8, requires_grad=True) for _ in range(3)]
    packed(inputs[0].detach())
    packed.q(inputs[1])
    assert torch.allclose(packed.k(inputs[2]), plain.k(inputs[2]), atol=1e-5)
    packed.q(inputs[2])
    changed = torch.randn(4, 8)
    packed.k.weight.data = changed
    plain.k.weight.data = changed
    assert torch.allclose(packed.k(inputs[2]), plain.k(inputs[2]), atol=1e-5)
    x = torch.randn(2, 8).requires_grad_()
    packed.q(x)
    with torch.no_grad():
        x.add_(1)
    assert torch.allclose(packed.v(x), plain.v(x), atol=1e-5)


@needs_kernels
def test_the_first_product_has_the_bits_of_all_later_ones() -> None:
    torch.manual_seed(0)
    for seen_before in (True, False):
        packed = Attention(False).requires_grad_(False)
        pack_linears(packed)
        x = torch.randn(2, 5, 8, requires_grad=True)
        if seen_before:
            packed(x.detach())
        layouts = dict(packed.q.neighbours._layouts)
        first = packed(x)
        packed(x.detach())
        assert torch.equal(packed(x), first)
        assert packed.q.neighbours._layouts == layouts
        assert (layouts[packed.q] is layouts[packed.k]) == seen_before


@needs_kernels
def test_a_replayed_model_has_its_maps_laid_out_before_the_first_gradient(llama: LoadedModel) -> None:
    assert llama.unhooked is not None
    attention = llama.unhooked.layers[2].self_attn
    layouts = attention.q_proj.neighbours._layouts
    assert layouts[attention.q_proj] is layouts[attention.k_proj] is layouts[attention.v_proj]
    assert layouts[attention.o_proj] is not layouts[attention.q_proj]
