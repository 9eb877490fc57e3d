"""SERAC: which texts lie in an edit's scope, what stands in front of them, and that others are left alone."""

import json
from pathlib import Path

import pytest
import torch

from nmke.encoder import load_encoder
from nmke.errors import EditError
from nmke.facts import Fact, Neighbor
from nmke.forcing import answer_all
from nmke.loading import LoadedModel
from nmke.methods.demonstrations import facts_of
from nmke.methods.in_front import shown, statement
from nmke.methods.scope import RIDGE, ScopeHead, fit, train_head
from nmke.methods.serac import SERAC, EditMemory, SERACConfig
from nmke.progress import Silent
from nmke.session import EditSession
from tests.prompt_patches import edit_of, note
from tests.rows import tiny_config

FRANCE = Fact("The capital of France is", "France", "Rome", "Paris")
GERMANY = Fact("The language of Germany is", "Germany", "the boat")
FAR = "A dog says woof, because the river is wide"


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> SERACConfig:
    found = tiny_config("serac", tmp_path / "text.txt")
    assert isinstance(found, SERACConfig)
    return found


def made(session: EditSession, fact: Fact, config: SERACConfig) -> EditMemory:
    session.apply(SERAC().plan(session, [fact], config, Silent()))
    assert isinstance(session.prompt, EditMemory)
    return session.prompt


def memory(patch: EditMemory, **settings: float) -> EditMemory:
    return EditMemory(patch.tensors, {**patch.settings, **settings})


def test_the_head_solves_the_weighted_logistic_regression_written_out() -> None:
    cosines = torch.tensor([0.9, 0.8, 0.4, 0.7, 0.5, 0.1, 0.2, 0.3])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    found = fit(cosines, labels)

    def loss(slope: float, intercept: float) -> float:
        total = 0.5 * RIDGE * slope**2
        for cosine, label in zip(cosines.double().tolist(), labels.tolist(), strict=True):
            p = ScopeHead(slope, intercept, 0.0).probability(cosine)
            one = torch.tensor(p if label else 1 - p, dtype=torch.float64).log()
            total -= float(one) * (0.5 / 3 if label else 0.5 / 5)
        return total

    least = loss(found.slope, found.intercept)
    for slope, intercept in ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)):
        assert loss(found.slope + slope, found.intercept + intercept) > least
    assert found.slope > 0 and 0.5 < found.accuracy < 1


def test_sides_that_do_not_overlap_have_a_head_too() -> None:
    found = fit(torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([1, 1, 0, 0]))
    assert found.accuracy == 1.0
    assert found.probability(0.9) > 0.5 > found.probability(0.2)
    assert found.probability(-1e6) == 0.0


def test_the_head_is_trained_on_paraphrases_against_neighbours(config: SERACConfig, tmp_path: Path) -> None:
    encoder = load_encoder(config.encoder)
    fact = Fact(
        FRANCE.prompt,
        "France",
        "Rome",
        paraphrases=("France has the capital",),
        neighborhood=(Neighbor(FAR),),
    )
    vectors = encoder.encode([fact.prompt, fact.paraphrases[0], FAR])
    expected = fit(vectors[1:] @ vectors[0], torch.tensor([1, 0]))
    found = train_head([fact], encoder, Silent())
    assert (found.slope, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    with pytest.raises(EditError, match="needs facts with paraphrases and with neighbours"):
        train_head([FRANCE], encoder, Silent())


def test_cosines_of_the_training_are_kept_on_the_disk(
    config: SERACConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, facts = load_encoder(config.encoder), facts_of("builtin")[:3]
    first = train_head(facts, encoder, Silent())
    monkeypatch.setattr(type(encoder), "encode", None)
    assert train_head(facts, encoder, Silent()) == first


def test_the_likeliest_edit_stands_in_front_of_texts_in_its_scope(
    llama: LoadedModel, config: SERACConfig
) -> None:
    session = EditSession(llama)
    made(session, FRANCE, config)
    patch = made(session, GERMANY, config)
    for place, fact in enumerate((FRANCE, GERMANY)):
        new = statement(fact)
        assert patch.front(fact.prompt) == shown(new, new) + shown(new, "")
        assert patch.scope(fact.prompt)[0] == place
    vector = load_encoder(config.encoder).encode([FAR]).double()[0]
    cosines = patch.tensors["prompts"].double() @ vector
    place, probability = patch.scope(FAR)
    assert place == int(cosines.argmax())
    logit = patch.settings["slope"] * float(cosines.max()) + patch.settings["intercept"]
    assert probability == pytest.approx(1 / (1 + float(torch.tensor(-logit).exp())), rel=1e-4)


def test_the_threshold_decides_what_is_in_scope(llama: LoadedModel, config: SERACConfig) -> None:
    patch = made(EditSession(llama), FRANCE, config)
    patch = memory(patch, slope=10.0, intercept=-8.0)
    own, far = patch.scope(FRANCE.prompt)[1], patch.scope(FAR)[1]
    assert own > far
    middle = memory(patch, threshold=(own + far) / 2)
    assert middle.front(FRANCE.prompt) and not middle.front(FAR)
    assert not memory(patch, threshold=own).front(FRANCE.prompt), "a probability at the threshold is outside"


def test_outside_of_the_scope_the_model_answers_as_unedited_to_the_bit(
    tiny: LoadedModel, config: SERACConfig
) -> None:
    session = EditSession(tiny)
    patch = made(session, FRANCE, config)
    steep = memory(patch, slope=1000.0, intercept=-999.0, threshold=0.5)
    session.apply(edit_of(steep))
    asked = [(FAR, "woof"), ("A cat says", "meow")]
    plain, written = answer_all(tiny, asked), tiny.generate([FAR], 4)
    own = answer_all(tiny, [(FRANCE.prompt, "Rome")])
    with session.active():
        assert answer_all(tiny, asked) == plain
        assert tiny.generate([FAR], 4) == written
        assert answer_all(tiny, [(FRANCE.prompt, "Rome")]) != own


def test_a_prompt_edited_again_gets_the_new_answer(llama: LoadedModel, config: SERACConfig) -> None:
    session = EditSession(llama)
    made(session, FRANCE, config)
    made(session, GERMANY, config)
    patch = made(session, Fact(FRANCE.prompt, "France", "London"), config)
    assert [entry["new_fact"] for entry in patch.settings["facts"]] == [
        statement(GERMANY),
        f"{FRANCE.prompt} London",
    ]
    assert patch.tensors["prompts"].shape[0] == 2


def test_a_training_file_without_paraphrases_is_refused(
    llama: LoadedModel, config: SERACConfig, tmp_path: Path
) -> None:
    (tmp_path / "bare.jsonl").write_text(json.dumps(FRANCE.to_dict()), encoding="utf-8")
    with pytest.raises(EditError, match="needs facts with paraphrases"):
        SERAC().plan(
            EditSession(llama), [FRANCE], config.changed(trained_on=str(tmp_path / "bare.jsonl")), Silent()
        )


def test_another_methods_prompt_is_not_grown(llama: LoadedModel, config: SERACConfig) -> None:
    session = EditSession(llama)
    session.apply(edit_of(note("You.")))
    with pytest.raises(EditError, match="test note already stands in front"):
        SERAC().plan(session, [FRANCE], config, Silent())
