"""Files of facts are told apart by what is in them; bad rows are reported and good ones stay."""

import json
from pathlib import Path
from typing import Any

import pytest

from nmke.errors import FactError
from nmke.facts import Consequence, Fact, Neighbor
from nmke.readers import FactTable, facts_to_csv, facts_to_jsonl, read_facts

PLAIN = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}
COUNTERFACT = {
    "case_id": 12,
    "requested_rewrite": {
        "prompt": "{}, the home of",
        "subject": "Borduria",
        "relation_id": "P1",
        "target_new": {"str": "opera", "id": "Q1"},
        "target_true": {"str": "chess", "id": "Q2"},
    },
    "paraphrase_prompts": ["It rained all day. Borduria is known for", "Borduria loves"],
    "neighborhood_prompts": ["Syldavia, the home of", "San Theodoros, the home of"],
    "attribute_prompts": ["unused"],
}
ZSRE = {
    "subject": "Borduria",
    "src": "What is the capital of Borduria?",
    "pred": "Klow",
    "rephrase": "Which city is the capital of Borduria?",
    "alt": "Zlip",
    "answers": ["Szohod", "Szohôd"],
    "loc": "nq question: who wrote the anthem",
    "loc_ans": "nobody",
}
EASYEDIT = {
    "case_id": 3,
    "prompt": "The capital of Borduria is",
    "subject": "Borduria",
    "target_new": "Klow",
    "ground_truth": "Szohod",
    "rephrase_prompt": "Borduria is governed from",
    "locality_prompt": "The capital of Syldavia is",
    "locality_ground_truth": "Klow",
}
KNOWEDIT = {
    "subject": "Borduria",
    "prompt": "The capital of Borduria is",
    "target_new": "Klow",
    "ground_truth": [["Szohod", "Szohôd"]],
    "rephrase_prompt": "Borduria is governed from",
    "portability": {
        "Reasoning": [{"prompt": "The mayor of Borduria's capital is", "ground_truth": [["Ott"]]}]
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The ruler of Borduria is", "ground_truth": [["Plekszy-Gladz", "Kurvi-Tasch"]]},
            {"prompt": ["The anthem of Borduria is"], "ground_truth": ["unknown"]},
        ],
        "Forgetfulness": [{"prompt": "A city in Borduria, not Klow, is", "ground_truth": "Szohod"}],
    },
}


def read(*records: Any, **options: Any) -> FactTable:
    """Read records written as JSON Lines."""
    return read_facts("\n".join(json.dumps(record) for record in records).encode(), **options)


def refusal(content: str | bytes, **options: Any) -> FactError:
    with pytest.raises(FactError) as caught:
        read_facts(content.encode() if isinstance(content, str) else content, **options)
    assert caught.value.remedy
    return caught.value


def test_counterfact_is_read() -> None:
    table = read(COUNTERFACT)
    assert table.format.startswith("CounterFact (ROME form), JSON Lines")
    assert table.facts == (
        Fact(
            prompt="Borduria, the home of",
            subject="Borduria",
            target_new="opera",
            target_true="chess",
            paraphrases=("It rained all day. Borduria is known for", "Borduria loves"),
            neighborhood=(
                Neighbor("Syldavia, the home of", "chess"),
                Neighbor("San Theodoros, the home of", "chess"),
            ),
            case_id="12",
            relation="P1",
            subject_start=0,
        ),
    )


def test_zsre_is_edited_to_alt_and_says_so() -> None:
    table = read(ZSRE)
    fact = table.facts[0]
    assert "ZsRE (MEND form)" in table.format
    assert "target_new is alt, not answers" in table.format
    assert (fact.target_new, fact.target_true) == ("Zlip", "Szohod")
    assert fact.prompt == ZSRE["src"]
    assert fact.paraphrases == (ZSRE["rephrase"],)
    assert fact.neighborhood == (Neighbor("nq question: who wrote the anthem", "nobody"),)


def test_zsre_can_be_edited_to_the_first_answer() -> None:
    table = read(ZSRE, zsre_target="answers")
    assert (table.facts[0].target_new, table.facts[0].target_true) == ("Szohod", "")
    assert "target_new is answers, not alt" in table.format


