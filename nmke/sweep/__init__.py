"""Sweeps: methods x settings x layers x seeds x models x data, each combination one lifelong run.

``read_spec`` reads and checks the file, ``plan`` makes its runs, ``run_sweep`` does them with an executor, ``read``
shows what is there at any time. The folder::

    sweep.json      every run with its settings and the command that makes it again
    summary.json    state and last figures of every run, the best configuration of each method
    runs/NAME/      one folder of nmke.lifelong each
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmke.sweep.executors import Executor as Executor
    from nmke.sweep.executors import InProcess as InProcess
    from nmke.sweep.planning import Plan as Plan
    from nmke.sweep.planning import plan as plan
    from nmke.sweep.ray_executor import RayExecutor as RayExecutor
    from nmke.sweep.results import SweepResults as SweepResults
    from nmke.sweep.results import read as read
    from nmke.sweep.running import run_sweep as run_sweep
    from nmke.sweep.spec import SweepConfig as SweepConfig
    from nmke.sweep.spec import read_spec as read_spec

_EXPORTS = {
    "Executor": "executors",
    "InProcess": "executors",
    "Plan": "planning",
    "RayExecutor": "ray_executor",
    "SweepConfig": "spec",
    "SweepResults": "results",
    "plan": "planning",
    "read": "results",
    "read_spec": "spec",
    "run_sweep": "running",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: results are read without torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nmke.sweep' has no attribute {name!r}")
    return getattr(import_module(f"nmke.sweep.{_EXPORTS[name]}"), name)
