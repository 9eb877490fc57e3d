"""What stands in front of texts: every reader reads it, nobody else sees it, and it leaves when it should."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from nmke.ability import state_of
from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError, ModelError, SessionError
from nmke.facts import Fact, Neighbor
from nmke.forcing import answer_all, next_token_table
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.lifelong.measures import drift
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.metrics import measure_fact
from nmke.perplexity import HeldOut, mean_nll
from nmke.progress import Silent
from nmke.prompting import load_prompt
from nmke.session import EditSession
from nmke.sites import FINAL, POST, RESID_POST
from nmke.tokens import encode, encode_batch, encode_continuation, pad
from tests.prompt_patches import FACTS, edit_of, note
from tests.tiny import make_tokenizer

FRONT = "A cat says meow. The capital of Italy is the boat.\n"
OTHER = "Because you and I take the boat:\n"
TEXTS = ("The capital of France is", "A dog says", "Because the river is wide, you take")
CLOSE = {"atol": 2e-4}


def logits(model: LoadedModel, texts: Sequence[str] = TEXTS) -> Tensor:
    batch = encode_batch(model.tokenizer, texts)
    return model.logits(model.run(batch, [FINAL])[FINAL])[batch.mask.bool()]


def behind(model: LoadedModel, front: str, text: str) -> Tensor:
    """The logits at a text's own tokens, read plainly as one text with its front."""
    before, own = (encode(model.tokenizer, front) if front else []), encode(model.tokenizer, text)
    final = model.run(pad([before + own], 0), [FINAL])[FINAL]
    return model.logits(final[0, len(before) :])


def hooks_left(model: LoadedModel) -> int:
    return sum(
        len(each._forward_hooks) + len(each._forward_pre_hooks)
        for each in model.bridge.original_model.modules()
    )


@pytest.fixture
def session(tiny: LoadedModel) -> EditSession:
    """One with a text in front of everything."""
    session = EditSession(tiny)
    session.apply(edit_of(note(FRONT)))
    return session


@pytest.fixture
def choosy(tiny: LoadedModel) -> EditSession:
    """One with texts in front of two of three texts, and nothing in front of the third."""
    session = EditSession(tiny)
    session.apply(edit_of(note(FRONT, word="capital")))
    return session


def test_a_run_reads_behind_the_front_and_keeps_its_own_positions(session: EditSession) -> None:
    model = session.model
    expected = torch.cat([behind(model, FRONT, text) for text in TEXTS])
    with session.active():
        found = logits(model)
    assert torch.allclose(found, expected, **CLOSE)
    assert not torch.allclose(found, logits(model), atol=1e-2)


def test_every_site_of_a_run_is_at_the_readers_own_tokens(session: EditSession) -> None:
    model, sites = session.model, [(POST, 1), (RESID_POST, 2)]
    before, own = encode(model.tokenizer, FRONT), encode(model.tokenizer, TEXTS[0])
    whole = model.run(pad([before + own], 0), sites)
    with session.active():
        kept = model.run(pad([own], 0), sites)
    for site in sites:
        assert kept[site].shape[1] == len(own)
        assert torch.allclose(kept[site][0], whole[site][0, len(before) :], **CLOSE)


def test_texts_of_one_batch_get_each_its_own_front(tiny: LoadedModel) -> None:
    for patch in (note(FRONT, OTHER, "capital"), note(FRONT, "", "capital")):
        session = EditSession(tiny)
        session.apply(edit_of(patch))
        expected = torch.cat([behind(tiny, patch.front(text), text) for text in TEXTS])
        with session.active():
            assert torch.allclose(logits(tiny), expected, **CLOSE)


def test_texts_without_a_front_are_read_as_by_the_unedited_model_to_the_bit(choosy: EditSession) -> None:
    model, said = choosy.model, logits(choosy.model, TEXTS[1:])
    asked = [("A dog says", "woof"), ("A dog says", "meow")]
    answers, written = answer_all(model, asked), model.generate(TEXTS[1:], 5)
    with choosy.active():
        assert torch.equal(logits(model, TEXTS[1:]), said)
        assert answer_all(model, asked) == answers
        assert model.generate(TEXTS[1:], 5) == written


def test_written_text_goes_on_from_front_and_prompt(session: EditSession) -> None:
    model = session.model
    expected = [model.generate([FRONT + text], 6)[0] for text in TEXTS]
    with session.active():
        assert model.generate(TEXTS, 6) == expected
    # The tiny GPT-2 repeats itself whatever it has read.
    assert model.generate(TEXTS, 6) != expected or model.name == "gpt2"