def test_a_zsre_question_without_its_subject_is_a_row_problem() -> None:
    table = read({**ZSRE, "subject": "Syldavia"}, ZSRE)
    assert len(table.facts) == 1
    assert (table.problems[0].row, table.problems[0].field) == (1, "subject")


def test_easyedit_is_read() -> None:
    table = read(EASYEDIT)
    fact = table.facts[0]
    assert table.format == "EasyEdit's form, JSON Lines"
    assert (fact.target_true, fact.case_id) == ("Szohod", "3")
    assert fact.paraphrases == ("Borduria is governed from",)
    assert fact.neighborhood == (Neighbor("The capital of Syldavia is", "Klow"),)


def test_easyedits_grouped_locality_is_read() -> None:
    record = {
        **{key: value for key, value in EASYEDIT.items() if not key.startswith("locality")},
        "locality": {"neighborhood": {"prompt": ["A is", "B is"], "ground_truth": ["1", "2"]}},
        "portability": {"one_hop": {"prompt": "C is", "ground_truth": "3"}},
    }
    fact = read(record).facts[0]
    assert fact.neighborhood == (Neighbor("A is", "1"), Neighbor("B is", "2"))
    assert fact.portability == (Consequence("C is", "3"),)


def test_knowedit_is_read_with_its_nested_answers() -> None:
    table = read(KNOWEDIT)
    fact = table.facts[0]
    assert table.format == "KnowEdit, JSON Lines"
    assert fact.portability == (Consequence("The mayor of Borduria's capital is", "Ott"),)
    assert fact.target_true == "Szohod"
    assert fact.paraphrases == ("Borduria is governed from",)
    assert fact.neighborhood == (
        Neighbor("The ruler of Borduria is", "Plekszy-Gladz"),
        Neighbor("The anthem of Borduria is", "unknown"),
        Neighbor("A city in Borduria, not Klow, is", "Szohod"),
    )


def test_knowedits_groups_of_portability_questions_become_one_list() -> None:
    groups = {
        "Subject_Aliasing": [{"prompt": "The capital of the land of Borduria is", "ground_truth": "Klow"}],
        "Reasoning": [
            {"prompt": "The mayor of Borduria's capital is", "ground_truth": [["Ott", "Otto"], ["Ott I."]]},
            {"prompt": "The river through Borduria's capital is", "ground_truth": [[]]},
        ],
        "Logical_Generalization": None,
    }
    assert read({**KNOWEDIT, "portability": groups}).facts[0].portability == (
        Consequence("The capital of the land of Borduria is", "Klow"),
        Consequence("The mayor of Borduria's capital is", "Ott"),
    ), "a question without an answer is left out"


def test_easyedits_flat_portability_is_read() -> None:
    one = {**EASYEDIT, "portability_prompt": "C is", "portability_ground_truth": "3"}
    several = {
        **EASYEDIT,
        "portability_prompt": ["C is", "D is"],
        "portability_ground_truth": ["3", ["4", "iv"]],
    }
    table = read(one, several)
    assert table.facts[0].portability == (Consequence("C is", "3"),)
    assert table.facts[1].portability == (Consequence("C is", "3"), Consequence("D is", "4"))
    assert table.format == "EasyEdit's form, JSON Lines"
    short = read({**several, "portability_ground_truth": ["3"]}, EASYEDIT)
    assert "portability_prompt has 2 prompts but 1 answers" in short.problems[0].problem


@pytest.mark.parametrize("record", [COUNTERFACT, ZSRE])
def test_the_one_hop_questions_that_easyedit_added_are_read(record: dict[str, Any]) -> None:
    asked = {
        "Recalled Relation": "(Zlip, mayor, Ott)",
        "New Question": "Who governs it?",
        "New Answer": "Ott",
    }
    table = read({**record, "portability": asked})
    assert table.facts[0].portability == (Consequence("Who governs it?", "Ott"),)
    assert "portability" not in table.format
    assert read(record).facts[0].portability == ()


def test_zsre_edited_to_its_answers_has_no_questions_that_follow_from_alt() -> None:
    record = {**ZSRE, "portability": {"New Question": "Who governs it?", "New Answer": "Ott"}}
    assert read(record, zsre_target="answers").facts[0].portability == ()


