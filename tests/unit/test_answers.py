"""Answers: every score against its formula written out one by one, on tiny models of both orientations."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from nmke.answers import (
    FORMULAS,
    SCORES,
    Answered,
    AnswersConfig,
    accuracy,
    answer_questions,
    beats_chance,
    mean_loss,
    recognise,
    summarise,
    too_long,
)
from nmke.answers import reading as reading_module
from nmke.answers import scoring as scoring_module
from nmke.answers.reading import group_by_length
from nmke.config import ConfigError
from nmke.errors import Cancelled
from nmke.loading import LoadedModel
from nmke.progress import Progress
from nmke.questions import Question, QuestionError, load_questions, message_of, options_of, prompt_of
from nmke.tokens import encode, encode_continuation, pad, pad_id

QUESTIONS = (
    Question("a/0", "anatomy", "Is the cat in Rome?", ("yes", "no it is in Paris", "a dog"), 1),
    Question("a/1", "anatomy", "What is the river?", ("wide", "the language", "England", "you"), 0),
    Question("b/0", "law", "Which city is the capital of France, of Spain and of Italy?", ("London", "x"), 0),
    Question("b/1", "law", "Why?", ("Because the boat", "Therefore I", "É", "the city of London is"), 2),
    Question("a/2", "anatomy", "Who says meow and who says woof?", ("a cat and a dog", "you and I"), 0),
)
CLOSE = {"abs": 2e-4}


class CancelAfter(Progress):
    """Cancels at the given call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled()


@torch.no_grad()
def plain_nats(model: LoadedModel, ids: list[int], start: int) -> list[float]:
    """-log P of each token from ``start`` on, in float64, reading the row alone and without any cache."""
    batch = pad([ids], pad_id(model.tokenizer))
    logits = model.bridge(batch.ids, attention_mask=batch.mask, use_cache=False)[0].double()
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return [-float(log_p[place - 1, ids[place]]) for place in range(start, len(ids))]


def plain_logp(model: LoadedModel, question: Question, form: Any) -> list[float]:
    prompt = prompt_of(question, form)
    ids = encode(model.tokenizer, prompt)
    options = [
        encode_continuation(model.tokenizer, prompt, option.strip()) for option in options_of(question, form)
    ]
    return [-sum(plain_nats(model, ids + option, len(ids))) for option in options]


def argmax(values: list[float]) -> int:
    return values.index(max(values))


@pytest.fixture(scope="module")
def answers() -> Callable[..., list[Answered]]:
    """All scores of the questions, asked once for each model."""
    kept: dict[int, list[Answered]] = {}

    def of(model: LoadedModel) -> list[Answered]:
        if id(model) not in kept:
            kept[id(model)] = answer_questions(model, QUESTIONS, AnswersConfig(written_tokens=7))
        return kept[id(model)]

    return of


def test_letters_are_those_with_the_largest_log_probability(tiny: LoadedModel, answers: Any) -> None:
    for question, found in zip(QUESTIONS, answers(tiny), strict=True):
        plain = plain_logp(tiny, question, "letters")
        assert found.letters_logp == pytest.approx(plain, **CLOSE)
        assert found.letters == argmax(plain)
        assert found.right("letters") == (argmax(plain) == question.answer)


def test_cloze_takes_the_choice_with_the_best_log_probability_per_character(
    tiny: LoadedModel, answers: Any
) -> None:
    for question, found in zip(QUESTIONS, answers(tiny), strict=True):
        plain = plain_logp(tiny, question, "cloze")
        normed = [logp / len(choice) for logp, choice in zip(plain, question.choices, strict=True)]
        assert found.cloze_logp == pytest.approx(plain, **CLOSE)
        assert found.cloze_score == pytest.approx(normed, **CLOSE)
        assert found.cloze == argmax(normed)


def test_the_length_of_a_choice_decides_where_the_sums_do_not(llama: LoadedModel, answers: Any) -> None:
    assert any(argmax(list(one.cloze_logp)) != one.cloze for one in answers(llama))


