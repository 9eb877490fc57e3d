"""Neurons that are held, sets of them, and what a model answers without them."""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmke.ablation import (
    AblationConfig,
    AblationResults,
    Condition,
    NeuronSet,
    by_hand,
    conditions_of,
    dose_response,
    load_set,
    mean_activations,
    of_kind,
    of_role,
    random_like,
    run_ablation,
    save_set,
)
from nmke.answers import Answered, AnswersConfig, EarlyLayers, answer_questions
from nmke.attribution import AttributionConfig, Prompt, attribute
from nmke.errors import (
    AblationError,
    Cancelled,
    ModelError,
    QuestionError,
    ResourceError,
    SessionError,
)
from nmke.held import Held
from nmke.loading import LoadedModel
from nmke.masks import build_mask
from nmke.progress import Progress
from nmke.questions import Question, QuestionSet, prompt_of
from nmke.roles import Roles, RolesConfig
from nmke.session import EditSession
from nmke.sites import POST
from nmke.store import plain
from nmke.tokens import encode, encode_batch
from tests.unit.test_modules import TEXTS, edit_of, logits, shift

OFF: dict[int, Held] = {0: ([3, 7, 11], 0.0), 2: ([0, 63], 0.0)}


@pytest.fixture
def pristine(tiny: LoadedModel) -> Iterator[LoadedModel]:
    """Each tiny model, which must compute as before and carry no hook when the test is over."""
    before, hash_before, hooks_before = logits(tiny), tiny.weight_hash, hooks_of(tiny)
    yield tiny
    tiny.__dict__.pop("weight_hash")
    assert tiny.weight_hash == hash_before
    assert torch.equal(logits(tiny), before)
    assert hooks_of(tiny) == hooks_before


def hooks_of(model: LoadedModel) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.bridge.modules())


def without_rows(session: EditSession, held: dict[int, Held]) -> dict[int, Tensor]:
    """The session's down projections with the neurons' rows zeroed: the plain twin of a hold at zero."""
    masters = {layer: session.master(layer).clone() for layer in held}
    for layer, (neurons, _) in held.items():
        masters[layer][torch.as_tensor(neurons)] = 0
    return masters


# ---- holding ----------------------------------------------------------------------------------------------------


def test_holding_at_zero_gives_the_logits_of_zeroed_rows_to_the_bit(pristine: LoadedModel) -> None:
    session, plain = EditSession(pristine), logits(pristine)
    with pristine.holding(OFF):
        held = logits(pristine)
    with session.active(instead=without_rows(session, OFF)):
        zeroed = logits(pristine)
    assert torch.equal(held, zeroed)
    assert not torch.allclose(held, plain, atol=1e-2)


def test_held_neurons_hold_while_text_is_written_and_in_the_plain_model(pristine: LoadedModel) -> None:
    session, plain = EditSession(pristine), pristine.generate(TEXTS, 8)
    ids = torch.tensor([encode(pristine.tokenizer, TEXTS[0])])
    with pristine.holding(OFF):
        written, forward = pristine.generate(TEXTS, 8), pristine.bridge.original_model(ids).logits
    with session.active(instead=without_rows(session, OFF)):
        assert pristine.generate(TEXTS, 8) == written
        assert torch.equal(pristine.bridge.original_model(ids).logits, forward)
    with pristine.holding({3: ([1, 2, 3], 50.0)}):
        assert pristine.generate(TEXTS, 8) != plain


def test_held_values_are_what_the_down_projection_reads(pristine: LoadedModel) -> None:
    """Against W_out written out: the MLP's output changes by (value - activation) v_i."""
    layer, neurons, values = 1, [5, 2], torch.tensor([1.5, -0.25])
    batch, sites = encode_batch(pristine.tokenizer, TEXTS), [(POST, layer), ("mlp_out", layer)]
    before = pristine.run(batch, sites)
    with pristine.holding({layer: (neurons, values)}):
        after = pristine.run(batch, sites)
    assert torch.equal(after[sites[0]], before[sites[0]])
    change = values.double() - before[sites[0]][..., neurons].double()
    expected = before[sites[1]].double() + change @ pristine.W_out(layer)[neurons].double()
    assert torch.allclose(after[sites[1]].double(), expected, atol=1e-4)


