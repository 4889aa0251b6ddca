"""Estimates, intervals and tests over seeds, against values worked out by hand and independent oracles."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.diagnostics.statistics import (
    Interval,
    adjust,
    confidence_interval,
    holm,
    interquartile_interval,
    interquartile_mean,
    mean,
    paired,
    probability_of_improvement,
    sign_flip_p,
    slope,
)

NAN = float("nan")


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean([0.0, 4.0, 6.0, 100.0]) == 5.0
    assert interquartile_mean([-50.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 90.0]) == 2.5


def test_below_four_values_the_interquartile_mean_is_the_mean():
    assert interquartile_mean([1.0, 2.0, 6.0]) == mean([1.0, 2.0, 6.0]) == 3.0


def test_without_values_there_is_no_mean():
    assert math.isnan(mean([])) and math.isnan(interquartile_mean([]))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_below_two_seeds_there_is_no_interval(values):
    assert confidence_interval(values) is None


def test_equal_values_give_the_zero_width_interval():
    assert confidence_interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.25, "degenerate")


def test_two_seeds_give_students_interval():
    found = confidence_interval([0.4, 0.6])
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
        confidence_interval([0.1, float("nan"), 0.3])


def test_intervals_that_touch_overlap():
    left = Interval(0.1, 0.2, "bca")
    assert left.overlaps(Interval(0.2, 0.3, "bca"))
    assert not left.overlaps(Interval(0.21, 0.3, "bca"))
    assert left.contains(0.2) and not left.contains(0.21)


A = [0.71, 0.64, 0.80, 0.68, 0.75]
B = [0.65, 0.66, 0.70, 0.61, 0.69]


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
        assert interquartile_interval(values) == confidence_interval(values)


def test_one_odd_seed_widens_the_means_interval_more_than_the_interquartile_means():
    values = [0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 5.0]
    robust, plain = interquartile_interval(values), confidence_interval(values)
    assert robust.method == "bca" and robust.low < interquartile_mean(values) < robust.high
    assert robust.high - robust.low < 0.6 * (plain.high - plain.low)


def test_where_bca_is_undefined_the_interval_says_that_it_is_another():
    found = interquartile_interval([0.4, 0.5, 0.5, 0.5, 0.9])
    assert found.method == "percentile" and found.low <= 0.5 <= found.high


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.6, 0.9], [0.2, 0.3, 0.3, 0.4, 0.9]])
def test_intervals_move_with_the_scores_and_turn_over_with_them(values):
    for interval in (confidence_interval, interquartile_interval):
        found, moved, turned = interval(values), interval([v + 2 for v in values]), interval([-v for v in values])
        assert (moved.low, moved.high) == pytest.approx((found.low + 2, found.high + 2))
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.02)


def test_the_paired_test_is_scipys():
    found, oracle = paired(A, B), stats.ttest_rel(A, B)
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))
    assert found.p_t == pytest.approx(oracle.pvalue)
    limits = oracle.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((limits.low, limits.high))


def test_sharing_seeds_counts():
    """The same scores in another pairing have the same mean difference and another p."""
    together, apart = paired(sorted(A), sorted(B)), paired(sorted(A), sorted(B, reverse=True))
    assert apart.mean == pytest.approx(together.mean) and apart.p_t > 10 * together.p_t


def test_swapping_the_arms_turns_the_difference_over_and_keeps_every_p():
    one, other = paired(A, B), paired(B, A)
    assert other.differences == tuple(-d for d in one.differences)
    assert (other.interval.low, other.interval.high) == pytest.approx((-one.interval.high, -one.interval.low))
    assert (other.p_t, other.p_permutation) == pytest.approx((one.p_t, one.p_permutation))


def test_the_order_of_seeds_and_a_common_shift_change_nothing():
    order = [3, 0, 4, 2, 1]
    found = paired(A, B)
    for same in (paired([A[i] for i in order], [B[i] for i in order]), paired([a + 5 for a in A], [b + 5 for b in B])):
        assert same.mean == pytest.approx(found.mean)
        assert (same.p_t, same.p_permutation) == pytest.approx((found.p_t, found.p_permutation))
        assert (same.interval.low, same.interval.high) == pytest.approx((found.interval.low, found.interval.high))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_below_three_common_seeds_nothing_is_tested(n):
    found = paired(A[:n], B[:n])
    assert not found.tested and found.interval is None
    assert math.isnan(found.p_t) and math.isnan(found.p_permutation)
    assert math.isnan(found.mean) if n == 0 else found.mean == pytest.approx(np.mean(A[:n]) - np.mean(B[:n]))


def test_values_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="common seeds: 2 against 3"):
        paired([0.1, 0.2], [0.1, 0.2, 0.3])


def test_equal_differences_have_no_width_and_rounding_does_not_hide_that():
    found = paired([0.7, 0.4, 0.3], [0.5, 0.2, 0.1])
    assert len({0.7 - 0.5, 0.4 - 0.2, 0.3 - 0.1}) > 1, "this case is about rounding"
    assert found.interval.method == "degenerate" and found.interval.low == found.interval.high == pytest.approx(0.2)
    assert found.p_t == 0.0 and found.p_permutation == 2 / 8
    same = paired(A, A)
    assert same.mean == 0.0 and same.p_t == 1.0 and same.p_permutation == 1.0


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


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_what_was_not_tested_does_not_count_towards_the_family():
    found = holm([0.02, NAN, 0.01])
    assert [found[0], found[2]] == pytest.approx([0.02, 0.02]) and math.isnan(found[1])


def random_family(generator, size, seeds=5):
    return [paired(generator.normal(shift, 0.1, seeds), np.zeros(seeds)) for shift in np.linspace(0, 0.3, size)]


def test_alone_a_comparison_is_not_corrected():
    (one,) = adjust([paired(A, B)])
    assert one.p == pytest.approx(paired(A, B).p_t)
    limits = paired(A, B).interval
    assert (one.interval.low, one.interval.high) == pytest.approx((limits.low, limits.high))


def test_intervals_adjusted_by_holm_agree_with_their_p_and_stay_within_bonferronis():
    generator = np.random.default_rng(0)
    agreed = set()
    for _ in range(40):
        family = random_family(generator, size=4)
        for one, adjusted in zip(family, adjust(family), strict=True):
            significant = adjusted.p < 0.05
            agreed.add(significant)
            assert significant == (not adjusted.interval.contains(0.0))
            sem, width = stats.sem(one.differences), adjusted.interval.high - adjusted.interval.low
            assert one.interval.high - one.interval.low <= width * (1 + 1e-9)
            assert width <= 2 * stats.t.ppf(1 - 0.025 / 4, 4) * sem * (1 + 1e-9)
    assert agreed == {True, False}


def test_a_family_of_equal_arms_is_seldom_told_apart():
    """Family-wise error: 200 families of five comparisons without any effect, about 5% with a false finding."""
    generator = np.random.default_rng(1)
    wrong, uncorrected = 0, 0
    for _ in range(200):
        family = [paired(generator.normal(size=5), generator.normal(size=5)) for _ in range(5)]
        wrong += any(not one.interval.contains(0.0) for one in adjust(family))
        uncorrected += any(not one.interval.contains(0.0) for one in family)
    assert wrong / 200 < 0.09 < uncorrected / 200


def test_untested_comparisons_stay_without_p_and_interval():
    first, second = adjust([paired(A[:2], B[:2]), paired(A, B)])
    assert math.isnan(first.p) and first.interval is None
    assert second.p == pytest.approx(paired(A, B).p_t)


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


def test_a_slope_is_polyfits_and_leaves_out_what_was_not_recorded():
    x, y = [0.0, 1.0, 3.0, 4.0, 7.0], [1.0, -2.0, 0.5, 3.0, 3.5]
    assert slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope([*x, 8.0, NAN], [*y, NAN, 1.0]) == pytest.approx(slope(x, y))
    assert slope(x, [-3 * v + 2 for v in x]) == pytest.approx(-3)
    assert math.isnan(slope([1.0, 1.0], [0.0, 2.0])) and math.isnan(slope([], []))
