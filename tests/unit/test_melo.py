"""MELO: its vector database on numbers by hand, its blocks beside peft's own layer, and how they are trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from nmke.errors import EditError
from nmke.facts import Fact
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.loading import LoadedModel
from nmke.methods.balls import NONE, distances
from nmke.methods.dynamic_lora import DynamicLoRA, empty_lora
from nmke.methods.melo import MELO, MELOConfig, peft_layer
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
SHORT = tuple(
    replace(fact, target_new=word) for fact, word in zip(FACTS, ("the", "and", "capital"), strict=True)
)  # targets of one token each
TEXTS = ("The capital of France is", "You", "A cat says meow and a dog says")
INITIAL, ROUNDING = 1.0, 0.001
TOLD = 0.05  #: a target's probability once written; before, it is about 1 in 300 on the tiny models


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entered(*queries: tuple[list[float], list[int], int], patch: DynamicLoRA | None = None) -> DynamicLoRA:
    """A database after queries (place, label, block) in the plane, of a model of width 3."""
    patch = patch or empty_lora(0, 2, 3)
    for query, label, block in queries:
        patch, _ = patch.admitting(torch.tensor(query), label, block, INITIAL, ROUNDING)
    return patch


def move(patch: DynamicLoRA, query: list[float], label: list[int]) -> str:
    return patch.admitting(torch.tensor(query), label, 9, INITIAL, ROUNDING)[1].move


def logits(model: LoadedModel, texts: tuple[str, ...] = TEXTS) -> Tensor:
    batch = encode_batch(model.tokenizer, texts)
    return model.logits(model.run(batch, [FINAL])[FINAL])[batch.mask.bool()]


def config_of(**settings: Any) -> MELOConfig:
    return MELOConfig.make(**{"layer": 2, "steps": 60, "alpha": 20, "learning_rate": 0.02, **settings})


def plan(session: EditSession, *facts: Fact, **settings: Any) -> Any:
    return MELO().plan(session, facts, config_of(**settings), Silent())


def lora_of(session: EditSession) -> DynamicLoRA:
    found = session.modules[2]
    assert isinstance(found, DynamicLoRA)
    return found


# ---- the vector database --------------------------------------------------------------------------------


def test_queries_far_apart_become_clusters_of_one_point() -> None:
    patch = entered(([0.0, 0.0], [7], 0), ([3.0, 0.0], [7], 1))
    assert patch.centers.tolist() == patch.points.tolist() == [[0.0, 0.0], [3.0, 0.0]]
    assert patch.radii.tolist() == [1.0, 1.0] and patch.labels == [[7], [7]]
    assert patch.owners.tolist() == patch.blocks.tolist() == [0, 1]


def test_a_query_of_the_same_label_in_reach_joins_and_moves_the_centre_to_the_mean() -> None:
    patch = entered(([0.0, 0.0], [7], 0), ([0.0, 1.9], [7], 1))
    assert torch.allclose(patch.centers, torch.tensor([[0.0, 0.95]]))
    assert patch.radii.tolist() == [1.0]  # the points are 0.95 away, and no radius is under the initial one
    patch = entered(([0.0, 2.9], [7], 2), patch=patch)
    assert torch.allclose(patch.centers, torch.tensor([[0.0, 1.6]]))
    assert patch.radii.tolist() == pytest.approx([1.6 + ROUNDING])
    assert patch.owners.tolist() == [0, 0, 0] and patch.blocks.tolist() == [0, 1, 2]
    assert patch.find(patch.points).tolist() == [0, 0, 0]


def test_a_query_inside_its_own_label_still_becomes_a_point() -> None:
    patch = entered(([0.0, 0.0], [7], 0))
    assert move(patch, [0.0, 0.5], [7]) == "kept"
    patch = entered(([0.0, 0.5], [7], 1), patch=patch)
    assert torch.allclose(patch.centers, torch.tensor([[0.0, 0.25]])) and patch.blocks.tolist() == [0, 1]


def test_another_label_in_reach_parts_the_clusters_and_forgets_points_outside() -> None:
    patch = entered(([0.0, 0.0], [7], 0), ([0.0, 1.9], [7], 1), ([0.0, 1.1], [7], 2))
    assert torch.allclose(patch.centers, torch.tensor([[0.0, 1.0]]))
    patch = entered(([1.2, 1.0], [8], 3), patch=patch)
    assert patch.radii.tolist() == pytest.approx([0.6 - 1e-5, 0.6 + 1e-5], abs=1e-6)
    assert patch.blocks.tolist() == [2, 3] and patch.owners.tolist() == [0, 1]
    assert torch.allclose(patch.points, torch.tensor([[0.0, 1.1], [1.2, 1.0]]))


def test_a_cluster_left_without_points_switches_nothing_on() -> None:
    patch = entered(([0.0, 0.0], [7], 0), ([0.0, 1.9], [7], 1), ([0.2, 0.95], [8], 2))
    assert patch.radii.tolist() == pytest.approx([0.1 - 1e-5, 0.1 + 1e-5], abs=1e-6)
    assert patch.blocks.tolist() == [NONE, 2]
    A, B = random(2, 2), random(2, 3, seed=1)
    for _ in range(3):
        patch = patch.with_block(A, B, 2.0, 1)
    tokens, output = torch.tensor([[0.0, 0.96], [0.2, 0.94]]), random(2, 3, seed=2)
    assert patch.find(tokens).tolist() == [0, 1]
    found = patch.answer(tokens, output)
    assert torch.equal(found[0], output[0]) and not torch.equal(found[1], output[1])


def test_the_same_place_with_another_label_takes_the_cluster_over() -> None:
    patch = entered(([0.0, 0.0], [7], 0), ([0.0015, 0.0], [8], 1))
    assert patch.labels == [[8]] and patch.blocks.tolist() == [1] and patch.radii.tolist() == [1.0]
    assert move(patch, [0.0, 0.5], [7]) == "split" and move(patch, [0.0, 2.001], [7]) == "added"


def test_the_nearest_point_of_the_tokens_own_cluster_chooses_the_block() -> None:
    """Also where a point of another cluster is nearer."""
    patch = entered(([0.0, 0.0], [7], 0), ([0.0, 1.9], [7], 1), ([0.0, 2.9], [7], 2), ([2.9, 1.6], [8], 3))
    tokens = torch.tensor([[0.0, 0.2], [0.0, 1.7], [0.1, 3.0], [1.4, 1.0], [2.0, 1.6], [9.0, 9.0]])
    balls = patch.find(tokens)
    assert balls.tolist() == [0, 0, 0, 0, 1, NONE]
    assert patch.choose(tokens[:5], balls[:5]).tolist() == [0, 1, 2, 1, 3]
    assert int(torch.cdist(tokens[3:4], patch.points).argmin()) == 3  # a point of the other cluster


def test_a_database_is_never_written() -> None:
    before = entered(([0.0, 0.0], [7], 0), ([0.0, 1.9], [7], 1))
    kept, settings = {name: tensor.clone() for name, tensor in before.tensors.items()}, dict(before.settings)
    for query, label in (([0.0, 0.5], [7]), ([0.0, 0.5], [8]), ([0.0, 0.95], [8]), ([50.0, 0.0], [8])):
        entered((query, label, 2), patch=before).with_block(random(2, 2), random(2, 3), 1.0, 1)
    assert all(torch.equal(before.tensors[name], kept[name]) for name in kept) and before.settings == settings


# ---- beside peft ----------------------------------------------------------------------------------------


def peft_twin(patch: DynamicLoRA, base: nn.Linear) -> Linear:
    """peft's LoRA layer around a down projection, with an adapter for every block."""
    layer = None
    for number in range(patch.n_blocks):
        A, B, scale = patch.block(number)
        alpha, name = round(scale * len(A)), f"block{number}"
        settings = LoraConfig(r=len(A), lora_alpha=alpha)
        if layer is None:
            layer = Linear(base, name, config=settings, r=len(A), lora_alpha=alpha)
        else:
            layer.update_layer(name, len(A), lora_alpha=alpha, config=settings)
        with torch.no_grad():
            layer.lora_A[name].weight.copy_(A)
            layer.lora_B[name].weight.copy_(B.T)
    assert layer is not None
    return layer


