"""Values with 95% intervals, and exact tests: what is said beside every accuracy and every change.

Only numpy and scipy, so that pages may import it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
#: Values a bootstrap draws at once.
_DRAWN = 2**15


@dataclass(frozen=True)
class Interval:
    """A value between two bounds, over ``n`` questions or facts.

    Attributes:
        method: how the bounds were found, in words.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """A share with Wilson's score interval (Wilson, 1927), which stays inside 0 to 1 and is right at the ends.

    Raises:
        ValueError: n is not positive, or successes do not fit n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is the share itself; rounding must not push it past.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n, f"Wilson {level:.0%}")


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = LEVEL
) -> Interval:
    """A mean with the percentile interval of its bootstrap (Efron, 1979): values are drawn with replacement.

    Draws depend on the seed and on how many values there are, on nothing else. Values that are all alike give
    an interval of no width: it tells of these values' spread and cannot know of what was never seen.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("no values")
    known, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    n, step = len(known), max(1, _DRAWN // len(known))
    # Row after row the same draws, in blocks that fit the processor's cache.
    rows = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = np.concatenate([known[generator.integers(0, n, (count, n))].mean(axis=1) for count in rows])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    method = f"bootstrap {level:.0%}, {resamples} resamples, seed {seed}"
    return Interval(float(known.mean()), float(low), float(high), n, method)


def paired_change(
    before: Sequence[float], after: Sequence[float], seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean of ``after - before`` over the same questions; questions are resampled, pairs stay together.

    Raises:
        ValueError: the two are not of one length, or empty.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after")
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    found = bootstrap_mean(change.tolist(), seed, resamples)
    return Interval(found.value, found.low, found.high, found.n, f"paired {found.method}")


def mcnemar_p(before_right: Sequence[bool], after_right: Sequence[bool]) -> float:
    """Two-sided exact p-value of McNemar's test (1947): of the questions whose rightness changed, half each way.

    1 where none changed.

    Raises:
        ValueError: the two are not of one length.
    """
    pairs = list(zip(before_right, after_right, strict=True))
    lost = sum(bool(a) and not b for a, b in pairs)
    gained = sum(bool(b) and not a for a, b in pairs)
    if lost + gained == 0:
        return 1.0
    return float(stats.binomtest(lost, lost + gained, 0.5).pvalue)


def at_least_p(successes: int, chances: Sequence[float]) -> float:
    """P(as many successes or more) when trial ``i`` succeeds by chance with ``chances[i]``.

    Exact: the binomial test's one-sided p-value where all chances are alike, else the Poisson-binomial tail.

    Raises:
        ValueError: there are no trials.
    """
    if len(chances) == 0:
        raise ValueError("no trials")
    if len(set(chances)) == 1:
        return float(stats.binomtest(successes, len(chances), chances[0], alternative="greater").pvalue)
    distribution = np.ones(1)
    for chance in chances:
        distribution = np.convolve(distribution, [1 - chance, chance])
    return float(min(1.0, distribution[successes:].sum()))
