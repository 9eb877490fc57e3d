"""Masking ablation: what a model still answers when some of its neurons are switched off.

The same questions are answered with nothing switched off, without each chosen set of neurons, and without random sets
of the same size in the same layers. Edits of the session stay in force; nothing is written into the model.

>>> from nmke.ablation import AblationConfig, of_role, run_ablation
>>> sets = [of_role(roles, "general", k) for k in (10, 50)]
>>> results = run_ablation(session, questions, sets, AblationConfig())
>>> results.table("cloze")[["name", "value", "low", "high"]]
"""

from nmke.ablation.choosing import by_hand, of_kind, of_role, random_like
from nmke.ablation.conditions import NONE, Condition, conditions_of
from nmke.ablation.config import AblationConfig
from nmke.ablation.results import AblationResults
from nmke.ablation.running import answers_key, dose_response, mean_activations, run_ablation
from nmke.ablation.sets import NeuronSet, load_set, save_set

__all__ = [
    "NONE",
    "AblationConfig",
    "AblationResults",
    "Condition",
    "NeuronSet",
    "answers_key",
    "by_hand",
    "conditions_of",
    "dose_response",
    "load_set",
    "mean_activations",
    "of_kind",
    "of_role",
    "random_like",
    "run_ablation",
    "save_set",
]
