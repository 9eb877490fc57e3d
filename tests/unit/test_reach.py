"""How far neurons reach: measured once, widened by edits, measured anew when that says little."""

from pathlib import Path

import pytest
import torch

from nmke.loading import LoadedModel
from nmke.progress import Silent
from nmke.reach import Reach, measure, reach_of


def directions_of(model: LoadedModel, layer: int) -> torch.Tensor:
    return model.readout.direction(model.W_out(layer))


def find(model: LoadedModel, directions: torch.Tensor) -> Reach:
    return reach_of(model, 1, directions, model.readout.unembedding.float(), 9, Silent())


def test_it_is_the_extreme_over_the_vocabulary(tiny: LoadedModel, cache: Path) -> None:
    found = find(tiny, directions_of(tiny, 1))
    moved = directions_of(tiny, 1) @ tiny.readout.unembedding.float().T
    assert torch.allclose(found.highest, moved.amax(1), atol=1e-5)
    assert torch.allclose(found.lowest, moved.amin(1), atol=1e-5)


def test_it_is_measured_once_per_model_and_layer(
    tiny: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find(tiny, directions_of(tiny, 1))
    monkeypatch.setattr("nmke.reach.measure", lambda *_: pytest.fail("measured again"))
    again = find(tiny, directions_of(tiny, 1))
    assert torch.equal(first.lowest, again.lowest) and torch.equal(first.highest, again.highest)


@pytest.mark.parametrize("size", [1e-3, 10.0])
def test_it_bounds_edited_weights_also_while_they_are_in_force(
    tiny: LoadedModel, cache: Path, size: float
) -> None:
    torch.manual_seed(0)
    changed = tiny.W_out(1) + size * torch.randn(tiny.d_mlp, tiny.d_model)
    with tiny.weights_in({1: tiny.as_stored(1, changed)}):
        directions = directions_of(tiny, 1)
        found = find(tiny, directions)
    exact = measure(directions, tiny.readout.unembedding.float(), 64, Silent())
    assert (found.highest >= exact.highest - 1e-4).all() and (found.lowest <= exact.lowest + 1e-4).all()
    widened = bool((found.highest > exact.highest + 1e-3).any())
    assert widened == (size == 1e-3)  # a change that large is measured anew instead


def test_sessions_do_not_leak_into_what_is_kept(tiny: LoadedModel, cache: Path) -> None:
    changed = tiny.as_stored(1, tiny.W_out(1) * 3)
    with tiny.weights_in({1: changed}):
        find(tiny, directions_of(tiny, 1))
    plain = measure(directions_of(tiny, 1), tiny.readout.unembedding.float(), 64, Silent())
    assert torch.allclose(find(tiny, directions_of(tiny, 1)).highest, plain.highest, atol=1e-5)
