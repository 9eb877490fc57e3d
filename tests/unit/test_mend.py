"""MEND: the transform, the edit and the losses against arithmetic by hand; training that stops and goes on."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from nmke.cli import app
from nmke.errors import Cancelled, EditError, FactError
from nmke.facts import Fact
from nmke.forcing import answer_all
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.methods.forced import Answers
from nmke.methods.mend import MENDConfig, find_editor
from nmke.methods.mend_lessons import Curriculum, Draw, Lesson
from nmke.methods.mend_passes import (
    Outcome,
    kl_divergence,
    nothing_added,
    passes_of,
    read_factors,
    with_updates,
)
from nmke.methods.mend_state import State, TrainingConfig
from nmke.methods.mend_training import (
    METHOD,
    STAGE,
    take_step,
    train_editor,
    training_for,
)
from nmke.methods.mend_transform import Factors, GradientTransform, Update
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.tokens import encode, pad
from nmke.trained import Trained, load_trained, save_trained, trained_path
from tests.rows import tiny_config
from tests.tiny import make_tiny
from tests.tiny_editors import FACTS, TRAINING, tiny_editors

LAYERS = (1, 2)


def random_transform(d_mlp: int = 5, d_model: int = 3, rank: int = 4, seed: int = 0) -> GradientTransform:
    """One whose every parameter and running figure says something."""
    transform = GradientTransform(d_mlp, d_model, LAYERS, rank, 1, edit_rate=0.01)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in transform.named_parameters():
            spread = 0.003 if name == "rates" else 0.1
            value += spread * torch.randn(value.shape, generator=generator)
        transform.count.fill_(9)
        transform.mean.copy_(torch.randn(d_mlp + d_model, generator=generator) * 0.1)
        transform.spread.copy_(torch.rand(d_mlp + d_model, generator=generator) + 1)
    return transform


def random_factors(tokens: int = 4, d_mlp: int = 5, d_model: int = 3, seed: int = 1) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(tokens, d_mlp, generator=generator), torch.randn(tokens, d_model, generator=generator)
    )


def lesson_of(model: LoadedModel, plain: bool = False, layers: tuple[int, ...] = LAYERS) -> Lesson:
    draw = Curriculum(model.tokenizer, FACTS, 0).draw(0)
    with model.weights_in({}):
        return Lesson.of(model, draw, layers, plain)


# ---- the transform --------------------------------------------------------------------------------------------------


def test_the_transform_is_the_published_formula() -> None:
    transform, factors = random_transform(), random_factors()
    got = transform(factors, 2)
    named = {name: value.detach().double() for name, value in transform.state_dict().items()}
    for token in range(4):
        x = [*factors.u[token].double().tolist(), *factors.delta[token].double().tolist()]
        for at in range(8):
            std = math.sqrt(float(named["spread"][at]) / 8)
            x[at] = (x[at] - float(named["mean"][at])) / (std + 1e-7)
        for block in ("blocks.0", "blocks.1"):
            V, U, b = named[f"{block}.V"], named[f"{block}.U"], named[f"{block}.bias"]
            scale, shift = named[f"{block}.scale"][1], named[f"{block}.shift"][1]
            low = [sum(float(V[r, at]) * x[at] for at in range(8)) for r in range(4)]
            inner = [sum(float(U[at, r]) * low[r] for r in range(4)) + float(b[at]) for at in range(8)]
            x = [x[at] + max(0.0, float(scale[at]) * inner[at] + float(shift[at])) for at in range(8)]
        assert got.u[token].tolist() == pytest.approx(x[:5], rel=1e-4, abs=1e-5)
        assert got.delta[token].tolist() == pytest.approx(x[5:], rel=1e-4, abs=1e-5)


def test_an_untrained_transform_hands_on_its_normalised_input() -> None:
    transform, factors = GradientTransform(5, 3, LAYERS, 4, 1), random_factors()
    transform.observe(factors)
    got = transform(factors, 1)
    assert torch.equal(torch.cat([got.u, got.delta], 1), transform.normalised(factors))
    assert torch.allclose(got.u.mean(0), torch.zeros(5), atol=1e-6)
    assert torch.allclose(got.u.std(0), torch.ones(5), atol=1e-5)


def test_an_untrained_transform_learns_though_its_rectifiers_stand_at_zero() -> None:
    transform, factors = GradientTransform(5, 3, LAYERS, 4, 1), random_factors()
    transform.observe(factors)
    transform(factors, 1).u.pow(3).sum().backward()
    assert transform.blocks[0].U.grad.abs().sum() > 0


def test_layers_have_scales_and_shifts_of_their_own() -> None:
    transform, factors = random_transform(), random_factors()
    assert not torch.equal(transform(factors, 1).u, transform(factors, 2).u)


def test_running_figures_are_welfords_token_by_token() -> None:
    transform = GradientTransform(5, 3, LAYERS, 4, 1)
    mean, spread, count = [0.0] * 8, [0.0] * 8, 0
    for seed, tokens in ((1, 1), (2, 4), (3, 2)):
        factors = random_factors(tokens, seed=seed)
        transform.observe(factors)
        for row in torch.cat([factors.u, factors.delta], 1).double().tolist():
            count += 1
            for at, x in enumerate(row):
                old = mean[at]
                mean[at] = old + (x - old) / count
                spread[at] += (x - old) * (x - mean[at])
    assert int(transform.count) == count == 7
    assert transform.mean.tolist() == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert transform.spread.tolist() == pytest.approx(spread, rel=1e-4)


def test_tokens_without_input_or_gradient_are_left_out() -> None:
    u, delta = torch.ones(3, 5), torch.ones(3, 3)
    u[0], delta[2] = 0, 0
    assert len(Factors.of(u, delta).u) == 1


def test_the_update_takes_the_rate_times_the_sum_of_outer_products_away() -> None:
    transform, factors = random_transform(), random_factors()
    update = transform.updates({1: factors, 2: factors})[2]
    transformed = transform(factors, 2)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for u, delta in zip(transformed.u.double(), transformed.delta.double(), strict=True):
        for i in range(5):
            for j in range(3):
                expected[i, j] -= (
                    float(transform.rates[1].detach()) * float(u[i].detach()) * float(delta[j].detach())
                )
    assert torch.allclose((update.left @ update.right).double(), expected, atol=1e-6)


# ---- factors and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_factors_multiply_to_the_gradient_of_the_down_projection(tiny: LoadedModel, plain: bool) -> None:
    answers = Answers.of(tiny.tokenizer, FACTS[:2], "target")
    with tiny.weights_in({}):
        passes = passes_of(tiny, answers.batch, LAYERS, plain)
        factors, _ = read_factors(passes, answers, LAYERS, tiny.d_model)
    for layer in LAYERS:
        parameter = tiny.down_projection(layer)
        parameter.requires_grad_(True)
        try:
            final = tiny.run(answers.batch, [FINAL])[FINAL]
            loss = answers.losses(tiny.logits(final[answers.rows, answers.places])).sum()
            (gradient,) = torch.autograd.grad(loss, parameter)
        finally:
            parameter.requires_grad_(False)
        gradient = gradient.T if tiny.is_transposed(layer) else gradient
        product = factors[layer].u.T @ factors[layer].delta
        assert torch.allclose(product, gradient, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("layers", [(0, 2), (1, 2), (3,)])
def test_replayed_layers_give_what_whole_prompts_give(tiny: LoadedModel, layers: tuple[int, ...]) -> None:
    found = []
    for plain in (False, True):
        lesson = lesson_of(tiny, plain, layers)
        assert lesson.outer.ran == ("whole prompts" if plain else "later layers")
        with tiny.weights_in({}):
            fresh = GradientTransform(tiny.d_mlp, tiny.d_model, layers, 8, 1, edit_rate=1e-3)
            found.append([float(value.detach()) for value in lesson.losses(fresh, tiny.d_model, True)[:2]])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def test_additions_are_what_a_changed_down_projection_computes(tiny: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    updates = {
        layer: Update(
            0.1 * torch.randn(tiny.d_mlp, 2, generator=generator),
            torch.randn(2, tiny.d_model, generator=generator),
        )
        for layer in LAYERS
    }
    batch = pad([encode(tiny.tokenizer, "The capital of France is")], 0)
    with tiny.weights_in({}), torch.no_grad():
        passes = passes_of(tiny, batch, LAYERS)
        added, unchanged = passes.final(with_updates(updates)), passes.final(nothing_added(tiny.d_model))
    session = EditSession(tiny)
    changed = {layer: session.master(layer) + each.left @ each.right for layer, each in updates.items()}
    with session.active(instead=changed), torch.no_grad():
        expected = tiny.run(batch, [FINAL])[FINAL]
    assert torch.allclose(added, expected, atol=1e-4)
    assert not torch.allclose(unchanged, expected, atol=1e-2)


def test_the_losses_are_the_published_ones_of_the_edited_model(tiny: LoadedModel) -> None:
    """From logits of the model with its down projections really exchanged, in float64."""
    lesson, draw = lesson_of(tiny), Curriculum(tiny.tokenizer, FACTS, 0).draw(0)
    transform = random_transform(tiny.d_mlp, tiny.d_model)
    with tiny.weights_in({}), torch.no_grad():
        edit, locality, _, _ = lesson.losses(transform, tiny.d_model)
        factors, _ = read_factors(lesson.inner, lesson.answers, LAYERS, tiny.d_model)
        updates = transform.updates(factors)
    session = EditSession(tiny)
    changed = {layer: session.master(layer) + each.left @ each.right for layer, each in updates.items()}

    def log_probabilities(ids: list[int]) -> Tensor:
        final = tiny.run(pad([ids], 0), [FINAL])[FINAL]
        return tiny.logits(final[0]).double().log_softmax(-1)

    prompt = encode(tiny.tokenizer, draw.prompt)
    target = lesson.outcome.tokens.tolist()
    with torch.no_grad():
        before = log_probabilities(list(draw.text))
        with session.active(instead=changed):
            after = log_probabilities(list(draw.text))
            forced = log_probabilities(prompt + target)
    expected = -sum(float(forced[len(prompt) - 1 + at, token]) for at, token in enumerate(target)) / len(
        target
    )
    assert float(edit) == pytest.approx(expected, rel=1e-3)
    kl = sum(
        math.exp(float(before[at, token])) * float(before[at, token] - after[at, token])
        for at in range(len(draw.text))
        for token in range(before.shape[1])
    ) / len(draw.text)
    assert kl > 1e-4
    assert float(locality) == pytest.approx(kl, rel=1e-2)


def test_kl_is_zero_for_equal_and_positive_for_other_answers() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    assert float(kl_divergence(logits, logits + 1.5)) == pytest.approx(0.0, abs=1e-6)
    assert float(kl_divergence(logits, logits.flip(1))) > 0.1


def test_the_outcome_asks_for_the_answer_after_its_prompt(llama: LoadedModel) -> None:
    outcome = Outcome.of(llama.tokenizer, "France has the capital", "Rome", [5, 6, 7])
    ids = outcome.batch.ids[0][outcome.batch.mask[0].bool()]
    prompt = encode(llama.tokenizer, "France has the capital")
    assert ids.tolist() == prompt + outcome.tokens[:-1].tolist()
    assert int(outcome.places[0]) == len(prompt) - 1
    assert llama.tokenizer.decode(outcome.tokens.tolist()).strip() == "Rome"


@pytest.mark.parametrize("name", ["rates", "blocks.0.U", "blocks.1.V", "blocks.0.scale", "blocks.1.bias"])
def test_the_gradient_through_the_edit_is_that_of_finite_differences(llama: LoadedModel, name: str) -> None:
    transform, lesson = random_transform(llama.d_mlp, llama.d_model, seed=3), lesson_of(llama)
    value = dict(transform.named_parameters())[name]

    def loss() -> Tensor:
        edit, locality, _, _ = lesson.losses(transform, llama.d_model)
        return edit + locality

    with llama.weights_in({}):
        loss().backward()
        direction = value.grad / value.grad.norm()
        step = 0.001 / float(value.grad.norm())
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                value += sign * step * direction
                ends.append(float(loss()))
                value -= sign * step * direction
    slope = (ends[0] - ends[1]) / (2 * step)
    assert float(value.grad.norm()) > 1e-4
    assert slope == pytest.approx(float(value.grad.norm()), rel=0.03)


# ---- training -------------------------------------------------------------------------------------------------------


class StopAt(Progress):
    """Cancels before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage == STAGE and done == self.step:
            raise Cancelled