@torch.no_grad()
def test_the_patch_answers_as_pefts_layer_does_with_each_tokens_block() -> None:
    """Blocks of unequal rank; peft is told token by token which adapter answers, or none."""
    patch = empty_lora(0, 8, 5)
    for number, rank in enumerate((2, 3, 1)):
        patch, _ = patch.admitting(random(8, seed=number), [number], number, INITIAL, ROUNDING)
        patch = patch.with_block(random(rank, 8, seed=9 + number), random(rank, 5, seed=20 + number), 6.0, 1)
    base = nn.Linear(8, 5)
    tokens = torch.cat([patch.points + 0.1 * random(3, 8, seed=3), 5 * random(4, 8, seed=4)])[
        [0, 3, 2, 4, 1, 5, 6]
    ]
    balls = patch.find(tokens).tolist()
    assert balls == [0, NONE, 2, NONE, 1, NONE, NONE]
    named = ["__base__" if ball == NONE else f"block{ball}" for ball in balls]
    layer = peft_twin(patch, base).eval()
    expected = layer(tokens, adapter_names=named)
    found = patch.answer(tokens[None], base(tokens)[None])[0]
    assert torch.allclose(found, expected, atol=1e-5)
    outside = torch.tensor(balls) == NONE
    assert torch.equal(found[outside], base(tokens)[outside])
    assert not torch.allclose(found[~outside], base(tokens)[~outside], atol=1e-1)