def test_plain_facts_list_their_portability_questions() -> None:
    question = {"prompt": "The country whose capital is Rome is", "answer": "France"}
    asked = (Consequence(question["prompt"], "France"),)
    assert read({**PLAIN, "portability": [question]}).facts[0].portability == asked
    grouped = {"one_hop": {"prompt": question["prompt"], "ground_truth": "France"}}
    fact = read({**PLAIN, "portability": grouped}).facts[0]
    assert (fact.portability, fact.target_true) == (asked, "Paris"), "still read as plain facts"
    table = read(PLAIN, {**PLAIN, "portability": [{"prompt": "It is"}]}, {**PLAIN, "portability": "It is"})
    assert [(problem.row, problem.field) for problem in table.problems] == [
        (2, "portability"),
        (3, "portability"),
    ]
    assert "has no answer" in table.problems[0].problem


def test_numbered_columns_hold_portability_questions() -> None:
    header = (
        b"prompt,subject,target_new,portability_1,portability_answer_1,portability_2,portability_answer_2\n"
    )
    table = read_facts(
        header + b"The x is,x,y,Then z is,w,,\nThe x is,x,y,,,,lost\nThe x is,x,y,Then z is,,,\n"
    )
    assert table.facts[0].portability == (Consequence("Then z is", "w"),)
    assert table.format == "plain facts, table with commas"
    assert [(problem.row, problem.field) for problem in table.problems] == [
        (2, "portability_answer_2"),
        (3, "portability"),
    ]


def test_knowedits_biographies_are_read() -> None:
    record = {
        "text": "This is a passage about ada vale. Ada Vale was a painter.",
        "labels": "She lived in Klow.",
        "concept": "ada vale",
        "locality": {
            "Relation_Specificity": [{"prompt": "The trade of ada vale is", "ground_truth": ["painting"]}]
        },
    }
    fact = read(record).facts[0]
    assert (fact.subject, fact.target_new, fact.target_true) == ("ada vale", "She lived in Klow.", "")
    assert fact.neighborhood == (Neighbor("The trade of ada vale is", "painting"),)


def test_knowedit_without_an_old_answer_is_read() -> None:
    record = {key: value for key, value in KNOWEDIT.items() if key != "ground_truth"}
    assert read(record).facts[0].target_true == ""


def test_as_many_answers_as_prompts_are_needed() -> None:
    table = read({**EASYEDIT, "locality_prompt": ["A is", "B is"], "locality_ground_truth": ["1"]}, EASYEDIT)
    assert "2 prompts but 1 answers" in table.problems[0].problem
    assert len(table.facts) == 1


@pytest.mark.parametrize("record", [COUNTERFACT, ZSRE, EASYEDIT, KNOWEDIT, PLAIN])
def test_the_form_is_known_in_every_container(record: dict[str, Any]) -> None:
    lines = read(record, record).facts
    array = read_facts(json.dumps([record, record], indent=2).encode()).facts
    wrapped = read_facts(json.dumps({"version": 1, "data": [record, record]}).encode()).facts
    keyed = read_facts(json.dumps({"a": record, "b": record}).encode()).facts
    assert len(lines) == 2
    assert lines == array == wrapped == keyed


def test_one_record_alone_is_read() -> None:
    assert len(read_facts(json.dumps(COUNTERFACT, indent=1).encode()).facts) == 1


def test_the_file_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(json.dumps([PLAIN]), encoding="utf-8")
    assert read_facts(path).format == "plain facts, JSON array"


def test_several_rewrites_in_one_record_are_a_row_problem() -> None:
    rewrite = COUNTERFACT["requested_rewrite"]
    table = read({**COUNTERFACT, "requested_rewrite": [rewrite, rewrite]}, COUNTERFACT)
    assert "2 rewrites" in table.problems[0].problem


