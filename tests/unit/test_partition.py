"""Sampled log-partitions against the sum over every token, on synthetic vocabularies large enough to draw from."""

import dataclasses
import math

import pytest
import torch

from nmke.partition import (
    Anchor,
    Draw,
    Tilts,
    by_moments,
    by_sample,
    by_sum,
    draw_tokens,
    log_partition,
)
from nmke.progress import Silent
from nmke.reach import Reach, measure, widen

V, D_MODEL, D_MLP = 5000, 16, 40


def make_tilts(
    seed: int,
    prompts: int = 3,
    peaked: float = 1.0,
    strength: float = 0.3,
    alike: float = 0.2,
    heavy: int = 0,
) -> tuple[Tilts, torch.Tensor]:
    """Random neurons against random distributions.

    Args:
        peaked: how uneven the distributions are; alike: how far the prompts are apart.
        strength: typical size of the logits' change.
        heavy: neurons that move a single rare token very far.
    """
    torch.manual_seed(seed)
    U = torch.randn(V, D_MODEL)
    X = torch.randn(D_MLP, D_MODEL) / D_MODEL**0.5
    shared = torch.randn(D_MODEL)
    h = peaked * (shared + alike * torch.randn(prompts, D_MODEL)) / D_MODEL**0.5
    p = (h @ U.T).softmax(-1)
    for neuron in range(heavy):
        rare = int(p.amax(0).topk(V, largest=False).indices[neuron])
        U[rare] = 4 * X[neuron] / X[neuron].norm() ** 2
    p = (h @ U.T).softmax(-1)
    amounts = strength * torch.randn(prompts, D_MLP)
    return Tilts(X, amounts, p.log(), p @ U, measure(X, U, 7, Silent())), U


def plain(tilts: Tilts, U: torch.Tensor) -> torch.Tensor:
    """``log E_p[exp t]`` in float64, one neuron of one prompt at a time."""
    centre = tilts.mean.double().mean(0)
    rows = []
    for p, amounts in zip(tilts.p.double(), tilts.amounts.double(), strict=True):
        rows.append(
            [
                float(torch.log((p * torch.exp(c * (U.double() @ x - x @ centre))).sum()))
                for c, x in zip(amounts, tilts.directions.double(), strict=True)
            ]
        )
    return torch.tensor(rows)


def everything(tilts: Tilts) -> torch.Tensor:
    return torch.ones_like(tilts.amounts, dtype=torch.bool)


def test_the_sum_over_every_token_is_right_on_two_tokens_worked_out_by_hand() -> None:
    # p = (1/4, 3/4), a = (1, 0), c = ln 3: E[exp(c a)] = 3/4 + 3/4 = 3/2; the centre is 1/4.
    U, p = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.25, 0.75]])
    none_far = torch.empty(1, 0, dtype=torch.long), torch.empty(1, 0)
    tilts = Tilts(
        torch.ones(1, 1),
        torch.tensor([[math.log(3)]]),
        p.log(),
        p @ U,
        Reach(torch.zeros(1), torch.ones(1), *none_far),
    )
    expected = math.log(1.5) - math.log(3) / 4
    assert float(by_sum(tilts, U, everything(tilts), 8)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strength", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_the_sum_over_every_token_equals_the_plain_one_however_far_the_logits_move(
    strength: float, block: int
) -> None:
    tilts, U = make_tilts(1, strength=strength)
    assert torch.allclose(by_sum(tilts, U, everything(tilts), block), plain(tilts, U), atol=1e-3, rtol=1e-4)


def test_only_what_is_asked_is_computed() -> None:
    tilts, U = make_tilts(1)
    anchor = Anchor.at(tilts.p.mean(0), U)
    asked = everything(tilts)
    asked[0] = False
    asked[1, 3:] = False
    for found in (
        by_sum(tilts, U, asked, 7),
        by_sample(tilts, U, anchor, draw_tokens(tilts.p, 900, 0), asked)[0],
    ):
        assert torch.equal(found.isnan(), ~asked)


