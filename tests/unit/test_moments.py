"""Second moments, null spaces and top passages against a plain computation."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from nmke import moments, moments_collect
from nmke.errors import Cancelled, EditError, ResourceError
from nmke.loading import LoadedModel
from nmke.moments import (
    Statistics,
    StatisticsConfig,
    collect_statistics,
    find_statistics,
    statistics_folder,
)
from nmke.moments_collect import SymmetricSum, TopPassages, equal_batches
from nmke.progress import Progress, Silent
from nmke.sites import POST
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


def test_a_text_that_is_missing_or_too_short_is_named(
    llama: LoadedModel, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(ResourceError, match="no text file"):
        collect_statistics(llama, StatisticsConfig.make(text=str(tmp_path / "none.txt")), LAYERS)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(EditError, match="has only"):
        collect_statistics(llama, StatisticsConfig.make(text=str(tmp_path / "short.txt")), LAYERS)


# ---- batches and sums ----------------------------------------------------------------------------------------------


def test_batches_hold_windows_of_one_length_and_every_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_collect, "BATCH_TOKENS", 8)
    windows = torch.full((6, 4), 7)
    windows[2, 2:] = windows[4, 1:] = -1
    assert [rows.tolist() for rows in equal_batches(windows)] == [[0, 1], [3, 5], [2], [4]]


def test_no_position_of_a_batch_is_a_pad(
    llama: LoadedModel, config: StatisticsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_batches(llama, monkeypatch)
    assert collect_statistics(llama, config, LAYERS).tokens == 700
    assert all(batch.mask.all() for batch in seen)
    assert sum(batch.ids.numel() for batch in seen) == 700


def test_no_layer_after_the_last_needed_one_is_run(llama: LoadedModel, config: StatisticsConfig) -> None:
    ran: set[int] = set()
    hooks = [
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: ran.add(layer))
        for layer, block in enumerate(llama.bridge.blocks)
    ]
    head = llama.bridge.unembed.register_forward_pre_hook(lambda *_: pytest.fail("the unembedding was run"))
    try:
        collect_statistics(llama, config, LAYERS)
    finally:
        for hook in (*hooks, head):
            hook.remove()
    assert ran == {0, 1, 2}
    assert llama.n_layers == 4


def added_up(sums: SymmetricSum, batches: list[torch.Tensor]) -> torch.Tensor:
    for keys in batches:
        sums.add(keys)
    return sums.mean(sum(len(keys) for keys in batches)).double()


@pytest.mark.parametrize("d_mlp", [1, 24, 25, 70])
@pytest.mark.parametrize("compensated", [False, True])
def test_the_panels_of_a_symmetric_sum_make_the_whole_matrix(
    d_mlp: int, compensated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_collect, "PANEL", 24)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(50, d_mlp, generator=generator) for _ in range(3)]
    mean = added_up(SymmetricSum.zero(d_mlp, torch.device("cpu"), compensated), batches)
    keys = torch.cat(batches).double()
    assert torch.allclose(mean, keys.T @ keys / 150, atol=1e-6)
    assert torch.equal(mean, mean.T)


def test_compensated_sums_lose_as_little_as_float64_and_plain_float32_loses_more() -> None:
    # Values of few bits make every product exact, so that only the sum over the batches can round.
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(1, 1024, (2, 8), generator=generator) / 1024 for _ in range(3_000)]
    keys = torch.cat(batches).double()
    exact = (keys.T @ keys / len(keys)).float().double()
    plain = torch.zeros(8, 8)
    for batch in batches:
        plain += batch.T @ batch
    cpu = torch.device("cpu")
    assert torch.equal(added_up(SymmetricSum.zero(8, cpu, compensated=False), batches), exact)
    assert torch.equal(added_up(SymmetricSum.zero(8, cpu, compensated=True), batches), exact)
    assert not torch.equal((plain / len(keys)).double(), exact)
    assert (plain.double() / len(keys) - exact).abs().max() > 1e-7


def test_the_ranking_keeps_the_largest_in_size_with_their_places() -> None:
    top = TopPassages.none(2, 2, torch.device("cpu"))
    top.add(torch.tensor([5, 6]), torch.tensor([[[1.0, 0.0], [-3.0, 0.5]], [[2.0, 0.0], [0.0, 0.0]]]))
    top.add(torch.tensor([9]), torch.tensor([[[0.0, -4.0], [2.5, 4.5]]]))
    assert top.value.tolist() == [[-3.0, 4.5], [2.5, 0.5]]
    assert top.window.tolist() == [[5, 9], [9, 5]]
    assert top.position.tolist() == [[1, 1], [1, 1]]


def test_without_passages_only_the_moments_are_collected(
    llama: LoadedModel, config: StatisticsConfig
) -> None:
    statistics = collect_statistics(llama, config.changed(passages=0), LAYERS)
    assert statistics.passages(llama.tokenizer, 1, 0) == []
    assert float(statistics.second_moment[1].trace()) > 0


# ---- stopping and going on -----------------------------------------------------------------------------------------

BATCHES = 12  # 21 windows of 32 tokens, two a batch, and a last window of 28


class StopsAt(Progress):
    """Raises once ``windows`` windows were read."""

    def __init__(self, windows: int, error: type[BaseException] = Cancelled) -> None:
        self.windows, self.error = windows, error

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage == "reading the statistics text" and done >= self.windows:
            raise self.error


def watch_batches(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch the model runs from now on."""
    seen: list[Batch] = []
    run = model.run

    def watched(batch: Batch, *arguments: Any, **named: Any) -> Any:
        seen.append(batch)
        return run(batch, *arguments, **named)

    monkeypatch.setattr(model, "run", watched)
    return seen