def test_an_update_is_adams_on_the_mean_gradient_of_the_accumulated_steps(llama: LoadedModel) -> None:
    config = TRAINING.changed(accumulate=2)
    state = State.fresh(llama, config)
    lessons = [
        Lesson.of(llama, Curriculum(llama.tokenizer, FACTS, 0).draw(step), LAYERS, False) for step in range(2)
    ]
    twin = State.fresh(llama, config).transform
    for lesson in lessons:
        edit, locality, _, _ = lesson.losses(twin, llama.d_model, training=True)
        ((config.c_edit * edit + config.c_loc * locality) / 2).backward()
    start = twin.rates.detach().clone()
    take_step(llama, lessons[0], config, state)
    assert torch.equal(state.transform.rates, start)
    take_step(llama, lessons[1], config, state)
    # Adam's first step is the learning rate times g / (|g| + eps).
    expected = start - config.rate_learning_rate * twin.rates.grad / (twin.rates.grad.abs() + 1e-8)
    assert torch.allclose(state.transform.rates, expected, rtol=1e-5)


def test_training_lowers_the_loss_it_trains_on(llama: LoadedModel, tmp_path: Path) -> None:
    config = TRAINING.changed(steps=200, accumulate=1, held_out=0)
    trained = train_editor(llama, FACTS, config, Silent(), path=tmp_path / "editor.safetensors")
    first, last = trained.about["curve"]
    weigh = [config.c_edit * edit + config.c_loc * locality for _, edit, locality in (first, last)]
    assert weigh[1] < weigh[0]