def test_holding_goes_together_with_a_session_in_either_order(pristine: LoadedModel) -> None:
    session = EditSession(pristine)
    session.apply(edit_of(shift(pristine)))
    with session.active(), pristine.holding(OFF):
        inside = logits(pristine)
    with pristine.holding(OFF), session.active():
        outside = logits(pristine)
    with session.active(instead=without_rows(session, OFF)):
        zeroed = logits(pristine)
    assert torch.equal(inside, outside)
    assert torch.equal(inside, zeroed)
    with session.active():
        assert not torch.allclose(logits(pristine), inside, atol=1e-2)


def test_a_module_patch_sees_the_held_activations(pristine: LoadedModel) -> None:
    session, seen = EditSession(pristine), []
    module = shift(pristine)
    module.answer = lambda inputs, output: seen.append(inputs) or output  # type: ignore[method-assign,func-returns-value]
    with session.active(modules={module.layer: module}), pristine.holding({module.layer: ([4], 9.0)}):
        logits(pristine)
    assert torch.equal(seen[0][..., 4], torch.full_like(seen[0][..., 4], 9.0))


def test_a_hold_within_a_hold_adds_to_it_and_wins_where_both_name_a_neuron(pristine: LoadedModel) -> None:
    with pristine.holding({1: ([1, 2], 0.0)}):
        with pristine.holding({1: ([2, 3], 5.0)}):
            nested = logits(pristine)
        first = logits(pristine)
    with pristine.holding({1: ([1, 2, 3], torch.tensor([0.0, 5.0, 5.0]))}):
        assert torch.equal(logits(pristine), nested)
    with pristine.holding({1: ([1, 2], 0.0)}):
        assert torch.equal(logits(pristine), first)


def test_replays_without_hook_points_are_off_while_neurons_are_held(pristine: LoadedModel) -> None:
    assert pristine.unhooked is not None
    with pristine.holding(OFF):
        assert pristine.unhooked is None
        with pristine.holding({}):
            assert pristine.unhooked is None
        assert pristine.unhooked is None
    assert pristine.unhooked is not None


def test_another_thread_computes_only_after_the_hold_and_without_it(pristine: LoadedModel) -> None:
    plain, found, started = logits(pristine), [], threading.Event()

    def other() -> None:
        started.set()
        with EditSession(pristine).active():
            found.append(logits(pristine))

    with pristine.holding(OFF):
        thread = threading.Thread(target=other)
        thread.start()
        assert started.wait(10)
        thread.join(0.3)
        assert not found, "it computed while the neurons were held"
    thread.join(30)
    assert torch.equal(found[0], plain)


def test_an_error_inside_or_on_the_way_in_leaves_nothing_behind(
    pristine: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = hooks_of(pristine)
    with pytest.raises(KeyError), pristine.holding(OFF):
        raise KeyError
    assert hooks_of(pristine) == hooks
    project = pristine._projecting_module

    def fails_at_the_second(layer: int) -> torch.nn.Module:
        if layer == 2:
            assert hooks_of(pristine) == hooks + 1, "the first hook should be in place by now"
            raise RuntimeError
        return project(layer)

    monkeypatch.setattr(pristine, "_projecting_module", fails_at_the_second)
    with pytest.raises(RuntimeError), pristine.holding(OFF):
        pytest.fail("the block must not run")
    assert hooks_of(pristine) == hooks
    assert pristine.unhooked is not None
    assert pristine.lock.acquire(blocking=False)
    pristine.lock.release()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({4: ([0], 0.0)}, "name layer 4"),
        ({1: ([64], 0.0)}, "no neuron 64; its neurons are 0 to 63"),
        ({1: ([-1], 0.0)}, "no neuron -1"),
        ({1: ([1, 2], torch.zeros(3))}, "not one number each for 2 neurons"),
        ({1: ([1], float("nan"))}, "not one number each"),
    ],
)
def test_what_cannot_be_held_is_refused(pristine: LoadedModel, held: dict[int, Held], words: str) -> None:
    with pytest.raises(ModelError, match=words), pristine.holding(held):
        pytest.fail("the block must not run")


# ---- sets -------------------------------------------------------------------------------------------------------

ROLE_CODES = ("inactive", "task", "domain", "mixed", "general")