def test_plain_tables_are_read_with_numbered_columns() -> None:
    table = read_facts(
        b"prompt,subject,target_new,paraphrase_1,paraphrase_2,neighborhood_1,neighborhood_answer_1\n"
        b"The capital of {} is,France,Rome,{} has the capital,,The capital of Spain is,Madrid\n"
    )
    assert table.format == "plain facts, table with commas"
    assert table.facts[0].paraphrases == ("France has the capital",)
    assert table.facts[0].neighborhood == (Neighbor("The capital of Spain is", "Madrid"),)


def test_paraphrases_in_one_column_are_split_at_bars() -> None:
    table = read_facts(b"prompt,subject,target_new,paraphrases\nA x is,x,y,x was|x will be\n")
    assert table.facts[0].paraphrases == ("x was", "x will be")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(separator: str) -> None:
    table = "prompt,subject,target_new\nThe x is,x,y\n".replace(",", separator)
    assert len(read_facts(table.encode()).facts) == 1


def test_the_line_that_excel_puts_first_is_skipped() -> None:
    assert len(read_facts(b"sep=;\r\nprompt;subject;target_new\r\nThe x is;x;y\r\n").facts) == 1


def test_column_names_may_be_written_with_capitals_spaces_and_in_british_english() -> None:
    table = read_facts(b"Prompt,Subject,Target New,Neighbourhood 1\nThe x is,x,y,The z is\n")
    assert table.facts[0].neighborhood == (Neighbor("The z is"),)


def test_a_table_may_use_easyedits_names() -> None:
    table = read_facts(b"prompt,subject,target_new,ground_truth,rephrase_prompt\nThe x is,x,y,z,x was\n")
    assert (table.facts[0].target_true, table.facts[0].paraphrases) == ("z", ("x was",))


def test_a_wrong_separator_is_refused() -> None:
    error = refusal("prompt^subject^target_new\nThe x is^x^y\n", name="facts.csv")
    assert error.what == "The columns of facts.csv are not separated by commas, semicolons, tabs or bars."


def test_rows_with_another_separator_than_the_header_are_row_problems() -> None:
    table = read_facts(b"prompt,subject,target_new\nThe x is;x;y\nThe x is,x,y\n")
    assert table.problems[0].problem == "The row is not split into columns."
    assert len(table.facts) == 1


def test_a_missing_column_is_named() -> None:
    error = refusal("prompt,subject,target_true\nThe x is,x,y\n")
    assert "lacks the column target_new" in error.what
    assert error.field == "target_new"


def test_a_repeated_column_is_refused() -> None:
    assert "column subject 2 times" in refusal("prompt,subject,subject,target_new\na x,x,x,y\n").what


def test_too_many_cells_are_a_row_problem() -> None:
    table = read_facts(b"prompt,subject,target_new\nWell, the x is,x,y\nThe x is,x,y\n")
    assert table.problems[0].problem == "The row has 4 cells for 3 columns."
    assert "double quotes" in table.problems[0].remedy
    assert len(table.facts) == 1


def test_an_open_quote_is_a_row_problem() -> None:
    table = read_facts(b'prompt,subject,target_new\nThe x is,x,y\n"The x is,x,y\nThe x is,x,y\n')
    assert len(table.facts) == 1
    assert table.problems[0].row == 2
    assert "never closed" in table.problems[0].problem


def test_blank_rows_are_skipped_but_counted() -> None:
    table = read_facts(b"prompt,subject,target_new\n\n,,\nThe x is,q,y\n")
    assert [problem.row for problem in table.problems] == [3]


def test_bad_rows_are_reported_and_good_rows_stay() -> None:
    table = read(PLAIN, {**PLAIN, "subject": ""}, PLAIN, {**PLAIN, "target_new": "Paris"}, [1], PLAIN)
    assert len(table.facts) == 3
    assert [(problem.row, problem.field) for problem in table.problems] == [
        (2, "subject"),
        (4, "target_new"),
        (5, ""),
    ]
    assert all(problem.problem.endswith(".") and problem.remedy.endswith(".") for problem in table.problems)


def test_a_problem_names_the_field_as_the_file_does() -> None:
    assert read(ZSRE, {**ZSRE, "alt": " "}).problems[0].field == "alt"
    rewrite = {**COUNTERFACT["requested_rewrite"], "prompt": ""}  # type: ignore[dict-item]
    broken = {**COUNTERFACT, "requested_rewrite": rewrite}
    assert read(COUNTERFACT, broken).problems[0].field == "requested_rewrite.prompt"


