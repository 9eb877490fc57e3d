"""What shall be known? Typing, examples, files, tokens and the model's answer."""

import json
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import facts_table, rows
from nmke.examples import builtin_facts
from nmke.facts import Consequence, Fact, Neighbor
from tests.app.conftest import clean, finish, go, load, state_of, words

FRANCE = Fact("The capital of France is", "France", "Rome", "Paris")
TWICE = Fact("Paris is Paris, and {} is in", "Paris", "Italy")
RICH = Fact(
    "The capital of {} is",
    "Italy",
    "Madrid",
    "Rome",
    ("Italy's capital is", "The seat of government of {} is in"),
    (Neighbor("The capital of Spain is", "Madrid"), Neighbor("The capital of Peru is")),
    (
        Consequence("The country whose capital is Madrid is", "Italy"),
        Consequence("Italy is ruled from", "Madrid"),
    ),
    relation="capital",
    case_id="7",
)


@pytest.fixture
def page(app: AppTest) -> AppTest:
    return go(app, "facts")


def add_examples(at: AppTest) -> AppTest:
    return at.button(key="facts.add").click().run()


def upload(at: AppTest, content: str | bytes, name: str = "facts.jsonl") -> AppTest:
    data = content.encode() if isinstance(content, str) else content
    at.file_uploader[0].set_value((name, data, "text/plain")).run()
    return finish(at)


@pytest.mark.parametrize("fact", [FRANCE, TWICE, RICH, *builtin_facts()[::13]])
def test_a_fact_survives_the_table(fact: Fact) -> None:
    assert rows.to_fact(rows.to_row(fact)) == fact


def test_an_empty_cell_may_be_nothing_or_not_a_number() -> None:
    row = {"prompt": "Oslo is in", "subject": "Oslo", "target_new": "Peru", "target_true": None}
    assert rows.to_fact({**row, "paraphrases": float("nan"), "relation": float("nan")}).target_true == ""


def test_bad_rows_are_reported_and_the_good_ones_stay() -> None:
    good = rows.to_row(FRANCE)
    facts, problems = rows.read_rows([{**good, "subject": "Spain"}, {}, good, {**good, "target_new": " "}])
    assert facts == (FRANCE,)
    assert [(problem.row, problem.field) for problem in problems] == [(1, "subject"), (4, "target_new")]
    assert all(problem.problem and problem.remedy for problem in problems)


def test_a_conclusion_without_an_answer_is_a_problem_with_its_remedy() -> None:
    row = {**rows.to_row(RICH), "portability": ["The country whose capital is Madrid is", " "]}
    facts, problems = rows.read_rows([row])
    assert facts == ()
    assert [(problem.row, problem.field) for problem in problems] == [(1, "portability")]
    assert "prompt → answer" in problems[0].remedy


def test_rows_from_before_conclusions_are_facts_still() -> None:
    row = {name: cell for name, cell in rows.to_row(RICH).items() if name != "portability"}
    assert rows.to_fact(row).portability == ()


def test_a_few_examples_cover_many_relations() -> None:
    assert len({fact.relation for fact in facts_table.take_turns(builtin_facts(), 6)}) == 6


def test_the_page_asks_its_question_and_says_what_to_do(page: AppTest) -> None:
    clean(page)
    assert page.header[0].value == "What shall be known?"
    assert "Write a fact into the table, upload a file, or add the examples above." in words(page)


def test_examples_are_one_click_away_and_clear_empties_the_table(page: AppTest) -> None:
    clean(add_examples(page))
    assert len(state_of(page).facts) == 6
    assert len(page.data_editor[0].value) == 6
    clean(page.button(key="facts.clear").click().run())
    assert state_of(page).facts == ()


def test_the_same_examples_are_not_added_twice(page: AppTest) -> None:
    add_examples(page)
    add_examples(page)
    assert len(state_of(page).facts) == 6


def test_examples_of_one_relation_can_be_chosen(page: AppTest) -> None:
    relation = builtin_facts()[0].relation
    page.multiselect(key="facts.relations").set_value([relation]).run()
    page.number_input(key="facts.count").set_value(3).run()
    add_examples(page)
    assert [fact.relation for fact in state_of(page).facts] == [relation] * 3


def test_without_a_model_the_page_offers_the_way_to_one(page: AppTest) -> None:
    add_examples(page)
    assert "Load a model to see the tokens and what it says today." in words(page)
    clean(page.button(key="go.model").click().run())
    assert page.header[0].value == "Which model, and will it work here?"


