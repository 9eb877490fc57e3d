"""Questions with choices: MMLU, the built-in ones, or a file; by subject, with the prompts they are asked in.

>>> from nmke.questions import load_questions
>>> questions = load_questions("builtin", ["high_school_biology"])
>>> questions.subjects
('high_school_biology',)
"""

from nmke.errors import QuestionError
from nmke.questions.items import (
    DEFAULT_SUBJECTS,
    LETTERS,
    Question,
    QuestionSet,
    digest_of,
    domain_of,
    title_of,
)
from nmke.questions.mmlu import MMLU_SUBJECTS
from nmke.questions.prompts import CLOZE_START, Form, message_of, options_of, prompt_of
from nmke.questions.readers import QuestionTable, questions_to_jsonl, read_questions
from nmke.questions.sources import known_subjects, load_questions

__all__ = [
    "CLOZE_START",
    "DEFAULT_SUBJECTS",
    "LETTERS",
    "MMLU_SUBJECTS",
    "Form",
    "Question",
    "QuestionError",
    "QuestionSet",
    "QuestionTable",
    "digest_of",
    "domain_of",
    "known_subjects",
    "load_questions",
    "message_of",
    "options_of",
    "prompt_of",
    "questions_to_jsonl",
    "read_questions",
    "title_of",
]
