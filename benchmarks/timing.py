"""Shared by the benchmarks: timed stages, their twins, and what the machine can do at best."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Stage:
    """Seconds of a stage by its plain and its fast form, taken in turn, and how far their results are apart."""

    name: str
    plain: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    unit: str = ""

    def row(self) -> dict[str, Any]:
        """Medians, and the median of the ratios, each taken within one pair."""
        ratios = [plain / fast for plain, fast in zip(self.plain, self.fast, strict=True)]
        return {
            "plain_s": round(statistics.median(self.plain), 4),
            "fast_s": round(statistics.median(self.fast), 4),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_smallest": round(min(ratios), 2),
            "pairs": len(ratios),
            "max_abs_error": max(self.errors),
            "error_of": self.unit,
        }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    return statistics.median(timed(work)[1] for _ in range(repeats))


def peak_mb() -> float:
    """High-water mark of resident memory in MB (ru_maxrss is bytes on macOS, KiB elsewhere)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def machine() -> dict[str, float]:
    """What this machine reads and multiplies a second, measured now: the floor that stages are held against."""
    block, square = torch.randn(75_000_000), torch.randn(2048, 2048)
    reading = median_seconds(lambda: block.sum(), 5)
    multiplying = median_seconds(lambda: square @ square, 5)
    return {
        "read_gb_per_s": round(block.numel() * 4 / reading / 1e9, 1),
        "float32_gflop_per_s": round(2 * 2048**3 / multiplying / 1e9, 1),
    }


def print_rows(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(f"{'stage':<52} {'plain s':>9} {'fast s':>9} {'ratio':>8}  largest difference")
    for name, row in rows.items():
        print(
            f"{name:<52} {row['plain_s']:>9.4g} {row['fast_s']:>9.4g} {row['ratio']:>7.1f}x  "
            f"{row['max_abs_error']:.2g} {row['error_of']}",
            flush=True,
        )
