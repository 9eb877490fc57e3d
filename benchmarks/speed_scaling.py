"""Parts of benchmarks/speed.py: the solve by its history, widths and vocabularies, second moments."""

import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.timing import Stage, median_seconds, print_rows, timed
from nmke.history import KeyHistory, history_bytes
from nmke.moments import NullSpace
from nmke.moments_collect import Collected
from nmke.partition import Anchor, Tilts, by_sum, log_partition
from nmke.progress import Silent
from nmke.reach import measure
from nmke.sites import POST
from nmke.solve import ridge_solve
from nmke.texts import read_windows
from nmke.tokens import Batch

HISTORIES = (10, 100, 1000, 2000)


def history_part(d_mlp: int, d_model: int, kept: float = 0.7, edits: int = 24) -> dict[str, Any]:
    """One layer's solve for one more edit after so many: dense, and by the running inverse. Keys are synthetic."""
    torch.manual_seed(0)
    space = _null_space(d_mlp, round(kept * d_mlp))
    P = space.project(torch.eye(d_mlp, dtype=torch.float64))
    keys = [_heavy_tailed(d_mlp, 1) for _ in range(max(HISTORIES) + edits)]
    rows, histories = {}, {}
    for past in HISTORIES:
        histories[past] = KeyHistory()
        R = torch.randn(d_model, 1)
        histories[past].solve(0, keys[:past], keys[past], R, space, 1.0)  # what a session has at hand by then
    fast: dict[int, list[float]] = {past: [] for past in HISTORIES}
    for step in range(edits):  # histories in turn, so that a noisy neighbour meets all of them
        for past in HISTORIES:
            blocks, K, R = keys[: past + step], keys[past + step], torch.randn(d_model, 1)
            (left, right), spent = timed(partial(histories[past].solve, 0, blocks, K, R, space, 1.0))
            fast[past].append(spent)
    for past in HISTORIES:
        stage = Stage(f"solve, one layer, history {past}", unit="relative")
        blocks, K, R = keys[: past + edits - 1], keys[past + edits - 1], torch.randn(d_model, 1)
        left, right = histories[past].solve(0, blocks, K, R, space, 1.0)
        X, spent = timed(partial(ridge_solve, K, R, torch.cat(blocks, 1), P, 1.0))
        stage.plain, stage.fast = [spent], [statistics.median(fast[past])]
        stage.errors = [float((left @ right - X).norm() / X.norm())]
        rows[stage.name] = stage.row()
    print_rows("Solve and history", rows)
    growth = (
        rows[f"solve, one layer, history {1000}"]["fast_s"]
        / rows[f"solve, one layer, history {10}"]["fast_s"]
    )
    large = history_bytes(14336, 10035, 5, 2000)
    print(f"history 1000 costs {growth:.2f} times history 10; D = 14336, five layers, bytes: {large}")
    return {"history": rows, "history_growth_1000_over_10": round(growth, 3), "bytes_at_14336": large}


