"""Where the subject ends, what the target's tokens are, how rows are padded."""

import pytest

from nmke.errors import FactError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.tokens import (
    encode,
    encode_continuation,
    find_subject_last,
    pad,
    preview_fact,
    require_fits,
    token_texts,
)


def test_rows_are_padded_on_the_right_and_masked() -> None:
    batch = pad([[1, 2, 3], [4]], 9)
    assert batch.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.last.tolist() == [2, 0]
    assert batch.left_padded(9).ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch.left_padded(9).mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("template", ["{}", "Because the river. {}"])
@pytest.mark.parametrize("subject", ["France", "the city of London", "été 🙂", "مدينة", "東京"])
def test_the_subjects_last_token_is_the_one_that_ends_it(
    llama: LoadedModel, template: str, subject: str
) -> None:
    fact = Fact("I think {} is", subject, "wide")
    tokenizer = llama.tokenizer
    ids = encode(tokenizer, template.replace("{}", fact.prompt))
    place = find_subject_last(tokenizer, fact, template)
    up_to = tokenizer.decode(ids[: place + 1])
    assert up_to.endswith(subject)
    assert not tokenizer.decode(ids[:place]).endswith(subject)


def test_the_marked_occurrence_counts_when_the_subject_occurs_twice(llama: LoadedModel) -> None:
    fact = Fact("London is a city and {} is", "London", "wide")
    ids = encode(llama.tokenizer, fact.prompt)
    place = find_subject_last(llama.tokenizer, fact)
    assert llama.tokenizer.decode(ids[: place + 1]) == "London is a city and London"


def test_the_target_follows_the_prompt_after_one_space(llama: LoadedModel) -> None:
    ids = encode_continuation(llama.tokenizer, "The capital of France is", "Rome")
    assert llama.tokenizer.decode(ids) == " Rome"


def test_the_preview_marks_subject_and_target(llama: LoadedModel) -> None:
    fact = Fact("The capital of France is", "France", "Rome")
    preview = preview_fact(llama.tokenizer, fact, llama.context_length)
    assert "".join(preview.tokens) == fact.prompt
    assert "".join(preview.tokens[: preview.subject_last + 1]).endswith("France")
    assert "".join(preview.target_tokens) == " Rome"
    assert not preview.too_long


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(llama: LoadedModel) -> None:
    fact = Fact("wide " * 300 + "France is", "France", "Rome")
    assert preview_fact(llama.tokenizer, fact, llama.context_length).too_long
    with pytest.raises(FactError, match="reads at most 256"):
        require_fits(llama.tokenizer, fact, llama.context_length)


def test_zero_width_characters_inside_a_prompt_are_kept(llama: LoadedModel) -> None:
    text = "a\u200bcat says"
    assert llama.tokenizer.decode(encode(llama.tokenizer, text)) == text


def test_an_empty_prompt_still_has_one_token(llama: LoadedModel) -> None:
    assert len(encode(llama.tokenizer, "")) == 1
    assert len(token_texts(llama.tokenizer, encode(llama.tokenizer, ""))) == 1
