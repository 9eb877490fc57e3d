"""IKE: which demonstrations stand in front, in which form and order, and for which of several edits."""

import json
from pathlib import Path

import pytest
import torch

from nmke.encoder import load_encoder
from nmke.errors import EditError, FactError, ResourceError
from nmke.examples import builtin_facts
from nmke.facts import Consequence, Fact, Neighbor
from nmke.forcing import answer_all
from nmke.loading import LoadedModel
from nmke.methods.demonstrations import COPY, RETAIN, UPDATE, demonstrate, kinds_of, read_pool
from nmke.methods.ike import IKE, Demonstrations, IKEConfig
from nmke.methods.in_front import shown, statement
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import encode, pad
from tests.prompt_patches import edit_of, note
from tests.rows import tiny_config
from tests.tiny_encoder import make_tiny_encoder

FRANCE = Fact("The capital of France is", "France", "Rome", "Paris", ("France has the capital",))
GERMANY = Fact("The language of Germany is", "Germany", "the boat")


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> IKEConfig:
    found = tiny_config("ike", tmp_path / "text.txt")
    assert isinstance(found, IKEConfig)
    return found


def made(session: EditSession, fact: Fact, config: IKEConfig) -> Demonstrations:
    session.apply(IKE().plan(session, [fact], config, Silent()))
    assert isinstance(session.prompt, Demonstrations)
    return session.prompt


def pool_of(tmp_path: Path, *facts: Fact) -> str:
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(json.dumps(fact.to_dict()) for fact in facts), encoding="utf-8")
    return str(file)


def test_the_published_numbers_of_each_kind_come_of_the_default_weights() -> None:
    config = IKEConfig()
    kinds = kinds_of(config.k, config.copies, config.updates, config.retains)
    assert (config.k, config.seed) == (32, 42)
    assert [kinds.count(kind) for kind in (COPY, UPDATE, RETAIN)] == [4, 12, 16]
    assert [kinds_of(5, 1, 3, 4).count(kind) for kind in (COPY, UPDATE, RETAIN)] == [1, 2, 2]
    assert kinds_of(0, 1, 3, 4) == [] and kinds_of(3, 0, 0, 1) == [RETAIN] * 3


def test_each_kind_of_demonstration_has_its_form() -> None:
    other = Fact(
        "A cat says", "cat", "woof", "meow", ("What a cat says is",), (Neighbor("A dog says", "woof"),)
    )
    told = "New Fact: A cat says woof\n"
    assert demonstrate(FRANCE, [other], [COPY], 0) == [shown("A cat says woof", "A cat says woof")]
    (update,) = demonstrate(FRANCE, [other], [UPDATE], 0)
    (retain,) = demonstrate(FRANCE, [other], [RETAIN], 0)
    assert update.startswith(told) and "What a cat says is woof\n\n" in update
    assert retain.startswith(told) and "A dog says woof\n\n" in retain
    assert all("Prompt:" in each for each in (update, retain))


def test_facts_without_other_words_or_known_neighbours_are_copied() -> None:
    bare = Fact("A cat says", "cat", "woof", neighborhood=(Neighbor("A dog says", ""),))
    copied = [shown("A cat says woof", "A cat says woof")]
    assert demonstrate(FRANCE, [bare], [UPDATE], 0) == copied
    assert demonstrate(FRANCE, [bare], [RETAIN], 0) == copied


def test_prompts_the_fact_is_measured_on_are_never_shown() -> None:
    fact = Fact(
        "The capital of France is",
        "France",
        "Rome",
        paraphrases=("What a cat says is",),
        neighborhood=(Neighbor("A dog says", "woof"),),
        portability=(Consequence("A bird says", "tweet"),),
    )
    other = Fact(
        "A cat says",
        "cat",
        "woof",
        "meow",
        ("What a cat says is",),
        (Neighbor("A dog says", "woof"), Neighbor("A bird says", "tweet")),
    )
    copied = [shown("A cat says woof", "A cat says woof")]
    assert demonstrate(fact, [other], [UPDATE], 0) == copied
    assert demonstrate(fact, [other], [RETAIN], 0) == copied


