"""What a Fact accepts, what it refuses, and the words it refuses it with."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from nmke.errors import FactError
from nmke.facts import Consequence, Fact, Neighbor, is_blank

FRANCE: dict[str, Any] = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}


def refusal(**changes: Any) -> FactError:
    """The error for the standard fact with some fields changed."""
    with pytest.raises(FactError) as caught:
        Fact(**{**FRANCE, **changes})
    assert caught.value.what.endswith(".") and caught.value.remedy.endswith(".")
    return caught.value


def test_the_subject_is_found_by_itself() -> None:
    fact = Fact(**FRANCE)
    assert (fact.subject_start, fact.template) == (15, "The capital of {} is")


def test_a_template_is_filled_in() -> None:
    fact = Fact("The capital of {} is", "France", "Rome")
    assert (fact.prompt, fact.subject_start) == ("The capital of France is", 15)


def test_a_template_chooses_between_two_places_of_the_subject() -> None:
    fact = Fact("Paris, Texas, is named after the town of {} in", "Paris", "Spain")
    assert fact.subject_start == 41
    assert fact.prompt == "Paris, Texas, is named after the town of Paris in"


def test_paraphrases_are_templates_too() -> None:
    assert Fact(**FRANCE, paraphrases=("{} has the capital",)).paraphrases == ("France has the capital",)


def test_an_empty_fact_is_refused() -> None:
    error = refusal(prompt="", subject=" ", target_new="")
    assert error.what == "The fact is empty."
    assert error.field == "prompt"


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new"])
def test_a_blank_field_is_named(field: str) -> None:
    error = refusal(**{field: "  "})
    assert (error.field, error.what) == (field, f"The {field} is empty.")


@pytest.mark.parametrize("text", ["\u200b", "\u200b \u2060", "\ufeff", "\u3164", "\ufe0f", "\u2800"])
@pytest.mark.parametrize("field", ["subject", "target_new"])
def test_text_of_only_invisible_characters_is_refused(field: str, text: str) -> None:
    error = refusal(**{field: text})
    assert error.field == field
    assert "invisible" in error.what


def test_an_invisible_true_target_is_refused() -> None:
    assert refusal(target_true="\u200b").field == "target_true"


def test_a_subject_outside_the_prompt_is_refused() -> None:
    error = refusal(subject="Spain")
    assert error.field == "subject"
    assert "'Spain' does not occur in the prompt" in error.what


def test_a_subject_in_other_capitals_is_told_how_the_prompt_writes_it() -> None:
    assert "'France'" in refusal(subject="FRANCE").remedy


def test_a_subject_with_accents_stored_otherwise_is_told_to_copy_it() -> None:
    error = refusal(prompt="The capital of Per\u00fa is", subject="Peru\u0301")
    assert "copy it from the prompt" in error.remedy


def test_a_subject_that_occurs_twice_asks_for_a_template() -> None:
    error = refusal(prompt="France is great and the capital of France is")
    assert error.field == "subject"
    assert "occurs 2 times" in error.what
    assert "{}" in error.remedy


def test_a_subject_that_occurs_twice_is_accepted_at_a_given_place() -> None:
    fact = Fact("France is great and the capital of France is", "France", "Rome", subject_start=35)
    assert fact.template == "France is great and the capital of {} is"


def test_the_subject_as_a_word_wins_over_letters_inside_another_word() -> None:
    assert Fact("The party of art is", "art", "music").subject_start == 13


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("The party is", "art"), ("Annabel lives in", "Ann"), ("The crew of Apollo 11 was", "Apollo 1")],
)
def test_a_subject_cut_out_of_a_longer_word_is_refused(prompt: str, subject: str) -> None:
    error = refusal(prompt=prompt, subject=subject)
    assert error.field == "subject"
    assert "part of a longer word" in error.what


def test_a_template_may_put_the_subject_inside_a_longer_word() -> None:
    assert Fact("{}s Hauptstadt ist", "Deutschland", "Rom").subject_start == 0


def test_scripts_without_spaces_need_no_word_of_its_own() -> None:
    assert Fact("日本の首都は", "日本", "大阪").subject_start == 0


def test_two_places_for_the_subject_are_refused() -> None:
    error = refusal(prompt="{} and {} are")
    assert error.field == "prompt"
    assert "2 places" in error.what


def test_a_subject_with_a_placeholder_is_refused() -> None:
    assert refusal(subject="{}").field == "subject"


@pytest.mark.parametrize("start", [0, -1, 999])
def test_a_wrong_subject_start_is_refused(start: int) -> None:
    assert refusal(subject_start=start).field == "subject_start"


@pytest.mark.parametrize("start", [15.0, "15", True])
def test_a_subject_start_that_is_no_whole_number_is_refused(start: Any) -> None:
    assert refusal(subject_start=start).field == "subject_start"


def test_a_given_start_survives_the_trimming_of_whitespace() -> None:
    fact = Fact("  The capital of France is ", " France", "Rome", subject_start=16)
    assert (fact.prompt, fact.subject, fact.subject_start) == (FRANCE["prompt"], "France", 15)


def test_equal_targets_are_refused() -> None:
    error = refusal(target_true=" Rome ")
    assert error.field == "target_new"
    assert "both 'Rome'" in error.what


def test_targets_that_differ_only_in_how_accents_are_stored_are_equal() -> None:
    assert refusal(target_new="Per\u00fa", target_true="Peru\u0301").field == "target_new"


def test_outer_whitespace_of_the_targets_is_removed() -> None:
    fact = Fact(**{**FRANCE, "target_new": " Rome\n"}, target_true="\tParis ")
    assert (fact.target_new, fact.target_true) == ("Rome", "Paris")


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new", "target_true", "case_id", "relation"])
def test_a_nul_character_is_refused(field: str) -> None:
    error = refusal(**{field: "a\0b"})
    assert (error.field, error.what) == (field, f"The {field} contains a NUL character.")


def test_half_a_character_is_refused() -> None:
    assert refusal(target_new="\ud83d").field == "target_new"


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["Rome"]])
def test_a_field_that_is_no_text_is_refused(value: Any) -> None:
    assert refusal(target_new=value).field == "target_new"


@pytest.mark.parametrize(
    ("prompt", "subject", "target"),
    [
        ("The meaning of 👩‍🚀 is", "👩‍🚀", "🚀"),
        ("עיר הבירה של צרפת היא", "צרפת", "רומא"),
        ("عاصمة فرنسا هي", "فرنسا", "روما"),
        ("The capital of Fra\u200bnce is", "Fra\u200bnce", "Ro\u200bme"),
    ],
)
def test_emoji_right_to_left_and_zero_width_text_are_kept_as_they_are(
    prompt: str, subject: str, target: str
) -> None:
    fact = Fact(prompt, subject, target)
    assert (fact.prompt, fact.subject, fact.target_new) == (prompt, subject, target)
    assert fact.prompt[fact.subject_start :].startswith(subject)


@pytest.mark.parametrize("value", ["one text", None, [""], ["a", 3], ["a\0"]])
def test_bad_paraphrases_are_refused(value: Any) -> None:
    assert refusal(paraphrases=value).field == "paraphrases"


@pytest.mark.parametrize("value", ["one text", ["one text"], [("prompt", "answer")]])
def test_bad_neighbours_are_refused(value: Any) -> None:
    assert refusal(neighborhood=value).field == "neighborhood"


def test_a_blank_neighbourhood_prompt_is_refused() -> None:
    with pytest.raises(FactError, match="neighbourhood prompt is empty"):
        Neighbor(" \u200b", "Berlin")


@pytest.mark.parametrize(
    "value",
    ["one text", ["one text"], [("prompt", "answer")], [Neighbor("The capital of Spain is", "Madrid")]],
)
def test_bad_portability_questions_are_refused(value: Any) -> None:
    assert refusal(portability=value).field == "portability"


@pytest.mark.parametrize(
    ("prompt", "answer", "words"),
    [
        (" \u200b", "France", "portability prompt is empty"),
        ("The country whose capital is Rome is", "", "has no answer"),
        ("The country whose capital is Rome is", "\u200b ", "has no answer"),
        ("The country whose capital is Rome is", "a\0", "NUL"),
        (3, "France", "of type int"),
    ],
)
def test_a_portability_question_needs_a_prompt_and_an_answer(prompt: Any, answer: str, words: str) -> None:
    with pytest.raises(FactError, match=words) as caught:
        Consequence(prompt, answer)
    assert caught.value.field == "portability" and caught.value.remedy


def test_outer_whitespace_of_a_portability_question_is_removed() -> None:
    assert Consequence(" A is ", "\tB\n") == Consequence("A is", "B")


def test_a_fact_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Fact(**FRANCE).subject = "Spain"  # type: ignore[misc]


def test_lists_become_tuples_so_that_facts_can_be_hashed() -> None:
    paraphrases: Any = ["France has the capital"]
    neighborhood: Any = [Neighbor("The capital of Spain is", "Madrid")]
    fact = Fact(**FRANCE, paraphrases=paraphrases, neighborhood=neighborhood)
    assert hash(fact) == hash(replace(fact))


def test_a_fact_comes_back_from_its_dictionary() -> None:
    fact = Fact(
        **FRANCE,
        target_true="Paris",
        paraphrases=("{} has the capital",),
        neighborhood=(Neighbor("The capital of Spain is", "Madrid"), Neighbor("The capital of Peru is")),
        portability=(Consequence("The country whose capital is Rome is", "France"),),
        case_id="7",
        relation="capital",
    )
    assert fact.to_dict()["portability"] == [
        {"prompt": "The country whose capital is Rome is", "answer": "France"}
    ]
    assert Fact.from_dict(fact.to_dict()) == fact


def test_a_dictionary_from_before_portability_questions_makes_a_fact_without_any() -> None:
    old = {name: value for name, value in Fact(**FRANCE).to_dict().items() if name != "portability"}
    assert Fact.from_dict(old) == Fact(**FRANCE)
    assert Fact.from_dict(old).portability == ()


@pytest.mark.parametrize("item", [{"prompt": "A is"}, {"prompt": "A is", "reply": "B"}, "A is", None])
def test_a_portability_entry_without_prompt_and_answer_is_refused_in_a_dictionary(item: Any) -> None:
    with pytest.raises(FactError) as caught:
        Fact.from_dict({**FRANCE, "portability": [item]})
    assert caught.value.field == "portability"


def test_a_prompt_with_literal_braces_comes_back_from_its_dictionary() -> None:
    fact = Fact("In Python, {} is a dict", "Python", "set", subject_start=3)
    assert Fact.from_dict(fact.to_dict()) == fact


def test_an_unknown_field_in_a_dictionary_is_named() -> None:
    with pytest.raises(FactError, match="no field named 'target_nw'") as caught:
        Fact.from_dict({**FRANCE, "target_nw": "x"})
    assert caught.value.field == "target_nw"


def test_a_missing_field_in_a_dictionary_is_named() -> None:
    with pytest.raises(FactError, match="subject is missing"):
        Fact.from_dict({"prompt": "x", "target_new": "y"})


@pytest.mark.parametrize("text", ["", " \n", "\u200d\u200c", "\u115f"])
def test_text_without_a_picture_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "👍", "\u0301"])
def test_text_with_a_picture_is_not_blank(text: str) -> None:
    assert not is_blank(text)