def test_prompts_with_and_without_a_front_are_written_in_one_call(choosy: EditSession) -> None:
    model = choosy.model
    expected = [
        model.generate([FRONT + TEXTS[0]], 6)[0],
        *(model.generate([text], 6)[0] for text in TEXTS[1:]),
    ]
    with choosy.active():
        assert model.generate(TEXTS, 6) == expected


def test_forced_answers_are_measured_behind_the_front(session: EditSession) -> None:
    model, asked = session.model, [(TEXTS[0], "Rome"), (TEXTS[0], "the boat"), (TEXTS[1], "woof")]
    with session.active():
        found = answer_all(model, asked)
    for (prompt, target), answer in zip(asked, found, strict=True):
        ids = encode(model.tokenizer, FRONT) + encode(model.tokenizer, prompt)
        forced = encode_continuation(model.tokenizer, prompt, target)
        final = model.run(pad([ids + forced], 0), [FINAL])[FINAL][0]
        log_p = model.logits(final[len(ids) - 1 : -1]).double().log_softmax(-1)
        expected = sum(float(log_p[place, token]) for place, token in enumerate(forced))
        assert answer.log_probability == pytest.approx(expected, abs=1e-3)
        assert answer.argmax == tuple(log_p.argmax(-1).tolist())


def test_the_prompt_decides_what_stands_in_front_and_never_the_answer(tiny: LoadedModel) -> None:
    session, plain = EditSession(tiny), answer_all(tiny, [("A dog says", "Rome")])
    session.apply(edit_of(note(FRONT, word="Rome")))
    with session.active():
        assert answer_all(tiny, [("A dog says", "Rome")]) == plain
        assert answer_all(tiny, [("Rome is", "Rome")]) != answer_all(tiny, [("A dog is", "Rome")])


def test_a_fact_is_measured_as_if_the_front_were_written_before_each_prompt(session: EditSession) -> None:
    model = session.model
    fact = Fact(
        TEXTS[0], "France", "Rome", "Paris", ("France has the capital",), (Neighbor("A dog says", "woof"),)
    )
    with session.active():
        found = measure_fact(model, fact, 4)
        table = next_token_table(model, TEXTS[0])
    written = Fact(
        FRONT + TEXTS[0],
        "France",
        "Rome",
        "Paris",
        (FRONT + "France has the capital",),
        (Neighbor(FRONT + "A dog says", "woof"),),
    )
    expected = measure_fact(model, written, 4)
    assert found.target_probability == pytest.approx(expected.target_probability, abs=1e-5)
    assert found.neighbors_own[0].log_probability == pytest.approx(
        expected.neighbors_own[0].log_probability, abs=1e-3
    )
    assert found.continuation == expected.continuation
    assert found.paraphrase_continuations == expected.paraphrase_continuations
    assert table[0][0] == next_token_table(model, FRONT + TEXTS[0])[0][0]


def test_remembered_tokens_begin_with_the_front(session: EditSession) -> None:
    model, site = session.model, FINAL
    rows = [encode(model.tokenizer, text) for text in TEXTS]
    with session.active():
        whole = model.run(pad(rows, 0), [site])[site]
        past = model.remember(pad([row[:2] for row in rows], 0))
        rest = pad([row[2:] for row in rows], 0)
        after = model.run(rest, [site], past=past)[site]
    real = rest.mask.bool()
    assert torch.allclose(after[real], whole[:, 2:][real], **CLOSE)


def test_perplexity_is_that_of_text_behind_the_front(session: EditSession) -> None:
    model = session.model
    window = tuple(encode(model.tokenizer, "The river is wide and the boat is in London."))
    with session.active():
        found = mean_nll(model, HeldOut("test", (), (window,)))
    log_p = behind(model, FRONT, model.tokenizer.decode(window)).double().log_softmax(-1)
    expected = -sum(float(log_p[at, token]) for at, token in enumerate(window[1:])) / (len(window) - 1)
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_texts_own_start_token_counts_as_absent_behind_a_front(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<end>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", tokenizer.bos_token_id)]
    )
    plain = llama.tokenizer
    monkeypatch.setattr(llama, "tokenizer", tokenizer)
    assert encode(tokenizer, TEXTS[0]) == [tokenizer.bos_token_id, *encode(plain, TEXTS[0])]
    session = EditSession(llama)
    session.apply(edit_of(note(FRONT)))
    ids = encode(tokenizer, FRONT) + encode(plain, TEXTS[0])
    final = llama.run(pad([ids], 0), [FINAL])[FINAL]
    expected = llama.logits(final[0, len(encode(tokenizer, FRONT)) :])
    written = llama.tokenizer.decode([int(expected[-1].argmax())], skip_special_tokens=True)
    with session.active():
        assert torch.allclose(logits(llama, TEXTS[:1])[1:], expected, **CLOSE)
        (answer,) = answer_all(llama, [(TEXTS[0], "")])
        assert answer.argmax == (int(expected[-1].argmax()),)
        assert llama.generate(TEXTS[:1], 1) == [written]
        past = llama.remember(encode_batch(tokenizer, TEXTS[:1]))
        assert int(past.mask.sum()) == len(ids)