def test_a_draw_meets_its_inclusion_probabilities_over_many_seeds() -> None:
    tilts, _ = make_tilts(2, peaked=3.0)
    counts = torch.zeros(V)
    for seed in range(400):
        counts[draw_tokens(tilts.p, 300, seed).tokens] += 1
    inclusion = draw_tokens(tilts.p, 300, 0).inclusion
    assert float(inclusion.sum()) == pytest.approx(300, abs=0.5)
    assert (counts[inclusion == 1] == 400).all()
    often = (inclusion > 0.05) & (inclusion < 1)
    deviation = (inclusion * (1 - inclusion) / 400).sqrt()
    assert often.sum() > 500
    assert ((counts / 400 - inclusion).abs() < 5.5 * deviation)[often].all()
    seldom = inclusion <= 0.05
    assert float(counts[seldom].sum() / 400) == pytest.approx(float(inclusion[seldom].sum()), rel=0.05)


def test_a_draw_has_about_the_size_asked_for_and_no_token_twice() -> None:
    tilts, _ = make_tilts(3)
    tokens = draw_tokens(tilts.p, 500, 0).tokens
    assert abs(len(tokens) - 500) <= 1
    assert len(tokens.unique()) == len(tokens)
    assert len(draw_tokens(tilts.p, V, 0).tokens) == V


