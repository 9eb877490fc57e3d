"""Intervals and exact tests, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from nmke.intervals import at_least_p, bootstrap_mean, mcnemar_p, paired_change, wilson


def test_wilson_is_where_the_score_test_just_rejects() -> None:
    found = wilson(30, 100)
    assert found.value == 0.3 and found.n == 100
    for bound in (found.low, found.high):  # |share - bound| is 1.96 standard errors at the bound
        assert abs(0.3 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(1.959964, abs=1e-6)
    assert found.low < 0.3 < found.high


@pytest.mark.parametrize("n", [1, 4, 200])
def test_wilson_reaches_the_ends_and_never_passes_them(n: int) -> None:
    z2 = 1.959963984540054**2
    none, every = wilson(0, n), wilson(n, n)
    assert none.low == 0.0 and none.high == pytest.approx(z2 / (n + z2))
    assert every.high == 1.0 and every.low == pytest.approx(n / (n + z2))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_counts_that_are_none(successes: int, n: int) -> None:
    with pytest.raises(ValueError):
        wilson(successes, n)


def test_a_bootstrap_has_the_mean_and_the_quantiles_of_its_resampled_means() -> None:
    values = [0.0, 1.0, 5.0, 2.0, 2.5, 9.0]
    generator = np.random.default_rng(7)
    means = [
        sum(values[i] for i in generator.integers(0, len(values), len(values))) / len(values)
        for _ in range(500)
    ]
    found = bootstrap_mean(values, seed=7, resamples=500)
    assert found.value == pytest.approx(19.5 / 6)
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))
    assert bootstrap_mean(values, seed=7, resamples=500) == found
    assert bootstrap_mean(values, seed=8, resamples=500) != found


def test_a_bootstrap_of_many_values_is_as_wide_as_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400).tolist()
    found = bootstrap_mean(values)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_a_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        bootstrap_mean([])


def test_a_paired_change_is_narrower_than_its_unpaired_parts() -> None:
    before = [float(value) for value in range(50)]
    after = [value - 0.5 - 0.01 * (index % 3) for index, value in enumerate(before)]
    found = paired_change(before, after)
    assert found.value == pytest.approx(-0.5 - 0.01 * sum(i % 3 for i in range(50)) / 50)
    assert found.high < 0 and found.high - found.low < 0.02
    assert found.n == 50 and found.method.startswith("paired bootstrap")


def test_a_paired_change_refuses_sides_of_different_length() -> None:
    with pytest.raises(ValueError):
        paired_change([1.0, 2.0], [1.0])


def test_mcnemar_is_the_exact_two_sided_binomial_of_the_changed_pairs() -> None:
    # 1 gained, 5 lost: two-sided p = 2 * (C(6,0) + C(6,1)) / 2^6
    before = [True] * 5 + [False] + [True] * 10 + [False] * 10
    after = [False] * 5 + [True] + [True] * 10 + [False] * 10
    assert mcnemar_p(before, after) == pytest.approx(2 * 7 / 64)
    assert mcnemar_p(after, before) == pytest.approx(2 * 7 / 64)


def test_mcnemar_is_one_where_nothing_changed() -> None:
    assert mcnemar_p([True, False], [True, False]) == 1.0


def test_mcnemar_refuses_sides_of_different_length() -> None:
    with pytest.raises(ValueError):
        mcnemar_p([True], [True, False])


def test_the_chance_test_is_the_binomial_tail() -> None:
    tail = sum(math.comb(10, k) * 0.25**k * 0.75 ** (10 - k) for k in range(5, 11))
    assert at_least_p(5, [0.25] * 10) == pytest.approx(tail)
    assert at_least_p(0, [0.25] * 10) == 1.0


def test_the_chance_test_is_exact_for_questions_with_different_numbers_of_choices() -> None:
    # P(at least 2 of three trials with 1/2, 1/4, 1/5)
    p = [0.5, 0.25, 0.2]
    two = p[0] * p[1] * (1 - p[2]) + p[0] * (1 - p[1]) * p[2] + (1 - p[0]) * p[1] * p[2]
    assert at_least_p(2, p) == pytest.approx(two + p[0] * p[1] * p[2])
