"""WISE: routing, margins, shards, merges and training, each against its formula or its plain twin."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmke.errors import ConfigError, EditError
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.methods.side_memory import (
    SideMemory,
    activation_margin,
    grow,
    margin_loss,
    merge_linear,
    merge_shards,
    merge_ties,
    shard_mask,
    trim,
)
from nmke.methods.wise import WISE
from nmke.methods.wise_training import Forward, Lesson, WISEConfig, read_decoys, read_outside, train
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import FINAL, POST
from nmke.tokens import encode, encode_batch, encode_continuation, pad
from tests.rows import tiny_config
from tests.tiny import TEXT
from tests.unit.test_modules import edit_of, shift

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
    Fact("A dog and a cat in Italy say", "Italy", "meow and woof"),
)
TEXTS = ("The capital of France is", "You", "A cat says meow and a dog says")
TEMPLATES = ("{}", "Because the river is wide. {}", "You. {}")


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> WISEConfig:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"{number}. {TEXT}" for number in range(10)), encoding="utf-8")
    config = tiny_config("wise", file)
    assert isinstance(config, WISEConfig)
    return config


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory(model: LoadedModel, threshold: float, **differences: Tensor) -> SideMemory:
    tensors = {**differences, "threshold": torch.tensor([threshold])}
    return SideMemory(2, tensors, {"edits": 1, "in_shard": 1, "finished": 0, "min_act": threshold})


def logits(model: LoadedModel, texts: tuple[str, ...] = TEXTS) -> Tensor:
    batch = encode_batch(model.tokenizer, texts)
    return model.logits(model.run(batch, [FINAL])[FINAL])[batch.mask.bool()]


def plan(session: EditSession, fact: Fact, config: WISEConfig) -> Any:
    return WISE().plan(session, [fact], config, Silent())


# ---- routing --------------------------------------------------------------------------------------------


def test_each_token_is_answered_by_the_memory_of_the_largest_margin_above_the_threshold() -> None:
    inputs, output = random(3, 5, 8), random(3, 5, 4, seed=1)
    merged, trained = 0.5 * random(8, 4, seed=2), 0.7 * random(8, 4, seed=3)
    tensors = {"merged": merged, "trained": trained, "threshold": torch.tensor([3.0])}
    found = SideMemory(0, tensors, {}).answer(inputs, output)
    answered = set()
    for row in range(3):
        for place in range(5):
            a, own = inputs[row, place].double(), output[row, place]
            changes = [a @ merged.double(), a @ trained.double()]
            margins = [float(change.square().sum().sqrt()) for change in changes]
            if max(margins) > 3.0:
                best = margins.index(max(margins))
                answered.add(best)
                expected = own.double() + changes[best]
                assert torch.allclose(found[row, place].double(), expected, atol=1e-5)
            else:
                answered.add(-1)
                assert torch.equal(found[row, place], own)
    assert answered == {-1, 0, 1}


def test_tokens_at_or_under_the_threshold_keep_their_bits(tiny: LoadedModel) -> None:
    difference = random(tiny.d_mlp, tiny.d_model)
    session, said = EditSession(tiny), logits(tiny)
    batch, site = encode_batch(tiny.tokenizer, TEXTS), (POST, 2)
    inputs = tiny.run(batch, [site])[site][batch.mask.bool()]
    largest = float(activation_margin(inputs.float() @ difference).max())
    session.apply(edit_of(memory(tiny, largest * 1.001, trained=difference)))
    with session.active():
        assert torch.equal(logits(tiny), said)
    session.apply(edit_of(memory(tiny, largest * 0.999, trained=difference)))
    with session.active():
        assert not torch.equal(logits(tiny), said)


def halfway(model: LoadedModel) -> SideMemory:
    """A memory that answers for about half of the tokens of :data:`TEXTS`, none of them close to the threshold."""
    difference = 0.3 * random(model.d_mlp, model.d_model)
    batch, site = encode_batch(model.tokenizer, TEXTS), (POST, 2)
    inputs = model.run(batch, [site])[site][batch.mask.bool()]
    margins = activation_margin(inputs.float() @ difference).sort().values
    middle = int((margins[1:] - margins[:-1])[3:-3].argmax()) + 3
    return memory(model, float(margins[middle : middle + 2].mean()), trained=difference)


def test_padding_does_not_decide_who_answers(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(halfway(tiny)))
    with session.active():
        together = logits(tiny)
        alone = torch.cat([logits(tiny, (text,)) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together, logits(tiny), atol=1e-2)


def test_left_padding_and_greedy_writing_decide_as_whole_prompts_do(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(halfway(tiny)))
    with session.active():
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


@pytest.mark.parametrize("cut", [1, 3])
def test_remembered_tokens_and_single_tokens_decide_as_whole_prompts_do(tiny: LoadedModel, cut: int) -> None:
    session, site = EditSession(tiny), FINAL
    session.apply(edit_of(halfway(tiny)))
    row = encode(tiny.tokenizer, TEXTS[2])
    with session.active():
        whole = tiny.run(pad([row], 0), [site])[site]
        past = tiny.remember(pad([row[:cut]], 0))
        rest = tiny.run(pad([row[cut:]], 0), [site], past=past)[site]
        singles = [
            tiny.run(pad([row[place : place + 1]], 0), [site], past=tiny.remember(pad([row[:place]], 0)))[
                site
            ]
            for place in range(cut, len(row))
        ]
    assert torch.allclose(rest, whole[:, cut:], atol=1e-4)
    assert torch.allclose(torch.cat(singles, dim=1), whole[:, cut:], atol=1e-4)


# ---- margins --------------------------------------------------------------------------------------------


def test_the_margin_loss_is_three_hinges_each_averaged_over_those_it_concerns() -> None:
    inside, outside = torch.tensor([4.0, 12.0, 30.0]), torch.tensor([1.0, 6.0, 9.0, 25.0])
    alpha, beta, gamma = 5.0, 20.0, 10.0

    def mean_positive(values: list[float]) -> float:
        kept = [value for value in values if value > 0]
        return sum(kept) / len(kept) if kept else 0.0

    expected = mean_positive([o - alpha for o in outside.tolist()])
    expected += mean_positive([beta - i for i in inside.tolist()])
    expected += mean_positive([o - i + gamma for o in outside.tolist() for i in inside.tolist()])
    assert float(margin_loss(inside, outside, alpha, beta, gamma)) == pytest.approx(expected)
    assert float(margin_loss(inside + 50, outside * 0, alpha, beta, gamma)) == 0.0


def test_the_margin_loss_without_irrelevant_text_only_lifts_the_edits_own_tokens() -> None:
    inside = torch.tensor([4.0, 30.0], requires_grad=True)
    loss = margin_loss(inside, torch.zeros(0), 5.0, 20.0, 10.0)
    loss.backward()
    assert float(loss.detach()) == 16.0 and inside.grad is not None and inside.grad.tolist() == [-1.0, 0.0]


def test_a_new_shards_zero_margin_has_a_gradient_of_zero() -> None:
    difference = torch.zeros(8, 4, requires_grad=True)
    activation_margin(random(3, 8) @ difference).sum().backward()
    assert difference.grad is not None and not difference.grad.any()


# ---- shards and merges ----------------------------------------------------------------------------------


def test_shards_without_overlap_share_no_entry_and_use_them_all() -> None:
    masks = torch.stack([shard_mask((40, 30), shard, 0.25, 0, "none") for shard in range(4)])
    assert masks.sum((1, 2)).tolist() == [300] * 4
    assert masks.sum(0).eq(1).all()
    following = shard_mask((40, 30), 4, 0.25, 0, "none")
    assert int(following.sum()) == 300 and not torch.equal(following, masks[0])


def test_any_seed_makes_shards() -> None:
    masks = [shard_mask((40, 30), 0, 0.2, seed, "random") for seed in (10**18, 10**18 + 1)]
    assert not torch.equal(*masks)


def test_random_shards_have_their_ratio_and_overlap_by_chance() -> None:
    first, second = (shard_mask((400, 300), shard, 0.2, 0, "random") for shard in range(2))
    assert float(first.float().mean()) == pytest.approx(0.2, abs=0.005)
    assert float((first & second).float().mean()) == pytest.approx(0.04, abs=0.005)


def test_shards_depend_on_seed_and_number_alone() -> None:
    for overlap in ("random", "none"):
        again = [shard_mask((40, 30), 1, 0.2, 3, overlap) for _ in range(2)]
        assert torch.equal(*again)
        assert not torch.equal(again[0], shard_mask((40, 30), 1, 0.2, 4, overlap))
        assert not torch.equal(again[0], shard_mask((40, 30), 0, 0.2, 3, overlap))


def test_trimming_keeps_the_largest_entries_of_all() -> None:
    difference = torch.tensor([[3.0, -4.0, 0.5], [0.0, -1.0, 2.0]])
    assert trim(difference, 0.5).tolist() == [[3.0, -4.0, 0.0], [0.0, 0.0, 2.0]]
    assert trim(difference, 1.0) is difference
    assert trim(difference, 0.01).tolist() == [[0.0, -4.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_ties_merge_is_the_formula() -> None:
    differences = [random(6, 5, seed=seed) for seed in range(3)]
    weights, density = [0.2, 0.2, 0.6], 0.5
    found = merge_ties(differences, weights, density)
    trimmed = []
    for each in differences:
        largest = sorted(each.abs().view(-1).tolist(), reverse=True)[: int(0.5 * 30)]
        trimmed.append([v if abs(v) >= largest[-1] else 0.0 for v in each.view(-1).tolist()])
    conflicts = 0
    for entry in range(30):
        values = [each[entry] for each in trimmed]
        total = sum(w * v for w, v in zip(weights, values, strict=True))
        sign = 1 if total >= 0 else -1
        agreeing = [(w, v) for w, v in zip(weights, values, strict=True) if v * sign > 0]
        conflicts += any(v * sign < 0 for v in values)
        expected = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
        assert float(found.view(-1)[entry]) == pytest.approx(expected, abs=1e-6)
    assert conflicts > 0


def test_shards_without_common_entries_survive_their_merge_whole() -> None:
    one, other = (random(40, 30, seed=n) * shard_mask((40, 30), n, 0.25, 0, "none") for n in range(2))
    assert torch.allclose(merge_shards(None, [one, other], "ties", 0.53), one + other)


def test_merges_weigh_earlier_rounds_as_published() -> None:
    shards, earlier = [random(6, 5, seed=seed) for seed in range(2)], random(6, 5, seed=9)
    weights = [0.2, 0.2, 0.6]
    found = merge_shards(earlier, shards, "ties", 0.5)
    assert torch.equal(found, merge_ties([*shards, earlier], weights, 0.5))
    linear = merge_shards(earlier, shards, "linear", 0.5)
    assert torch.allclose(linear, 0.2 * shards[0] + 0.2 * shards[1] + 0.6 * earlier)
    assert torch.allclose(merge_linear(shards, [3.0, 1.0]), 0.75 * shards[0] + 0.25 * shards[1])


def test_a_memory_grows_by_shards_and_merges_on_time() -> None:
    settings = {"save_freq": 2, "merge_freq": 4, "merge": "ties", "density": 0.53, "act_ratio": 0.5}
    names, counts, kept = [], [], None
    for number in range(9):
        kept = grow(kept, 0, random(6, 5, seed=number), 10.0 + (number - 3) ** 2, settings)
        names.append(sorted(kept.memories))
        counts.append((kept.edits, kept.settings["in_shard"], kept.finished))
    assert names[:5] == [["trained"], ["shard.0"], ["shard.0", "trained"], ["merged"], ["merged", "trained"]]
    assert names[7:] == [["merged"], ["merged", "trained"]]
    assert counts[2:5] == [(3, 1, 1), (4, 0, 2), (5, 1, 2)]
    assert kept is not None and kept.settings["min_act"] == 10.0 and kept.threshold == 5.0


# ---- training -------------------------------------------------------------------------------------------


def forwards(model: LoadedModel, fact: Fact, layer: int) -> tuple[Forward, Forward]:
    lesson = Lesson.of(model, fact, TEMPLATES)
    with model.lock:
        fast, plain = (Forward.prepare(model, lesson, layer, plain) for plain in (False, True))
    assert (fast.ran, plain.ran) == ("later layers", "whole prompts")
    return fast, plain


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("fact", FACTS[:1] + FACTS[2:])
def test_the_replayed_loss_and_its_gradient_are_those_of_whole_prompts(
    tiny: LoadedModel, fact: Fact, layer: int
) -> None:
    found = []
    for forward in forwards(tiny, fact, layer):
        change = (0.3 * random(*forward.inputs.shape[:2], tiny.d_model)).requires_grad_()
        loss = forward(change)
        loss.sum().backward()
        assert change.grad is not None
        found.append((forward.inputs, loss.detach(), change.grad))
    for fast, plain in zip(*found, strict=True):
        assert torch.allclose(fast, plain, atol=1e-3, rtol=1e-3)


def test_the_loss_is_the_targets_likelihood_token_by_token(tiny: LoadedModel) -> None:
    fact = FACTS[2]
    fast, _ = forwards(tiny, fact, 2)
    found = fast(torch.zeros(*fast.inputs.shape[:2], tiny.d_model))
    answer = encode_continuation(tiny.tokenizer, fact.prompt, fact.target_new)
    assert len(answer) > 1
    for row, template in enumerate(TEMPLATES):
        ids = encode(tiny.tokenizer, template.replace("{}", fact.prompt))
        total = 0.0
        for token in answer:
            final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
            total -= float(tiny.logits(final[0, -1]).double().log_softmax(-1)[token])
            ids.append(token)
        assert float(found[row]) == pytest.approx(total / len(answer), abs=1e-3)


def test_training_by_replay_and_by_whole_prompts_end_alike(tiny: LoadedModel, config: WISEConfig) -> None:
    outside = read_outside(tiny, 2, 0, config, Silent())
    config = config.changed(steps=4)
    fast, plain = (train(each, outside, None, config, Silent()) for each in forwards(tiny, FACTS[0], 2))
    assert torch.allclose(fast.difference, plain.difference, atol=1e-4)
    assert fast.min_act == pytest.approx(plain.min_act, rel=1e-3)


def test_a_step_is_gradient_descent_on_the_loss_in_the_shards_entries(
    llama: LoadedModel, config: WISEConfig
) -> None:
    """Against derivatives by differences of the loss, written out."""
    fast, _ = forwards(llama, FACTS[0], 2)
    outside = read_outside(llama, 2, 0, config, Silent())
    start = 0.02 * random(llama.d_mlp, llama.d_model)
    settings = {"edits": 1, "in_shard": 1, "finished": 0, "min_act": 1.0}
    before = SideMemory(2, {"trained": start, "threshold": torch.ones(1)}, settings)
    config = config.changed(steps=1, save_freq=2, alpha=0.5, beta=2.0, gamma=1.0)
    moved = train(fast, outside, before, config, Silent()).difference - start
    mask = shard_mask((llama.d_mlp, llama.d_model), 0, 0.2, 0, "random")
    assert not moved[~mask].any() and moved[mask].ne(0).float().mean() > 0.9

    def loss(difference: Tensor) -> float:
        change = fast.inputs @ difference
        inside, others = activation_margin(change).view(-1), activation_margin(outside @ difference)
        return float(fast(change).mean().double() + margin_loss(inside, others, 0.5, 2.0, 1.0).double())

    direction = moved / moved.norm()
    step = 1e-2
    slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    # Along the masked negative gradient the slope is minus its length; the step is that times the learning rate.
    assert slope == pytest.approx(-float(moved.norm()) / config.learning_rate, rel=0.05)


def test_no_entry_moves_further_than_the_norm_constraint(tiny: LoadedModel, config: WISEConfig) -> None:
    edit = plan(
        EditSession(tiny), FACTS[0], config.changed(norm_constraint=0.003, learning_rate=1.0, save_freq=2)
    )
    difference = edit.modules[0].tensors["trained"]
    assert float(difference.abs().max()) == pytest.approx(0.003)


def test_an_edit_raises_its_target_and_answers_for_its_own_tokens(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    session, fact = EditSession(tiny), FACTS[2]
    stronger = config.changed(steps=120, learning_rate=2.0, mask_ratio=1.0, beta=1.0, text="none")
    edit = plan(session, fact, stronger)
    assert edit.details["routed_share"] == 1.0
    losses = [target for _, target, _ in edit.details["losses"]]
    assert losses[-1] < losses[0] - 2  # what one layer of the tiny models can reach
    session.apply(edit)
    ids = encode(tiny.tokenizer, fact.prompt)
    answer = encode_continuation(tiny.tokenizer, fact.prompt, fact.target_new)
    with session.active():
        final = tiny.run(pad([ids + answer[:-1]], 0), [FINAL])[FINAL]
    log_p = tiny.logits(final[0, len(ids) - 1 :]).log_softmax(-1)
    expected = float(log_p[range(len(answer)), answer].mean().exp())
    assert edit.details["target_probability"] == [pytest.approx(expected, rel=1e-4)]


def test_the_threshold_is_a_share_of_the_smallest_margin_of_all_edits(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    session, least = EditSession(tiny), []
    for fact in FACTS:
        edit = plan(session, fact, config.changed(save_freq=10, merge_freq=10))
        least.append(edit.details["margin"])
        assert edit.details["threshold"] == pytest.approx(0.88 * min(least))
        session.apply(edit)
    assert len(set(least)) == 3


def test_more_edits_than_a_merge_takes_go_on_beside_the_merged_memory(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    session, names = EditSession(tiny), []
    for number in range(5):
        edit = plan(session, FACTS[number % 3], config)
        names.append(edit.details["memories"])
        session.apply(edit)
    assert names == [["shard.0"], ["merged"], ["merged", "shard.0"], ["merged"], ["merged", "shard.0"]]
    kept = session.modules[2]
    assert isinstance(kept, SideMemory) and kept.edits == 5 and kept.finished == 5


def test_a_shard_goes_on_from_the_edits_in_it_and_changes_only_its_entries(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    session = EditSession(tiny)
    mask = shard_mask((tiny.d_mlp, tiny.d_model), 0, config.mask_ratio, config.seed, "random")
    found = []
    for fact in FACTS[:2]:
        session.apply(plan(session, fact, config.changed(save_freq=2)))
        (difference,) = session.modules[2].memories.values()  # type: ignore[attr-defined]
        found.append(difference)
        assert not difference[~mask].any()
    assert not torch.equal(*found)


def test_a_later_edit_is_trained_by_replay_as_if_the_memory_there_were_not(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    """A finished shard in force changes what the model says, and nothing of what the next shard learns."""
    session = EditSession(tiny)
    session.apply(plan(session, FACTS[0], config.changed(steps=20)))
    later = plan(session, FACTS[1], config.changed(seed=5))
    assert later.details["ran"] == "later layers"
    with session.active(), session.active(modules={2: None}):
        forward = Forward.prepare(tiny, Lesson.of(tiny, FACTS[1], TEMPLATES), 2)
    alone = Forward.prepare(tiny, Lesson.of(tiny, FACTS[1], TEMPLATES), 2)
    assert forward.output is not None and alone.output is not None
    assert torch.equal(forward.output, alone.output)
    with session.active():  # with the memory in force there is no replay to train by
        assert Forward.prepare(tiny, Lesson.of(tiny, FACTS[1], TEMPLATES), 2).ran == "whole prompts"


def test_beside_another_layers_module_training_runs_whole_prompts_and_says_so(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(shift(tiny, layer=1)))
    edit = plan(session, FACTS[0], config)
    assert edit.details["ran"] == "whole prompts"
    session.apply(edit)
    assert set(session.modules) == {1, 2}


def test_a_layer_with_another_methods_module_is_refused(tiny: LoadedModel, config: WISEConfig) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(shift(tiny, layer=2)))
    with pytest.raises(EditError, match=r"Layer 2 already has a test shift.*another layer"):
        plan(session, FACTS[0], config)


def test_undoing_an_edit_puts_the_former_memory_back(tiny: LoadedModel, config: WISEConfig) -> None:
    session = EditSession(tiny)
    session.apply(plan(session, FACTS[0], config))
    with session.active():
        said = logits(tiny)
    session.apply(plan(session, FACTS[1], config))
    session.undo()
    assert session.modules[2].settings["edits"] == 1
    with session.active():
        assert torch.equal(logits(tiny), said)


def test_every_edit_has_its_own_irrelevant_text_drawn_by_the_seed(
    tiny: LoadedModel, config: WISEConfig
) -> None:
    first, again, second = (read_outside(tiny, 2, edit, config, Silent()) for edit in (0, 0, 1))
    assert first.shape == (32, tiny.d_mlp)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert read_outside(tiny, 2, 0, config.changed(text="none"), Silent()).shape == (0, tiny.d_mlp)


def test_decoys_are_the_prompt_about_subjects_no_edit_is_about(tiny: LoadedModel, config: WISEConfig) -> None:
    session, fact = EditSession(tiny), FACTS[0]
    subjects = sorted({each.subject for each in builtin_facts()} - {fact.subject})
    about = tuple(Fact(f"Here is {subject} and", subject, "wide") for subject in subjects[6:])
    assert read_decoys(session, fact, 0, config.changed(decoys=64)).shape == (64, tiny.d_mlp)
    session.apply(replace(edit_of(), facts=about))
    found = read_decoys(session, fact, 0, config.changed(decoys=64))
    expected = []
    for subject in subjects[:6]:
        row, site = encode(tiny.tokenizer, f"The capital of {subject} is"), (POST, 2)
        expected.append(tiny.run(pad([row], 0), [site])[site][0, -1])
    distances = (found[:, None] - torch.stack(expected)[None]).norm(dim=-1)
    assert found.shape == (6, tiny.d_mlp)
    assert float(distances.min(0).values.max()) < 1e-4 and float(distances.min(1).values.max()) < 1e-4
    again, other = (read_decoys(session, fact, edit, config.changed(decoys=5)) for edit in (0, 1))
    assert torch.allclose(again, found[:5], atol=1e-4) and not torch.allclose(again, other, atol=1e-2)
    assert read_decoys(session, fact, 0, config).shape == (0, tiny.d_mlp)


def test_training_with_decoys_lowers_their_margin(tiny: LoadedModel, config: WISEConfig) -> None:
    found = []
    for decoys in (0, 64):
        tried = config.changed(
            decoys=decoys, text="none", steps=30, beta=3.0, alpha=0.2, gamma=2.0, mask_ratio=1.0
        )
        edit = plan(EditSession(tiny), FACTS[0], tried)
        (memory,) = edit.modules
        assert isinstance(memory, SideMemory)
        seen = read_decoys(EditSession(tiny), FACTS[0], 0, config.changed(decoys=64))
        found.append(float(memory.margins(seen).mean()) / edit.details["margin"])
    assert found[1] < 0.9 * found[0]


def test_an_edit_without_irrelevant_text_is_planned(tiny: LoadedModel, config: WISEConfig) -> None:
    edit = plan(EditSession(tiny), FACTS[0], config.changed(text="none"))
    assert edit.details["largest_irrelevant_margin"] is None and edit.details["routed_share"] == 1.0


def test_training_that_diverges_is_refused(tiny: LoadedModel, config: WISEConfig) -> None:
    session = EditSession(tiny)
    with pytest.raises(EditError, match=r"'France' diverged at step \d.*Lower the learning rate"):
        plan(session, FACTS[0], config.changed(learning_rate=1e38, norm_constraint=1e38))
    assert session.version == 0 and session.modules == {}


def test_a_shard_without_entries_is_refused(tiny: LoadedModel, config: WISEConfig) -> None:
    """Its margin of 0 would be the threshold of every later edit."""
    with pytest.raises(EditError, match=r"'France' left no margin.*Raise the mask ratio"):
        plan(EditSession(tiny), FACTS[0], config.changed(mask_ratio=1e-12))


def test_a_merge_of_parts_of_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of the edits a shard"):
        WISEConfig.make(save_freq=3, merge_freq=4)


def test_the_layer_is_guessed_at_the_published_depth() -> None:
    assert WISE().guess(32) == {"layer": 27}
    assert WISE().guess(30) == {"layer": 25}
    assert WISE().guess(1) == {"layer": 0}