def test_estimates_are_unbiased_over_seeds() -> None:
    # Weak enough that the series' remainder and the logarithm's curvature are far under the draw's deviation.
    tilts, U = make_tilts(4, strength=0.1)
    anchor, truth = Anchor.at(tilts.p.mean(0), U), plain(tilts, U)
    for estimate in (
        lambda draw: by_moments(tilts, U, anchor, draw)[0],
        lambda draw: by_sample(tilts, U, anchor, draw, everything(tilts))[0],
    ):
        found = torch.stack([estimate(draw_tokens(tilts.p, 400, seed)) for seed in range(100)])
        standard_error = found.std(0) / 100**0.5
        assert ((found.mean(0) - truth).abs() < 5 * standard_error + 2e-6).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("peaked", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("alike", [0.05, 1.0])
@pytest.mark.parametrize("heavy", [0, 5])
def test_no_estimate_is_farther_off_than_its_bound_says(
    seed: int, peaked: float, alike: float, heavy: int
) -> None:
    tilts, U = make_tilts(seed, 1 + seed, peaked, alike=alike, heavy=heavy)
    anchor, truth = Anchor.at(tilts.p.mean(0), U), plain(tilts, U)
    for value, bound in (
        by_moments(tilts, U, anchor, draw_tokens(tilts.p, 300, seed)),
        by_sample(tilts, U, anchor, draw_tokens(tilts.p, 900, seed), everything(tilts)),
    ):
        known = bound.isfinite()
        assert ((value - truth).abs() <= bound + 1e-5)[known].all()


def without_far(tilts: Tilts) -> Tilts:
    """The same question with no token known by name."""
    reach = tilts.reach
    none = Reach(reach.lowest, reach.highest, reach.far[:, :0], reach.far_moves[:, :0])
    return dataclasses.replace(tilts, reach=none)


def test_a_rare_token_moved_very_far_is_not_trusted_to_the_draw() -> None:
    tilts, U = make_tilts(7, strength=2.0, heavy=5)
    tilts = without_far(tilts)
    _, bound = by_moments(tilts, U, Anchor.at(tilts.p.mean(0), U), draw_tokens(tilts.p, 300, 0))
    assert (bound[:, :5].amax(0) > 1e-2).all()


@pytest.mark.parametrize("size", [300, V])
def test_the_share_of_the_far_tokens_is_their_sum_written_out_in_float64(size: int) -> None:
    tilts, U = make_tilts(7, strength=2.0, heavy=5)
    centre = tilts.mean.double().mean(0)
    for prompt, neuron in ((0, 0), (1, 3), (2, 17)):
        x, c = tilts.directions[neuron].double(), float(tilts.amounts[prompt, neuron])
        expected = 0.0
        for token in tilts.reach.far[neuron].tolist():
            t = c * float(x @ (U[token].double() - centre))
            expected += float(tilts.p[prompt, token]) * (math.exp(t) - 1 - t)
        assert float(tilts.far[prompt, neuron]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    # The draw leaves out exactly those, whether it drew them or not.
    draw, neurons = draw_tokens(tilts.p, size, 0), torch.arange(D_MLP)
    far = torch.zeros(D_MLP, V, dtype=torch.bool).scatter_(1, tilts.reach.far, True)[:, draw.tokens]
    assert torch.equal(tilts.moves(neurons, U, draw) == 0, far)


def test_far_tokens_spare_the_whole_vocabulary_where_tails_are_heavy() -> None:
    tilts, U = make_tilts(14, 4, strength=0.05, heavy=D_MLP)
    tilts = dataclasses.replace(tilts, amounts=tilts.amounts.sign() * tilts.amounts.abs().sqrt())
    anchor, bare = Anchor.at(tilts.p.mean(0), U), without_far(tilts)
    summed = {}
    for name, asked in (("far", tilts), ("bare", bare)):
        value, bound = log_partition(asked, U, anchor, 1e-3, (800, 2500), 0, 16)
        assert ((value - plain(tilts, U)).abs() <= 1e-3).all()
        summed[name] = float((bound == 0).float().mean())
    assert summed["far"] < summed["bare"] / 2 and summed["bare"] > 0.2


def test_leaning_on_the_anchor_lowers_the_bounds_of_the_larger_draw_where_prompts_are_alike() -> None:
    tilts, U = make_tilts(16, 4, alike=0.05)
    draw, asked = draw_tokens(tilts.p, 900, 0), everything(tilts)
    # An anchor without weight leaves only the draw to go by.
    none = Anchor(torch.zeros(V), torch.zeros(D_MODEL), torch.zeros(D_MODEL, D_MODEL))
    leaning = by_sample(tilts, U, Anchor.at(tilts.p.mean(0), U), draw, asked)[1]
    alone = by_sample(tilts, U, none, draw, asked)[1]
    assert (leaning <= alone).all()
    assert leaning.median() < alone.median() / 2


def test_an_exponential_that_overflows_is_summed_over_every_token() -> None:
    tilts, U = make_tilts(15, strength=40.0, heavy=D_MLP)
    assert not tilts.far.isfinite().all()
    value, _ = log_partition(tilts, U, Anchor.at(tilts.p.mean(0), U), 1e-3, (400, 1500), 0, 16)
    assert torch.allclose(value, plain(tilts, U), atol=1e-3, rtol=1e-4)


def confident(gap: float, reach: float) -> tuple[Tilts, torch.Tensor]:
    """Two prompts, each sure of another token by ``gap`` nats, and neurons that push the first down by ``reach``."""
    torch.manual_seed(17)
    U = 0.05 * torch.randn(V, D_MODEL)
    U[0, 0], U[1, 1] = 4.0, 4.0
    log_p = torch.zeros(2, V)
    log_p[0, 0] = log_p[1, 1] = gap
    log_p = log_p.log_softmax(-1)
    X = 0.02 * torch.randn(D_MLP, D_MODEL)
    X[:, 0] = -1.0
    amounts = torch.full((2, D_MLP), reach / 4)
    return Tilts(X, amounts, log_p, log_p.exp() @ U, measure(X, U, 7, Silent())), U


@pytest.mark.parametrize(("gap", "reach"), [(20.0, 4.0), (29.0, 10.0), (32.0, 12.0)])
def test_where_terms_cancel_the_bound_holds_their_rounding(gap: float, reach: float) -> None:
    tilts, U = confident(gap, reach)
    assert float(tilts.first()[0].max()) < -reach / 3
    value, bound = log_partition(tilts, U, Anchor.at(tilts.p.mean(0), U), 1e-3, (400, 1500), 0, 16)
    assert ((value - plain(tilts, U)).abs() <= bound + 1e-4).all()


def test_a_token_below_what_a_probability_can_hold_still_counts_in_the_sum() -> None:
    # Logits (0, 0, -120), the last token alone moved by 130: log(2 e^0 + e^10) - log 2.
    log_p = torch.tensor([[0.0, 0.0, -120.0]]).log_softmax(-1)
    U = torch.tensor([[0.0], [0.0], [1.0]])
    tilts = Tilts(
        torch.ones(1, 1),
        torch.tensor([[130.0]]),
        log_p,
        log_p.exp() @ U,
        measure(torch.ones(1, 1), U, 1, Silent()),
    )
    assert float(tilts.p[0, 2]) == 0
    expected = math.log(2 + math.exp(10)) - math.log(2)
    assert float(by_sum(tilts, U, everything(tilts), 8)) == pytest.approx(expected, rel=1e-6)
    value, bound = log_partition(tilts, U, Anchor.at(tilts.p[0], U), 1e-3, (2, 2), 0, 1)
    assert float(value) == pytest.approx(expected, rel=1e-6) and float(bound) == 0


def test_a_sum_too_small_for_float32_is_taken_in_logarithms() -> None:
    # Nearly all lies on one token, which is moved down by 130, and the rest by nothing.
    log_p = torch.tensor([[0.0, -90.0]]).log_softmax(-1)
    U = torch.tensor([[1.0], [0.0]])
    none_far = (torch.empty(1, 0, dtype=torch.long), torch.empty(1, 0))
    tilts = Tilts(
        torch.ones(1, 1),
        torch.tensor([[-130.0]]),
        log_p,
        torch.zeros(1, 1),
        Reach(torch.zeros(1), torch.ones(1), *none_far),
    )
    assert float(log_p.exp()[0, 1]) > 0
    assert float(by_sum(tilts, U, everything(tilts), 8)) == pytest.approx(-90, abs=1e-4)


def test_tokens_are_drawn_beside_one_that_is_sure() -> None:
    log_p = torch.full((1, 50), -300.0)
    log_p[0, 7] = 0.0
    draw = draw_tokens(log_p.double().exp(), 5, 0)
    assert 7 in draw.tokens and draw.inclusion[7] == 1


def test_the_bound_shrinks_as_more_tokens_are_drawn() -> None:
    tilts, U = make_tilts(8, strength=0.1)
    anchor = Anchor.at(tilts.p.mean(0), U)
    bounds = [by_moments(tilts, U, anchor, draw_tokens(tilts.p, size, 0))[1].median() for size in (200, 3000)]
    assert bounds[1] < bounds[0] / 3


@pytest.mark.parametrize("strength", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("prompts", [1, 4])
def test_staged_values_are_within_tolerance_and_carry_a_bound_that_is_too(
    strength: float, prompts: int
) -> None:
    tilts, U = make_tilts(9, prompts, strength=strength)
    anchor = Anchor.at(tilts.p.mean(0), U)
    value, bound = log_partition(tilts, U, anchor, 1e-3, (400, 1500), 0, 16)
    assert ((value - plain(tilts, U)).abs() <= 1e-3).all()
    assert (bound <= 1e-3).all()
    if strength == 0.02:
        assert (bound > 0).all()  # weak neurons are all read from the draw
    if strength == 2.0:
        assert (bound == 0).any()  # strong ones are not


def test_without_an_anchor_or_a_tolerance_every_token_is_summed() -> None:
    tilts, U = make_tilts(10)
    for anchor, tolerance in ((None, 1e-3), (Anchor.at(tilts.p.mean(0), U), 0.0)):
        value, bound = log_partition(tilts, U, anchor, tolerance, (400, 1500), 0, 16)
        assert (bound == 0).all()
        assert torch.allclose(value, plain(tilts, U), atol=1e-5)


def test_the_same_seed_gives_the_same_bits() -> None:
    tilts, U = make_tilts(11)
    anchor = Anchor.at(tilts.p.mean(0), U)
    one, two, other = (log_partition(tilts, U, anchor, 1e-2, (400, 1500), seed, 16)[0] for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_anchors_covariance_is_the_weighted_one_in_float64() -> None:
    tilts, U = make_tilts(12)
    p = tilts.p[0]
    anchor = Anchor.at(p, U, block=999)
    centred = U.double() - p.double() @ U.double()
    assert torch.allclose(anchor.covariance.double(), (centred * p.double()[:, None]).T @ centred, atol=1e-5)


def test_a_token_without_probability_weighs_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    draw = draw_tokens(p, 2, 0)
    assert isinstance(draw, Draw)
    assert float(draw.weighted(p).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e-3, 0.1, 3.0])
def test_widened_reach_holds_after_a_change(size: float) -> None:
    tilts, U = make_tilts(13)
    change = size * torch.randn_like(tilts.directions)
    widened, measured = widen(tilts.reach, change, U), measure(tilts.directions + change, U, 9, Silent())
    moved = (tilts.directions + change) @ U.T
    assert torch.allclose(widened.far_moves, moved.gather(1, tilts.reach.far), atol=1e-4)
    others = torch.ones_like(moved, dtype=torch.bool).scatter_(1, widened.far, False)
    assert (widened.highest_rest >= moved.masked_fill(~others, -torch.inf).amax(1) - 1e-5).all()
    assert (widened.lowest_rest <= moved.masked_fill(~others, torch.inf).amin(1) + 1e-5).all()
    assert (widened.highest >= measured.highest - 1e-5).all()
    assert (widened.lowest <= measured.lowest + 1e-5).all()
