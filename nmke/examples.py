"""The built-in examples: eighty facts over ten relations that the default model knows.

They were written for this project and chosen so that SmolLM2-135M-Instruct continues each prompt with
``target_true``; ``benchmarks/check_examples.py`` measures the share. No two are about the same subject, and
no neighbourhood prompt is about a subject that another example of its relation edits, so all of them can be
applied one after the other without spoiling each other's locality.
"""

from importlib.resources import files

from nmke.facts import Fact
from nmke.readers import read_facts


def builtin_facts() -> tuple[Fact, ...]:
    """The examples, relation by relation, each with two paraphrases and three neighbourhood prompts."""
    data = files("nmke").joinpath("data", "examples.jsonl").read_bytes()
    return read_facts(data, name="The built-in examples").facts