def roles_with(model: LoadedModel, strengths: dict[tuple[int, int], float]) -> Roles:
    """Two tasks of two layers; the named neurons are general and so strong, the others task-specific."""
    active = {layer: torch.zeros(2, model.d_mlp, dtype=torch.bool) for layer in (0, 2)}
    strength = {layer: torch.zeros(2, model.d_mlp) for layer in (0, 2)}
    for layer in (0, 2):
        active[layer][0] = True
    for (layer, neuron), value in strengths.items():
        active[layer][:, neuron] = True
        strength[layer][:, neuron] = value
    codes = {
        layer: torch.where(found.all(0), ROLE_CODES.index("general"), ROLE_CODES.index("task")).to(torch.int8)
        for layer, found in active.items()
    }
    return Roles(
        model_name="tiny",
        model_hash=model.weight_hash,
        edits="",
        tasks=("high_school_biology", "college_biology"),
        domains={"high_school_biology": "biology", "college_biology": "biology"},
        sizes=(3, 3),
        layers=(0, 2),
        active=active,
        strength=strength,
        activation=strength,
        codes=codes,
        config=RolesConfig(),
        source="a test",
        sha256="",
        seconds=0.0,
    )


STRENGTHS = {(0, 5): 3.0, (2, 9): 4.0, (2, 1): 2.0, (0, 8): 1.0}


def test_the_strongest_of_a_role_are_taken_over_layers_together_or_in_each(llama: LoadedModel) -> None:
    roles = roles_with(llama, STRENGTHS)
    together = of_role(roles, "general", 3)
    assert together.ranked == ((2, 9), (0, 5), (2, 1))
    assert together.neurons == {0: (5,), 2: (9, 1)}
    assert of_role(roles, "general", 1, counted="per layer").ranked == ((2, 9), (0, 5))
    assert of_role(roles, "general", 2, layers=[0]).ranked == ((0, 5), (0, 8))
    assert together.first(2).ranked == of_role(roles, "general", 2).ranked
    assert of_role(roles, "task", 4, task="high_school_biology").label == "task: high school biology"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 5}, "Layers 0, 2 have 4 neurons of the role “general”; 5 cannot be.*Ask for at most 4"),
        ({"k": 3, "counted": "per layer"}, "Layer 0 has 2 neurons.*at most 2 per layer"),
        ({"k": 500, "layers": [2]}, "Layer 2 has 2"),
        ({"k": 0}, "0 neurons cannot be switched off"),
    ],
)
def test_more_neurons_than_a_layer_or_role_has_are_refused_naming_the_largest_k(
    llama: LoadedModel, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AblationError, match=words):
        of_role(roles_with(llama, STRENGTHS), "general", **arguments)


def test_a_set_says_by_which_score_over_how_many_questions_it_was_chosen(llama: LoadedModel) -> None:
    roles = roles_with(llama, STRENGTHS)
    assert of_role(roles, "general", 2).chosen_by.endswith("by LPS over 6 questions: a test")
    edited = of_role(replace(roles, edits="abc"), "general", 2)
    assert "by LPS over 6 questions with edits in force: a test" in edited.chosen_by


def test_conditions_keep_which_neurons_are_strongest_over_layers(llama: LoadedModel) -> None:
    chosen = of_role(roles_with(llama, STRENGTHS), "general", 3)
    one = conditions_of(llama, [chosen], QUICK)[1]
    assert one.ranked == chosen.ranked == ((2, 9), (0, 5), (2, 1))
    told = plain(one.to_dict())
    assert Condition.from_dict(told) == one
    assert Condition.from_dict({**told, "ranked": []}).ranked == ((0, 5), (2, 9), (2, 1))


def test_results_are_identified_by_what_was_asked_of_which_neurons(llama: LoadedModel) -> None:
    first, whole = results_of(llama, {"none": [True]}), results_of(llama, RIGHT)
    assert first.identity == whole.identity, "it does not depend on how much is answered"
    other = conditions_of(llama, [by_hand(llama, "1:2", "mine")], QUICK)
    assert replace(whole, conditions=other).identity != whole.identity
    config = {**whole.about["config"], "how": "mean"}
    assert replace(whole, about={**whole.about, "config": config}).identity != whole.identity