def test_the_nearest_fact_stands_last_and_none_is_about_the_subject(cache: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(make_tiny_encoder(tmp_path / "bert")))
    about = Fact("The language of france is", "france", "German")
    pool = read_pool(pool_of(tmp_path, GERMANY, about, Fact("A dog says", "dog", "meow")), encoder, Silent())
    query = encoder.encode([f"New Fact: {statement(FRANCE)}\nPrompt: {FRANCE.prompt}"])[0]
    near = pool.nearest(FRANCE, query)
    vectors = encoder.encode([shown(statement(fact), statement(fact)) for fact in near]).double()
    cosines = (vectors @ query.double()).tolist()
    assert {fact.subject for fact in near} == {"Germany", "dog"}
    assert cosines == sorted(cosines, reverse=True) and cosines[0] > cosines[1]
    texts = demonstrate(FRANCE, near, [COPY, COPY], 0)
    assert [statement(near[0]) in text for text in texts] == [False, True]


def test_kinds_are_shuffled_by_the_seed_and_the_fact_alone() -> None:
    near, kinds = builtin_facts()[:32], kinds_of(32, 1, 3, 4)
    first = demonstrate(FRANCE, near, kinds, 1)
    assert first == demonstrate(FRANCE, near, kinds, 1)
    assert first != demonstrate(FRANCE, near, kinds, 2) and first != demonstrate(GERMANY, near, kinds, 1)
    assert len(first) == 32


def test_the_front_ends_with_the_new_fact_copied_and_then_asked(
    llama: LoadedModel, config: IKEConfig
) -> None:
    patch = made(EditSession(llama), FRANCE, config)
    front = patch.front("whatever is read")
    new_fact = "The capital of France is Rome"
    assert front.endswith(shown(new_fact, new_fact) + shown(new_fact, ""))
    assert front.count("New Fact:") == config.k + 2
    assert patch.front("The language of Germany is") == front, "a single fact stands in front of everything"
    assert patch.helper_parameters() == 0


def test_what_the_model_answers_is_that_of_the_written_prompt(tiny: LoadedModel, config: IKEConfig) -> None:
    session = EditSession(tiny)
    front = made(session, FRANCE, config).front("")
    ids = encode(tiny.tokenizer, front) + encode(tiny.tokenizer, FRANCE.prompt)
    final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
    log_p = tiny.logits(final[0, -1]).double().log_softmax(-1)
    with session.active():
        (answer,) = answer_all(tiny, [(FRANCE.prompt, "")])
    assert answer.argmax == (int(log_p.argmax()),)
    assert answer.log_probability == pytest.approx(float(log_p.max()), abs=1e-3)


def test_of_several_edits_the_nearest_stands_in_front(llama: LoadedModel, config: IKEConfig) -> None:
    session = EditSession(llama)
    made(session, FRANCE, config)
    patch = made(session, GERMANY, config)
    assert [entry["prompt"] for entry in patch.settings["facts"]] == [FRANCE.prompt, GERMANY.prompt]
    assert "Rome\n\nNew Fact" in patch.front(FRANCE.prompt)
    for fact in (FRANCE, GERMANY):
        assert patch.front(fact.prompt).endswith(shown(statement(fact), ""))
    encoder = load_encoder(config.encoder)
    vectors = encoder.encode([FRANCE.prompt, GERMANY.prompt, "the boat of Germany"]).double()
    nearest = (FRANCE, GERMANY)[int((vectors[:2] @ vectors[2]).argmax())]
    assert patch.front("the boat of Germany").endswith(shown(statement(nearest), ""))
    assert patch.helper_parameters() == encoder.n_parameters


def test_a_batch_is_the_same_patch_as_one_fact_after_the_other(llama: LoadedModel, config: IKEConfig) -> None:
    one, batch = EditSession(llama), EditSession(llama)
    made(one, FRANCE, config)
    made(one, GERMANY, config)
    batch.apply(IKE().plan(batch, [FRANCE, GERMANY], config, Silent()))
    assert one.digest == batch.digest