def _null_space(d_mlp: int, kept: int) -> NullSpace:
    basis = torch.linalg.qr(torch.randn(d_mlp, min(kept, d_mlp - kept), dtype=torch.float64)).Q
    return NullSpace(basis, kept <= d_mlp // 2, kept, d_mlp)


def _heavy_tailed(d_mlp: int, columns: int) -> torch.Tensor:
    return torch.randn(d_mlp, columns) * torch.rand(d_mlp, 1).pow(-0.5) * 0.1


def scaling_part() -> dict[str, Any]:
    """Attribution by D, d and V, and the solve by D, on synthetic sizes."""
    rows = {}
    for d_mlp, d_model, d_vocab in ((1536, 576, 49152), (3072, 768, 65536), (4096, 1024, 131072)):
        stage = _attribution(d_mlp, d_model, d_vocab)
        rows[stage.name] = stage.row()
    for d_mlp in (1536, 3072, 6144):
        stage = _solve(d_mlp)
        rows[stage.name] = stage.row()
    print_rows("Sizes (synthetic; attribution: 6 alike prompts, 1 layer)", rows)
    return {"scaling": rows}


def _attribution(d_mlp: int, d_model: int, d_vocab: int) -> Stage:
    """Both sides read the same directions; the plain one once per prompt, as published."""
    torch.manual_seed(0)
    U = torch.randn(d_vocab, d_model)
    X = torch.randn(d_mlp, d_model) / d_model**0.5
    h = (torch.randn(d_model) + 0.1 * torch.randn(6, d_model)) / d_model**0.5
    p = (h @ U.T).softmax(-1)
    amounts = 0.08 * torch.randn(6, d_mlp) * torch.rand(d_mlp).pow(-0.25)
    tilts = Tilts(X, amounts, p.log(), p @ U, measure(X, U, 256, Silent()))
    stage = Stage(f"log-partitions, D {d_mlp}, d {d_model}, V {d_vocab}", unit="nats")
    everything = torch.ones_like(amounts[:1], dtype=torch.bool)

    def fast() -> torch.Tensor:
        anchor = Anchor.at(p.mean(0), U)
        return log_partition(tilts, U, anchor, 1e-3, (2048, 8192), 0, 256)[0]

    def plain() -> torch.Tensor:
        rows = []
        for row in range(6):
            alone = Tilts(
                X, amounts[row : row + 1], tilts.log_p[row : row + 1], tilts.mean[row : row + 1], tilts.reach
            )
            shift = amounts[row] * (alone.centre - tilts.centre)
            rows.append(by_sum(alone, U, everything, 256)[0] + shift)
        return torch.stack(rows)

    found, spent = timed(fast)
    expected, slow = timed(plain)
    stage.fast, stage.plain = [spent], [slow]
    stage.errors = [float((found - expected).abs().max())]
    return stage


def _solve(d_mlp: int) -> Stage:
    torch.manual_seed(0)
    space = _null_space(d_mlp, round(0.7 * d_mlp))
    P = space.project(torch.eye(d_mlp, dtype=torch.float64))
    keys = [_heavy_tailed(d_mlp, 1) for _ in range(108)]
    R, history = torch.randn(d_mlp // 3, 1), KeyHistory()
    seconds = []
    for past in range(100, 107):
        (left, right), spent = timed(partial(history.solve, 0, keys[:past], keys[past], R, space, 1.0))
        seconds.append(spent)
    stage = Stage(f"solve, D {d_mlp}, history 100", unit="relative")
    X, slow = timed(lambda: ridge_solve(keys[106], R, torch.cat(keys[:106], 1), P, 1.0))
    stage.plain, stage.fast = [slow], [statistics.median(seconds[1:])]
    stage.errors = [float((left @ right - X).norm() / X.norm())]
    return stage


def moments_part(model: Any, config: Any) -> dict[str, Any]:
    """Second moments of 24 windows: windows alone through the whole model in float64, and as they are collected."""
    settings = config.statistics
    windows = read_windows(
        model, settings.text, 24 * settings.window, settings.window, settings.seed, Silent()
    )
    layers = config.layers

    def plain() -> dict[int, torch.Tensor]:
        sums: dict[int, torch.Tensor] = {}
        for window in windows:
            ids = window[window >= 0][None]
            kept = model.run(Batch(ids, torch.ones_like(ids)), [(POST, layer) for layer in layers])
            for layer in layers:
                keys = kept[(POST, layer)][0].double()
                sums[layer] = sums.get(layer, torch.zeros(())) + keys.T @ keys
        return sums

    def fast() -> Collected:
        collected = Collected()
        for rows in torch.arange(len(windows)).split(8):
            ids = windows[rows]
            batch = Batch(ids.clamp_min(0), (ids >= 0).long())
            kept = model.run(batch, [(POST, layer) for layer in layers], stop_after=layers[-1])
            collected.add(rows, {layer: kept[(POST, layer)] for layer in layers}, settings.passages)
        return collected

    def forward() -> None:
        for rows in torch.arange(len(windows)).split(8):
            ids = windows[rows]
            model.run(Batch(ids.clamp_min(0), (ids >= 0).long()), stop_after=layers[-1])

    stage = Stage(f"second moments, {len(windows)} windows, 5 layers", unit="relative")
    with torch.no_grad():
        for _ in range(3):
            found, spent = timed(fast)
            sums, slow = timed(plain)
            stage.fast.append(spent)
            stage.plain.append(slow)
        alone = median_seconds(forward, 3)
    tokens = int((windows >= 0).sum())
    expected = sums[layers[0]] / tokens
    stage.errors = [float((found.sums[layers[0]].mean(tokens).double() - expected).norm() / expected.norm())]
    rows = {stage.name: stage.row()}
    print_rows("Second moments", rows)
    share = rows[stage.name]["fast_s"] / alone
    print(f"collecting costs {share:.2f} times the forward pass it needs ({alone:.2f} s)")
    return {"moments": rows, "moments_over_forward": round(share, 2)}
