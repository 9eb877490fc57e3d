"""One joint t-SNE of a matrix's neurons in all its versions: PCA first, in a child process, kept by content."""

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmke.child import run_module
from nmke.drift import tsne_child
from nmke.drift.settings import DriftConfig
from nmke.drift.versions import Version, changing
from nmke.drift.words import WARNING
from nmke.errors import DriftError
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.state import loaded_matrix
from nmke.storage import home, locked, partial_folder, publish

FORMAT = 1
_ITERATION = re.compile(r"Iteration (\d+): error = ([\d.]+)")
#: Iterations with early exaggeration, whose error is no KL divergence (scikit-learn's constant).
EXAGGERATED = 250


@dataclass(frozen=True)
class DriftMap:
    """A joint embedding.

    Attributes:
        layer: whose down projection.
        labels: of the edited versions.
        neurons: index of each neuron drawn [neuron].
        positions: [version, neuron, 2], the original first; equal vectors stand at equal places unless
            ``config.copies`` is "each".
        untouched: [edited version, neuron], whether the vector is the original's in every number.
        points: how many points were embedded.
        record: PCA components, the share of the ``variance`` they keep and of each version's ``change_kept``,
            ``kl`` divergence reached, ``iterations`` done, ``seconds``.
        reused: whether it was read from the cache.
    """

    layer: int
    labels: tuple[str, ...]
    neurons: NDArray[np.int64]
    positions: NDArray[np.float32]
    untouched: NDArray[np.bool_]
    points: int
    config: DriftConfig
    d_mlp: int
    record: dict[str, Any]
    reused: bool

    @property
    def sentence(self) -> str:
        """How the picture was made: seed, perplexity, components, iterations, divergence, sample."""
        config, record, count = self.config, self.record, len(self.neurons)
        start = "principal components" if config.start == "pca" else "random positions"
        sample = f"all {count:,} neurons" if count == self.d_mlp else f"{count:,} of {self.d_mlp:,} neurons"
        kept = ", ".join(
            f"{share:.0%} of the change by {label}"
            for label, share in zip(self.labels, record["change_kept"], strict=True)
        )
        whole = count * (len(self.labels) + 1)
        points = f"{self.points:,} points"
        if self.points < whole:
            points += (
                f" ({whole - self.points:,} copies that equal another stand on its point; neurons with fewer points "
                "gather by that alone)"
            )
        return (
            f"Layer {self.layer}, {sample}, {points}; seed {config.seed}, perplexity {config.perplexity:g}, "
            f"{record['components']} PCA components, which keep {record['variance']:.0%} of the variance and {kept}; "
            f"started from {start}, {record['iterations']} iterations, KL divergence {record['kl']:.3f}."
        )

    def to_record(self) -> dict[str, Any]:
        """Everything but the positions, as plain values."""
        return {
            "layer": self.layer,
            "labels": list(self.labels),
            "neurons_drawn": len(self.neurons),
            "neurons": self.d_mlp,
            "points": self.points,
            "settings": self.config.of_map,
            **self.record,
            "reused": self.reused,
            "warning": WARNING,
        }


def draw_map(
    model: EditableModel,
    versions: Sequence[Version],
    layer: int,
    config: DriftConfig,
    progress: Progress | None = None,
) -> DriftMap:
    """Embed the layer's neurons, as loaded and as each version that changed the layer has them, in one t-SNE.

    A map of the same vectors and settings is read from the cache (``drift`` below the cache folder).

    Raises:
        DriftError: no version changed the layer, or the embedding failed.
        ConfigError: the perplexity is too large for the sample.
        Cancelled: nothing is left behind then.
    """
    progress = progress or Silent()
    drawn = changing(versions, layer)
    config.require_fit(model.d_mlp)
    neurons = sample_neurons(model.d_mlp, config)
    W_0 = loaded_matrix(model, layer)
    matrices = [
        matrix.detach()[neurons].float().cpu().numpy()
        for matrix in (W_0, *(each.matrices[layer] for each in drawn))
    ]
    index, untouched = point_index(matrices, config.copies)
    points = distinct_points(matrices, index)
    key = _key(points, index, config)
    folder = home() / "drift" / key
    found = _read(folder)
    reused = found is not None
    if found is None:
        with locked(folder, progress):
            found = _read(folder)
            if found is None:
                _embed(folder, points, index, config, progress)
                found = _read(folder)
    if found is None:
        raise DriftError("The embedding could not be read back.", "Draw it again.")
    positions, record = found
    return DriftMap(
        layer=layer,
        labels=tuple(version.label for version in drawn),
        neurons=neurons,
        positions=positions[index],
        untouched=untouched,
        points=len(points),
        config=config,
        d_mlp=model.d_mlp,
        record=record,
        reused=reused,
    )


