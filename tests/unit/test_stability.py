"""Stability figures of curves small enough to read."""

import math

import pytest

from rlhf_bench.diagnostics.stability import diverged_count, drawdown, gradient_norm_spikes, seed_spread

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
