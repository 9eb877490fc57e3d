"""Neuron-level masked knowledge editing of language models.

>>> from nmke import EditSession, builtin_facts, edit_facts, load_model
>>> model = load_model("smollm2-135m")
>>> session = EditSession(model)
>>> report = edit_facts(session, builtin_facts()[:1], method="nmke")[0]
"""

import os
from importlib import import_module
from typing import Any

# Read by OpenMP when torch is loaded. By default its threads wait by spinning, and beside any other busy process (a
# browser is enough) each small operation then waits for one that does not run: several times slower on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_EXPORTS = {
    "AbilityConfig": "ability",
    "AblationConfig": "ablation",
    "Attribution": "attribution",
    "AttributionConfig": "attribution",
    "Consequence": "facts",
    "EditSession": "session",
    "Fact": "facts",
    "MaskConfig": "masks",
    "Neighbor": "facts",
    "assign_roles": "roles",
    "attribute": "attribution",
    "answer_questions": "answers",
    "build_masks": "masks",
    "builtin_facts": "examples",
    "draw_map": "drift",
    "edit_facts": "editing",
    "get_method": "methods",
    "inspect_neuron": "neurons",
    "judge_abilities": "ability",
    "load_model": "loading",
    "load_questions": "questions",
    "measure_drift": "drift",
    "preset_for": "presets",
    "prompts_of": "attribution",
    "read_facts": "readers",
    "run_ablation": "ablation",
    "score_questions": "roles",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, and reading facts does not need it."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nmke' has no attribute {name!r}")
    return getattr(import_module(f"nmke.{_EXPORTS[name]}"), name)