def test_kinds_of_facts_are_ranked_as_the_method_scores_them(llama: LoadedModel) -> None:
    found = attribute(llama, [Prompt(text) for text in TEXTS], [1, 3], AttributionConfig(kind="mpc"))
    masks = {layer: build_mask(found.scores[layer]) for layer in (1, 3)}
    specific = of_kind(llama, found, "specific", 7)
    pairs = [(layer, n) for layer in (1, 3) for n in range(llama.d_mlp) if masks[layer].specific[n]]
    pairs.sort(key=lambda pair: -float(found.scores[pair[0]][:, pair[1]].max()))
    assert list(specific.ranked) == pairs[:7]
    general = of_kind(llama, found, "general", 5, counted="per layer")
    for layer in (1, 3):
        counts = masks[layer].general_score
        worst = min(float(counts[n]) for n in general.neurons[layer])
        better = [n for n in range(llama.d_mlp) if counts[n] > worst]
        assert set(better) <= set(general.neurons[layer])
    with pytest.raises(AblationError, match="no 'both' neurons"):
        of_kind(llama, found, "both", 1)
    with pytest.raises(AblationError, match="Layer 0 was not scored"):
        of_kind(llama, found, "general", 1, layers=[0])


@pytest.mark.parametrize(
    "text",
    [
        "1:5\n2 : 7",
        "1,5\n2,7\n1,5",
        "(1, 5)\n\n(2, 7)",
        "layer,neuron,kind\n1,5,general\n2,7,none",
        "Neuron\tLayer\n5\t1\n7\t2",
    ],
)
def test_neurons_named_by_hand_are_read_from_lines_and_tables(llama: LoadedModel, text: str) -> None:
    assert by_hand(llama, text).ranked == ((1, 5), (2, 7))
    assert by_hand(llama, {1: [5], 2: [7]}).digest == by_hand(llama, text).digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "No neurons are named"),
        ("1:5\nfive", "Line 2, 'five', names no neuron"),
        ("layer,kind\n1,general", "Line 2 of the table"),
        ("1:64", "neuron 64 of layer 1; .* has layers 0 to 3 of neurons 0 to 63"),
        ("4:1", "neuron 1 of layer 4"),
        (f"1:{'9' * 5000}", "names no neuron"),
        (f"layer,neuron\n1,{'9' * 5000}", "Line 2 of the table"),
    ],
)
def test_lines_that_name_no_neuron_of_the_model_are_refused(
    llama: LoadedModel, text: str, words: str
) -> None:
    with pytest.raises(AblationError, match=words):
        by_hand(llama, text)


def test_random_sets_have_as_many_others_in_each_layer_and_depend_on_the_seed(llama: LoadedModel) -> None:
    chosen = by_hand(llama, {0: range(20), 2: [1, 2]})
    first, again, other = (random_like(chosen, llama, seed) for seed in (0, 0, 1))
    assert {layer: len(found) for layer, found in first.neurons.items()} == {0: 20, 2: 2}
    assert not set(first.ranked) & set(chosen.ranked)
    assert first.ranked == again.ranked
    assert first.ranked != other.ranked
    assert set(random_like(by_hand(llama, {0: range(10)}), llama, 0).ranked) - set(chosen.ranked) <= set(
        first.ranked
    ), "a smaller set's control lies within a larger one's, but for what the larger one chose itself"
    with pytest.raises(AblationError, match="at most 32 neurons of a layer"):
        random_like(by_hand(llama, {0: range(40)}), llama, 0)


def test_a_set_is_saved_loaded_and_refused_by_another_model(
    llama: LoadedModel, gpt2: LoadedModel, tmp_path: Path
) -> None:
    chosen = of_role(roles_with(llama, STRENGTHS), "general", 3)
    save_set(chosen, tmp_path / "set.json")
    loaded = load_set(tmp_path / "set.json")
    assert loaded == chosen
    loaded.require_for(llama)
    with pytest.raises(AblationError, match="were chosen on another model"):
        loaded.require_for(gpt2)
    with pytest.raises(AblationError, match="chosen on another model"):
        run_ablation(EditSession(gpt2), QUESTIONS, [loaded])
    (tmp_path / "bad.json").write_text('{"ranked": [[1]]}')
    for path in ("bad.json", "none.json"):
        with pytest.raises(AblationError):
            load_set(tmp_path / path)