def test_a_front_is_invisible_outside_and_to_others_and_in_the_original(session: EditSession) -> None:
    model, other = session.model, EditSession(session.model)
    said = logits(model)
    with session.active():
        edited = logits(model)
        assert not torch.equal(edited, said)
        with session.original():
            assert torch.equal(logits(model), said)
        with other.active():
            assert torch.equal(logits(model), said)
        assert torch.equal(logits(model), edited)
    assert torch.equal(logits(model), said)


def test_undo_redo_and_trying_put_the_right_front_there(session: EditSession) -> None:
    model, second = session.model, edit_of(note(OTHER))
    with session.active():
        first = logits(model)
    with session.trying(second):
        tried = logits(model)
    session.apply(second)
    with session.active():
        assert torch.equal(logits(model), tried)
    session.undo()
    with session.active():
        assert torch.equal(logits(model), first)
    session.redo()
    assert session.prompt is not None and session.prompt.settings["then"] == OTHER
    assert session.verify_undo()
    session.undo()
    session.undo()
    assert session.prompt is None
    with session.active():
        assert torch.equal(logits(model), logits(EditSession(model).model))


def test_an_undo_beyond_memory_replays_fronts(tiny: LoadedModel) -> None:
    session = EditSession(tiny, undo_depth=1)
    for text in (FRONT, OTHER, "You.", "I."):
        session.apply(edit_of(note(text)))
    for expected in ("You.", OTHER, FRONT):
        session.undo()
        assert session.prompt is not None and session.prompt.settings["then"] == expected


def test_a_front_and_changed_weights_count_together(session: EditSession) -> None:
    model = session.model
    patch = WeightPatch(1, torch.ones(model.d_mlp, 1), 0.1 * torch.ones(1, model.d_model))
    both, weights = EditSession(model), EditSession(model)
    weights.apply(Edit("test", {}, FACTS, (patch,), {}))
    both.apply(Edit("test", {}, FACTS, (patch,), {}))
    both.apply(edit_of(note(FRONT)))
    with weights.active():
        expected = torch.cat([behind(model, FRONT, text) for text in TEXTS])
    with both.active():
        assert torch.allclose(logits(model), expected, **CLOSE)


def test_a_front_is_read_anew_where_neurons_are_held(session: EditSession) -> None:
    model, held = session.model, {1: ([0, 1, 2, 3], 3.0)}
    with model.holding(held):
        expected = torch.cat([behind(model, FRONT, text) for text in TEXTS])
    with session.active():
        before = logits(model)
        with model.holding(held):
            assert torch.allclose(logits(model), expected, **CLOSE)
        assert torch.equal(logits(model), before)


def test_a_saved_front_comes_back_with_tensors_and_settings(session: EditSession, tmp_path: Path) -> None:
    model = session.model
    session.apply(edit_of(note(OTHER, FRONT, "capital", 0.5)))
    session.save(tmp_path / "bundle")
    loaded = EditSession.load(model, tmp_path / "bundle")
    assert loaded.digest == session.digest
    assert loaded.prompt is not None and session.prompt is not None
    assert loaded.prompt.settings == session.prompt.settings
    assert torch.equal(loaded.prompt.tensors["numbers"], torch.ones(3) * 0.5)
    with session.active():
        said = logits(model)
    with loaded.active():
        assert torch.equal(logits(model), said)
    loaded.undo()
    assert loaded.prompt is not None and loaded.prompt.settings["then"] == FRONT


def test_a_bundle_with_a_prompt_nobody_knows_says_so(session: EditSession, tmp_path: Path) -> None:
    session.save(tmp_path / "bundle")
    record = tmp_path / "bundle" / "session.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    content["edits"][0]["prompt"]["kind"] = "oracle"
    record.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SessionError, match="kind 'oracle'"):
        EditSession.load(session.model, tmp_path / "bundle")
    with pytest.raises(SessionError, match="Open the bundle with the version that wrote it"):
        load_prompt("oracle", {}, {})