def test_facts_stay_when_another_page_was_visited(page: AppTest) -> None:
    add_examples(page)
    before = state_of(page).facts
    go(page, "model")
    clean(go(page, "facts"))
    assert state_of(page).facts == before
    assert len(page.data_editor[0].value) == 6


def test_an_upload_adds_its_facts_and_lists_its_bad_rows(page: AppTest) -> None:
    bad = {**RICH.to_dict(), "subject": "Chile", "subject_start": None}
    lines = [FRANCE.to_dict(), bad, RICH.to_dict()]
    upload(page, "\n".join(json.dumps(line) for line in lines))
    clean(page)
    assert state_of(page).facts == (FRANCE, RICH)
    assert list(page.data_editor[0].value["portability"].iloc[1]) == [
        "The country whose capital is Madrid is → Italy",
        "Italy is ruled from → Madrid",
    ]
    assert "2 facts added from facts.jsonl; 1 row could not be used:" in words(page)
    listed = page.dataframe[0].value
    assert list(listed["Row"]) == [2]
    assert list(listed["Column"]) == ["subject"]
    page.button(key="facts.close").click().run()
    assert "could not be used" not in words(page)


def test_a_csv_is_read_by_its_content(page: AppTest) -> None:
    upload(page, "prompt;subject;target_new\nThe capital of France is;France;Rome\n", "anything.txt")
    clean(page)
    assert [fact.target_new for fact in state_of(page).facts] == ["Rome"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("prompt#subject#target_new\na b#b#c\n", "wrong-separator.csv"),
        ('{"weights": [1, 2, 3]}', "not-facts.json"),
        (b"\xff\xfe\x00\x01\x02", "binary.csv"),
        ("", "empty.csv"),
    ],
)
def test_an_unusable_file_gets_one_sentence_and_the_facts_stay(
    page: AppTest, content: str | bytes, name: str
) -> None:
    add_examples(page)
    upload(page, content, name)
    assert not page.exception
    assert len(page.error) == 1
    assert "Traceback" not in page.error[0].value
    assert len(state_of(page).facts) == 6


def test_an_upload_of_more_than_50_mb_is_refused(page: AppTest) -> None:
    line = json.dumps(FRANCE.to_dict()).encode() + b"\n"
    upload(page, line * (51 * 2**20 // len(line) + 1))
    assert not page.exception
    assert "50" in page.error[0].value
    assert state_of(page).facts == ()


def test_the_tokens_and_the_answer_of_the_selected_fact_are_shown(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    go(app, "facts")
    add_examples(app)
    clean(app)
    text = words(app)
    assert "subject&#x27;s last token" in text or "subject's last token" in text
    assert "What the model says today" in text
    table: pd.DataFrame = app.dataframe[-1].value
    assert list(table.columns) == ["Next token", "Probability"]
    assert len(table) == 5
    assert table["Probability"].is_monotonic_decreasing


def test_another_fact_can_be_looked_at(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    go(app, "facts")
    add_examples(app)
    box = next(box for box in app.selectbox if box.label == "Fact to look at")
    clean(box.set_value(3).run())
    assert state_of(app).selected_fact == 3


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The emoji 🦊 lives in", "🦊"),
        ("עיר הבירה של צרפת היא", "צרפת"),
        ("The zero\u200bwidth town is in", "zero\u200bwidth"),
        ("<b>Bold & brave</b> is in", "<b>Bold & brave</b>"),
    ],
)
def test_unusual_text_is_shown_and_never_breaks_the_page(
    app: AppTest, tiny_llama: Path, prompt: str, subject: str
) -> None:
    load(app, tiny_llama)
    go(app, "facts")
    upload(app, json.dumps(Fact(prompt, subject, "Rome").to_dict()))
    clean(app)
    assert len(state_of(app).facts) == 1
    assert "<b>Bold" not in words(app)


def test_a_prompt_longer_than_the_context_is_said(app: AppTest, tiny_llama: Path) -> None:
    load(app, tiny_llama)
    go(app, "facts")
    upload(app, json.dumps(Fact("word " * 400 + "France is", "France", "Rome").to_dict()))
    assert not app.exception
    assert "the model reads at most 256" in words(app)


def test_a_target_the_model_says_already_is_pointed_out(
    app: AppTest, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dashboard import engine

    load(app, tiny_llama)
    go(app, "facts")
    monkeypatch.setattr(engine, "continuations", lambda *given, **named: [" Rome. It is"])
    upload(app, json.dumps(FRANCE.to_dict()))
    assert "The model says this already" in words(app)