@pytest.mark.parametrize(("ranked", "words"), [((), "has no neurons"), (((1, 2), (1, 2)), "twice")])
def test_an_empty_set_and_one_that_repeats_itself_are_refused(
    ranked: tuple[tuple[int, int], ...], words: str
) -> None:
    with pytest.raises(AblationError, match=words):
        NeuronSet(ranked, "mine", "", "", 1)


# ---- answering under conditions ---------------------------------------------------------------------------------

QUESTIONS = QuestionSet(
    tuple(
        Question(f"{subject}/{number}", subject, text, ("Paris", "Rome", "the boat", "woof"), number % 4)
        for subject in ("high_school_biology", "college_biology")
        for number, text in enumerate(("The capital of France is", "A dog says", "The capital of Italy is"))
    ),
    "a test",
)
QUICK = AblationConfig(
    controls=2, answers=AnswersConfig(scores=("letters", "cloze", "loss"), batch_tokens=512)
)


@pytest.fixture
def chosen(llama: LoadedModel) -> NeuronSet:
    return by_hand(llama, {0: range(10), 1: range(10), 2: range(10)})


def test_every_condition_answers_as_the_model_does_without_those_rows(
    llama: LoadedModel, chosen: NeuronSet
) -> None:
    """Against W_out with the rows zeroed, and against the plain model for no ablation."""
    session = EditSession(llama)
    results = run_ablation(session, QUESTIONS, [chosen], QUICK)
    assert [one.name for one in results.conditions] == [
        "none",
        "by hand, k = 30",
        "by hand, k = 30, random 0",
        "by hand, k = 30, random 1",
    ]
    for one in results.conditions:
        held: dict[int, Held] = {layer: (neurons, 0.0) for layer, neurons in one.neurons.items()}
        with session.active(instead=without_rows(session, held)):
            assert results.answers[one.name] == answer_questions(llama, QUESTIONS.questions, QUICK.answers)
    assert results.answers["none"] != results.answers["by hand, k = 30"]
    assert results.complete


def test_the_sessions_edits_are_in_force_under_every_condition(llama: LoadedModel, chosen: NeuronSet) -> None:
    session = EditSession(llama)
    session.apply(edit_of(shift(llama)))
    edited = run_ablation(session, QUESTIONS, [chosen], QUICK)
    plain = run_ablation(EditSession(llama), QUESTIONS, [chosen], QUICK)
    for one in plain.conditions:
        assert edited.answers[one.name] != plain.answers[one.name]
    assert edited.about["session"]["edits"] == 1


def test_mean_activations_are_means_over_all_real_tokens(tiny: LoadedModel) -> None:
    found = mean_activations(tiny, TEXTS, [1, 3])
    for layer in (1, 3):
        rows = []
        for text in TEXTS:
            batch = encode_batch(tiny.tokenizer, [text])
            rows.append(tiny.run(batch, [(POST, layer)])[(POST, layer)][0].double())
        assert torch.allclose(found[layer].double(), torch.cat(rows).mean(0), atol=1e-5)
    with pytest.raises(AblationError, match="no texts"):
        mean_activations(tiny, [], [1])


def test_mean_ablation_holds_the_neurons_at_their_mean_over_the_questions(
    llama: LoadedModel, chosen: NeuronSet
) -> None:
    results = run_ablation(EditSession(llama), QUESTIONS, [chosen], QUICK.changed(how="mean", controls=0))
    means = mean_activations(
        llama, [prompt_of(question, "cloze") for question in QUESTIONS.questions], [0, 1, 2]
    )
    held: dict[int, Held] = {
        layer: (found, means[layer][list(found)]) for layer, found in chosen.neurons.items()
    }
    with llama.holding(held):
        expected = answer_questions(llama, QUESTIONS.questions, QUICK.answers)
    assert results.answers["by hand, k = 30"] == expected
    zero = run_ablation(EditSession(llama), QUESTIONS, [chosen], QUICK.changed(controls=0))
    assert zero.answers["by hand, k = 30"] != expected


def test_answers_are_told_as_they_come_and_nothing_is_left_on_the_model(
    pristine: LoadedModel,
) -> None:
    told: list[tuple[str, str]] = []
    run_ablation(
        EditSession(pristine),
        QUESTIONS,
        [by_hand(pristine, "1:1")],
        QUICK.changed(controls=1),
        on_answered=lambda condition, answered: told.append((condition.name, answered.question)),
    )
    ids = [question.id for question in QUESTIONS.questions]
    names = ["none", "by hand, k = 1", "by hand, k = 1, random 0"]
    assert told == [(name, id) for name in names for id in ids]


