"""Who works for everything, who for one subject: roles of neurons over several tasks' questions (NMKE, section 3.1).

>>> from nmke.questions import load_questions
>>> from nmke.roles import assign_roles, score_questions
>>> scores = score_questions(model, load_questions("mmlu", limit=100))
>>> roles = assign_roles(scores)
>>> roles.totals()

:mod:`nmke.roles.scores` reads the model; :mod:`nmke.roles.rules` says when a neuron is active and which role that
makes; :mod:`nmke.roles.resampling` says how far that depends on the questions.
"""

from nmke.roles.config import RolesConfig
from nmke.roles.files import load_roles, load_scores, save_roles, save_scores, score_once, scores_folder
from nmke.roles.promoting import promoted_tokens
from nmke.roles.resampling import Stability
from nmke.roles.results import Roles, assign_roles, strongest, sweep_rule
from nmke.roles.rules import ROLE_FORMULA, ROLES, RULE_FORMULAS
from nmke.roles.scores import QuestionScores, score_questions

__all__ = [
    "ROLES",
    "ROLE_FORMULA",
    "RULE_FORMULAS",
    "QuestionScores",
    "Roles",
    "RolesConfig",
    "Stability",
    "assign_roles",
    "load_roles",
    "load_scores",
    "promoted_tokens",
    "save_roles",
    "save_scores",
    "score_once",
    "score_questions",
    "scores_folder",
    "strongest",
    "sweep_rule",
]
