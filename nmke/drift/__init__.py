"""Weight drift: how far edits moved the down projections.

``measure_drift`` gives the numbers that depend on no seed, ``draw_map`` one joint t-SNE of the original and all edited
versions of a matrix's neurons (Liu et al., NeurIPS 2025, the figure of FFN layer 8). Versions of the weights come from
a session, a saved bundle or a lifelong run's checkpoints::

    versions = open_versions(model, Path("edits/bundle"))
    numbers = measure_drift(model, versions, layers_of(versions))
    drawn = draw_map(model, versions, layer=8, config=DriftConfig())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmke.drift.embedding import DriftMap as DriftMap
    from nmke.drift.embedding import draw_map as draw_map
    from nmke.drift.results import DriftNumbers as DriftNumbers
    from nmke.drift.results import measure_drift as measure_drift
    from nmke.drift.settings import DriftConfig as DriftConfig
    from nmke.drift.versions import Version as Version
    from nmke.drift.versions import layers_of as layers_of
    from nmke.drift.versions import open_versions as open_versions
    from nmke.drift.versions import version_of as version_of

_EXPORTS = {
    "DriftConfig": "settings",
    "DriftMap": "embedding",
    "DriftNumbers": "results",
    "Version": "versions",
    "draw_map": "embedding",
    "layers_of": "versions",
    "measure_drift": "results",
    "open_versions": "versions",
    "version_of": "versions",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the child process that embeds needs no torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nmke.drift' has no attribute {name!r}")
    return getattr(import_module(f"nmke.drift.{_EXPORTS[name]}"), name)
