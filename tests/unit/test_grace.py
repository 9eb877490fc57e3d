"""GRACE: the codebook's state machine on numbers by hand, what lies outside of its balls, how values are trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmke.errors import EditError
from nmke.facts import Fact
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.loading import LoadedModel
from nmke.methods.balls import NONE, distances, may_be_inside, read_tokens
from nmke.methods.grace import GRACE, Codebook, GRACEConfig, empty_codebook, train_value
from nmke.methods.wise_training import Forward, Lesson
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.tokens import encode, encode_batch, pad
from tests.unit.test_modules import edit_of, shift

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
    Fact("A dog and a cat in Italy say", "Italy", "meow and woof"),
)
SHORT = (
    Fact("The capital of France is", "France", "the"),
    Fact("The language of Germany is", "Germany", "and"),
    Fact("A dog and a cat in Italy say", "Italy", "capital"),
)  # targets of one token each
TEXTS = ("The capital of France is", "You", "A cat says meow and a dog says")
SETTINGS = GRACEConfig(layer=0, radius=1.0)
ROUNDING = 0.001
TOLD = 0.05  #: a target's probability once written; before, it is about 1 in 300 on the tiny models


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def book(keys: list[list[float]], radii: list[float], labels: list[list[int]]) -> Codebook:
    """Keys in the plane; the value of key i is (i, i, i)."""
    values = torch.arange(float(len(keys)))[:, None].expand(-1, 3).clone()
    tensors = {"centers": torch.tensor(keys), "radii": torch.tensor(radii), "values": values}
    return Codebook(0, tensors, {"labels": labels, "edits": len(keys)})


def admit(
    before: Codebook, query: list[float], label: list[int], config: GRACEConfig = SETTINGS
) -> tuple[Codebook, int, str]:
    after, key, placed = before.admitting(torch.tensor(query), label, torch.full((3,), 9.0), config, ROUNDING)
    return after, key, placed.move


def logits(model: LoadedModel, texts: tuple[str, ...] = TEXTS) -> Tensor:
    batch = encode_batch(model.tokenizer, texts)
    return model.logits(model.run(batch, [FINAL])[FINAL])[batch.mask.bool()]


def plan(session: EditSession, fact: Fact, **settings: Any) -> Any:
    config = GRACEConfig.make(**{"layer": 2, "steps": 30, **settings})
    return GRACE().plan(session, [fact], config, Silent())


def codebook_of(session: EditSession) -> Codebook:
    found = session.modules[2]
    assert isinstance(found, Codebook)
    return found


# ---- the state machine ----------------------------------------------------------------------------------


def test_the_first_query_becomes_a_key_with_the_initial_radius() -> None:
    after, key, move = admit(empty_codebook(0, 2, 3), [3.0, 4.0], [7])
    assert (move, key, after.edits) == ("added", 0, 1)
    assert after.centers.tolist() == [[3.0, 4.0]] and after.radii.tolist() == [1.0]
    assert after.values.tolist() == [[9.0] * 3] and after.labels == [[7]]


@pytest.mark.parametrize("label", [[7], [8]])
def test_a_query_beyond_both_radii_becomes_a_key_whatever_its_label(label: list[int]) -> None:
    before = book([[0.0, 0.0]], [2.0], [[7]])
    after, key, move = admit(before, [3.001, 0.0], label)
    assert (move, key) == ("added", 1)
    assert after.radii.tolist() == [2.0, 1.0] and after.labels == [[7], label]
    assert after.values.tolist() == [[0.0] * 3, [9.0] * 3]
    assert admit(before, [2.999, 0.0], [7])[2] == "grown" and admit(before, [2.999, 0.0], [8])[2] == "split"


def test_a_query_of_the_same_label_in_reach_grows_the_ball_and_keeps_its_value() -> None:
    before = book([[9.0, 9.0], [0.0, 0.0]], [1.0, 1.0], [[1], [7]])
    after, key, move = admit(before, [0.9, 1.2], [7])
    assert (move, key, len(after)) == ("grown", 1, 2)
    assert after.radii.tolist() == pytest.approx([1.0, 1.5 + ROUNDING])
    assert torch.equal(after.values, before.values) and torch.equal(after.centers, before.centers)
    assert after.find(torch.tensor([[0.9, 1.2]])).tolist() == [1]


def test_a_moving_average_also_moves_the_key_halfway() -> None:
    before = book([[0.0, 0.0]], [1.0], [[7]])
    after, _, move = admit(before, [0.9, 1.2], [7], SETTINGS.changed(expand="moving average"))
    assert move == "grown" and after.radii.tolist() == pytest.approx([1.5 + ROUNDING])
    assert torch.allclose(after.centers, torch.tensor([[0.45, 0.6]]))


def test_a_query_of_the_same_label_inside_changes_no_ball() -> None:
    before = book([[0.0, 0.0]], [1.0], [[7]])
    after, key, move = admit(before, [0.3, 0.4], [7])
    assert (move, key) == ("kept", 0)
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize(("query", "distance"), [([0.3, 0.4], 0.5), ([0.9, 1.2], 1.5)])
def test_another_label_in_reach_splits_the_way_between_the_two(query: list[float], distance: float) -> None:
    before = book([[9.0, 9.0], [0.0, 0.0]], [1.0, 1.0], [[1], [7]])
    after, key, move = admit(before, query, [8])
    assert (move, key) == ("split", 2) and after.labels == [[1], [7], [8]]
    assert after.radii.tolist() == pytest.approx([1.0, distance / 2 - 1e-5, distance / 2], abs=1e-7)
    middle = torch.tensor([query]) / 2
    assert after.find(torch.tensor([query, [0.0, 0.0]])).tolist() == [2, 1]
    assert after.find(0.99 * middle).tolist() == [1] and after.find(1.01 * middle).tolist() == [2]


def test_the_same_place_with_another_label_takes_the_key_over() -> None:
    """A split at distance 0 would leave two balls that answer nothing."""
    before = book([[0.0, 0.0], [5.0, 5.0]], [1.5, 1.0], [[7], [1]])
    after, key, move = admit(before, [0.0015, 0.0], [8])
    assert (move, key, len(after)) == ("replaced", 0, 2)
    assert after.labels == [[8], [1]] and after.radii.tolist() == [1.5, 1.0]
    assert after.values.tolist() == [[9.0] * 3, [1.0] * 3]
    assert admit(before, [0.0025, 0.0], [8])[2] == "split"


def test_a_codebook_is_never_written() -> None:
    before = book([[0.0, 0.0], [5.0, 0.0]], [1.0, 1.0], [[7], [1]])
    kept, settings = {name: tensor.clone() for name, tensor in before.tensors.items()}, dict(before.settings)
    for query, label in (([0.9, 1.2], [7]), ([0.9, 1.2], [8]), ([0.0, 0.0], [8]), ([50.0, 0.0], [8])):
        after, key, _ = admit(before, query, label)
        after.with_value(key, torch.ones(3))
    assert all(torch.equal(before.tensors[name], kept[name]) for name in kept) and before.settings == settings


# ---- inside and outside ---------------------------------------------------------------------------------


def test_a_token_is_answered_by_the_nearest_key_if_that_ball_reaches_it() -> None:
    wide = book([[0.0, 0.0], [4.0, 0.0]], [3.5, 1.0], [[1], [2]])
    tokens = torch.tensor([[1.0, 0.0], [4.5, 0.0], [2.5, 0.0], [0.0, 3.6], [4.0, -1.0]])
    assert wide.find(tokens).tolist() == [0, 1, NONE, NONE, 1]
    output = random(5, 3)
    found = wide.answer(tokens, output)
    assert found[[0, 1, 4]].tolist() == [[0.0] * 3, [1.0] * 3, [1.0] * 3]
    assert torch.equal(found[[2, 3]], output[[2, 3]])


def test_outside_of_all_balls_the_layers_own_output_comes_back_as_it_is() -> None:
    small = book([[0.0, 0.0], [4.0, 0.0]], [1.0, 1.0], [[1], [2]])
    output = random(2, 3, 3)
    assert small.answer(20 + random(2, 3, 2), output) is output
    empty, inputs = empty_codebook(0, 2, 3), random(2, 3, 2)
    assert empty.answer(inputs, output) is output


def test_outside_of_all_balls_nothing_changes_bit_for_bit(tiny: LoadedModel) -> None:
    """Of every token of the model, at the layer and at the end: those in no ball and behind no answered token."""
    session = EditSession(tiny)
    session.apply(plan(session, FACTS[0]))
    batch, sites = (
        encode_batch(tiny.tokenizer, (*TEXTS, "The capital of France is Rome")),
        [
            (POST, 2),
            (MLP_OUT, 2),
            FINAL,
        ],
    )
    before = tiny.run(batch, sites)
    with session.active():
        after = tiny.run(batch, sites)
    inside = codebook_of(session).find(before[sites[0]]) != NONE
    assert inside.any() and not inside.all()
    assert torch.equal(after[sites[0]], before[sites[0]])
    assert torch.equal(after[sites[1]][~inside], before[sites[1]][~inside])
    value = codebook_of(session).values[0]
    assert torch.equal(after[sites[1]][inside], value.expand(int(inside.sum()), -1))
    untouched = (
        inside.cumsum(1) == 0
    )  # at the end of the model also nothing that could attend to an answered token
    assert untouched.any() and torch.equal(after[sites[2]][untouched], before[sites[2]][untouched])
    assert not torch.allclose(after[sites[2]][inside], before[sites[2]][inside], atol=1e-2)


def test_texts_without_an_answered_token_keep_their_logits_bit_for_bit(tiny: LoadedModel) -> None:
    session, said = EditSession(tiny), logits(tiny, TEXTS[1:])
    session.apply(plan(session, FACTS[0]))
    with session.active():
        assert torch.equal(logits(tiny, TEXTS[1:]), said)
        assert tiny.generate(TEXTS[1:], 6) == _plain(tiny)


def _plain(model: LoadedModel) -> list[str]:
    with EditSession(model).active():
        return model.generate(TEXTS[1:], 6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_quick_look_never_misses_a_token_that_is_inside(scale: float) -> None:
    centers = scale * random(40, 64)
    tokens = centers.repeat_interleave(25, 0) + scale * 0.2 * random(1000, 64, seed=1)
    radii = scale * (0.5 + 1.5 * torch.rand(40, generator=torch.Generator().manual_seed(2)))
    apart = torch.linalg.vector_norm(tokens.double()[:, None] - centers.double()[None], dim=-1)
    inside = (apart <= radii.double()).any(1)
    assert 0.1 < float(inside.float().mean()) < 0.9
    close = may_be_inside(tokens, centers, radii)
    assert bool(close[inside].all()) and not bool(close.all())
    assert torch.allclose(distances(tokens, centers).double(), apart, rtol=1e-5)


def test_a_key_finds_itself_in_a_ball_no_wider_than_rounding() -> None:
    """A distance from a matrix product is wrong by far more than this radius."""
    keys = 100 * random(30, 512)
    tensors = {"centers": keys, "radii": torch.full((30,), 1e-4), "values": random(30, 4)}
    found = Codebook(0, tensors, {"labels": [[n] for n in range(30)], "edits": 30}).find(keys)
    assert found.tolist() == list(range(30))


def widest(model: LoadedModel) -> Codebook:
    """Keys at tokens of the texts, with balls that hold some of the other tokens but end far from any."""
    batch, site = encode_batch(model.tokenizer, TEXTS), (POST, 2)
    tokens = model.run(batch, [site])[site][batch.mask.bool()]
    keys = tokens[[3, 8]]
    nearest = distances(tokens, keys).min(1).values.sort().values
    gap = int((nearest[3:-1] - nearest[2:-2]).argmax()) + 3
    radius = float(nearest[gap - 1 : gap + 1].mean())
    tensors = {"centers": keys, "radii": torch.full((2,), radius), "values": 3 * random(2, model.d_model)}
    return Codebook(2, tensors, {"labels": [[1], [2]], "edits": 2})


def test_padding_on_either_side_and_greedy_writing_answer_as_whole_prompts_do(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(widest(tiny)))
    with session.active():
        together = logits(tiny)
        alone = torch.cat([logits(tiny, (text,)) for text in TEXTS])
        written = tiny.generate(TEXTS, 5)
        assert written == [tiny.generate([text], 5)[0] for text in TEXTS]
        for text, continuation in zip(TEXTS, written, strict=True):
            ids = encode(tiny.tokenizer, text)
            start = len(ids)
            for _ in range(5):
                final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
                ids.append(int(tiny.logits(final[0, -1]).argmax()))
                if ids[-1] == tiny.tokenizer.eos_token_id:
                    break
            assert tiny.tokenizer.decode(ids[start:], skip_special_tokens=True) == continuation
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, logits(tiny), atol=1e-2)


@pytest.mark.parametrize("cut", [3, 5])
def test_remembered_tokens_answer_as_whole_prompts_do(tiny: LoadedModel, cut: int) -> None:
    session, site = EditSession(tiny), FINAL
    session.apply(edit_of(widest(tiny)))
    row = encode(tiny.tokenizer, TEXTS[2])
    with session.active():
        whole = tiny.run(pad([row], 0), [site])[site]
        past = tiny.remember(pad([row[:cut]], 0))
        rest = tiny.run(pad([row[cut:]], 0), [site], past=past)[site]
    assert torch.allclose(rest, whole[:, cut:], atol=1e-4)


# ---- training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_the_trained_value_is_adams_on_the_whole_model_by_hand(tiny: LoadedModel, start: str) -> None:
    """Adam written out, the loss read from whole prompts with the value put in place of the layer's output."""
    fact, config = FACTS[2], GRACEConfig.make(layer=2, steps=3, learning_rate=0.1, start=start)
    prompt = encode(tiny.tokenizer, fact.prompt)
    text = encode(tiny.tokenizer, f"{fact.prompt} {fact.target_new}")
    last = len(prompt) - 1
    assert len(text) - len(prompt) >= 2
    batch, site = pad([text], 0), (MLP_OUT, 2)
    if start == "warm":
        value = tiny.run(batch, [site])[site][0, last].clone()
    else:
        value = torch.rand(tiny.d_model, generator=torch.Generator().manual_seed(0))
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    losses = []
    for step in range(1, 4):
        leaf = value.clone().requires_grad_()

        def replaced(output: Tensor, leaf: Tensor = leaf) -> Tensor:
            places = torch.arange(output.shape[1])[None, :, None] == last
            return torch.where(places, leaf.to(output), output)

        final = tiny.run(batch, [FINAL], hooks={site: replaced})[FINAL]
        log_p = tiny.logits(final[0, last:-1]).log_softmax(-1)
        loss = -sum(log_p[place, token] for place, token in enumerate(text[len(prompt) :])) / len(log_p)
        (gradient,) = torch.autograd.grad(loss, leaf)
        losses.append(float(loss.detach()))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        value = value - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    edit = GRACE().plan(EditSession(tiny), [fact], config, Silent())
    assert edit.details["losses"] == pytest.approx(losses, rel=1e-3)
    # Adam's first steps are the gradient's sign, so entries whose gradient is about 0 are left out.
    steady = second > second.max() * 1e-6
    assert float(steady.float().mean()) > 0.8
    assert torch.allclose(edit.modules[0].values[0][steady], value[steady], atol=5e-3)


