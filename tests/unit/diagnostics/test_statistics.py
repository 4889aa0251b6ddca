"""Comparisons over seeds and their correction, against values worked out by hand and independent oracles."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.diagnostics.statistics import adjust, holm, paired, slope

NAN = float("nan")
A = [0.71, 0.64, 0.80, 0.68, 0.75]
B = [0.65, 0.66, 0.70, 0.61, 0.69]


def test_intervals_that_touch_overlap():
    left = Interval(0.1, 0.2, "bca")
    assert left.overlaps(Interval(0.2, 0.3, "bca"))
    assert not left.overlaps(Interval(0.21, 0.3, "bca"))
    assert left.contains(0.2) and not left.contains(0.21)


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


def test_a_slope_is_polyfits_and_leaves_out_what_was_not_recorded():
    x, y = [0.0, 1.0, 3.0, 4.0, 7.0], [1.0, -2.0, 0.5, 3.0, 3.5]
    assert slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope([*x, 8.0, NAN], [*y, NAN, 1.0]) == pytest.approx(slope(x, y))
    assert slope(x, [-3 * v + 2 for v in x]) == pytest.approx(-3)
    assert math.isnan(slope([1.0, 1.0], [0.0, 2.0])) and math.isnan(slope([], []))
