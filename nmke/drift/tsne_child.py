"""``python -m nmke.drift.tsne_child FOLDER``: PCA, then t-SNE, in a process of its own.

scikit-learn's t-SNE has no callback and cannot be stopped; what it prints is the progress, and a kill the cancel. Reads
``points.npz`` and ``settings.json`` from the folder and writes ``embedding.npz``. No torch here.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS, SETTINGS, EMBEDDING = "points.npz", "settings.json", "embedding.npz"


def project(points: NDArray[np.floating], components: int) -> tuple[NDArray[np.floating], float]:
    """The points on their leading principal components, and the share of the variance those keep.

    Solved exactly, so that no seed enters.
    """
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if len(points) >= points.shape[1] else "full"
    model = PCA(min(components, *points.shape), svd_solver=solver)
    return model.fit_transform(points), float(model.explained_variance_ratio_.sum())


def change_kept(
    points: NDArray[np.floating], projected: NDArray[np.floating], index: NDArray[np.integer]
) -> list[float]:
    """Per version the share of its squared change that lies in the principal components; 1 where nothing changed.

    Args:
        index: the point of each [version, neuron], the original first.
    """
    kept = []
    for edited in index[1:]:
        whole = float(np.square(points[edited] - points[index[0]], dtype=np.float64).sum())
        inside = float(np.square(projected[edited] - projected[index[0]], dtype=np.float64).sum())
        kept.append(min(inside / whole, 1.0) if whole else 1.0)
    return kept


def embed(projected: NDArray[np.floating], settings: dict[str, Any]) -> tuple[NDArray[np.floating], Any]:
    """scikit-learn's Barnes-Hut t-SNE with its own defaults for everything that is no setting here."""
    from sklearn.manifold import TSNE

    model = TSNE(
        perplexity=settings["perplexity"],
        max_iter=settings["iterations"],
        init=settings["start"],
        random_state=settings["seed"],
        verbose=2,
    )
    return model.fit_transform(projected), model


def main(folder: Path) -> None:
    began = time.perf_counter()
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    with np.load(folder / POINTS, allow_pickle=False) as given:
        points, index = given["points"], given["index"]
    sys.stdout.write("components\n")
    projected, variance = project(points, settings["components"])
    positions, model = embed(np.ascontiguousarray(projected, dtype=np.float32), settings)
    record = {
        "components": projected.shape[1],
        "variance": variance,
        "change_kept": change_kept(points, projected, index),
        "kl": float(model.kl_divergence_),
        "iterations": int(model.n_iter_) + 1,
        "seconds": time.perf_counter() - began,
    }
    with (folder / EMBEDDING).open("wb") as out:
        np.savez(out, positions=positions.astype(np.float32), record=np.array(json.dumps(record)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