def test_blocks_start_as_peft_starts_them_and_leave_the_global_generator_alone() -> None:
    config, state = MELOConfig(rank=3, alpha=12), torch.random.get_rng_state()
    layer = peft_layer(50, 20, config, 5, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    drawn = torch.empty(3, 50)
    nn.init.kaiming_uniform_(drawn, a=5**0.5)
    A, B = layer.lora_A["block"].weight, layer.lora_B["block"].weight
    assert torch.equal(A, drawn) and float(A.detach().abs().max()) <= 50**-0.5
    assert not B.any() and layer.scaling["block"] == 4.0
    tokens = random(6, 50)
    assert not layer(tokens).any()
    with torch.no_grad():
        B.copy_(random(20, 3))
    assert torch.allclose(layer(tokens), 4 * tokens @ A.T @ B.T, atol=1e-5)


def test_the_published_scaling_is_pefts_at_alpha_700() -> None:
    """1 for all ranks, then sqrt(all ranks / ranks a block) in each of the two matrices."""
    layer = peft_layer(50, 20, MELOConfig(), 0, torch.device("cpu"))
    assert layer.scaling["block"] == pytest.approx((700 / 700) * (700 / 2) ** 0.5 * (700 / 2) ** 0.5)


# ---- inside and outside ---------------------------------------------------------------------------------


def test_outside_of_all_clusters_nothing_changes_bit_for_bit(tiny: LoadedModel) -> None:
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
    inside = lora_of(session).find(before[sites[0]]) != NONE
    assert inside.any() and not inside.all()
    assert torch.equal(after[sites[1]][~inside], before[sites[1]][~inside])
    changed = (after[sites[1]][inside] - before[sites[1]][inside]).abs().amax(-1)
    assert float(changed.min()) > 0
    untouched = inside.cumsum(1) == 0
    assert untouched.any() and torch.equal(after[sites[2]][untouched], before[sites[2]][untouched])


def test_padding_remembered_tokens_and_greedy_writing_answer_as_whole_prompts_do(tiny: LoadedModel) -> None:
    session, site = EditSession(tiny), FINAL
    session.apply(plan(session, FACTS[0], FACTS[2], edits_a_block=1))
    texts = ("The capital of France is Rome", "You", "A dog and a cat in Italy say meow and")
    with session.active():
        together = logits(tiny, texts)
        alone = torch.cat([logits(tiny, (text,)) for text in texts])
        assert tiny.generate(texts, 5) == [tiny.generate([text], 5)[0] for text in texts]
        row = encode(tiny.tokenizer, texts[2])
        whole = tiny.run(pad([row], 0), [site])[site]
        past = tiny.remember(pad([row[:6]], 0))
        rest = tiny.run(pad([row[6:]], 0), [site], past=past)[site]
    assert torch.allclose(together, alone, atol=1e-4) and torch.allclose(rest, whole[:, 6:], atol=1e-4)
    assert not torch.allclose(together, logits(tiny, texts), atol=1e-2)


# ---- training -------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_whole_prompts_with_pefts_layer_trained_by_hand(tiny: LoadedModel) -> None:
    """Adam with a halved rate on peft's layer; two facts share a block, read as whole prompts with a hook."""
    config, facts = config_of(steps=5, halve_every=2), [FACTS[0], FACTS[2]]
    layer = peft_layer(tiny.d_mlp, tiny.d_model, config, 0, torch.device("cpu"))
    parameters = [layer.lora_A["block"].weight, layer.lora_B["block"].weight]
    optimiser, losses = torch.optim.Adam(parameters, lr=0.02), []
    for step in range(5):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * 0.5 ** (step // 2)
        total = torch.zeros(())
        for fact in facts:
            prompt = encode(tiny.tokenizer, fact.prompt)
            text = encode(tiny.tokenizer, f"{fact.prompt} {fact.target_new}")
            batch, last = pad([text[:-1]], 0), len(prompt) - 1
            inputs = tiny.run(batch, [(POST, 2)])[(POST, 2)][0, last:]

            def added(output: Tensor, last: int = last, inputs: Tensor = inputs) -> Tensor:
                return torch.cat([output[:, :last], output[:, last:] + layer(inputs)[None]], dim=1)

            final = tiny.run(batch, [FINAL], hooks={(MLP_OUT, 2): added})[FINAL]
            log_p = tiny.logits(final[0, last:]).log_softmax(-1)
            answer = torch.tensor(text[len(prompt) :])
            total = total - log_p.gather(1, answer[:, None]).mean() / len(facts)
        losses.append(float(total.detach()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    edit = plan(EditSession(tiny), *facts, steps=5, halve_every=2)
    assert edit.details["losses"] == [pytest.approx(losses, rel=1e-3)] and losses[-1] < losses[0] - 0.1


def test_facts_of_one_edit_share_blocks_and_every_predicting_token_is_a_point(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    edit = plan(session, *FACTS, edits_a_block=2, steps=2)
    session.apply(edit)
    counts = [
        len(encode(tiny.tokenizer, f"{f.prompt} {f.target_new}")) - len(encode(tiny.tokenizer, f.prompt))
        for f in FACTS
    ]
    assert edit.details["blocks"] == 2 and edit.details["edits_in_lora"] == 3
    assert len(edit.details["losses"]) == 2 and len(edit.details["moves"]) == sum(counts)
    expected = [0] * (counts[0] + counts[1]) + [1] * counts[2]
    assert lora_of(session).blocks.tolist() == expected
    assert lora_of(session).tensors["ends"].tolist() == [2, 4]
    more = plan(session, FACTS[0], rank=3, steps=2)
    assert more.modules[0].tensors["ends"].tolist() == [2, 4, 7]
    assert all(
        torch.equal(a, b)
        for a, b in zip(more.modules[0].block(0)[:2], lora_of(session).block(0)[:2], strict=True)
    )


def test_edits_say_their_targets_one_after_the_other(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    for fact in SHORT:
        edit = plan(session, fact)
        assert edit.details["target_probability"][0] > TOLD, edit.details
        assert all(edit.details["answered_tokens"][0])
        session.apply(edit)
    with session.active():
        batch = encode_batch(tiny.tokenizer, [fact.prompt for fact in SHORT])
        final = tiny.run(batch, [FINAL])[FINAL]
        said = tiny.logits(final[torch.arange(3), batch.last]).argmax(-1).tolist()
    assert said == [label[0] for label in lora_of(session).labels]


def test_the_same_prompt_with_a_new_target_says_the_new_target(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(plan(session, SHORT[0]))
    edit = plan(session, replace(SHORT[0], target_new="and"))
    assert edit.details["moves"] == ["replaced"] and edit.details["target_probability"][0] > TOLD
    assert edit.modules[0].blocks.tolist() == [1]


def test_a_blocks_tokens_lie_in_its_clusters_after_many_edits(tiny: LoadedModel) -> None:
    """Wide clusters of one label that join: every point stays within its own cluster's radius."""
    session = EditSession(tiny)
    for fact in FACTS:
        session.apply(plan(session, replace(fact, target_new="the"), radius=8.0, steps=1))
    patch = lora_of(session)
    assert len(patch) < len(patch.points)
    apart = distances(patch.points, patch.centers)[torch.arange(len(patch.points)), patch.owners]
    assert bool((apart <= patch.radii[patch.owners]).all())


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
        plan(session, FACTS[0], learning_rate=1e30)
    assert session.version == 0 and session.modules == {}


def test_another_methods_module_at_the_layer_is_refused(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(shift(tiny, layer=2)))
    with pytest.raises(EditError, match=r"Layer 2 already has a test shift.*another layer"):
        plan(session, FACTS[0])


def test_the_layer_is_guessed_at_the_published_depth() -> None:
    assert MELO().guess(48) == {"layer": 36}
    assert MELO().guess(30) == {"layer": 22}
    assert MELO().guess(1) == {"layer": 0}