def test_a_prompt_edited_again_gets_the_new_answer(llama: LoadedModel, config: IKEConfig) -> None:
    session = EditSession(llama)
    made(session, FRANCE, config)
    made(session, GERMANY, config)
    patch = made(session, Fact(FRANCE.prompt, "France", "London"), config)
    facts = patch.settings["facts"]
    assert [entry["new_fact"] for entry in facts] == [statement(GERMANY), f"{FRANCE.prompt} London"]
    assert patch.tensors["prompts"].shape[0] == 2
    session.undo()
    assert session.prompt is not None and session.prompt.front(FRANCE.prompt).endswith(
        shown(statement(FRANCE), "")
    )


def test_what_does_not_fit_is_left_out_the_farthest_first(
    llama: LoadedModel, config: IKEConfig, tmp_path: Path
) -> None:
    words = ("cat", "dog", "river", "London", "Spain", "Italy", "woof", "meow")
    source = pool_of(tmp_path, *(Fact(f"{word} is", word, "boat") for word in words))
    session, config = EditSession(llama), config.changed(k=8, demonstrations=source)
    few = IKE().plan(session, [FRANCE], config.changed(room=60), Silent())
    more = IKE().plan(session, [FRANCE], config.changed(room=16), Silent())
    assert few.prompt is not None and more.prompt is not None
    assert 0 < few.details["demonstrations"][0] < more.details["demonstrations"][0] < 8
    for edit, room in ((few, 60), (more, 16)):
        ids = encode(llama.tokenizer, edit.prompt.front("")) if edit.prompt else []
        assert edit.details["tokens_in_front"] == [len(ids)]
        assert len(ids) <= llama.context_length - room
    assert more.prompt.front("").endswith(few.prompt.front(""))


def test_a_fact_too_long_to_stand_in_front_of_itself_is_refused(
    llama: LoadedModel, config: IKEConfig
) -> None:
    fact = Fact("the boat " * 40 + "of France is", "France", "Rome")
    with pytest.raises(FactError, match=r"does not fit in front of its own prompt.*at most 256"):
        IKE().plan(EditSession(llama), [fact], config, Silent())


def test_the_vectors_of_the_demonstrations_are_kept_on_the_disk(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(str(make_tiny_encoder(tmp_path / "bert")))
    source = pool_of(tmp_path, FRANCE, GERMANY)
    first = read_pool(source, encoder, Silent())
    (file,) = (cache / "embeddings").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(type(encoder), "encode", None)
        assert torch.equal(read_pool(source, encoder, Silent()).vectors, first.vectors)
    file.write_bytes(b"damaged")
    assert torch.equal(read_pool(source, encoder, Silent()).vectors, first.vectors)


def test_a_file_of_demonstrations_that_cannot_be_used_is_named(
    llama: LoadedModel, config: IKEConfig, tmp_path: Path
) -> None:
    with pytest.raises(EditError, match=r"demonstrations.*nowhere.*'builtin'"):
        IKE().plan(EditSession(llama), [FRANCE], config.changed(demonstrations="nowhere.csv"), Silent())
    (tmp_path / "bad.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(EditError, match="demonstrations cannot be used"):
        wrong = config.changed(demonstrations=str(tmp_path / "bad.json"))
        IKE().plan(EditSession(llama), [FRANCE], wrong, Silent())


def test_an_encoder_that_is_gone_is_told_where_it_is_needed(
    llama: LoadedModel, config: IKEConfig, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="setting `encoder`"):
        wrong = config.changed(encoder=str(tmp_path / "nowhere"))
        IKE().plan(EditSession(llama), [FRANCE], wrong, Silent())


def test_another_methods_prompt_is_not_grown(llama: LoadedModel, config: IKEConfig) -> None:
    session = EditSession(llama)
    session.apply(edit_of(note("You.")))
    with pytest.raises(EditError, match=r"test note already stands in front.*Undo"):
        IKE().plan(session, [FRANCE], config, Silent())
