"""Does the default model really say what the built-in examples call ``target_true``?

    python benchmarks/check_examples.py [--model NAME_OR_FOLDER]

Prints, for each relation and overall, the share of prompts, of paraphrases and of neighbourhood prompts that
the model continues greedily with the right answer. Exits with 1 when fewer than 70% of the prompts do.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.model import EditableModel

REQUIRED_SHARE = 0.7
BATCH = 32
MAX_TOKENS = 8


def begins_with(text: str, answer: str) -> bool:
    """Whether the text opens with the answer as whole words: "Rome." does, "Romeo" does not."""
    return re.match(re.escape(answer) + r"(?!\w)", text.strip()) is not None


def right_answers(model: EditableModel, questions: Sequence[tuple[str, str]]) -> list[bool]:
    """For each (prompt, answer), whether the greedy continuation is the answer."""
    right: list[bool] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        texts = model.generate([prompt for prompt, _ in part], max_new_tokens=MAX_TOKENS)
        right += [begins_with(text, answer) for text, (_, answer) in zip(texts, part, strict=True)]
    return right


def questions_of(fact: Fact) -> dict[str, list[tuple[str, str]]]:
    return {
        "prompts": [(fact.prompt, fact.target_true)],
        "paraphrases": [(text, fact.target_true) for text in fact.paraphrases],
        "neighbours": [(neighbor.prompt, neighbor.answer) for neighbor in fact.neighborhood],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="registry name, folder or hub id")
    model = load_model(parser.parse_args().model)
    results: dict[str, dict[str, list[bool]]] = {}
    for fact in builtin_facts():
        cells = results.setdefault(fact.relation, {})
        for kind, questions in questions_of(fact).items():
            right = right_answers(model, questions)
            cells.setdefault(kind, []).extend(right)
            if kind == "prompts" and not all(right):
                print(f"not predicted: {fact.prompt} {fact.target_true}")
    kinds = ("prompts", "paraphrases", "neighbours")
    overall = {kind: [hit for cells in results.values() for hit in cells[kind]] for kind in kinds}
    print(f"{'relation':32}" + "".join(f"{kind:>16}" for kind in kinds))
    for name, cells in [*results.items(), ("all", overall)]:
        shares = (f"{sum(cells[kind])}/{len(cells[kind])}" for kind in kinds)
        print(f"{name:32}" + "".join(f"{share:>16}" for share in shares))
    share = sum(overall["prompts"]) / len(overall["prompts"])
    print(
        f"{model.name} predicts target_true of {share:.1%} of the examples (required: {REQUIRED_SHARE:.0%})"
    )
    return 0 if share >= REQUIRED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
