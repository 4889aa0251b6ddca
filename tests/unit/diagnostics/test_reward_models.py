"""Whether a reward model can tell: reliability, calibration error, ranking of own samples and length, against counts by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.core.types import Row
from rlhf_bench.diagnostics.reward_models import ScoredSamples, calibration_error, reliability


def log_odds(p):
    return math.log(p / (1 - p))


def rows(*lengths):
    """A row for each list of lengths."""
    return [Row(f"p{i}", (1,), tuple((5,) * n for n in each)) for i, each in enumerate(lengths)]


def samples(scores, judged, *lengths):
    return ScoredSamples.of(rows(*lengths), np.array(scores, float), np.array(judged, float))


def test_calibration_error_by_hand():
    """Ten pairs at confidence 0.6 of which seven are right, ten at 0.9 of which nine are: gaps of 0.1 and 0."""
    margins = [log_odds(0.6)] * 7 + [-log_odds(0.6)] * 3 + [log_odds(0.9)] * 9 + [-log_odds(0.9)]
    first, second = reliability(np.array(margins))
    assert (first.confidence, first.right, first.pairs) == pytest.approx((0.6, 0.7, 10))
    assert (second.confidence, second.right, second.pairs) == pytest.approx((0.9, 0.9, 10))
    assert calibration_error(np.array(margins)) == pytest.approx(0.05)


def test_a_model_that_is_always_wrong_is_off_by_all_its_confidence():
    assert calibration_error(np.full(40, -log_odds(0.8))) == pytest.approx(0.8)
    assert calibration_error(np.full(40, log_odds(0.8))) == pytest.approx(0.2)  # always right, and not sure enough


def test_a_tie_is_half_right_and_half_sure():
    (one,) = reliability(np.zeros(7))
    assert (one.confidence, one.right, one.pairs) == (0.5, 0.5, 7) and calibration_error(np.zeros(7)) == 0


def test_where_preferences_follow_the_models_own_odds_the_error_is_noise_and_grows_with_another_unit():
    generator = np.random.default_rng(0)
    sizes = generator.exponential(1.5, 20_000)
    signs = np.where(generator.random(len(sizes)) < 1 / (1 + np.exp(-sizes)), 1, -1)
    margins = signs * sizes
    assert calibration_error(margins) < 0.02
    assert calibration_error(3 * margins) > 0.1 and calibration_error(margins / 3) > 0.1


def test_bins_hold_all_pairs_once_in_the_order_of_their_confidence():
    margins = np.random.default_rng(1).normal(0, 2, 137)
    bins = reliability(margins)
    assert sum(one.pairs for one in bins) == 137 and len(bins) == 10
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    assert reliability(np.array([])) == [] and math.isnan(calibration_error(np.array([])))


def test_own_samples_are_paired_within_a_prompt_and_only_where_the_judge_tells_them_apart():
    scored = samples([3, 1, 2, 9, 0], [1, 0, 1, 0.5, 0], [1, 1, 1], [1, 1])
    # First prompt: 3 and 2 (both right) against 1; second: 9 against 0. No pair of two prompts, nor of two right ones.
    assert sorted(scored.margins()) == [1, 2, 9]
    numbers = scored.numbers(scale=1.0)
    assert numbers["pairs"] == 3 and numbers["accuracy"] == 1 and numbers["score"] == 3
    turned = samples([-3, -1, -2, -9, 0], [1, 0, 1, 0.5, 0], [1, 1, 1], [1, 1]).numbers(scale=1.0)
    assert turned["accuracy"] == 0 and turned["score"] == -3


def test_a_reward_model_that_says_what_the_judge_says_has_its_curve_and_ranks_all_right():
    judged = np.random.default_rng(2).integers(0, 3, 40) / 2
    scored = ScoredSamples.of(rows(*[[1, 2, 3, 4]] * 10), judged, judged)
    numbers = scored.numbers(scale=1.0)
    assert numbers["score"] == pytest.approx(judged.mean()) and numbers["accuracy"] == 1
    assert numbers["length_correlation"] == pytest.approx(numbers["judge_length_correlation"])


def test_numbers_but_the_mean_do_not_change_with_the_scores_zero_and_unit():
    generator = np.random.default_rng(3)
    scores, judged = generator.normal(size=24), generator.integers(0, 2, 24).astype(float)
    found, other = (
        ScoredSamples.of(rows(*[[1, 2, 3]] * 8), s, judged).numbers(scale) for s, scale in ((scores, 1.0), (0.25 * scores - 7, 0.25))
    )  # fmt: skip
    assert found.pop("score") != other.pop("score")
    assert found == pytest.approx(other)


def test_length_counts_among_answers_to_one_prompt_only():
    """Longer prompts' answers are longer and score less; within a prompt the score rises with length."""
    scored = samples([1, 2, 3, -9, -8, -7], [0] * 6, [1, 2, 3], [11, 12, 13])
    assert scored.numbers(1.0)["length_correlation"] == pytest.approx(1)
    assert stats.pearsonr(scored.scores, scored.lengths).statistic < -0.9
    assert math.isnan(scored.numbers(1.0)["judge_length_correlation"])  # the judge scores all alike


def test_what_samples_cannot_say_is_no_number():
    alike = samples([1, 2], [1, 1], [2, 2]).numbers(1.0)
    assert alike["pairs"] == 0 and math.isnan(alike["accuracy"]) and math.isnan(alike["calibration_error"])
    assert math.isnan(alike["length_correlation"])
