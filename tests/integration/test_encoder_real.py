"""The real sentence encoder: it comes from where the registry says, and tells paraphrases from neighbours."""

import pytest
import torch

from nmke.encoder import DEFAULT, SentenceEncoder, load_encoder
from nmke.errors import ResourceError
from nmke.examples import builtin_facts
from nmke.methods.scope import train_head
from nmke.progress import Silent
from nmke.registry import ENCODERS


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    try:
        return load_encoder()
    except ResourceError as problem:
        pytest.skip(f"the sentence encoder cannot be fetched here: {problem}")


def test_it_is_the_encoder_the_registry_names(encoder: SentenceEncoder) -> None:
    assert encoder.name == DEFAULT
    assert encoder.n_parameters == ENCODERS[DEFAULT].parameters
    assert (encoder.width, encoder.longest) == (384, 256)


def test_sentences_that_mean_the_same_are_nearer_than_others(encoder: SentenceEncoder) -> None:
    first, same, other = encoder.encode(
        ["The capital of France is", "France's capital city is called", "A dog says woof"]
    )
    assert float(first @ same) == pytest.approx(0.902, abs=0.01)
    assert float(first @ other) < 0.1
    assert torch.allclose(first.norm(), torch.tensor(1.0))


def test_a_paraphrase_of_a_built_in_example_is_nearer_than_its_neighbours(encoder: SentenceEncoder) -> None:
    right, count = 0, 0
    for fact in builtin_facts()[::8]:
        prompt, *rest = encoder.encode(
            [fact.prompt, *fact.paraphrases, *(each.prompt for each in fact.neighborhood)]
        )
        cosines = [float(prompt @ each) for each in rest]
        own, others = cosines[: len(fact.paraphrases)], cosines[len(fact.paraphrases) :]
        right += sum(a > b for a in own for b in others)
        count += len(own) * len(others)
    assert count >= 50 and right / count > 0.95


@pytest.mark.slow
def test_the_scope_head_separates_the_built_in_examples(encoder: SentenceEncoder) -> None:
    head = train_head(builtin_facts(), encoder, Silent())
    assert head.accuracy > 0.95 and head.slope > 5
    assert head.probability(0.95) > 0.9 > 0.1 > head.probability(0.4)
