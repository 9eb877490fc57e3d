"""The built-in examples are complete, varied, and do not get in each other's way."""

from collections import Counter
from importlib.resources import files

import pytest

from benchmarks.check_examples import says
from nmke.examples import builtin_facts
from nmke.facts import Fact

FACTS = builtin_facts()
by_name = pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.case_id)


def test_there_are_enough_examples_over_enough_relations() -> None:
    sizes = Counter(fact.relation for fact in FACTS)
    assert len(FACTS) >= 66
    assert len(sizes) >= 7
    assert min(sizes.values()) >= 5


def test_every_line_of_the_file_is_a_fact() -> None:
    lines = files("nmke").joinpath("data", "examples.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(FACTS) + 1


def test_names_and_subjects_are_used_once() -> None:
    assert len({fact.case_id for fact in FACTS}) == len(FACTS)
    assert len({fact.subject for fact in FACTS}) == len(FACTS)


@by_name
def test_an_example_has_two_paraphrases_and_three_neighbours(fact: Fact) -> None:
    assert len(set(fact.paraphrases)) == 2
    assert len({neighbor.prompt for neighbor in fact.neighborhood}) == 3
    assert fact.target_true
    assert all(neighbor.answer for neighbor in fact.neighborhood)


@by_name
def test_paraphrases_are_about_the_subject_in_other_words(fact: Fact) -> None:
    assert all(fact.subject in text and text != fact.prompt for text in fact.paraphrases)


@by_name
def test_neighbours_are_about_subjects_that_no_example_of_the_relation_edits(fact: Fact) -> None:
    edited = [other.subject for other in FACTS if other.relation == fact.relation]
    for neighbor in fact.neighborhood:
        # The subject fills the template's gap, so a word of the template itself does not count.
        assert not any(f" {subject} " in f" {neighbor.prompt} " for subject in edited), neighbor


def test_some_examples_ask_what_follows_from_the_edit() -> None:
    asked = [fact for fact in FACTS if fact.portability]
    assert len(asked) >= 9
    for fact in asked:
        for question in fact.portability:
            assert fact.subject in question.prompt, "only the edit tells the answer"
            assert question.answer not in (fact.target_new, fact.target_true), (
                "it is not what the edit says itself"
            )
            assert question.answer.lower() not in question.prompt.lower()
            assert question.prompt not in (fact.prompt, *fact.paraphrases)


@by_name
def test_no_prompt_gives_its_answer_away(fact: Fact) -> None:
    assert fact.target_new.lower() not in fact.prompt.lower().split()
    assert fact.target_true.lower() not in fact.prompt.lower().split()


def test_an_answer_is_recognised_by_whole_words() -> None:
    assert says(" Rome. It is", "Rome")
    assert says(" J. R", "J. R. R. Tolkien")
    assert not says(" Romeo and", "Rome")
    assert not says("", "Rome")