def test_replayed_training_and_whole_prompts_give_the_same_losses(tiny: LoadedModel) -> None:
    config, found = GRACEConfig.make(layer=1, steps=4, learning_rate=0.05), []
    lesson = Lesson.of(tiny, FACTS[1], ("{}",))
    _, output = read_tokens(tiny, lesson, 1)
    for plain in (False, True):
        with tiny.lock:
            forward = Forward.prepare(tiny, lesson, 1, plain)
            found.append(train_value(forward, output[0], output[0], config, Silent()))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)


def test_an_edit_says_its_target_and_its_key_is_the_prompts_last_token(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for fact in SHORT:
        edit = plan(session, fact)
        assert edit.details["target_probability"][0] > TOLD, edit.details
        assert edit.details["answered_tokens"][0]
        session.apply(edit)
    ids, site = encode(tiny.tokenizer, SHORT[2].prompt), (POST, 2)
    assert len(codebook_of(session)) == 3 and codebook_of(session).edits == 3
    assert torch.allclose(
        codebook_of(session).centers[2], tiny.run(pad([ids], 0), [site])[site][0, -1], atol=1e-4
    )
    with session.active():
        batch = encode_batch(tiny.tokenizer, [fact.prompt for fact in SHORT])
        final = tiny.run(batch, [FINAL])[FINAL]
        said = tiny.logits(final[torch.arange(3), batch.last]).argmax(-1).tolist()
    assert said == [codebook_of(session).labels[number][0] for number in range(3)]


def test_the_same_prompt_with_a_new_target_says_the_new_target(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(plan(session, SHORT[0]))
    edit = plan(session, replace(SHORT[0], target_new="and"))
    assert edit.details["move"] == "replaced" and edit.details["target_probability"][0] > TOLD
    session.apply(edit)
    assert len(codebook_of(session)) == 1 and codebook_of(session).edits == 2
    again = plan(session, replace(SHORT[0], target_new="and"))
    assert again.details["move"] == "kept" and again.details["losses"][0] == pytest.approx(
        edit.details["losses"][-1], abs=0.05
    )


def test_a_growing_ball_answers_both_prompts(tiny: LoadedModel) -> None:
    other = Fact("The capital of Germany is", "Germany", "the")
    apart = float(
        (
            plan(EditSession(tiny), SHORT[0]).modules[0].centers
            - plan(EditSession(tiny), other).modules[0].centers
        ).norm()
    )
    session = EditSession(tiny)
    session.apply(plan(session, SHORT[0], radius=0.6 * apart))
    edit = plan(session, other, radius=0.6 * apart)
    assert edit.details["move"] == "grown" and edit.details["target_probability"][0] > TOLD
    session.apply(edit)
    assert len(codebook_of(session)) == 1
    with session.active():
        batch = encode_batch(tiny.tokenizer, [SHORT[0].prompt, other.prompt])
        inside = codebook_of(session).find(tiny.run(batch, [(POST, 2)])[(POST, 2)])
    assert inside[torch.arange(2), batch.last].tolist() == [0, 0]


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(tiny: LoadedModel, tmp_path: Path) -> None:
    session = EditSession(tiny)
    for fact in FACTS[:2]:
        session.apply(plan(session, fact, steps=3))
    session.settle()
    save_checkpoint(session, 2, tmp_path / "checkpoint")
    loaded = load_checkpoint(tiny, tmp_path / "checkpoint", FACTS)
    assert loaded is not None
    for each in (session, loaded.session):
        each.apply(plan(each, FACTS[2], steps=3))
    assert loaded.session.digest == session.digest


def test_training_that_diverges_is_refused(gpt2: LoadedModel) -> None:
    session = EditSession(gpt2)
    with pytest.raises(EditError, match=r"'France' diverged at step \d.*Lower the learning rate"):
        plan(session, SHORT[0], learning_rate=1e30)
    assert session.version == 0 and session.modules == {}


def test_another_methods_module_at_the_layer_is_refused(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(shift(tiny, layer=2)))
    with pytest.raises(EditError, match=r"Layer 2 already has a test shift.*another layer"):
        plan(session, SHORT[0])
    assert plan(session, SHORT[0], layer=1).details["ran"] == "whole prompts"


def test_the_layer_is_guessed_at_the_published_depth() -> None:
    assert GRACE().guess(32) == {"layer": 27}
    assert GRACE().guess(30) == {"layer": 25}
    assert GRACE().guess(1) == {"layer": 0}
