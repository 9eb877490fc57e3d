"""How a model answers questions with choices: by letters, by cloze, by what it writes, and by its losses.

>>> from nmke.answers import AnswersConfig, answer_questions, summarise
>>> answered = answer_questions(model, questions.questions, AnswersConfig())
>>> summarise(answered)["scores"]["cloze"]["value"]
0.36
"""

from nmke.answers.early import EarlyLayers
from nmke.answers.items import FORMULAS, SCORES, Answered, AnswersConfig, Score
from nmke.answers.scoring import WINDOW, answer_questions, require_questions_fit, too_long
from nmke.answers.summary import accuracy, beats_chance, mean_loss, summarise
from nmke.answers.written import recognise

__all__ = [
    "FORMULAS",
    "SCORES",
    "WINDOW",
    "Answered",
    "AnswersConfig",
    "EarlyLayers",
    "Score",
    "accuracy",
    "answer_questions",
    "beats_chance",
    "mean_loss",
    "recognise",
    "require_questions_fit",
    "summarise",
    "too_long",
]
