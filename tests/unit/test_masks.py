"""Scores, entropies, ratios and selections against numbers written out by hand."""

import math

import pytest
import torch

from nmke.errors import ConfigError, FactError
from nmke.masks import (
    MaskConfig,
    build_mask,
    general_entropy,
    general_score,
    ratio,
    select,
    soft_weights,
    specific_entropy,
    specific_score,
    standardise,
)

# Rows (1, 2, 3, 6) and (0, 0, 4, 0): means 3 and 1.
SCORES = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 0.0]])


def test_rows_are_standardised_with_the_unbiased_deviation() -> None:
    # Row one: deviations -2, -1, 0, 3; variance (4 + 1 + 0 + 9) / 3.
    deviation = math.sqrt(14 / 3)
    assert torch.allclose(standardise(SCORES)[0], torch.tensor([-2.0, -1.0, 0.0, 3.0]) / deviation, atol=1e-5)


def test_the_general_score_counts_prompts_above_the_mean() -> None:
    assert general_score(SCORES).tolist() == [0, 0, 1, 1]


def test_the_specific_score_is_the_largest_raw_score() -> None:
    assert specific_score(SCORES).tolist() == [1, 2, 4, 6]


def test_the_general_entropy_of_equal_scores_is_one_and_of_one_winner_is_zero() -> None:
    assert general_entropy(torch.zeros(2, 8), 30.0) == pytest.approx(1.0, abs=1e-5)
    assert general_entropy(torch.tensor([[10.0, 0.0, 0.0, 0.0]]), 30.0) == pytest.approx(0.0, abs=1e-6)


def test_the_general_entropy_matches_a_hand_computed_softmax() -> None:
    # alpha (ln 3) / alpha: odds 3 : 1, p = (3/4, 1/4).
    scores = torch.tensor([[math.log(3) / 5, 0.0]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert general_entropy(scores, 5.0) == pytest.approx(expected, abs=1e-6)


def test_the_specific_entropy_uses_only_positive_scores() -> None:
    # (3, 1, 0, 0) / 4 over four neurons; the negative score counts as nothing.
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert specific_entropy(torch.tensor([3.0, 1.0, 0.0, -5.0])) == pytest.approx(expected, abs=1e-6)


def test_without_positive_scores_the_specific_share_is_the_lowest() -> None:
    assert specific_entropy(torch.tensor([-1.0, -2.0])) == 0.0
    assert build_mask(-torch.rand(3, 50) - 0.1).rho_specific == 0.3


def test_the_ratio_bends_between_low_and_high() -> None:
    assert ratio(0.5, 0.3, 0.4, 3.0) == pytest.approx(0.3 + 0.1 * 0.125)


def test_ties_all_takes_every_neuron_at_the_threshold() -> None:
    counts = torch.tensor([3.0, 2.0, 2.0, 2.0, 0.0])
    chosen, cut = select(counts, 0.4, "all", torch.arange(5.0))
    # The 0.6 quantile of 0 2 2 2 3 lies at index 2.4: it is 2.
    assert cut == 2.0
    assert chosen.tolist() == [True, True, True, True, False]


def test_ties_score_takes_exactly_the_share_by_mean_score() -> None:
    counts = torch.tensor([3.0, 2.0, 2.0, 2.0, 0.0])
    chosen, cut = select(counts, 0.4, "score", torch.tensor([0.0, 0.1, 0.9, 0.2, 5.0]))
    assert chosen.tolist() == [True, False, True, False, False]
    assert cut == 2.0


def test_a_share_of_nothing_selects_nothing() -> None:
    chosen, _ = select(torch.rand(10), 0.0, "score", torch.rand(10))
    assert not chosen.any()


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("union", [1, 1, 1, 0]),
        ("overlap", [0, 1, 0, 0]),
        ("non_overlap", [1, 0, 1, 0]),
        ("general", [1, 1, 0, 0]),
        ("specific", [0, 1, 1, 0]),
    ],
)
def test_each_variant_keeps_its_neurons(variant: str, expected: list[int]) -> None:
    from nmke.masks import _weights

    general = torch.tensor([True, True, False, False])
    specific = torch.tensor([False, True, True, False])
    got = _weights(variant, general, specific, general.float(), specific.float(), 1)  # type: ignore[arg-type]
    assert got.tolist() == expected


@pytest.mark.parametrize("variant", ["union", "overlap", "non_overlap", "general", "specific", "soft"])
@pytest.mark.parametrize(("general", "specific"), [(1.0, 1.0), (1.0, 0.3), (0.3, 1.0), (0.3, 0.4)])
@pytest.mark.parametrize("ties", ["all", "score"])
def test_a_mask_that_says_it_keeps_everything_does_so_for_any_scores(
    variant: str, general: float, specific: float, ties: str
) -> None:
    config = MaskConfig.make(
        variant=variant,
        ties=ties,
        general_low=general,
        general_high=max(general, 0.5),
        specific_low=specific,
        specific_high=max(specific, 0.5),
    )
    torch.manual_seed(0)
    scores = [torch.randn(5, 64), torch.zeros(3, 64), torch.full((2, 64), math.nan)]
    kept = [bool((build_mask(one, config).weights == 1).all()) for one in scores]
    if config.keeps_everything:
        assert all(kept)
    else:
        assert not kept[0]


def test_the_soft_mask_takes_the_larger_normalised_score() -> None:
    got = soft_weights(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([-1.0, 5.0, 10.0]), 4)
    assert got.tolist() == [1.0, 0.5, 1.0]


def test_kinds_name_every_neuron() -> None:
    mask = build_mask(torch.randn(6, 200, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(mask.kinds == 3, mask.general & mask.specific)
    assert torch.equal(mask.kinds == 0, ~(mask.general | mask.specific))
    assert mask.count == int((mask.kinds > 0).sum())


def test_scores_that_are_not_numbers_count_as_zero() -> None:
    scores = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    broken = scores.clone()
    broken[2, 5] = float("nan")
    scores[2, 5] = 0.0
    assert torch.equal(build_mask(broken).kinds, build_mask(scores).kinds)


def test_a_single_prompt_still_gives_a_mask() -> None:
    mask = build_mask(torch.randn(1, 100, generator=torch.Generator().manual_seed(2)))
    assert 0 < mask.count < 100


def test_no_scores_are_refused() -> None:
    with pytest.raises(FactError, match="no scores"):
        build_mask(torch.zeros(0, 10))


@pytest.mark.parametrize("alpha", [0, -1])
def test_the_temperature_must_be_positive(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha: .*greater than 0"):
        MaskConfig.make(alpha=alpha)


def test_low_above_high_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"lowest share 0.6 is above their highest share 0.4"):
        MaskConfig.make(general_low=0.6)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no setting named 'alhpa'"):
        MaskConfig.make(alhpa=3)


def test_every_setting_carries_a_help_text() -> None:
    assert all(field.description for field in MaskConfig.model_fields.values())
