"""Second moments, null spaces and top passages against a plain computation."""

from pathlib import Path

import pytest
import torch

from nmke.errors import Cancelled, EditError, ResourceError
from nmke.loading import LoadedModel
from nmke.model import POST
from nmke.moments import StatisticsConfig, collect_statistics, find_statistics
from nmke.progress import Progress, Silent
from nmke.texts import read_windows
from nmke.tokens import Batch
from tests.tiny import TEXT

LAYERS = (1, 2)


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> StatisticsConfig:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number}. {TEXT}" for number in range(20)), encoding="utf-8")
    return StatisticsConfig.make(text=str(text), tokens=700, window=32, passages=3)


def plain_keys(model: LoadedModel, config: StatisticsConfig, layer: int) -> torch.Tensor:
    """Every window alone, every real token's key, in float64 [token, d_mlp]."""
    windows = read_windows(model, config.text, config.tokens, config.window, config.seed, Silent())
    rows = []
    for window in windows:
        ids = window[window >= 0][None]
        rows.append(model.run(Batch(ids, torch.ones_like(ids)), [(POST, layer)])[(POST, layer)][0].double())
    return torch.cat(rows)


def test_the_second_moment_is_the_mean_outer_product_of_keys(
    tiny: LoadedModel, config: StatisticsConfig
) -> None:
    statistics = collect_statistics(tiny, config, LAYERS)
    assert statistics.tokens == 700
    for layer in LAYERS:
        keys = plain_keys(tiny, config, layer)
        assert torch.allclose(statistics.second_moment[layer].double(), keys.T @ keys / len(keys), atol=1e-5)


def test_the_null_space_keeps_directions_strictly_under_the_threshold(
    tiny: LoadedModel, config: StatisticsConfig
) -> None:
    statistics = collect_statistics(tiny, config, LAYERS)
    values = statistics.eigenvalues(1)
    # At an eigenvalue itself: strictly under it are 40.
    assert statistics.null_space(1, float(values[40])).kept == int((values < values[40]).sum()) == 40
    threshold = float(values[39] + values[40]) / 2
    space = statistics.null_space(1, threshold)
    assert space.kept == 40
    K = torch.randn(tiny.d_mlp, 2)
    eigen, vectors = torch.linalg.eigh(statistics.second_moment[1].double())
    kept = vectors[:, eigen < threshold].float()
    assert torch.allclose(space.project(K), kept @ kept.T @ K, atol=1e-4)


def test_a_direction_in_the_null_space_meets_ordinary_keys_less_than_the_threshold(
    llama: LoadedModel, config: StatisticsConfig
) -> None:
    statistics = collect_statistics(llama, config, LAYERS)
    threshold = float(statistics.eigenvalues(1)[32])
    keys = plain_keys(llama, config, 1)
    inside = statistics.null_space(1, threshold).project(torch.randn(llama.d_mlp, 5, dtype=torch.float64))
    response = (keys @ (inside / inside.norm(dim=0))).pow(2).mean(0)
    assert (response <= threshold * (1 + 1e-4)).all()
    anywhere = torch.randn(llama.d_mlp, 5, dtype=torch.float64)
    assert ((keys @ (anywhere / anywhere.norm(dim=0))).pow(2).mean(0) > response).all()


def test_a_threshold_under_every_eigenvalue_is_refused_with_the_smallest(
    llama: LoadedModel, config: StatisticsConfig
) -> None:
    statistics = collect_statistics(llama, config, LAYERS)
    with pytest.raises(EditError, match="Raise the threshold above"):
        statistics.null_space(1, -1.0)


def test_passages_are_where_the_neuron_fires_most(llama: LoadedModel, config: StatisticsConfig) -> None:
    statistics = collect_statistics(llama, config, LAYERS)
    keys = plain_keys(llama, config, 2)
    for neuron in (0, 17, 63):
        passages = statistics.passages(llama.tokenizer, 2, neuron)
        assert len(passages) == 3
        assert abs(passages[0].value) == pytest.approx(float(keys[:, neuron].abs().max()), abs=1e-5)
        assert abs(passages[0].value) >= abs(passages[1].value) >= abs(passages[2].value)


def test_statistics_are_computed_once_and_then_read_from_disk(
    llama: LoadedModel, config: StatisticsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_statistics(llama, config, LAYERS) is None
    first = collect_statistics(llama, config, LAYERS)
    monkeypatch.setattr(llama, "run", lambda *_, **__: pytest.fail("ran the model again"))
    again = collect_statistics(llama, config, LAYERS)
    assert torch.equal(first.second_moment[1], again.second_moment[1])


def test_another_text_or_another_layer_is_another_entry(llama: LoadedModel, config: StatisticsConfig) -> None:
    collect_statistics(llama, config, LAYERS)
    assert find_statistics(llama, config, (1,)) is None
    assert find_statistics(llama, config.changed(tokens=600), LAYERS) is None
    Path(config.text).write_text("changed " * 2000, encoding="utf-8")
    assert find_statistics(llama, config, LAYERS) is None


def test_cancelling_keeps_nothing_on_disk(llama: LoadedModel, config: StatisticsConfig, cache: Path) -> None:
    class Second(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage == "reading the statistics text" and done > 0:
                raise Cancelled

    with pytest.raises(Cancelled):
        collect_statistics(llama, config, LAYERS, Second())
    assert find_statistics(llama, config, LAYERS) is None
    assert not list(cache.rglob("*.safetensors"))


def test_a_text_that_is_missing_or_too_short_is_named(
    llama: LoadedModel, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(ResourceError, match="no text file"):
        collect_statistics(llama, StatisticsConfig.make(text=str(tmp_path / "none.txt")), LAYERS)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(EditError, match="has only"):
        collect_statistics(llama, StatisticsConfig.make(text=str(tmp_path / "short.txt")), LAYERS)