def test_answers_that_begin_at_the_first_ablated_layer_are_those_of_whole_passes_to_the_bit(
    pristine: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every score, written answers that part from the unablated ones among them; against no reuse at all."""
    sets = [by_hand(pristine, {layer: range(0, 60, 2)}, f"layer {layer}") for layer in (0, 1, 3)]
    config = AblationConfig(controls=1, answers=AnswersConfig(written_tokens=12, batch_tokens=128))
    session = EditSession(pristine)
    session.apply(edit_of(shift(pristine)))
    made: list[EarlyLayers] = []

    def watched(*arguments: Any) -> EarlyLayers:
        made.append(EarlyLayers(*arguments))
        return made[-1]

    monkeypatch.setattr("nmke.ablation.running.EarlyLayers", watched)
    reusing = run_ablation(session, QUESTIONS, sets, config)
    assert made and all(early.begins == (1, 3) for early in made)
    assert sum(early.reused for early in made) > 4
    monkeypatch.setattr("nmke.ablation.running.EarlyLayers", lambda model, begins: EarlyLayers(model, ()))
    whole = run_ablation(session, QUESTIONS, sets, config)
    assert reusing.answers == whole.answers
    written = {name: [one.written for one in found] for name, found in whole.answers.items()}
    assert written["none"] != written["layer 1, k = 30"], "so that a written answer leaves what was kept"


def test_a_pass_that_begins_late_leaves_the_model_as_it_was(pristine: LoadedModel) -> None:
    before = logits(pristine)
    early = EarlyLayers(pristine, [2])
    config = AnswersConfig(scores=("letters",))
    plain = answer_questions(pristine, QUESTIONS.questions, config, early=early)
    with early.beginning_at(2), pytest.raises(Cancelled):
        answer_questions(pristine, QUESTIONS.questions, config, CancelsAfter(1), early=early)
    with early.beginning_at(2):
        assert answer_questions(pristine, QUESTIONS.questions, config, early=early) == plain
    assert early.reused > 0
    assert torch.equal(logits(pristine), before)
    assert all("forward" not in vars(block) for block in pristine.bridge.blocks)


def test_a_question_that_does_not_fit_is_refused_before_any_is_answered(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.ablation.running.WINDOW", 2)
    long = Question("long/1", "college_biology", "woof " * 2000, ("Paris", "Rome", "the boat", "woof"), 0)
    asked = QuestionSet((*QUESTIONS.questions, long), "a test")
    told: list[str] = []
    with pytest.raises(QuestionError, match="long/1"):
        run_ablation(
            EditSession(llama),
            asked,
            [by_hand(llama, "1:1")],
            QUICK,
            on_answered=lambda condition, answered: told.append(answered.question),
        )
    assert told == []


def test_a_layer_that_was_not_prepared_is_no_place_to_begin(pristine: LoadedModel) -> None:
    early = EarlyLayers(pristine, [2])
    config = AnswersConfig(scores=("letters",))
    answer_questions(pristine, QUESTIONS.questions, config, early=early)
    with early.beginning_at(1), pristine.holding({1: (range(30), 0.0)}):
        found = answer_questions(pristine, QUESTIONS.questions, config, early=early)
    with pristine.holding({1: (range(30), 0.0)}):
        assert found == answer_questions(pristine, QUESTIONS.questions, config)
    assert early.reused == 0


class CancelsAfter(Progress):
    """Cancels at an update."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled


def test_a_cancel_keeps_what_is_answered_and_the_same_work_goes_on_after_it(
    pristine: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.ablation.running.WINDOW", 2)
    sets = [by_hand(pristine, "1:1\n2:2", "mine")]
    session, folder = EditSession(pristine), tmp_path / "run"
    whole = run_ablation(session, QUESTIONS, sets, QUICK)
    told: list[str] = []

    def stop_at_the_second_few(condition: Condition, answered: Answered) -> None:
        told.append(condition.name)
        if told.count("mine, k = 2, random 0") == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_ablation(session, QUESTIONS, sets, QUICK, on_answered=stop_at_the_second_few, folder=folder)
    assert len(list((folder / "conditions").iterdir())) == 4
    asked: list[tuple[int, bool]] = []

    def counted(model: Any, questions: Any, *arguments: Any, **more: Any) -> Any:
        asked.append((len(questions), arguments[2] is not None))
        return answer_questions(model, questions, *arguments, **more)

    monkeypatch.setattr("nmke.ablation.running.answer_questions", counted)
    resumed = run_ablation(session, QUESTIONS, sets, QUICK, folder=folder)
    told_of = [size for size, told_it in asked if told_it]
    assert told_of == [2] * (2 + 4), (
        "two conditions of the second two questions, and all four of the last two"
    )
    assert resumed.answers == whole.answers
    assert run_ablation(session, QUESTIONS, sets, QUICK, folder=folder).seconds == {}
    asked.clear()
    doses = dose_response(session, QUESTIONS, sets, (1, 2), QUICK, folder=folder)
    assert len([size for size, told_it in asked if told_it]) == 3 * 3, "k = 1 and its two random sets alone"
    assert doses.answers["mine, k = 2"] == whole.answers["mine, k = 2"]


def test_a_folder_of_other_questions_edits_or_scores_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    sets, session = [by_hand(llama, "1:1")], EditSession(llama)
    config = QUICK.changed(controls=0)
    run_ablation(session, QUESTIONS, sets, config, folder=tmp_path)
    run_ablation(session, QUESTIONS, [by_hand(llama, "1:2")], config, folder=tmp_path)
    fewer = QuestionSet(QUESTIONS.questions[:2], "a test")
    with pytest.raises(SessionError, match="other questions"):
        run_ablation(session, fewer, sets, config, folder=tmp_path)
    with pytest.raises(SessionError, match="other way of switching off"):
        run_ablation(session, QUESTIONS, sets, config.changed(how="mean"), folder=tmp_path)
    session.apply(edit_of(shift(llama)))
    with pytest.raises(SessionError, match="other edits"):
        run_ablation(session, QUESTIONS, sets, config, folder=tmp_path)


def test_edits_changed_meanwhile_stop_the_ablation(llama: LoadedModel, chosen: NeuronSet) -> None:
    session = EditSession(llama)

    def change(condition: Condition, answered: Answered) -> None:
        if not session.version:
            session.apply(edit_of(shift(llama)))

    with pytest.raises(SessionError, match="edits were changed while"):
        run_ablation(session, QUESTIONS, [chosen], QUICK, on_answered=change)


def test_no_sets_and_two_of_one_name_are_refused(llama: LoadedModel, chosen: NeuronSet) -> None:
    with pytest.raises(AblationError, match="No neurons are chosen"):
        run_ablation(EditSession(llama), QUESTIONS, [])
    with pytest.raises(AblationError, match="Two sets are called"):
        run_ablation(EditSession(llama), QUESTIONS, [chosen, chosen])


# ---- numbers ----------------------------------------------------------------------------------------------------


def answered(id: str, right: bool, loss: float = 1.0) -> Answered:
    subject = id.rpartition("/")[0]
    question = next(one for one in QUESTIONS.questions if one.id == id)
    choice = question.answer if right else (question.answer + 1) % 4
    return Answered(id, subject, question.answer, 4, letters=choice, loss=loss)


def results_of(llama: LoadedModel, right: dict[str, list[bool]]) -> AblationResults:
    """Results whose answers are right as given, per condition in the questions' order."""
    conditions = conditions_of(llama, [by_hand(llama, "1:1", "mine")], QUICK)
    answers = {
        name: [answered(one.id, ok, 2.0 - ok) for one, ok in zip(QUESTIONS.questions, oks, strict=False)]
        for name, oks in right.items()
    }
    config = QUICK.changed(answers={"scores": ("letters", "loss")}).model_dump(mode="json")
    about = {"model": {}, "session": {}, "config": config, "versions": {}, "means": None}
    return AblationResults(QUESTIONS, conditions, answers, about)


RIGHT = {
    "none": [True, True, True, True, False, False],
    "mine, k = 1": [False, False, True, False, False, True],
    "mine, k = 1, random 0": [True, True, True, True, False, False],
    "mine, k = 1, random 1": [True, True, False, True, False, True],
}


def test_numbers_are_the_shares_and_paired_changes_written_out(llama: LoadedModel) -> None:
    results = results_of(llama, RIGHT)
    found = results.estimate("none", "letters")
    assert found is not None and found.value == 4 / 6 and found.low < 4 / 6 < found.high
    biology = results.estimate("none", "letters", "college_biology")
    assert biology is not None and biology.value == 1 / 3
    change = results.change("mine, k = 1", "letters")
    assert change is not None
    assert change["value"] == pytest.approx(-2 / 6)
    assert (change["lost"], change["gained"]) == (3, 1)
    # Of 4 changed questions 3 went one way: 2 (C(4,0) + C(4,1)) / 2^4
    assert change["p_value"] == pytest.approx(2 * 5 / 16)
    random = results.random_estimate("mine, k = 1", "letters")
    assert random is not None and random.value == pytest.approx((4 / 6 + 4 / 6) / 2)
    against = results.against_random("mine, k = 1", "letters")
    assert against is not None and against.value == pytest.approx(2 / 6 - 4 / 6)
    summary = next(one for one in results.summary()["conditions"] if one["name"] == "mine, k = 1")
    by_subject = summary["change_by_subject"]
    for subject in ("college_biology", "high_school_biology"):
        assert by_subject[subject]["letters"] == results.change("mine, k = 1", "letters", subject)
    values = [by_subject[subject]["letters"]["value"] for subject in sorted(by_subject)]
    assert sum(values) / 2 == pytest.approx(-2 / 6)  # as many questions of each
    loss = results.change("mine, k = 1", "loss")
    assert loss is not None and loss["value"] == pytest.approx(2 / 6) and "p_value" not in loss
    chance = results.chance("letters")
    assert chance is not None and chance["chance"] == 0.25
    # P(Binomial(6, 1/4) >= 4)
    tail = sum(math.comb(6, k) * 0.25**k * 0.75 ** (6 - k) for k in (4, 5, 6))
    assert chance["p_value"] == pytest.approx(tail)
    assert results.chance("loss") is None


def test_half_answered_conditions_are_compared_on_the_questions_both_have(llama: LoadedModel) -> None:
    partial = results_of(llama, {"none": RIGHT["none"], "mine, k = 1": [False, True]})
    assert not partial.complete
    change = partial.change("mine, k = 1", "letters")
    assert change is not None and change["n"] == 2 and change["value"] == -0.5
    assert partial.random_estimate("mine, k = 1", "letters") is None
    assert partial.table("letters")["name"].tolist() == ["none", "mine, k = 1"]
    empty = results_of(llama, {})
    assert empty.table("letters").empty and empty.curve("letters").empty
    assert empty.change("mine, k = 1", "letters") is None


def test_tables_hold_what_charts_need(llama: LoadedModel) -> None:
    results = results_of(llama, RIGHT)
    table = results.table("letters")
    assert table["kind"].tolist() == ["none", "set", "random"]
    assert table["name"].tolist()[2] == "random like mine, k = 1"
    assert table["seeds"].tolist()[2] == [4 / 6, 4 / 6]
    curve = results.curve("letters")
    assert curve[["label", "kind", "k"]].values.tolist() == [
        ["mine", "set", 0],
        ["mine", "set", 1],
        ["mine", "random", 0],
        ["mine", "random", 1],
    ]
    changed = results.changed_questions("mine, k = 1", "letters")
    assert changed["change"].tolist() == [-1.0, -1.0, 0.0, -1.0, 0.0, 1.0]


def test_saved_results_come_back_as_they_were(llama: LoadedModel, chosen: NeuronSet, tmp_path: Path) -> None:
    config = QUICK.changed(answers={"written_tokens": 2, "batch_tokens": 512})
    results = run_ablation(EditSession(llama), QUESTIONS, [chosen], config)
    results.save(tmp_path)
    loaded = AblationResults.load(tmp_path)
    assert loaded.answers == results.answers
    assert loaded.conditions == results.conditions
    assert loaded.questions == results.questions
    assert plain(loaded.summary()) == plain(results.summary())
    with pytest.raises(ResourceError, match="No ablation can be read"):
        AblationResults.load(tmp_path / "none")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ResourceError, match="damaged"):
        AblationResults.load(tmp_path)