@pytest.mark.parametrize("record", [COUNTERFACT, ZSRE, EASYEDIT, KNOWEDIT, PLAIN])
def test_a_row_without_a_field_says_which(record: dict[str, Any]) -> None:
    key = next(key for key in ("requested_rewrite", "src", "target_new") if key in record)
    table = read(record, {name: value for name, value in record.items() if name != key})
    assert (table.problems[0].row, table.problems[0].field) == (2, key)
    assert table.problems[0].problem == f"The {key} is missing."


@pytest.mark.parametrize("value", [1.5, True, {"a": 1}, ["x"]])
def test_a_value_of_a_wrong_type_is_a_row_problem(value: Any) -> None:
    table = read(PLAIN, {**PLAIN, "target_true": value})
    assert table.problems[0].field == "target_true"


def test_a_year_may_be_a_number() -> None:
    assert read({**PLAIN, "target_new": 1945}).facts[0].target_new == "1945"


def test_a_nul_character_is_a_row_problem() -> None:
    assert read(PLAIN, {**PLAIN, "target_new": "a\0"}).problems[0].field == "target_new"


def test_a_broken_line_is_a_row_problem() -> None:
    good = json.dumps(PLAIN)
    table = read_facts(f'{good}\n{{"prompt": \n{good}\n'.encode())
    assert len(table.facts) == 2
    assert table.problems[0].row == 2
    assert "not JSON" in table.problems[0].problem


def test_repeated_rows_are_kept() -> None:
    assert len(read(PLAIN, PLAIN, PLAIN).facts) == 3


def test_reading_stops_at_the_limit() -> None:
    table = read(PLAIN, {**PLAIN, "subject": ""}, PLAIN, PLAIN, limit=2)
    assert (len(table.facts), len(table.problems)) == (2, 1)


def test_a_limit_below_one_is_refused() -> None:
    assert refusal(json.dumps(PLAIN), limit=0).field == "limit"


def test_an_unknown_zsre_target_is_refused() -> None:
    assert refusal(json.dumps(ZSRE), zsre_target="pred").field == "zsre_target"


def test_unknown_columns_are_named_as_not_used() -> None:
    assert read({**PLAIN, "remark": "x"}).format == "plain facts, JSON Lines; not used: remark"


@pytest.mark.parametrize(
    "content",
    ['[{"question": "a", "answer": "b"}]', '{"a": 1}', "[1, 2]", "[]", "{}", '"text"', "12", '{"data": []}'],
)
def test_json_that_is_not_facts_is_refused(content: str) -> None:
    assert "facts" in refusal(content).what


def test_the_fields_of_foreign_records_are_shown() -> None:
    assert "question, answer" in refusal('[{"question": "a", "answer": "b"}]').what


def test_broken_json_is_refused_with_the_place() -> None:
    error = refusal('[{"prompt": "a"},\n {"prompt"', name="facts.json")
    assert "facts.json is broken JSON" in error.what
    assert "line 2" in error.what


def test_json_nested_without_end_is_refused() -> None:
    assert "nested too deep" in refusal("[" * 100_000).what


def test_two_lists_of_facts_are_refused() -> None:
    assert "train, test" in refusal(json.dumps({"train": [PLAIN], "test": [PLAIN]})).what


@pytest.mark.parametrize("content", ["", "  \n\n", "\ufeff"])
def test_an_empty_file_is_refused(content: str) -> None:
    assert refusal(content, name="facts.csv").what == "facts.csv is empty."


def test_a_table_with_a_header_only_is_refused() -> None:
    assert "holds no facts" in refusal("prompt,subject,target_new\n").what


def test_a_byte_order_mark_is_ignored() -> None:
    assert len(read_facts("prompt,subject,target_new\nThe x is,x,y\n".encode("utf-8-sig")).facts) == 1


def test_text_that_is_not_utf8_is_refused_with_its_line() -> None:
    error = refusal("prompt,subject,target_new\nThe é is,é,y\n".encode("latin-1"))
    assert "not UTF-8 text (line 2)" in error.what


