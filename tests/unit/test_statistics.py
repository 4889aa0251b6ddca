"""Estimates over seeds, against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.diagnostics.statistics import Interval, confidence_interval, interquartile_mean, mean


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
