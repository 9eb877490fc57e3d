"""Scores against answers written out by hand, and answers against the plain model."""

import math

import pytest
import torch

from nmke.facts import Consequence, Fact, Neighbor
from nmke.forcing import Answer, answer_all, longest_of, next_token_table
from nmke.loading import LoadedModel
from nmke.metrics import FORMULAS, FactMeasure, compare, mean_scores, measure_fact
from nmke.sites import FINAL
from nmke.tokens import encode, encode_continuation, pad

FACT = Fact(
    "The capital of France is",
    "France",
    "the boat",
    target_true="Paris",
    paraphrases=("I take France",),
    neighborhood=(Neighbor("The capital of Italy is", "Rome"), Neighbor("A cat says")),
    portability=(
        Consequence("France is ruled from", "the boat"),
        Consequence("The boat is the capital of", "France"),
    ),
)


def answer(argmax: tuple[int, ...], forced: tuple[int, ...], log_p: float, target: str = "x") -> Answer:
    hits = tuple(a == b for a, b in zip(argmax, forced, strict=True))
    return Answer("p", target, argmax, hits, math.exp(log_p), log_p)


def measure(
    new: Answer,
    true: Answer,
    paraphrase: Answer,
    own: tuple[Answer, ...],
    follows: tuple[Answer, ...] = (),
) -> FactMeasure:
    worse = tuple(answer((1,), (1,), -9.0) for _ in own)
    return FactMeasure(new, true, (paraphrase,), (answer((1,), (1,), -2.0),), own, worse, follows)


def test_scores_match_answers_written_out_by_hand() -> None:
    before = measure(
        answer((1, 2), (5, 6), -8.0),
        answer((3,), (3,), -1.0),
        answer((1, 2), (5, 6), -8.0),
        (answer((7,), (7,), -1.0), answer((8, 9), (8, 8), -1.0)),
        (answer((1, 2, 3), (1, 2, 3), -1.0), answer((6,), (6,), -1.0)),
    )
    after = measure(
        answer((5, 2), (5, 6), -0.5),
        answer((5,), (3,), -4.0),
        answer((5, 6), (5, 6), -0.1),
        (answer((7,), (7,), -1.0), answer((8, 4), (8, 8), -1.0)),
        (answer((1, 5, 5), (1, 2, 3), -1.0), answer((6,), (6,), -1.0)),
    )
    report = compare(FACT, before, after)
    assert report.reliability == 0.5
    assert report.reliability_probability == 1.0
    assert report.generalization == 1.0
    assert report.generalization_probability == 1.0
    assert report.locality == pytest.approx(2 / 3)
    assert report.locality_probability == 1.0
    assert report.portability == pytest.approx((1 / 3 + 1) / 2), (
        "a mean over questions, not over tokens; after the edit"
    )


def test_scores_without_prompts_are_none_and_left_out_of_the_mean(llama: LoadedModel) -> None:
    bare = Fact("The capital of France is", "France", "Rome")
    measured = measure_fact(llama, bare)
    report = compare(bare, measured, measured)
    assert (
        report.generalization is None and report.locality is None and report.reliability_probability is None
    )
    assert report.portability is None
    full = compare(FACT, measure_fact(llama, FACT), measure_fact(llama, FACT))
    means = mean_scores([report, full])
    assert means["locality"] == full.locality == 1.0
    assert means["portability"] == full.portability is not None
    assert means["reliability"] == (report.reliability + full.reliability) / 2


def test_answers_equal_the_plain_model_token_by_token(tiny: LoadedModel) -> None:
    asked = [("The capital of France is", "the boat"), ("A cat", "says meow and"), ("You", "")]
    for (prompt, target), got in zip(asked, answer_all(tiny, asked), strict=True):
        ids = encode(tiny.tokenizer, prompt)
        forced = encode_continuation(tiny.tokenizer, prompt, target) if target else []
        final = tiny.run(pad([ids + forced[:-1]], 0), [FINAL])[FINAL]
        log_p = tiny.logits(final[0, len(ids) - 1 :]).log_softmax(-1)
        assert got.argmax == tuple(log_p.argmax(-1).tolist())
        if forced:
            own = [float(log_p[place, token]) for place, token in enumerate(forced)]
            assert got.log_probability == pytest.approx(sum(own), abs=1e-4)
            assert got.first_probability == pytest.approx(math.exp(own[0]), rel=1e-4)


def test_portability_is_the_share_of_the_answers_own_tokens_that_the_model_says(tiny: LoadedModel) -> None:
    prompt = "The country whose capital is Rome is"
    ids = encode(tiny.tokenizer, prompt)
    answers, shares = ["France", "the wide river"], []
    # The second answer's first word is what the model says by itself, so that not every share is 0.
    final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
    said = tiny.tokenizer.decode([int(tiny.logits(final[0, -1]).argmax())]).strip()
    answers.append(f"{said} and France")
    for text in answers:
        forced = encode_continuation(tiny.tokenizer, prompt, text)
        final = tiny.run(pad([ids + forced[:-1]], 0), [FINAL])[FINAL]
        argmax = tiny.logits(final[0, len(ids) - 1 :]).argmax(-1).tolist()
        shares.append(sum(a == b for a, b in zip(argmax, forced, strict=True)) / len(forced))
    fact = Fact(
        FACT.prompt, "France", "Rome", portability=tuple(Consequence(prompt, text) for text in answers)
    )
    measured = measure_fact(tiny, fact)
    assert [answer.share for answer in measured.portability] == shares
    assert [answer.target for answer in measured.portability] == answers
    assert compare(fact, measured, measured).portability == pytest.approx(sum(shares) / 3)