def test_training_leaves_the_model_as_it_was(llama: LoadedModel, cache: Path) -> None:
    before = [parameter.clone() for parameter in llama.bridge.parameters()]
    train_editor(llama, FACTS, TRAINING, Silent())
    assert all(torch.equal(a, b) for a, b in zip(before, llama.bridge.parameters(), strict=True))


@pytest.mark.parametrize("stop", [7, 9])
def test_training_that_was_stopped_goes_on_with_the_same_bits(
    tiny: LoadedModel, tmp_path: Path, stop: int
) -> None:
    """In the middle of accumulated steps, and between updates."""
    whole = train_editor(tiny, FACTS, TRAINING, Silent(), path=tmp_path / "whole" / "a.safetensors")
    path = tmp_path / "stopped" / "a.safetensors"
    with pytest.raises(Cancelled):
        train_editor(tiny, FACTS, TRAINING, StopAt(stop), path=path)
    assert not path.exists()
    started: list[int] = []

    class Watch(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            started.append(done)

    again = train_editor(tiny, FACTS, TRAINING, Watch(), path=path)
    assert started[0] == stop
    assert again.digest == whole.digest
    assert again.about["curve"] == whole.about["curve"]
    assert [
        file.name for file in path.parent.iterdir() if file.suffix != ".lock" and file.name != ".lock"
    ] == [path.name]


def test_more_steps_go_on_from_a_stopped_training_and_other_settings_do_not(
    llama: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(Cancelled):
        train_editor(llama, FACTS, TRAINING, StopAt(9), path=path)
    other = TRAINING.changed(c_loc=2.0)
    fresh = train_editor(llama, FACTS, other, Silent(), path=tmp_path / "fresh" / "a.safetensors")
    assert train_editor(llama, FACTS, other, Silent(), path=path).digest == fresh.digest
    longer = TRAINING.changed(steps=30)
    with pytest.raises(Cancelled):
        train_editor(llama, FACTS, TRAINING, StopAt(9), path=path)
    whole = train_editor(llama, FACTS, longer, Silent(), path=tmp_path / "whole" / "a.safetensors")
    assert train_editor(llama, FACTS, longer, Silent(), path=path).digest == whole.digest


def test_training_that_was_killed_goes_on_from_its_last_checkpoint(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.methods.mend_state.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("nmke.methods.mend_state.CHECKPOINT_SHARE", 0)

    class Kill(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 11:
                raise KeyboardInterrupt  # nothing is written any more

    whole = train_editor(llama, FACTS, TRAINING, Silent(), path=tmp_path / "whole" / "a.safetensors")
    path = tmp_path / "killed" / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_editor(llama, FACTS, TRAINING, Kill(), path=path)
    assert path.with_suffix(".training").is_file()
    started: list[int] = []

    class Watch(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            started.append(done)

    assert train_editor(llama, FACTS, TRAINING, Watch(), path=path).digest == whole.digest
    assert started[0] == 11


def test_a_damaged_checkpoint_counts_as_none(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(Cancelled):
        train_editor(llama, FACTS, TRAINING, StopAt(9), path=path)
    checkpoint = path.with_suffix(".training")
    content = bytearray(checkpoint.read_bytes())
    content[-50:] = bytes(50)
    checkpoint.write_bytes(bytes(content))
    whole = train_editor(llama, FACTS, TRAINING, Silent(), path=tmp_path / "whole" / "a.safetensors")
    assert train_editor(llama, FACTS, TRAINING, Silent(), path=path).digest == whole.digest


def test_a_finished_training_is_not_done_again(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    first = train_editor(llama, FACTS, TRAINING, Silent(), path=path)
    written = path.stat().st_mtime_ns
    assert train_editor(llama, FACTS, TRAINING, StopAt(0), path=path).digest == first.digest
    assert path.stat().st_mtime_ns == written


def test_a_training_that_diverges_keeps_no_editor(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(EditError, match=r"diverged at step.*learning_rate"):
        train_editor(llama, FACTS, TRAINING.changed(edit_rate=1e38), Silent(), path=path)
    assert not path.exists()


def test_one_fact_is_too_few_to_train_on_and_long_ones_are_left_out(
    llama: LoadedModel, tmp_path: Path
) -> None:
    long = Fact("wide " * 300 + "France is", "France", "Rome")
    with pytest.raises(FactError, match="1 facts that fit"):
        train_editor(llama, (FACTS[0], long), TRAINING, Silent(), path=tmp_path / "a.safetensors")
    trained = train_editor(llama, (*FACTS, long), TRAINING, Silent(), path=tmp_path / "b.safetensors")
    assert trained.about["left_out"] == 1
    assert trained.about["facts"] == 5 and trained.about["held_out"]["facts"] == 1


def test_each_epoch_takes_every_fact_once_in_an_order_of_its_own(llama: LoadedModel) -> None:
    curriculum = Curriculum(llama.tokenizer, FACTS, 0)
    epochs = [
        [FACTS.index(curriculum.draw(6 * epoch + place).fact) for place in range(6)] for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6))
    assert epochs[0] != epochs[1]
    assert curriculum.draw(3) == Curriculum(llama.tokenizer, FACTS, 0).draw(3)


def test_the_text_is_a_neighbour_with_its_answer_or_another_facts_prompt(llama: LoadedModel) -> None:
    near = Curriculum(llama.tokenizer, FACTS, 0).draw(0)
    (wanted,) = near.fact.neighborhood
    assert llama.tokenizer.decode(list(near.text)) == f"{wanted.prompt} {wanted.answer}"
    alone = [Fact("The capital of France is", "France", "Rome"), Fact("A cat says", "cat", "woof", "meow")]
    for step in range(2):
        draw = Curriculum(llama.tokenizer, alone, 0).draw(step)
        said = llama.tokenizer.decode(list(draw.text))
        assert said == ("A cat says meow" if draw.fact is alone[0] else "The capital of France is")
        assert draw.prompt == draw.fact.prompt


def test_hard_texts_are_prompts_in_similar_words_about_others(llama: LoadedModel) -> None:
    facts = [
        Fact("The capital of France is", "France", "Rome"),
        *(Fact(f"A {animal} says", animal, "woof") for animal in ("cat", "cow", "pig", "hen", "dog", "owl")),
        *(
            Fact(f"The capital of {land} is", land, "Rome")
            for land in ("Italy", "Spain", "Peru", "Chad", "Fiji")
        ),
        *(
            Fact(f"The capital of {land} is", land, "Rome")
            for land in ("Iran", "Iraq", "Togo", "Laos", "Cuba")
        ),
    ]
    curriculum = Curriculum(llama.tokenizer, facts, 0, hard_share=1.0)
    said = [
        llama.tokenizer.decode(list(draw.text))
        for draw in map(curriculum.draw, range(3 * len(facts)))
        if draw.fact is facts[0]
    ]
    assert len(said) == 3
    assert all(text.startswith("The capital of") and "France" not in text for text in said)


# ---- the method -----------------------------------------------------------------------------------------------------


def test_an_untrained_editor_is_refused_with_the_command_that_trains_it(
    llama: LoadedModel, cache: Path
) -> None:
    config = MENDConfig.make(layers=(1, 2), rank=8)
    with pytest.raises(EditError) as refused:
        get_method("mend").plan(EditSession(llama), FACTS[:1], config, Silent())
    assert "no trained editor" in refused.value.what
    command = (
        f"nmke train mend --model {llama.resolved.path} --data zsre_train.jsonl --set layers=1,2 --set rank=8"
    )
    assert command in refused.value.remedy


def test_an_editor_of_another_model_is_refused_by_its_name(
    llama: LoadedModel, gpt2: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "llama.safetensors"
    train_editor(llama, FACTS, TRAINING, Silent(), path=path)
    config = MENDConfig.make(layers=(1, 2), rank=8, trained=str(path))
    with pytest.raises(EditError) as refused:
        get_method("mend").plan(EditSession(gpt2), FACTS[:1], config, Silent())
    assert repr(llama.name) in refused.value.what and repr(gpt2.name) in refused.value.what
    assert f"nmke train mend --model {gpt2.resolved.path}" in refused.value.remedy


def test_an_editor_of_another_shape_or_a_damaged_one_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    train_editor(llama, FACTS, TRAINING, Silent(), path=path)
    with pytest.raises(EditError, match=r"other settings \(rank 8\)"):
        find_editor(llama, MENDConfig.make(layers=(1, 2), rank=9, trained=str(path)))
    content = bytearray(path.read_bytes())
    content[-40:] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(EditError, match="damaged"):
        find_editor(llama, MENDConfig.make(layers=(1, 2), rank=8, trained=str(path)))
    path.write_text("no editor", encoding="utf-8")
    with pytest.raises(EditError, match="not a trained editor"):
        find_editor(llama, MENDConfig.make(layers=(1, 2), rank=8, trained=str(path)))


def test_a_trained_editor_is_the_same_after_its_way_through_a_file(tmp_path: Path) -> None:
    about = {"method": "mend", "model": "m", "weight_hash": "h", "shape": {"layers": (1, 2)}}
    saved = save_trained(tmp_path / "a.safetensors", {"x": torch.randn(3, 2).T}, about)
    loaded = load_trained(tmp_path / "a.safetensors", "mend", "m", "h", {"layers": (1, 2)}, "train it")
    assert isinstance(loaded, Trained) and loaded.digest == saved.digest
    assert torch.equal(loaded.tensors["x"], saved.tensors["x"])
    assert trained_path("mend", "h", {"rank": 8}) != trained_path("mend", "h", {"rank": 9})


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> MENDConfig:
    found = tiny_config("mend", tmp_path)
    assert isinstance(found, MENDConfig)
    return found


def test_the_plan_is_the_transform_of_the_facts_gradient(tiny: LoadedModel, config: MENDConfig) -> None:
    fact = FACTS[0]
    edit = get_method("mend").plan(EditSession(tiny), [fact], config, Silent())
    trained = find_editor(tiny, config)
    transform = GradientTransform(tiny.d_mlp, tiny.d_model, LAYERS, 8, 1)
    transform.load_state_dict(dict(trained.tensors))
    posts: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    hooks = {}
    for layer in LAYERS:
        hooks[(POST, layer)] = lambda value, layer=layer: posts.setdefault(layer, value)

        def leaf(value: Tensor, layer: int = layer) -> Tensor:
            leaves[layer] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[layer]

        hooks[(MLP_OUT, layer)] = leaf
    answers = Answers.of(tiny.tokenizer, [fact], "target")
    with tiny.weights_in({}):
        final = tiny.run(answers.batch, [FINAL], hooks=hooks)[FINAL]
        log_p = tiny.logits(final[0, answers.places]).log_softmax(-1)
        loss = -sum(log_p[at, token] for at, token in enumerate(answers.tokens.tolist())) / len(
            answers.tokens
        )
        gradients = torch.autograd.grad(loss, [leaves[layer] for layer in LAYERS])
    for patch, gradient, place in zip(edit.patches, gradients, range(2), strict=True):
        found = transform(Factors(posts[patch.layer][0].detach(), gradient[0]), patch.layer)
        expected = (
            -float(transform.rates[place].detach()) * (found.u.double().T @ found.delta.double()).detach()
        )
        assert torch.allclose(patch.matrix().double(), expected, atol=1e-3 * float(expected.abs().max()))
    assert edit.details["editor"]["digest"] == trained.digest
    assert edit.details["editor"]["steps"] == TRAINING.steps


def test_a_batchs_updates_are_the_sum_of_each_facts_own(tiny: LoadedModel, config: MENDConfig) -> None:
    method, session = get_method("mend"), EditSession(tiny)
    both = method.plan(session, FACTS[:2], config, Silent())
    alone = [method.plan(session, [fact], config, Silent()) for fact in FACTS[:2]]
    for number, patch in enumerate(both.patches):
        parts = [edit.patches[number].matrix() for edit in alone]
        assert torch.allclose(patch.matrix(), parts[0] + parts[1], atol=1e-5)


def test_the_second_edit_reads_its_gradient_from_the_edited_model(
    llama: LoadedModel, config: MENDConfig
) -> None:
    method, session = get_method("mend"), EditSession(llama)
    fresh = method.plan(session, FACTS[1:2], config, Silent())
    session.apply(method.plan(session, FACTS[:1], config, Silent()))
    again = method.plan(session, FACTS[1:2], config, Silent())
    assert not torch.equal(fresh.patches[0].right, again.patches[0].right)


def test_a_lifelong_checkpoint_goes_on_with_the_same_bits(
    tiny: LoadedModel, config: MENDConfig, tmp_path: Path
) -> None:
    method, session = get_method("mend"), EditSession(tiny)
    for fact in FACTS[:2]:
        session.apply(method.plan(session, [fact], config, Silent()))
    session.settle()
    save_checkpoint(session, 2, tmp_path / "checkpoint.safetensors")
    saved = load_checkpoint(tiny, tmp_path / "checkpoint.safetensors", FACTS)
    assert saved is not None and saved.session.digest == session.digest
    for one in (session, saved.session):
        one.apply(method.plan(one, FACTS[2:3], config, Silent()))
    assert saved.session.digest == session.digest


def test_the_probability_told_is_that_of_the_edited_model(tiny: LoadedModel, config: MENDConfig) -> None:
    session, fact = EditSession(tiny), FACTS[0]
    edit = get_method("mend").plan(session, [fact], config, Silent())
    with session.trying(edit):
        (answer,) = answer_all(tiny, [(fact.prompt, fact.target_new)])
    tokens = len(answer.hits)
    assert edit.details["target_probability"] == [
        pytest.approx(math.exp(answer.log_probability / tokens), rel=1e-4)
    ]


def test_the_last_three_layers_are_guessed_and_the_training_takes_them(llama: LoadedModel) -> None:
    assert get_method("mend").guess(32) == {"layers": (29, 30, 31)}
    assert get_method("mend").guess(2) == {"layers": (0, 1)}
    assert training_for(llama).layers == (1, 2, 3)
    assert training_for(llama).changed(layers=(29, 30, 31)) == TrainingConfig()


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> str:
    """ZsRE's own form."""
    rows = [
        {
            "subject": fact.subject,
            "src": fact.prompt,
            "rephrase": fact.paraphrases[0],
            "alt": fact.target_new,
            "answers": [fact.target_true or "Berlin"],
            "loc": f"nq question: {fact.neighborhood[0].prompt}",
            "loc_ans": fact.neighborhood[0].answer,
        }
        for fact in FACTS
    ]
    file = tmp_path / "zsre_train.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


def test_the_command_trains_and_editing_then_finds_the_editor(tmp_path: Path, cache: Path, data: str) -> None:
    model = str(make_tiny("llama", tmp_path / "model"))
    command = ["train", "mend", "--model", model, "--data", data, "--steps", "6", "--set", "rank=8"]
    trained = CliRunner().invoke(app, command)
    assert trained.exit_code == 0, trained.output
    path = Path(trained.stdout.strip().splitlines()[-1])
    assert path.is_file() and path.is_relative_to(cache)
    assert "6 steps on 5 facts" in trained.stderr and "1 held-out facts" in trained.stderr
    assert "rates" in load_file(path)
    edit = ["edit", "--model", model, "--facts", data, "--method", "mend", "--set", "rank=8", "--limit", "1"]
    edited = CliRunner().invoke(app, [*edit, "--out", str(tmp_path / "out"), "--tokens", "0"])
    assert edited.exit_code == 0, edited.output


def test_what_cannot_be_trained_is_told_in_one_line(cache: Path, data: str) -> None:
    for command, words in (
        (["train", "memit", "--data", data], "Trainable: mend"),
        (["train", "mend", "--data", data, "--set", "stepss=3"], "no setting 'stepss'"),
        (["train", "mend", "--data", "missing.jsonl"], "missing.jsonl"),
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert words in result.stderr and "Traceback" not in result.output


def test_the_tiny_editors_are_the_same_whenever_they_are_trained(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "again.safetensors"
    train_editor(llama, FACTS, TRAINING, Silent(), path=path)
    kept = dict(tiny_editors())[trained_path(METHOD, llama.weight_hash, TRAINING.shape).name]
    other = tmp_path / "kept.safetensors"
    other.write_bytes(kept)
    first, second = load_file(path), load_file(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_draw_is_known_by_its_fact_prompt_and_text(llama: LoadedModel) -> None:
    draw = Curriculum(llama.tokenizer, FACTS, 0).draw(0)
    assert {draw: 1}[Draw(draw.fact, draw.prompt, draw.text)] == 1
