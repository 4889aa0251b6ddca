"""Bootstrap intervals, the interquartile mean and permutation tests, against worked values and independent oracles."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.diagnostics.resampling import (
    confidence_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
    sign_flip_p,
)
from rlhf_bench.diagnostics.statistics import mean, mean_interval


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean([0.0, 4.0, 6.0, 100.0]) == 5.0
    assert interquartile_mean([-50.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 90.0]) == 2.5


def test_below_four_values_the_interquartile_mean_is_the_mean():
    assert interquartile_mean([1.0, 2.0, 6.0]) == mean([1.0, 2.0, 6.0]) == 3.0


def test_without_values_there_is_no_mean():
    assert math.isnan(mean([])) and math.isnan(interquartile_mean([]))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_below_two_seeds_there_is_no_interval(values):
    assert mean_interval(values) is None


def test_equal_values_give_the_zero_width_interval():
    assert mean_interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.25, "degenerate")


def test_two_seeds_give_students_interval():
    found = mean_interval([0.4, 0.6])
    half = math.tan(math.pi * 0.475) * 0.1  # one degree of freedom is Cauchy's distribution; standard error 0.1
    assert found.method == "t"
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.6], [0.5, 0.5, 0.7], [0.2, 0.3, 0.3, 0.4, 0.9]])
def test_a_bootstrap_interval_is_deterministic_and_holds_the_mean(values):
    found = confidence_interval(values)
    assert found == confidence_interval(values)
    assert found.method == "bca"
    assert min(values) <= found.low < np.mean(values) < found.high <= max(values)


def test_with_many_seeds_the_bootstrap_agrees_with_the_normal_theory():
    values = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    found = confidence_interval(values)
    assert (found.low, found.high) == pytest.approx((-1.96 / math.sqrt(200), 1.96 / math.sqrt(200)), abs=0.01)


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        mean_interval([0.1, float("nan"), 0.3])


def test_bca_agrees_with_efrons_formula_worked_out_by_hand():
    """Bias z0 and acceleration a by their definitions, on a bootstrap of its own with other draws."""
    values = np.array([0.1, 0.2, 0.25, 0.4, 0.9, 1.6, 0.3, 0.35])
    drawn = np.random.default_rng(7).choice(values, size=(200_000, values.size)).mean(axis=1)
    bias = stats.norm.ppf((np.mean(drawn < values.mean()) + np.mean(drawn <= values.mean())) / 2)
    influence = values - values.mean()
    acceleration = np.sum(influence**3) / (6 * np.sum(influence**2) ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(drawn, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    found = confidence_interval(values)
    assert found.method == "bca"
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_below_four_seeds_the_interquartile_mean_has_the_means_interval():
    for values in ([0.1, 0.4], [0.1, 0.4, 0.5]):
        assert interquartile_interval(values) == mean_interval(values)


def test_one_odd_seed_widens_the_means_interval_more_than_the_interquartile_means():
    values = [0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 5.0]
    robust, plain = interquartile_interval(values), mean_interval(values)
    assert robust.method == "bca" and robust.low < interquartile_mean(values) < robust.high
    assert robust.high - robust.low < 0.6 * (plain.high - plain.low)


def test_where_bca_is_undefined_the_interval_says_that_it_is_another():
    found = interquartile_interval([0.4, 0.5, 0.5, 0.5, 0.9])
    assert found.method == "percentile" and found.low <= 0.5 <= found.high


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.6, 0.9], [0.2, 0.3, 0.3, 0.4, 0.9]])
def test_intervals_move_with_the_scores_and_turn_over_with_them(values):
    for interval in (mean_interval, interquartile_interval):
        found, moved, turned = interval(values), interval([v + 2 for v in values]), interval([-v for v in values])
        assert (moved.low, moved.high) == pytest.approx((found.low + 2, found.high + 2))
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.02)


@pytest.mark.parametrize("differences", [[0.3, -0.1, 0.2, 0.4], [1.0, 1.0, -1.0], [0.5, 0.0, 0.25, -0.75, 2.0, 0.1]])
def test_the_sign_flip_test_is_the_enumeration_of_all_signs(differences):
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert sign_flip_p(differences) == sum(s >= seen - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize(("n", "floor"), [(3, 1 / 4), (5, 1 / 16), (8, 1 / 128)])
def test_sign_flips_have_a_floor_that_no_data_pass(n, floor):
    assert sign_flip_p([1.0 + 0.1 * i for i in range(n)]) == floor


def test_with_many_seeds_random_sign_flips_agree_with_the_normal_theory():
    differences = 0.25 + stats.norm.ppf((np.arange(40) + 0.5) / 40)
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert sign_flip_p([1.0] * 40) == 1 / 10_000  # the flip that was seen counts: p is never 0


def test_the_probability_of_improvement_is_the_double_loop():
    left, right = [0.1, 0.5, 0.5, 0.9], [0.5, 0.2, 0.6]
    wins = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in left for y in right)
    found = probability_of_improvement(left, right)
    assert found.probability == pytest.approx(wins / 12)
    assert 0 <= found.interval.low < found.probability < found.interval.high <= 1
    assert found == probability_of_improvement(left[::-1], right)
    assert probability_of_improvement(right, left).probability == pytest.approx(1 - wins / 12)


def test_its_interval_is_the_bootstrap_that_redraws_both_arms():
    left, right = np.array([0.1, 0.5, 0.45, 0.9, 0.7]), np.array([0.5, 0.2, 0.6, 0.3])
    generator = np.random.default_rng(3)
    drawn = []
    for _ in range(4000):
        x, y = generator.choice(left, 5), generator.choice(right, 4)
        drawn.append(np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y)))
    found = probability_of_improvement(left, right).interval
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)


def test_when_every_run_wins_the_interval_is_that_of_n_wins_in_n_pairs():
    found = probability_of_improvement([3.0, 4.0, 5.0, 6.0, 7.0], [0.0, 1.0, 2.0, 1.5, 0.5])
    assert found.probability == 1.0
    assert found.interval == Interval(pytest.approx(0.025 ** (1 / 5)), 1.0, "exact")
    lost = probability_of_improvement([0.0, 1.0, 2.0], [3.0, 4.0, 5.0])
    assert lost.probability == 0.0 and lost.interval.low == 0.0
    assert lost.interval.high == pytest.approx(1 - 0.025 ** (1 / 3))


def test_runs_that_all_tie_are_a_coins_toss_and_few_runs_have_no_interval():
    assert probability_of_improvement([0.5] * 4, [0.5] * 3).interval == Interval(0.5, 0.5, "degenerate")
    assert probability_of_improvement([0.5, 0.7], [0.6, 0.1, 0.2]).interval is None
    assert math.isnan(probability_of_improvement([], [0.5]).probability)
