"""The numbers of a drift view for all versions and layers, as tables and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from nmke.drift import numbers
from nmke.drift.versions import Version, changing
from nmke.drift.words import FORMULAS
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.state import loaded_matrix

#: Below this ratio of neighbouring singular values the leading subspace is hardly defined.
CLEAR_GAP = 1.1


@dataclass(frozen=True)
class LayerDrift:
    """One version's change of one layer; arrays in float64.

    Attributes:
        figures: the scalars of :data:`nmke.drift.words.FORMULAS`.
        cosine, norm_change, step: per neuron [d_mlp].
        angles: principal angles in degrees [k], the smallest first.
        singular: singular values of the change, largest first.
        untouched: per neuron [d_mlp].
        mask: the largest weight of each neuron in a mask [d_mlp]; None without masks.
        clearest: the number of leading directions that is best told from the rest, and its gap.
    """

    label: str
    layer: int
    figures: Mapping[str, float]
    cosine: NDArray[np.float64]
    norm_change: NDArray[np.float64]
    step: NDArray[np.float64]
    angles: NDArray[np.float64]
    singular: NDArray[np.float64]
    untouched: NDArray[np.bool_]
    clearest: tuple[int, float]
    mask: NDArray[np.float32] | None = None

    @property
    def angle_sentence(self) -> str:
        """The largest principal angle, and whether it says anything."""
        k, gap = len(self.angles), self.figures["gap"]
        text = (
            f"The {k} directions that layer {self.layer} writes most strongly turned by at most "
            f"{self.figures['angle_max']:.1f}°."
        )
        if gap < CLEAR_GAP and self.clearest[0] != k:
            text += (
                f" That says little: direction {k} is only {gap - 1:.1%} stronger than the next, so a small change "
                f"swaps them. The clearest cut is after k = {self.clearest[0]} ({self.clearest[1] - 1:.1%})."
            )
        return text


@dataclass(frozen=True)
class DriftNumbers:
    """All changes measured, in the order of versions and layers."""

    changes: tuple[LayerDrift, ...]
    directions: int

    def of(self, label: str, layer: int) -> LayerDrift | None:
        """One version's change of one layer; None where it left the layer alone."""
        found = [change for change in self.changes if (change.label, change.layer) == (label, layer)]
        return found[0] if found else None

    def at(self, layer: int) -> tuple[LayerDrift, ...]:
        """The changes of one layer."""
        return tuple(change for change in self.changes if change.layer == layer)

    def table(self) -> pd.DataFrame:
        """One row a version and layer: version, layer and the columns of :data:`nmke.drift.words.FORMULAS`."""
        rows = [{"version": change.label, "layer": change.layer, **change.figures} for change in self.changes]
        return pd.DataFrame(rows, columns=["version", "layer", *FORMULAS])

    def neurons(self) -> pd.DataFrame:
        """One row a version, layer and neuron."""
        parts = [
            pd.DataFrame(
                {
                    "version": change.label,
                    "layer": change.layer,
                    "neuron": np.arange(len(change.cosine)),
                    "cosine": change.cosine,
                    "norm_change": change.norm_change,
                    "step": change.step,
                    "untouched": change.untouched,
                    "mask_weight": np.nan if change.mask is None else change.mask,
                }
            )
            for change in self.changes
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def to_record(self) -> list[dict[str, Any]]:
        """Per version and layer the figures, all principal angles and the leading singular values."""
        return [
            {
                "version": change.label,
                "layer": change.layer,
                **change.figures,
                "principal_angles": change.angles.tolist(),
                "singular_values": change.singular[:100].tolist(),
                "n_singular_values": len(change.singular),
            }
            for change in self.changes
        ]


def measure_drift(
    model: EditableModel,
    versions: Sequence[Version],
    layers: Sequence[int],
    directions: int = 10,
    progress: Progress | None = None,
) -> DriftNumbers:
    """Measure every version's change of every layer it changed.

    Args:
        directions: k, how many leading directions the principal angles compare; at most d_model.

    Raises:
        DriftError: a layer that no version changed.
    """
    progress = progress or Silent()
    wanted = [(layer, version) for layer in layers for version in changing(versions, layer)]
    found: dict[tuple[str, int], LayerDrift] = {}
    before: tuple[int, Tensor, numbers.Subspace] | None = None
    for done, (layer, version) in enumerate(wanted):
        progress.update("measuring the change", done, len(wanted), f"layer {layer}, {version.label}")
        if before is None or before[0] != layer:  # the original's subspace serves every version
            W_0 = loaded_matrix(model, layer)
            before = layer, W_0, numbers.leading_subspace(W_0, directions)
        found[version.label, layer] = _measure(version, model, *before)
    progress.update("measuring the change", len(wanted), len(wanted))
    ordered = (
        found[version.label, layer]
        for version in versions
        for layer in layers
        if (version.label, layer) in found
    )
    return DriftNumbers(tuple(ordered), directions)


def _measure(
    version: Version, model: EditableModel, layer: int, W_0: Tensor, lead: numbers.Subspace
) -> LayerDrift:
    W = version.matrices[layer].to(W_0.device)
    changes = numbers.neuron_changes(W, W_0)
    same = numbers.untouched(W, W_0)
    stored = W.to(model.down_projection(layer).dtype).float()
    now = numbers.leading_subspace(W, lead.basis.shape[1])
    angles = numbers.principal_angles(now.basis, lead.basis)
    singular = numbers.change_spectrum(W, W_0)
    cosine, norm_change, step = (_array(value) for value in changes)
    clearest = numbers.clearest_k(lead.singular)
    mask = version.masks.get(layer)
    figures = {
        "relative_norm": numbers.relative_norm(W, W_0),
        "untouched": float(same.double().mean()),
        "untouched_as_stored": float(numbers.untouched(stored, W_0).double().mean()),
        "cosine_mean": float(np.nanmean(cosine)),
        "cosine_min": float(np.nanmin(cosine)),
        "norm_change_mean": float(np.nanmean(norm_change)),
        "step_mean": float(np.nanmean(step)),
        "step_max": float(np.nanmax(step)),
        "angle_max": float(angles.max()),
        "gap": lead.gap,
        "effective_rank": numbers.effective_rank(singular),
        "stable_rank": numbers.stable_rank(singular),
    }
    return LayerDrift(
        label=version.label,
        layer=layer,
        figures=figures,
        cosine=cosine,
        norm_change=norm_change,
        step=step,
        angles=_array(angles),
        singular=_array(singular),
        untouched=same.cpu().numpy(),
        clearest=(clearest, numbers.gap_after(lead.singular, clearest)),
        mask=None if mask is None else mask.cpu().numpy(),
    )


def _array(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