def test_loss_is_the_mean_over_the_right_choices_tokens(tiny: LoadedModel, answers: Any) -> None:
    for question, found in zip(QUESTIONS, answers(tiny), strict=True):
        prompt = prompt_of(question, "cloze")
        ids = encode(tiny.tokenizer, prompt)
        right = encode_continuation(tiny.tokenizer, prompt, question.choices[question.answer])
        nats = plain_nats(tiny, ids + right, len(ids))
        assert found.loss == pytest.approx(sum(nats) / len(nats), **CLOSE)


def test_text_loss_is_the_mean_over_the_questions_own_tokens(tiny: LoadedModel, answers: Any) -> None:
    for question, found in zip(QUESTIONS, answers(tiny), strict=True):
        start = encode(tiny.tokenizer, "Question:")
        text = encode_continuation(tiny.tokenizer, "Question:", question.text)
        nats = plain_nats(tiny, start + text, len(start))
        assert found.text_loss == pytest.approx(sum(nats) / len(nats), **CLOSE)


def test_a_question_that_is_one_token_with_the_line_break_has_no_loss_of_its_text(
    llama: LoadedModel, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merging(tokenizer: Any, text: str) -> list[int]:
        """As of a vocabulary in which " Why?" and the line break are one token."""
        return encode(tokenizer, text.replace(" Why?\n", "\n"))

    monkeypatch.setattr(scoring_module, "encode", merging)
    found = answer_questions(llama, QUESTIONS, AnswersConfig(scores=("loss",)))
    assert [one.question for one in found if one.text_loss is None] == ["b/1"]
    assert all(one.loss is not None for one in found)
    others = [one for one in answers(llama) if one.question != "b/1"]
    assert mean_loss(found, "text_loss").n == 4
    assert mean_loss(found, "text_loss").value == pytest.approx(
        sum(one.text_loss for one in others) / 4, **CLOSE
    )
    assert summarise(found)["subjects"]["law"]["text_loss"]["n"] == 1
    assert Answered.from_row(found[3].to_row()) == found[3]


@pytest.mark.parametrize("rows", [1, 3, 512])
def test_the_nats_of_several_texts_together_are_those_of_each_alone(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(reading_module, "_ROWS", rows)
    products: list[int] = []
    whole = type(tiny).logits

    def counted(model: Any, final: torch.Tensor) -> torch.Tensor:
        products.append(len(final))
        return whole(model, final)

    generator = torch.Generator().manual_seed(0)
    finals = [torch.randn(length, tiny.d_model, generator=generator) for length in (4, 0, 1, 5)]
    forced = [torch.randint(tiny.d_vocab, (len(one),), generator=generator).tolist() for one in finals]
    alone = [
        reading_module.nats_of(tiny, *pair) if pair[1] else [] for pair in zip(finals, forced, strict=True)
    ]
    monkeypatch.setattr(type(tiny), "logits", counted)
    found = reading_module.nats_of_all(tiny, finals, forced)
    assert [len(one) for one in found] == [4, 0, 1, 5]
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert products == {1: [1] * 10, 3: [3, 3, 3, 1], 512: [10]}[rows]
    assert reading_module.nats_of_all(tiny, finals[1:2], [[]]) == [[]]


def test_the_written_answer_is_the_models_greedy_text(tiny: LoadedModel, answers: Any) -> None:
    for question, found in zip(QUESTIONS, answers(tiny), strict=True):
        (plain,) = tiny.generate([prompt_of(question, "letters")], 7)
        assert found.written == plain
        assert found.written_choice == recognise(plain, question.choices)


def test_writing_ends_at_the_end_of_text_token(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AnswersConfig(scores=("written",), written_tokens=8)
    (whole,) = answer_questions(llama, QUESTIONS[:1], config)
    prompt = encode(llama.tokenizer, prompt_of(QUESTIONS[0], "letters"))
    written = reading_module.read_prompts(llama, [prompt])
    ids = reading_module.write_greedily(llama, written.next, written.past, 8, lambda: None)[0]
    at = next(place for place in range(1, 8) if ids[place] not in ids[:place])
    monkeypatch.setattr(llama.bridge.original_model.generation_config, "eos_token_id", ids[at])
    (cut,) = answer_questions(llama, QUESTIONS[:1], config)
    assert cut.written == llama.tokenizer.decode(ids[:at]) != whole.written
    # Hugging Face's text still has this token, which is no special one here, and ends with it too.
    assert llama.tokenizer.decode(ids[: at + 1]) == llama.generate([prompt_of(QUESTIONS[0], "letters")], 8)[0]


def test_a_chat_template_is_used_where_there_is_one(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [bot]"
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    config = AnswersConfig(scores=("written",), written_tokens=6)
    found = answer_questions(llama, QUESTIONS, config)
    chatted = llama.generate([f"[user] {message_of(question)} [bot]" for question in QUESTIONS], 6)
    assert [one.written for one in found] == chatted
    plain = answer_questions(llama, QUESTIONS, config.changed(written_prompt="letters"))
    assert [one.written for one in plain] == llama.generate([prompt_of(q, "letters") for q in QUESTIONS], 6)
    assert found != plain


@pytest.mark.parametrize(("batch_tokens", "window"), [(1, 50), (400, 2), (5000, 50)])
def test_how_questions_are_batched_changes_nothing(
    tiny: LoadedModel, answers: Any, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, window: int
) -> None:
    monkeypatch.setattr(scoring_module, "WINDOW", window)
    config = AnswersConfig(written_tokens=7, batch_tokens=batch_tokens)
    for one, other in zip(answer_questions(tiny, QUESTIONS, config), answers(tiny), strict=True):
        assert (one.question, one.letters, one.cloze, one.written) == (
            other.question,
            other.letters,
            other.cloze,
            other.written,
        )
        assert one.letters_logp == pytest.approx(other.letters_logp, **CLOSE)
        assert one.cloze_logp == pytest.approx(other.cloze_logp, **CLOSE)
        assert [one.loss, one.text_loss] == pytest.approx([other.loss, other.text_loss], **CLOSE)


def test_asking_again_gives_the_same_bits(tiny: LoadedModel, answers: Any) -> None:
    assert answer_questions(tiny, QUESTIONS, AnswersConfig(written_tokens=7)) == answers(tiny)


@pytest.mark.parametrize("score", SCORES)
def test_a_score_asked_for_alone_is_the_same_and_the_others_are_left_out(
    tiny: LoadedModel, answers: Any, score: str
) -> None:
    config = AnswersConfig(scores=(score,), written_tokens=7)
    for one, other in zip(answer_questions(tiny, QUESTIONS, config), answers(tiny), strict=True):
        assert one.value(score) == pytest.approx(other.value(score), **CLOSE)
        assert [name for name in SCORES if one.value(name) is not None] == [score]


def test_answers_are_told_in_order_as_soon_as_they_are_whole(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_module, "WINDOW", 2)
    told: list[Answered] = []
    config = AnswersConfig(scores=("letters",))
    with pytest.raises(Cancelled):
        answer_questions(llama, QUESTIONS, config, CancelAfter(3), told.append)
    assert [one.question for one in told] in (["a/0", "a/1"], ["a/0", "a/1", "b/0", "b/1"])
    told.clear()
    assert answer_questions(llama, QUESTIONS, config, None, told.append) == told
    assert [one.question for one in told] == [question.id for question in QUESTIONS]


@pytest.mark.parametrize("calls", (0, 1, 4, 8, 11))
def test_a_cancel_at_any_time_leaves_the_model_free_and_as_it_was(
    llama: LoadedModel, answers: Any, calls: int
) -> None:
    expected = answers(llama)
    with pytest.raises(Cancelled):
        answer_questions(llama, QUESTIONS, AnswersConfig(written_tokens=7), CancelAfter(calls))
    taken: list[bool] = []

    def take() -> None:
        taken.append(llama.lock.acquire(timeout=5))
        if taken[0]:
            llama.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert taken == [True]
    assert answer_questions(llama, QUESTIONS[:5], AnswersConfig(written_tokens=7)) == expected


def test_answers_are_those_of_the_weights_in_force(tiny: LoadedModel, answers: Any) -> None:
    other = {2: tiny.as_stored(2, torch.zeros_like(tiny.W_out(2)))}
    with tiny.weights_in(other):
        changed = answer_questions(tiny, QUESTIONS, AnswersConfig(written_tokens=7))
        plain = plain_logp(tiny, QUESTIONS[0], "cloze")
    assert changed[0].cloze_logp == pytest.approx(plain, **CLOSE)
    assert changed[0].cloze_logp != answers(tiny)[0].cloze_logp


def test_no_questions_have_no_answers(llama: LoadedModel) -> None:
    assert answer_questions(llama, ()) == []


def test_a_question_that_does_not_fit_the_context_is_refused_before_any_work(llama: LoadedModel) -> None:
    long = Question("z/9", "law", "word " * 300, ("x", "y"), 0)
    told: list[Answered] = []
    with pytest.raises(QuestionError, match="z/9 needs .* at most 256"):
        answer_questions(llama, [*QUESTIONS, long], on_answered=told.append)
    assert told == []
    assert too_long(llama, [*QUESTIONS, long]) == ("z/9",)


def test_writing_stops_where_the_context_ends(llama: LoadedModel) -> None:
    question = Question("z/0", "law", "q" * 150, ("x", "y"), 0)
    need = len(encode(llama.tokenizer, prompt_of(question, "letters")))
    left = llama.context_length - need
    assert 0 < left < 200
    config = AnswersConfig(scores=("written",), written_tokens=256, written_prompt="letters")
    (found,) = answer_questions(llama, [question], config)
    assert found.written == llama.generate([prompt_of(question, "letters")], left)[0]


def test_the_built_in_questions_fit_the_smallest_models(tiny: LoadedModel) -> None:
    assert too_long(tiny, load_questions("builtin").questions) == ()


@pytest.mark.parametrize(
    "values", [{"scores": ()}, {"scores": ("guess",)}, {"written_tokens": 0}, {"batch_tokens": 0}, {"x": 1}]
)
def test_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AnswersConfig.make(**values)


def test_scores_are_kept_in_one_order() -> None:
    assert AnswersConfig(scores=("loss", "letters")).scores == ("letters", "loss")
    assert set(FORMULAS) == {*SCORES, "text_loss"}


def test_groups_hold_each_row_once_and_keep_to_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 20, 2]
    groups = group_by_length(lengths, 12)
    assert sorted(index for group in groups for index in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= 12
    assert max(map(len, groups)) > 1


# ---- what a written answer names ----------------------------------------------------------------------------

CHOICES = ("DNA", "DNA polymerase", "root cells", "5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" B", 1),
        ("\n\nC. root cells", 2),
        ("(D)", 3),
        ("[A] ", 0),
        ("**B**", 1),
        ("A: because", 0),
        ("The answer is B.", 1),
        ("The correct answer is:\nC. root cells", 2),
        ("Answer: D", 3),
        ("the best choice is (A)", 0),
        ("A DNA", 0),
        ("A cell", None),
        ("A root cells answer", 2),
        ("E.", None),
        ("a", None),
        ("B's", None),
        ("BC", None),
        ("A. DNA\nB. DNA polymerase", None),
        ("A. DNA\nThe DNA is copied", 0),
        ("A. DNA\n\nThe answer is B.", None),
        ("dna  Polymerase copies it", 1),
        ("It is the DNA polymerase of the cell", 1),
        ("It is the DNA of the DNA polymerase", None),
        ("Both DNA and root cells", None),
        ("It has 15 parts", None),
        ("It has 5 parts", 3),
        ("5.", 3),
        ("nothing of these\nB", None),
        ("", None),
        ("\n \n--", None),
        ("?? ## , ,", None),
    ],
)
def test_a_choice_is_recognised_by_the_rule(text: str, expected: int | None) -> None:
    assert recognise(text, CHOICES) == expected


def test_a_letter_beyond_the_choices_names_none() -> None:
    assert recognise("C", ("x", "y")) is None and recognise("B", ("x", "y")) == 1


# ---- sums over questions ------------------------------------------------------------------------------------


def answered(right: int, wrong: int, subject: str = "law", choices: int = 4, **more: Any) -> list[Answered]:
    """So many right and wrong answers by cloze."""
    hits = [Answered(f"{subject}/{i}", subject, 1, choices, cloze=1, **more) for i in range(right)]
    return hits + [
        Answered(f"{subject}/{right + i}", subject, 2, choices, cloze=1, **more) for i in range(wrong)
    ]


def test_accuracy_is_the_share_of_right_answers() -> None:
    found = accuracy(answered(30, 70), "cloze")
    assert (found.value, found.n) == (0.3, 100) and found.low < 0.3 < found.high
    with pytest.raises(QuestionError):
        accuracy(answered(3, 7), "letters")


def test_an_answer_that_names_no_choice_is_wrong_and_one_not_asked_for_is_nothing() -> None:
    silent = Answered("x", "law", 0, 4, written="")
    assert silent.right("written") is False and silent.right("letters") is None
    assert replace(silent, written=None).right("written") is None
    assert silent.right("loss") is None and replace(silent, loss=2.0).value("loss") == 2.0


def test_chance_is_tested_exactly() -> None:
    found = beats_chance(answered(40, 60), "cloze")
    tail = sum(math.comb(100, k) * 0.25**k * 0.75 ** (100 - k) for k in range(40, 101))
    assert found["p_value"] == pytest.approx(tail) and found["beats"] and found["chance"] == 0.25
    assert found["one_answer"] == 1.0 and found["best_constant"] == 0.6
    assert not beats_chance(answered(25, 75), "cloze")["beats"]


def test_an_answer_that_names_no_choice_is_nobodys_favourite() -> None:
    silent = [Answered(f"law/{i}", "law", 0, 4, written="") for i in range(9)]
    assert beats_chance(silent, "written")["one_answer"] == 0.0
    named = Answered("law/9", "law", 0, 4, written="B", written_choice=1)
    assert beats_chance([*silent, named], "written")["one_answer"] == pytest.approx(0.1)


def test_chance_minds_the_number_of_choices() -> None:
    mixed = answered(5, 5, choices=2) + answered(0, 10, "b", choices=4)
    assert beats_chance(mixed, "cloze")["chance"] == pytest.approx(0.375)
    assert beats_chance(answered(40, 60, choices=2), "cloze")["p_value"] > 0.9


def test_mean_loss_is_the_mean_over_questions() -> None:
    rows = [replace(one, loss=float(i)) for i, one in enumerate(answered(3, 2))]
    found = mean_loss(rows)
    assert found.value == 2.0 and found.n == 5 and found.low < 2.0 < found.high


def test_a_summary_has_every_score_that_was_taken_over_all_and_by_subject() -> None:
    rows = [replace(one, loss=1.5) for one in answered(2, 2) + answered(3, 0, "anatomy")]
    found = summarise(rows)
    assert found["n"] == 7 and set(found["scores"]) == {"cloze", "loss"} == set(found["formulas"])
    assert found["scores"]["cloze"]["value"] == pytest.approx(5 / 7)
    assert found["subjects"]["law"]["cloze"]["value"] == 0.5
    assert found["subjects"]["anatomy"]["loss"]["value"] == 1.5
    assert json.loads(json.dumps(found)) == found


def test_answers_come_back_from_rows_of_a_table(llama: LoadedModel, answers: Any) -> None:
    rows = [*answers(llama), Answered("x", "law", 0, 4), Answered("y", "law", 0, 4, written="", loss=1.0)]
    frame = pd.DataFrame([one.to_row() for one in rows])
    assert [Answered.from_row(row) for row in frame.to_dict("records")] == rows
    assert [Answered.from_row(json.loads(json.dumps(one.to_row()))) for one in rows] == rows
