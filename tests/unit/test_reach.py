"""How far neurons reach: measured once, widened by edits, measured anew when that says little."""

import dataclasses
from pathlib import Path

import pytest
import torch

from nmke.loading import LoadedModel
from nmke.progress import Silent
from nmke.reach import FAR, Reach, measure, reach_of


def directions_of(model: LoadedModel, layer: int) -> torch.Tensor:
    return model.readout.direction(model.W_out(layer))


def find(model: LoadedModel, directions: torch.Tensor) -> Reach:
    return reach_of(model, 1, directions, model.readout.unembedding.float(), 9, Silent(), 0.5)


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
    for field in dataclasses.fields(Reach):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))


@pytest.mark.parametrize("vocabulary", [2, 9, 320, 1000])
def test_far_tokens_are_the_farthest_each_way_and_the_rest_lies_between_its_bounds(vocabulary: int) -> None:
    torch.manual_seed(0)
    X, U = torch.randn(11, 5), torch.randn(vocabulary, 5)
    found = measure(X, U, 4, Silent())
    ordered, count = (X @ U.T).sort(1).values, min(FAR, vocabulary // 8)
    assert found.far.shape == (11, 2 * count)
    assert torch.allclose(found.far_moves, (X @ U.T).gather(1, found.far), atol=1e-5)
    low, high = ordered[:, :count], ordered[:, vocabulary - count :]
    assert torch.allclose(found.far_moves.sort(1).values, torch.cat([low, high], 1), atol=1e-5)
    assert torch.allclose(found.lowest_rest, ordered[:, count], atol=1e-5)
    assert torch.allclose(found.highest_rest, ordered[:, vocabulary - count - 1], atol=1e-5)


def test_no_token_is_far_twice_even_where_all_are_moved_alike() -> None:
    found = measure(torch.zeros(3, 5), torch.randn(100, 5), 2, Silent())
    assert all(len(row.unique()) == 24 for row in found.far)


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
    others = (directions @ tiny.readout.unembedding.float().T).scatter(1, found.far, torch.nan)
    assert (found.highest_rest >= others.nan_to_num(-1e9).amax(1) - 1e-4).all()
    assert (found.lowest_rest <= others.nan_to_num(1e9).amin(1) + 1e-4).all()
    widened = bool((found.highest_rest > exact.highest_rest + 1e-3).any())
    assert widened == (size == 1e-3)  # a change that large is measured anew instead


def test_sessions_do_not_leak_into_what_is_kept(tiny: LoadedModel, cache: Path) -> None:
    changed = tiny.as_stored(1, tiny.W_out(1) * 3)
    with tiny.weights_in({1: changed}):
        find(tiny, directions_of(tiny, 1))
    plain = measure(directions_of(tiny, 1), tiny.readout.unembedding.float(), 64, Silent())
    assert torch.allclose(find(tiny, directions_of(tiny, 1)).highest, plain.highest, atol=1e-5)
