"""Does the default model really say what the built-in examples call ``target_true``?

    python benchmarks/check_examples.py [--model NAME_OR_FOLDER]

Prints, for each relation and overall, the share of prompts, of paraphrases and of neighbourhood prompts that
the model continues greedily with the right answer. Exits with 1 when fewer than 70% of the prompts do.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.model import EditableModel

REQUIRED_SHARE = 0.7
BATCH = 40
MAX_TOKENS = 4
KINDS = ("prompts", "paraphrases", "neighbours")


@dataclass(frozen=True)
class Question:
    """A prompt with its answer, and where it is counted."""

    relation: str
    kind: str
    prompt: str
    answer: str


def says(text: str, answer: str) -> bool:
    """Whether a continuation opens with the answer, or with as much of it as was generated."""
    text = text.strip()
    if len(text) < len(answer):
        return text != "" and answer.startswith(text)
    return re.match(re.escape(answer) + r"(?!\w)", text) is not None


def ask(model: EditableModel, questions: Sequence[Question]) -> list[bool]:
    """For each question, whether the greedy continuation is the answer."""
    right: list[bool] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        texts = model.generate([question.prompt for question in part], max_new_tokens=MAX_TOKENS)
        right += [says(text, question.answer) for text, question in zip(texts, part, strict=True)]
    return right


def questions_of(fact: Fact) -> list[Question]:
    asked = [("prompts", fact.prompt, fact.target_true)]
    asked += [("paraphrases", text, fact.target_true) for text in fact.paraphrases]
    asked += [("neighbours", neighbor.prompt, neighbor.answer) for neighbor in fact.neighborhood]
    return [Question(fact.relation, *rest) for rest in asked]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="registry name, folder or hub id")
    model = load_model(parser.parse_args().model)
    questions = [question for fact in builtin_facts() for question in questions_of(fact)]
    answers = list(zip(questions, ask(model, questions), strict=True))
    for question, right in answers:
        if question.kind == "prompts" and not right:
            print(f"not predicted: {question.prompt} {question.answer}")
    print(f"{'relation':32}" + "".join(f"{kind:>16}" for kind in KINDS))
    for name in [*dict.fromkeys(question.relation for question in questions), "all"]:
        line = f"{name:32}"
        for kind in KINDS:
            hits = [hit for q, hit in answers if q.kind == kind and name in (q.relation, "all")]
            line += f"{f'{sum(hits)}/{len(hits)}':>16}"
        print(line)
    hits = [right for question, right in answers if question.kind == "prompts"]
    share = sum(hits) / len(hits)
    print(
        f"{model.name} predicts target_true of {share:.1%} of the examples (required: {REQUIRED_SHARE:.0%})"
    )
    return 0 if share >= REQUIRED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