def test_every_score_names_its_formula(llama: LoadedModel) -> None:
    measured = measure_fact(llama, FACT)
    report = compare(FACT, measured, measured)
    assert set(report.scores) | {"target_probability"} == set(FORMULAS)
    assert all(FORMULAS.values())


def test_continuations_are_written_for_every_prompt_when_asked(llama: LoadedModel) -> None:
    measured = measure_fact(llama, FACT, generate_tokens=3)
    assert measured.continuation == llama.generate([FACT.prompt], 3)[0]
    assert len(measured.paraphrase_continuations) == 1
    assert len(measured.neighbor_continuations) == 2
    assert measured.portability_continuations == tuple(
        llama.generate([question.prompt for question in FACT.portability], 3)
    )


def test_the_report_is_plain_json(llama: LoadedModel) -> None:
    import json

    measured = measure_fact(llama, FACT, generate_tokens=2)
    text = json.dumps(compare(FACT, measured, measured).to_dict())
    assert json.loads(text)["target_probability"]["before"] == pytest.approx(measured.target_probability)


def test_the_next_token_table_is_sorted_and_sums_below_one(tiny: LoadedModel) -> None:
    table = next_token_table(tiny, "The capital of France is", 5)
    probabilities = [probability for _, probability in table]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1 + 1e-5


def test_the_inspector_names_the_tokens_a_value_vector_promotes(tiny: LoadedModel) -> None:
    from nmke.neurons import inspect_neuron

    card = inspect_neuron(tiny, 2, 7, ["The capital of France is", "A cat"], k=4)
    readout = tiny.readout
    logits = readout.direction(tiny.W_out(2)[7]) @ readout.unembedding.float().T
    assert [value for _, value in card.promoted] == pytest.approx(logits.topk(4).values.tolist(), abs=1e-5)
    assert card.suppressed[0][1] == pytest.approx(float(logits.min()), abs=1e-5)
    assert [len(row) for row in card.activations] == [
        len(encode(tiny.tokenizer, text)) for text in ("The capital of France is", "A cat")
    ]
    assert card.passages == ()
    assert card.value_norm == pytest.approx(float(torch.linalg.vector_norm(tiny.W_out(2)[7])))


def test_the_inspector_refuses_neurons_that_do_not_exist(llama: LoadedModel) -> None:
    from nmke.errors import ModelError
    from nmke.neurons import inspect_neuron

    with pytest.raises(ModelError, match="neurons 0 to 63, not 64"):
        inspect_neuron(llama, 0, 64, [])


def test_one_call_edits_and_reports(llama: LoadedModel, cache: object) -> None:
    from nmke import EditSession, edit_facts
    from nmke.methods.nmke import NMKEConfig

    session = EditSession(llama)
    config = NMKEConfig.make(
        layers=(1, 2),
        statistics={"text": "none"},
        target={"steps": 10, "weight_decay": 0.0, "learning_rate": 0.1},
    )
    report = edit_facts(session, [FACT], config=config, generate_tokens=2)[0]
    assert session.version == 1
    assert report.after.new.log_probability > report.before.new.log_probability


def test_a_text_is_read_from_its_longest_extension() -> None:
    texts = [(1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 9), (1, 20), (2,), (1, 2)]
    found = longest_of(texts)
    assert found == {
        (1, 2): (1, 2, 3, 4),
        (1, 2, 3): (1, 2, 3, 4),
        (1, 2, 3, 4): (1, 2, 3, 4),
        (1, 2, 9): (1, 2, 9),
        (1, 20): (1, 20),
        (2,): (2,),
    }


def test_answers_read_from_a_longer_text_are_those_read_alone(tiny: LoadedModel) -> None:
    prompt = FACT.prompt
    asked = [
        (prompt, ""),
        (prompt, "the boat"),
        (prompt, "Paris"),
        (prompt + " the", "boat"),
        ("A cat", "says"),
    ]
    for together, pair in zip(answer_all(tiny, asked), asked, strict=True):
        alone = answer_all(tiny, [pair])[0]
        assert (together.argmax, together.hits) == (alone.argmax, alone.hits)
        assert together.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_answers_are_the_same_however_many_places_are_read_out_at_once(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        (FACT.prompt, "the boat"),
        (FACT.prompt, ""),
        ("A cat", "says the boat"),
        ("A dog says", "Paris"),
    ]
    together = answer_all(tiny, asked)
    monkeypatch.setattr("nmke.forcing.POSITIONS_AT_ONCE", 2)
    for one, other in zip(answer_all(tiny, asked), together, strict=True):
        assert (one.argmax, one.hits, one.target) == (other.argmax, other.hits, other.target)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
