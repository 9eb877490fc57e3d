"""Questions asked behind a prompt edit: as if its text stood before each question, also under an ablation."""

import pytest

from nmke.ablation import AblationConfig, by_hand, run_ablation
from nmke.answers import Answered, AnswersConfig, answer_questions
from nmke.loading import LoadedModel
from nmke.questions import Question, options_of, prompt_of
from nmke.session import EditSession
from nmke.tokens import encode, encode_continuation, pad, pad_id
from tests.prompt_patches import edit_of, note
from tests.unit.test_ablation import QUESTIONS as ABLATED
from tests.unit.test_answers import CLOSE, QUESTIONS, plain_nats

FRONT = "A cat says meow. The capital of Italy is the boat.\n"
CONFIG = AnswersConfig(written_tokens=5)


def asked(model: LoadedModel, front: str, word: str = "") -> tuple[EditSession, list[Answered]]:
    """The answers of a session with a text in front of whatever holds a word."""
    session = EditSession(model)
    session.apply(edit_of(note(front, word=word)))
    with session.active():
        return session, answer_questions(model, QUESTIONS, CONFIG)


def plain_logp(model: LoadedModel, front: str, question: Question, form: str) -> list[float]:
    """log P of each option behind front and prompt, each row read whole and alone."""
    prompt = prompt_of(question, form)  # type: ignore[arg-type]
    ids = encode(model.tokenizer, front) + encode(model.tokenizer, prompt)
    options = options_of(question, form)  # type: ignore[arg-type]
    ends = [encode_continuation(model.tokenizer, prompt, option.strip()) for option in options]
    return [-sum(plain_nats(model, ids + end, len(ids))) for end in ends]


def test_options_are_scored_behind_the_text_in_front(tiny: LoadedModel) -> None:
    _, found = asked(tiny, FRONT)
    for question, one in zip(QUESTIONS, found, strict=True):
        assert one.letters_logp == pytest.approx(plain_logp(tiny, FRONT, question, "letters"), **CLOSE)
        assert one.cloze_logp == pytest.approx(plain_logp(tiny, FRONT, question, "cloze"), **CLOSE)


def test_the_questions_own_text_is_read_behind_the_text_in_front(tiny: LoadedModel) -> None:
    _, found = asked(tiny, FRONT)
    for question, one in zip(QUESTIONS, found, strict=True):
        start = encode(tiny.tokenizer, FRONT) + encode(tiny.tokenizer, "Question:")
        text = encode_continuation(tiny.tokenizer, "Question:", question.text)
        nats = plain_nats(tiny, start + text, len(start))
        assert one.text_loss == pytest.approx(sum(nats) / len(nats), **CLOSE)


def test_the_written_answer_goes_on_from_front_and_question(tiny: LoadedModel) -> None:
    _, found = asked(tiny, FRONT)
    for question, one in zip(QUESTIONS, found, strict=True):
        ids = encode(tiny.tokenizer, FRONT) + encode(tiny.tokenizer, prompt_of(question, "letters"))
        batch = pad([ids], pad_id(tiny.tokenizer))
        written = tiny.bridge.original_model.generate(
            batch.ids, attention_mask=batch.mask, do_sample=False, max_new_tokens=CONFIG.written_tokens
        )[0, len(ids) :]
        assert one.written == tiny.tokenizer.decode(written, skip_special_tokens=True)


def test_questions_outside_the_edits_scope_are_answered_as_without_it(tiny: LoadedModel) -> None:
    plain = answer_questions(tiny, QUESTIONS, CONFIG)
    _, found = asked(tiny, FRONT, word="capital")
    for question, one, before in zip(QUESTIONS, found, plain, strict=True):
        inside = "capital" in question.text
        assert one.cloze_logp == pytest.approx(before.cloze_logp, **CLOSE) or inside
        expected = plain_logp(tiny, FRONT, question, "cloze") if inside else before.cloze_logp
        assert one.cloze_logp == pytest.approx(expected, **CLOSE)
    assert any("capital" in question.text for question in QUESTIONS)


def test_an_ablation_switches_neurons_off_behind_the_text_in_front(llama: LoadedModel) -> None:
    session = EditSession(llama)
    session.apply(edit_of(note(FRONT)))
    config = AblationConfig(controls=1, answers=AnswersConfig(scores=("letters",)))
    results = run_ablation(session, ABLATED, [by_hand(llama, {2: (3, 5)})], config)
    for one in results.conditions:
        with llama.holding({layer: (neurons, 0.0) for layer, neurons in one.neurons.items()}):
            for question, found in zip(ABLATED.questions, results.answers[one.name], strict=True):
                assert found.letters_logp == pytest.approx(
                    plain_logp(llama, FRONT, question, "letters"), **CLOSE
                )
    assert len({tuple(answers[0].letters_logp) for answers in results.answers.values()}) == 3