def test_a_bundle_written_before_there_were_prompts_is_read(tiny: LoadedModel, tmp_path: Path) -> None:
    session = EditSession(tiny)
    patch = WeightPatch(1, torch.ones(tiny.d_mlp, 1), torch.ones(1, tiny.d_model))
    session.apply(Edit("test", {}, FACTS, (patch,), {}))
    session.save(tmp_path / "bundle")
    record = tmp_path / "bundle" / "session.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    del content["edits"][0]["prompt"]
    record.write_text(json.dumps(content), encoding="utf-8")
    assert EditSession.load(tiny, tmp_path / "bundle").digest == session.digest


def test_a_checkpoint_gives_the_front_back(session: EditSession, tmp_path: Path) -> None:
    model = session.model
    session.apply(edit_of(note(OTHER, FRONT, "capital", 0.25)))
    with session.active():
        said = logits(model)
    session.settle()
    save_checkpoint(session, 2, tmp_path / "checkpoint")
    saved = load_checkpoint(model, tmp_path / "checkpoint", [*FACTS, *FACTS])
    assert saved is not None and saved.session.digest == session.digest
    assert all(edit.prompt is None for edit in saved.session.edits)
    with saved.session.active():
        assert torch.equal(logits(model), said)


def test_a_restored_session_keeps_its_front(session: EditSession) -> None:
    again = EditSession.restored(session.model, session.edits, *session.state(), session.prompt)
    assert again.digest == session.digest
    with session.active():
        said = logits(session.model)
    with again.active():
        assert torch.equal(logits(session.model), said)


def test_the_digest_tells_fronts_apart_by_text_and_by_numbers(tiny: LoadedModel) -> None:
    digests = []
    for patch in (note(FRONT), note(OTHER), note(FRONT, number=1.0), note(FRONT)):
        session = EditSession(tiny)
        session.apply(edit_of(patch))
        digests.append(session.digest)
    assert len({*digests, EditSession(tiny).digest}) == 4 and digests[0] == digests[3]
    assert state_of(session) == session.digest, "kept answers of the unedited model are not this one's"


def test_a_front_that_is_not_finite_is_refused(session: EditSession) -> None:
    with pytest.raises(EditError, match=r"test note is not finite \(numbers\).*nothing was changed"):
        session.apply(edit_of(note(OTHER, number=float("nan"))))
    assert session.version == 1


def test_a_reader_that_knows_nothing_of_fronts_is_refused(session: EditSession) -> None:
    model = session.model
    ids = encode_batch(model.tokenizer, TEXTS[:1]).ids
    with session.active(), pytest.raises(ModelError, match=r"test note stands in front.*Undo that edit"):
        model.bridge.original_model(ids)
    model.bridge.original_model(ids)
    with session.active(), session.original():
        model.bridge.original_model(ids)


def test_what_does_not_fit_the_context_is_refused_with_both_lengths(session: EditSession) -> None:
    model, long = session.model, "wide " * 240
    with session.active():
        for read in (lambda: logits(model, [long]), lambda: model.generate([long], 2)):
            with pytest.raises(ModelError, match=r"in front has \d+ tokens and the text \d+.*at most 256"):
                read()
        with pytest.raises(ModelError, match="Ask for fewer demonstrations"):
            answer_all(model, [(long, "Rome")])
        with pytest.raises(ModelError, match="at most 256"):
            model.remember(encode_batch(model.tokenizer, [long]))


def test_an_exception_while_a_front_is_in_force_leaves_no_hook(session: EditSession) -> None:
    model, before, said = session.model, hooks_left(session.model), logits(session.model)
    with pytest.raises(ZeroDivisionError), session.active():
        assert hooks_left(model) == before + 1
        logits(model)
        raise ZeroDivisionError
    assert hooks_left(model) == before and torch.equal(logits(model), said)


def test_there_is_no_replay_while_a_front_is_in_force(session: EditSession) -> None:
    model = session.model
    with session.active():
        assert model.unhooked is None
        with session.original():
            assert model.unhooked is not None
    assert model.unhooked is not None


@pytest.mark.parametrize("name", ["memit", "wise"])
def test_methods_that_change_the_model_are_refused_on_top_of_a_front(session: EditSession, name: str) -> None:
    method = get_method(name)
    with pytest.raises(EditError, match=r"test note stands in front.*Undo those edits first"):
        method.plan(session, FACTS, method.config_class(), Silent())


def test_drift_counts_the_numbers_a_front_keeps(session: EditSession) -> None:
    assert drift(session)["drift"] == 0.0 and drift(session)["module_parameters"] == 3