def test_utf16_is_refused_by_name() -> None:
    assert "UTF-16" in refusal("prompt,subject,target_new\n".encode("utf-16")).what


def test_a_spreadsheet_is_refused_by_name() -> None:
    assert "spreadsheet" in refusal(b"PK\x03\x04\x00\x00").what


def test_prose_is_refused() -> None:
    assert "neither JSON nor a table" in refusal("Once upon a time\nthere was a model.\n").what


def test_an_upload_of_more_than_50_mb_is_refused() -> None:
    error = refusal(b"x" * (50 * 2**20 + 1), name="facts.csv")
    assert error.what == "facts.csv has 50.0 MB; at most 50 MB are read."


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    with path.open("wb") as file:
        file.truncate(60 * 2**20)
    with pytest.raises(FactError, match=r"60\.0 MB"):
        read_facts(path)


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FactError):
        read_facts(tmp_path / name)


ODD_FACTS = (
    Fact(
        'He said: "{}, yes"',
        "a, b; c\td|e",
        'new\n"line"\r\nnext',
        target_true="\r odd \u2028 end",
        paraphrases=("a, b; c\td|e", "line\rbreak a", "| bar |"),
        neighborhood=(Neighbor("no answer"), Neighbor("with", "an | answer")),
        portability=(Consequence('so "it" is,', "a, b"), Consequence("then | it is", "one\nmore")),
        case_id="007",
        relation="r, s",
    ),
    Fact("Paris and {} and more", "Paris", "👩‍🚀"),
    Fact("In Python, {} is a dict and Python", "Python", "set", subject_start=3),
    Fact("עיר הבירה של צרפת היא", "צרפת", "רומא", target_true="פריז"),
    Fact("=1+1 is", "=1+1", "2"),
    Fact("Fra\u200bnce is", "Fra\u200bnce", "1e5"),
)


def test_a_table_comes_back_exactly() -> None:
    assert read_facts(facts_to_csv(ODD_FACTS).encode()) == FactTable(
        ODD_FACTS, (), "plain facts, table with commas"
    )


def test_json_lines_come_back_exactly() -> None:
    assert read_facts(facts_to_jsonl(ODD_FACTS).encode()) == FactTable(
        ODD_FACTS, (), "plain facts, JSON Lines"
    )


@pytest.mark.parametrize("record", [COUNTERFACT, ZSRE, EASYEDIT, KNOWEDIT, PLAIN])
def test_facts_of_every_form_come_back_exactly(record: dict[str, Any]) -> None:
    facts = read(record, record).facts
    assert read_facts(facts_to_csv(facts).encode()).facts == facts
    assert read_facts(facts_to_jsonl(facts).encode()).facts == facts


def test_a_table_of_no_facts_has_a_header() -> None:
    assert facts_to_csv([]) == "prompt,subject,target_new,target_true\r\n"


@pytest.mark.parametrize(
    ("name", "rows", "title"),
    [
        ("data/counterfact.jsonl", 970, "CounterFact"),
        ("data/counterfact_more.jsonl", 2097, "CounterFact"),
        ("data/zsre.jsonl", 519, "ZsRE"),
        ("data/zsre_train.jsonl", 998, "ZsRE"),
        ("golden/lifelong_facts.jsonl", 200, "EasyEdit"),
    ],
)
def test_every_real_record_is_a_fact_or_a_row_problem(shared: Path, name: str, rows: int, title: str) -> None:
    table = read_facts(shared / name)
    assert title in table.format
    asked = {"data/counterfact.jsonl": 525, "data/zsre.jsonl": 519}.get(name, 0)
    assert sum(len(fact.portability) for fact in table.facts) in range(asked - len(table.problems), asked + 1)
    assert len(table.facts) + len(table.problems) == rows
    # Only records of ZsRE whose new answer is the right one already cannot be edited.
    assert {(problem.field, problem.problem.split(" are both ")[0]) for problem in table.problems} <= {
        ("alt", "target_new and target_true")
    }
    assert len(table.problems) <= 0.03 * rows
    assert read_facts(facts_to_csv(table.facts).encode()).facts == table.facts
