"""LPS, PSA and MPC against numbers written out by hand and against the plain definition."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nmke.attribution import (
    AttributionConfig,
    Prompt,
    attribute,
    prompts_of,
    read_positions,
)
from nmke.errors import Cancelled, ConfigError, FactError, ModelError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.progress import Progress, Silent
from nmke.reach import Reach, measure
from nmke.scores import (
    PROMPTS_TOGETHER,
    Reading,
    layers_together,
    neurons_per_block,
    rise,
    score_layers,
    score_plain,
)
from nmke.tokens import encode_batch

PROMPTS = [Prompt("The capital of France is"), Prompt("A cat says"), Prompt("You and I take")]
FACT = Fact("The capital of France is", "France", "Rome", target_true="Paris")


def plain_scores(
    model: LoadedModel, layer: int, read: Reading, targets: list[int], config: AttributionConfig
) -> torch.Tensor:
    """The definition, neuron by neuron: add ``lambda m_i v_i`` to the residual and read the target out, in float64."""
    readout = model.readout
    U, g, b = readout.unembedding.double(), readout.gain.double(), readout.shift.double()
    rows = []
    for row, target in enumerate(targets):
        final, r = read.final[row].double(), read.resid_mid[layer][row].double()
        if readout.centred:
            final = final - final.mean()
        scale = 1 / math.sqrt(float((final**2).mean()) + readout.eps)

        def probability(x: torch.Tensor, scale: float = scale, target: int = target) -> float:
            x = x - x.mean() if readout.centred else x
            return float((U @ (g * x * scale + b)).softmax(0)[target])

        before = probability(r)
        scores = []
        for neuron in range(model.d_mlp):
            amplified = (
                config.scale
                * float(read.activations[layer][row, neuron])
                * model.W_out(layer)[neuron].double()
            )
            after = probability(r + amplified)
            if config.kind == "psa":
                scores.append(after - before)
            else:
                floor = config.prob_floor
                scores.append(math.log(max(after, floor)) - math.log(max(before, floor)))
        rows.append(scores)
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", ["lps", "psa"])
@pytest.mark.parametrize("memory_mib", [16, 512])
def test_scores_equal_the_definition_neuron_by_neuron(tiny: LoadedModel, kind: str, memory_mib: int) -> None:
    config = AttributionConfig.make(kind=kind, memory_mib=memory_mib)
    found = attribute(tiny, PROMPTS, [1, 3], config)
    read = read_positions(tiny, encode_batch(tiny.tokenizer, [p.text for p in PROMPTS]), [1, 3], "last")
    for layer in (1, 3):
        expected = plain_scores(tiny, layer, read, list(found.target_ids), config)
        assert torch.allclose(found.scores[layer], expected.float(), atol=2e-5)


def test_the_rise_matches_numbers_worked_out_by_hand() -> None:
    # From p = 1/2 to odds of 3 : 1, p = 3/4.
    before, after = torch.tensor(0.5).log(), torch.tensor([0.75]).log()
    assert float(rise(before, after, AttributionConfig())) == pytest.approx(math.log(1.5), abs=1e-6)
    assert float(rise(before, after, AttributionConfig.make(kind="psa"))) == pytest.approx(0.25, abs=1e-6)


def test_probabilities_are_raised_to_the_floor_before_the_log() -> None:
    score = rise(torch.tensor(0.5).log(), torch.tensor([-60.0]), AttributionConfig())
    assert float(score) == pytest.approx(math.log(1e-8) - math.log(0.5), abs=1e-4)


def _read(model: LoadedModel, layers: list[int]) -> tuple[Reading, torch.Tensor]:
    batch = encode_batch(model.tokenizer, [p.text for p in PROMPTS])
    return read_positions(model, batch, layers, "last"), torch.tensor([5, 6, 7])


@pytest.mark.parametrize("kind", ["lps", "psa"])
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_fast_scores_equal_the_plain_twins(tiny: LoadedModel, kind: str, scale: float) -> None:
    read, targets = _read(tiny, [0, 1, 2, 3])
    config = AttributionConfig.make(kind=kind, scale=scale)
    for layer, scores, bounds in score_layers(tiny, [0, 1, 2, 3], read, targets, config, Silent()):
        plain = score_plain(tiny, layer, read, targets, config)
        # Amplified a thousandfold the logits are in the thousands, and float32 carries 7 digits of them.
        assert torch.allclose(scores, plain, atol=2e-5 * scale / 30, rtol=1e-4)
        assert (bounds == 0).all()  # 320 tokens: every one is read


@pytest.mark.parametrize(("widest", "measured"), [(0.0, True), (1e9, False)])
def test_scores_of_edited_weights_keep_their_bounds_however_their_reach_is_found(
    tiny: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch, widest: float, measured: bool
) -> None:
    monkeypatch.setattr("nmke.scores.DRAWS", (60, 90))  # so that 320 tokens are worth drawing from
    monkeypatch.setattr("nmke.scores.WIDEST", widest)
    config, anew = AttributionConfig.make(tolerance=0.01), []
    read, targets = _read(tiny, [1])
    list(score_layers(tiny, [1], read, targets, config, Silent()))  # the unedited model is measured, once

    def noting(*arguments: Any) -> Reach:
        anew.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr("nmke.reach.measure", noting)
    torch.manual_seed(0)
    changed = tiny.W_out(1) + 0.02 * torch.randn(tiny.d_mlp, tiny.d_model)
    with tiny.weights_in({1: tiny.as_stored(1, changed)}):
        read, targets = _read(tiny, [1])
        ((_, scores, bounds),) = score_layers(tiny, [1], read, targets, config, Silent())
        plain = score_plain(tiny, 1, read, targets, config)
    assert bool(anew) == measured
    assert (bounds <= 0.01).all() and ((scores - plain).abs() <= bounds + 2e-5).all()
    assert (bounds > 0).any()  # some were drawn


def test_a_block_boundary_does_not_change_a_score(llama: LoadedModel) -> None:
    read, targets = _read(llama, [2])
    whole = score_plain(llama, 2, read, targets, AttributionConfig())
    # 64 neurons are no multiple of 7, so the last block is short.
    blocks = score_plain(llama, 2, read, targets, AttributionConfig(), block=7)
    assert torch.allclose(blocks, whole, atol=1e-6)


def test_more_prompts_than_share_a_draw_are_scored_as_if_alone(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmke.scores.PROMPTS_TOGETHER", 5)
    many = attribute(llama, [*PROMPTS, *PROMPTS, *PROMPTS, *PROMPTS], [1])
    few = attribute(llama, PROMPTS, [1])
    assert torch.allclose(many.scores[1][9:], few.scores[1], atol=1e-5)


def test_the_workspace_bounds_the_block_and_the_layers_prepared_at_once() -> None:
    assert neurons_per_block(512, 128_256) * 2 * 4 * 128_256 <= 512 * 2**20
    assert neurons_per_block(16, 10**9) == 1
    one_layer = 3 * 4 * PROMPTS_TOGETHER * 128_256 / 2**20
    assert layers_together(int(3 * one_layer) + 1, 128_256) == 3
    assert layers_together(16, 10**9) == 1


def test_mpc_is_the_activation_at_the_last_real_token(tiny: LoadedModel) -> None:
    found = attribute(tiny, PROMPTS, None, AttributionConfig.make(kind="mpc"))
    assert found.layers == (0, 1, 2, 3)
    alone = attribute(tiny, PROMPTS[1:2], [2], AttributionConfig.make(kind="mpc"))
    assert torch.allclose(found.scores[2][1], alone.scores[2][0], atol=1e-6)


def test_padded_reading_differs_only_for_prompts_that_are_padded(llama: LoadedModel) -> None:
    last = attribute(llama, PROMPTS, [1], AttributionConfig.make(kind="mpc"))
    padded = attribute(llama, PROMPTS, [1], AttributionConfig.make(kind="mpc", read_position="padded"))
    lengths = encode_batch(llama.tokenizer, [p.text for p in PROMPTS]).last
    longest = int(lengths.argmax())
    for row in range(len(PROMPTS)):
        same = torch.equal(last.scores[1][row], padded.scores[1][row])
        assert same == (lengths[row] == lengths[longest])


def test_the_default_target_is_the_models_own_prediction(tiny: LoadedModel) -> None:
    from nmke.forcing import next_token_table

    found = attribute(tiny, PROMPTS, [0], AttributionConfig.make(kind="mpc"))
    assert [found.target_tokens[0]] == [token for token, _ in next_token_table(tiny, PROMPTS[0].text, 1)]


def test_the_targets_first_token_is_followed_when_asked(tiny: LoadedModel) -> None:
    prompts = prompts_of([FACT], ("{}", "Because. {}"), "new")
    assert [prompt.text for prompt in prompts] == [FACT.prompt, f"Because. {FACT.prompt}"]
    found = attribute(tiny, prompts, [0], AttributionConfig.make(kind="mpc", target="new"))
    first = tiny.tokenizer(" Rome").input_ids[0]
    assert found.target_ids == (first, first)


def test_following_the_true_answer_needs_one() -> None:
    with pytest.raises(FactError, match="has no true answer"):
        prompts_of([Fact("The capital of France is", "France", "Rome")], target="true")


def test_no_prompts_and_layers_out_of_range_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(FactError, match="no prompts"):
        attribute(llama, [])
    with pytest.raises(ModelError, match="layer 9"):
        attribute(llama, PROMPTS, [9])


def test_amplification_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"scale: .*greater than 0"):
        AttributionConfig.make(scale=0)


def test_cancelling_between_layers_stops_the_work(llama: LoadedModel) -> None:
    class After(Progress):
        calls = 0

        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            self.calls += 1
            if self.calls > 3:
                raise Cancelled

    progress = After()
    with pytest.raises(Cancelled):
        attribute(llama, PROMPTS, progress=progress)
    assert progress.calls == 4


def test_the_table_has_one_row_per_layer_prompt_and_neuron(llama: LoadedModel) -> None:
    found = attribute(llama, PROMPTS, [0, 2], AttributionConfig.make(kind="mpc"))
    frame = found.frame()
    assert len(frame) == 2 * 3 * llama.d_mlp
    row = frame[(frame.layer == 2) & (frame.prompt == PROMPTS[1].text) & (frame.neuron == 5)].iloc[0]
    assert row.score == pytest.approx(float(found.scores[2][1, 5]))


def test_the_sentence_on_precision_names_bound_share_and_seed(llama: LoadedModel) -> None:
    exact = attribute(llama, PROMPTS, [1])
    assert exact.precision() == "Every score is read from the whole vocabulary."
    bounds = exact.bounds[1].clone()
    bounds[0] = 7e-4
    drawn = dataclasses.replace(exact, bounds={1: bounds})
    assert drawn.precision().startswith(
        "Scores are within 0.0007 nats: 67% are read from the whole vocabulary"
    )
    assert "seed 0" in drawn.precision()
    assert attribute(llama, PROMPTS, [1], AttributionConfig.make(kind="mpc")).precision() == ""


def test_cancelling_between_blocks_of_one_layer_stops_the_work(llama: LoadedModel) -> None:
    class After(Progress):
        calls = 0

        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            self.calls += stage.startswith("scoring")
            if self.calls > 5:
                raise Cancelled

    read, targets = _read(llama, [1])
    progress, config = After(), AttributionConfig.make(memory_mib=16)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cancelled):
        patch.setattr("nmke.scores.neurons_per_block", lambda *_: 7)
        list(score_layers(llama, [1], read, targets, config, progress))
    assert progress.calls == 6  # 64 neurons are ten blocks of 7


def test_the_table_carries_each_scores_bound(llama: LoadedModel) -> None:
    found = attribute(llama, PROMPTS, [1])
    bounds = torch.arange(found.bounds[1].numel()).reshape_as(found.bounds[1]) / 7
    frame = dataclasses.replace(found, bounds={1: bounds}).frame()
    row = frame[(frame.prompt == PROMPTS[2].text) & (frame.neuron == 5)].iloc[0]
    assert row.bound == pytest.approx(float(bounds[2, 5]))


def test_what_is_measured_once_per_model_moves_the_bar_of_all_layers(llama: LoadedModel, cache: Path) -> None:
    told: list[tuple[str, int, int | None]] = []

    class Noting(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            told.append((stage, done, total))

    attribute(llama, [Prompt("The capital of France is")], progress=Noting())
    assert list((cache / "reach").iterdir()), "the reach was measured in this very run"
    scoring = [(done, total) for stage, done, total in told if stage.startswith("scoring neurons")]
    assert {stage for stage, *_ in told if "reach" in stage} == set()
    assert [done for done, _ in scoring] == sorted(done for done, _ in scoring)
    assert {total for _, total in scoring} == {llama.n_layers}


def test_without_a_floor_a_rise_far_below_any_probability_is_still_a_number() -> None:
    config = AttributionConfig.make(prob_floor=0.0)
    found = rise(torch.tensor([-120.0, -2.0]), torch.tensor([-110.0, -1700.0]), config)
    assert found.tolist() == [10.0, -1698.0]
    floored = rise(torch.tensor([-120.0, -2.0]), torch.tensor([-110.0, -1700.0]), AttributionConfig())
    assert floored.tolist() == pytest.approx([0.0, math.log(1e-8) + 2])
