"""Thousands of neurons brought to the few hundred cells a screen can show."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("none", "general", "specific", "both")
"""Names of the kinds in the order of their codes 0 to 3."""

MAX_CELLS = 4000
"""Cells of a clickable map: more of them make the browser slow and are narrower than a finger."""


@dataclass(frozen=True)
class BinnedLayer:
    """One layer's neurons in bins of (almost) equal size.

    ``counts`` is [bin, kind], ``majority`` the code of the commonest kind per bin, ``strongest`` the neuron
    with the highest score per bin, and ``members`` the neurons of each bin in drawing order.
    """

    counts: NDArray[np.int64]
    majority: NDArray[np.int64]
    strongest: NDArray[np.int64]
    members: tuple[NDArray[np.int64], ...]

    def bin_of(self, neuron: int) -> int:
        """The bin that holds ``neuron``."""
        return next(index for index, members in enumerate(self.members) if neuron in members)


def bins_for(layers: int, neurons: int, widest: int = 160) -> int:
    """How many bins each of ``layers`` rows gets so that the whole map stays within ``MAX_CELLS``."""
    return max(1, min(neurons, widest, MAX_CELLS // max(layers, 1)))


def bin_layer(
    kinds: NDArray[np.integer], strength: NDArray[np.floating], bins: int, *, ranked: bool
) -> BinnedLayer:
    """Bin one layer's neurons, strongest first (``ranked``) or by index."""
    order = np.argsort(-strength, kind="stable") if ranked else np.arange(len(kinds))
    members = tuple(np.array_split(order, min(bins, len(kinds))))
    cell = np.empty(len(kinds), dtype=np.int64)
    cell[order] = np.repeat(np.arange(len(members)), [len(group) for group in members])
    codes = cell * len(KINDS) + kinds
    counts = np.bincount(codes, minlength=len(members) * len(KINDS)).reshape(-1, len(KINDS)).astype(np.int64)
    # Of the neurons, strongest first, the first one that lies in each cell.
    falling = order if ranked else np.argsort(-strength, kind="stable")
    strongest = falling[np.unique(cell[falling], return_index=True)[1]]
    return BinnedLayer(counts, counts.argmax(1), strongest, members)


def bin_rows(
    values: NDArray[np.floating], most: int
) -> tuple[NDArray[np.floating], tuple[NDArray[np.int64], ...]]:
    """At most ``most`` rows of a [row, column] table: (values, the rows each one joins).

    Neighbouring rows are joined, and each cell keeps the one value furthest from zero with its sign, so that a lone
    extreme cell is never averaged away.
    """
    members = tuple(np.array_split(np.arange(len(values)), max(1, min(most, len(values)))))
    if len(members) == len(values):
        return values, members
    size = np.abs(np.nan_to_num(values))
    picked = [group[size[group].argmax(0)] for group in members]
    columns = np.arange(values.shape[1])
    return np.stack([values[row, columns] for row in picked]), members


def strongest_first(values: NDArray[np.floating], limit: int) -> NDArray[np.int64]:
    """Columns of a [row, neuron] table with the largest magnitude in any row, strongest first."""
    if values.size == 0:
        return np.empty(0, dtype=np.int64)
    strength = np.abs(np.nan_to_num(values)).max(0)
    return np.argsort(-strength, kind="stable")[:limit].astype(np.int64)


def thin(values: NDArray[np.floating], points: int = 300) -> tuple[NDArray[np.float64], NDArray[np.floating]]:
    """At most ``points`` samples of a long curve, both ends kept: (share of the curve's length, values)."""
    if len(values) == 0:
        return np.empty(0), values
    index = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return index / max(len(values) - 1, 1), values[index]