def assert_same_bits(one: Statistics, other: Statistics) -> None:
    assert one.tokens == other.tokens
    for layer in LAYERS:
        assert torch.equal(one.second_moment[layer], other.second_moment[layer])
        assert torch.equal(one.top_value[layer], other.top_value[layer])
        assert torch.equal(one.top_window[layer], other.top_window[layer])
        assert torch.equal(one.top_position[layer], other.top_position[layer])


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_collect, "BATCH_TOKENS", 64)
    monkeypatch.setattr(moments_collect, "PANEL", 24)


@pytest.fixture
def uninterrupted(
    llama: LoadedModel, config: StatisticsConfig, small_batches: None, tmp_path: Path
) -> Statistics:
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("NMKE_HOME", str(tmp_path / "uninterrupted"))
        return collect_statistics(llama, config, LAYERS)


def left_over(cache: Path) -> list[Path]:
    return [path for path in (cache / "statistics").iterdir() if not path.is_dir() or "partial" in path.name]


def cancelled(model: LoadedModel, config: StatisticsConfig, windows: int) -> Path:
    """The checkpoint of a collection cancelled after so many windows."""
    with pytest.raises(Cancelled):
        collect_statistics(model, config, LAYERS, StopsAt(windows))
    folder = statistics_folder(model, config, LAYERS)
    return folder.with_name(f"{folder.name}.partial.safetensors")


@pytest.mark.parametrize(("windows", "batches_left"), [(0, 12), (2, 11), (10, 7), (21, 1), (22, 0)])
def test_a_cancelled_collection_goes_on_where_it_stopped(
    llama: LoadedModel,
    config: StatisticsConfig,
    cache: Path,
    uninterrupted: Statistics,
    monkeypatch: pytest.MonkeyPatch,
    windows: int,
    batches_left: int,
) -> None:
    cancelled(llama, config, windows)
    assert find_statistics(llama, config, LAYERS) is None
    seen = watch_batches(llama, monkeypatch)
    assert_same_bits(collect_statistics(llama, config, LAYERS), uninterrupted)
    assert len(seen) == batches_left
    assert left_over(cache) == []


def test_a_collection_cancelled_again_and_again_ends_with_the_same_bits(
    llama: LoadedModel, config: StatisticsConfig, uninterrupted: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_batches(llama, monkeypatch)
    for windows in (4, 4, 12, 20, 22):
        cancelled(llama, config, windows)
    assert_same_bits(collect_statistics(llama, config, LAYERS), uninterrupted)
    assert len(seen) == BATCHES


def test_compensated_sums_go_on_with_the_same_bits(
    llama: LoadedModel, config: StatisticsConfig, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_collect, "exact_dtype", lambda like: torch.float32)
    cancelled(llama, config, 10)
    stopped = collect_statistics(llama, config, LAYERS)
    shutil.rmtree(stopped.folder)
    assert_same_bits(collect_statistics(llama, config, LAYERS), stopped)


def test_a_killed_collection_goes_on_from_its_last_checkpoint(
    llama: LoadedModel, config: StatisticsConfig, uninterrupted: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_collect, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(moments_collect, "CHECKPOINT_SHARE", 0)
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(llama, config, LAYERS, StopsAt(10, KeyboardInterrupt))
    seen = watch_batches(llama, monkeypatch)
    assert_same_bits(collect_statistics(llama, config, LAYERS), uninterrupted)
    assert len(seen) == 7


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "cut short":
            path.write_bytes(data[: len(data) // 2])
        case "emptied":
            path.write_bytes(b"")
        case "one bit turned":
            data[-100] ^= 1
            path.write_bytes(data)
        case "text":
            path.write_text("no tensors here")
        case "a folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("how", ["cut short", "emptied", "one bit turned", "text", "a folder"])
def test_a_damaged_checkpoint_is_ignored(
    llama: LoadedModel,
    config: StatisticsConfig,
    cache: Path,
    uninterrupted: Statistics,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    damage(cancelled(llama, config, 10), how)
    seen = watch_batches(llama, monkeypatch)
    assert_same_bits(collect_statistics(llama, config, LAYERS), uninterrupted)
    assert len(seen) == BATCHES
    assert left_over(cache) == []


def test_a_checkpoint_of_other_settings_weights_or_sums_is_never_used(
    llama: LoadedModel,
    gpt2: LoadedModel,
    config: StatisticsConfig,
    small_batches: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign = [cancelled(llama, config.changed(seed=1), 10), cancelled(gpt2, config, 10)]
    with monkeypatch.context() as other:
        other.setattr(moments_collect, "PANEL", 32)
        foreign.append(cancelled(llama, config, 10))
    own, contents = foreign[-1], [path.read_bytes() for path in foreign]
    seen = watch_batches(llama, monkeypatch)
    for content in contents:
        own.write_bytes(content)
        statistics = collect_statistics(llama, config, LAYERS)
        shutil.rmtree(statistics.folder)
    assert len(seen) == 3 * BATCHES


@pytest.mark.parametrize("error", [SafetensorError("no space"), OSError(errno.ENOSPC, "no space")])
def test_a_disk_too_full_for_a_checkpoint_costs_only_the_checkpoint(
    llama: LoadedModel,
    config: StatisticsConfig,
    uninterrupted: Statistics,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(moments_collect, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(moments_collect, "save_file", full)
    cancelled(llama, config, 10)
    assert_same_bits(collect_statistics(llama, config, LAYERS), uninterrupted)


def test_a_disk_too_full_for_the_statistics_is_named(
    llama: LoadedModel, config: StatisticsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(moments, "save_file", full)
    with pytest.raises(ResourceError, match="Free some space"):
        collect_statistics(llama, config, LAYERS)
    assert find_statistics(llama, config, LAYERS) is None
