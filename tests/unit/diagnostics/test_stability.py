"""Stability figures of curves small enough to read."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.diagnostics.stability import (
    best_score,
    diverged_count,
    drawdown,
    gradient_norm_spikes,
    seed_spread,
    sensitivity,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.2, 0.3], 0.0),
        ([0.2, 0.6, 0.5, 0.7, 0.4, 0.9], 0.3),
        ([0.5, NAN, 0.1], 0.4),
        ([0.9, 0.1, 0.95, 0.9], 0.8),
    ],
)
def test_drawdown_is_the_largest_fall_from_the_best_so_far(scores, expected):
    assert drawdown(scores) == pytest.approx(expected)


def test_drawdown_of_nothing_recorded_is_absent():
    assert math.isnan(drawdown([])) and math.isnan(drawdown([NAN]))


def test_seed_spread_is_the_sample_standard_deviation():
    assert seed_spread([1.0, 2.0, 3.0]) == 1.0
    assert math.isnan(seed_spread([1.0]))


def test_a_norm_above_five_running_medians_is_a_spike():
    assert gradient_norm_spikes([1.0] * 10 + [5.0, 5.1, 1.0]) == 1


def test_the_running_median_follows_the_norms():
    assert gradient_norm_spikes([1.0] * 30 + [4.0] * 30 + [16.0] * 30) == 0
    assert gradient_norm_spikes([100.0] * 30 + [1.0] * 30 + [6.0]) == 1


def test_the_first_updates_are_never_spikes():
    assert gradient_norm_spikes([1.0, 1.0, 100.0, 1.0, 1.0]) == 0


def test_an_infinite_norm_is_a_spike_and_an_absent_one_is_not():
    assert gradient_norm_spikes([1.0] * 6 + [NAN, float("inf")]) == 1
    assert gradient_norm_spikes([NAN, NAN]) is None


def test_only_diverged_seeds_are_counted():
    assert diverged_count(["done", "diverged", "failed", "diverged"]) == 2


def test_the_best_score_may_lie_anywhere_on_the_curve():
    assert best_score([0.2, NAN, 0.7, 0.4]) == 0.7
    assert math.isnan(best_score([])) and math.isnan(best_score([NAN]))


def test_sensitivity_reads_range_and_slope_off_a_straight_sweep():
    """Score 0.5 + 0.1 per factor of ten, the seeds apart by a shift, which is not sensitivity."""
    settings, shifts = [1e-5, 1e-4, 1e-3], np.array([-0.02, 0.0, 0.02])
    found = sensitivity(settings, [0.5 + 0.1 * i + shifts for i in range(3)])
    assert found.settings == tuple(settings) and found.means == pytest.approx((0.5, 0.6, 0.7))
    assert (found.best_setting, found.worst_setting) == (1e-3, 1e-5)
    assert found.score_range == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(0.02 / math.sqrt(3))
    assert found.slope == pytest.approx(0.1)
    assert found.slope_interval.low == pytest.approx(0.1) and found.slope_interval.high == pytest.approx(0.1)


def test_the_slopes_interval_is_students_over_the_seeds_slopes():
    settings = [0.01, 0.05, 0.08, 0.1, 0.15]
    scores = np.random.default_rng(0).normal(size=(5, 4))
    slopes = [stats.linregress(np.log10(settings), scores[:, seed]).slope for seed in range(4)]
    limits = stats.ttest_1samp(slopes, 0).confidence_interval()
    found = sensitivity(settings, scores)
    assert found.slope == pytest.approx(np.mean(slopes))
    assert (found.slope_interval.low, found.slope_interval.high) == pytest.approx((limits.low, limits.high))


def test_the_order_of_settings_and_seeds_does_not_matter():
    settings, scores = [0.1, 0.3, 1.0], np.random.default_rng(1).normal(size=(3, 4))
    found, other = sensitivity(settings, scores), sensitivity(settings[::-1], scores[::-1, [2, 0, 3, 1]])
    assert other.means == pytest.approx(found.means[::-1]) and other.slope == pytest.approx(found.slope)
    assert (other.best_setting, other.worst_setting) == (found.best_setting, found.worst_setting)
    assert other.standard_error == pytest.approx(found.standard_error)


def test_lost_runs_are_left_out_of_a_sweep():
    found = sensitivity([0.1, 1.0, 10.0], [[0.2, 0.4], [NAN, 0.6], [NAN, NAN]])
    assert found.means[:2] == pytest.approx((0.3, 0.6)) and math.isnan(found.means[2])
    assert (found.best_setting, found.worst_setting) == (1.0, 0.1)
    assert found.slope == pytest.approx(0.2) and found.slope_interval is None


def test_a_setting_of_zero_has_a_range_and_no_slope():
    found = sensitivity([0.0, 1.0], [[0.1] * 3, [0.3] * 3])
    assert found.score_range == pytest.approx(0.2) and math.isnan(found.slope) and found.slope_interval is None


def test_a_range_by_noise_alone_is_as_large_as_is_said():
    """The expected range of five equal settings is 2.33 standard errors of a mean."""
    generator = np.random.default_rng(2)
    found = [sensitivity([1, 2, 3, 4, 5], generator.normal(size=(5, 6))) for _ in range(300)]
    ratio = np.mean([one.score_range for one in found]) / np.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert ratio == pytest.approx(2.33, abs=0.12)


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], [[0.1], [0.2], [0.3]], [0.1, 0.2], [[0.1], [NAN]]])
def test_a_sweep_whose_scores_do_not_fit_is_refused(scores):
    with pytest.raises(ValueError):
        sensitivity([0.1, 1.0], scores)