def sample_neurons(d_mlp: int, config: DriftConfig) -> NDArray[np.int64]:
    """The neurons drawn, rising: all of them, or a sample without replacement that depends on the seed alone."""
    count = config.neurons_of(d_mlp)
    if count == d_mlp:
        return np.arange(d_mlp, dtype=np.int64)
    return np.sort(np.random.default_rng(config.seed).choice(d_mlp, count, replace=False)).astype(np.int64)


def point_index(
    matrices: Sequence[NDArray[np.float32]], copies: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which point each [version, neuron] is, and whether each edited one equals the original in every number.

    With ``copies="once"`` a vector that an earlier version of the same neuron has already is that version's point;
    with "each" every copy is a point of its own.
    """
    count = len(matrices[0])
    own = np.arange(len(matrices) * count, dtype=np.int64).reshape(len(matrices), count)
    index = own.copy()
    untouched = np.stack([(matrix == matrices[0]).all(1) for matrix in matrices[1:]])
    if copies == "once":
        for later in range(1, len(matrices)):
            for earlier in range(later - 1, -1, -1):  # the first version with the vector wins
                same = (matrices[later] == matrices[earlier]).all(1)
                index[later, same] = index[earlier, same]
    _, numbered = np.unique(index, return_inverse=True)
    return numbered.reshape(index.shape).astype(np.int64), untouched


def distinct_points(matrices: Sequence[NDArray[np.float32]], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """The vectors of the points that :func:`point_index` numbered [point, d_model]."""
    points = np.empty((int(index.max()) + 1, matrices[0].shape[1]), dtype=np.float32)
    for matrix, numbers in zip(matrices, index, strict=True):
        points[numbers] = matrix
    return points


def _key(points: NDArray[np.float32], index: NDArray[np.int64], config: DriftConfig) -> str:
    digest = hashlib.sha256(f"{FORMAT} {points.shape} {installed('scikit-learn')}".encode())
    digest.update(points.tobytes())
    digest.update(index.tobytes())
    digest.update(json.dumps(config.of_map, sort_keys=True).encode())
    return digest.hexdigest()[:20]


def _read(folder: Path) -> tuple[NDArray[np.float32], dict[str, Any]] | None:
    """A kept embedding; None where there is none, or a damaged one."""
    try:
        with np.load(folder / tsne_child.EMBEDDING, allow_pickle=False) as kept:
            return kept["positions"], json.loads(str(kept["record"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _embed(
    folder: Path,
    points: NDArray[np.float32],
    index: NDArray[np.int64],
    config: DriftConfig,
    progress: Progress,
) -> None:
    with partial_folder(folder) as scratch:
        np.savez(scratch / tsne_child.POINTS, points=points, index=index)
        settings = json.dumps(config.of_map)
        (scratch / tsne_child.SETTINGS).write_text(settings, encoding="utf-8")
        # Threads that wait must sleep: the barriers of t-SNE's short loops cost twice the time on busy cores.
        ended = run_module(
            ["nmke.drift.tsne_child", str(scratch)],
            scratch=scratch,
            environment={"OMP_WAIT_POLICY": "passive"},
            tick=lambda out: _report(out, config.iterations, progress),
        )
        if ended.code or not (scratch / tsne_child.EMBEDDING).is_file():
            reason = (ended.err.strip().splitlines() or [f"exit code {ended.code}"])[-1][:200]
            raise DriftError(
                f"The embedding failed ({reason}).", "Draw a smaller sample, or change the settings."
            )
        publish(scratch / tsne_child.EMBEDDING, folder / tsne_child.EMBEDDING)


def _report(out: str, iterations: int, progress: Progress) -> None:
    """Tell the progress that the child's output shows."""
    steps = _ITERATION.findall(out)
    if steps:
        done, error = int(steps[-1][0]), float(steps[-1][1])
        note = f"KL divergence {error:.2f}" if done > EXAGGERATED else "early exaggeration"
        progress.update("embedding (t-SNE)", done, iterations, note)
    elif "[t-SNE] Computed conditional probabilities in" in out:
        progress.update("embedding (t-SNE)", 0, iterations)
    elif "[t-SNE]" in out:
        progress.update("finding neighbours", 0, None)
    else:
        progress.update(
            "finding principal components" if "components" in out else "starting the embedding", 0, None
        )
