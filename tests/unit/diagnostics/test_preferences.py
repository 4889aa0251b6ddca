"""Win rates, win rates at equal length, the effect of the order, and agreement: against closed forms and simulated judges."""

import math

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.metrics import cohen_kappa_score

from rlhf_bench.core.contests import Contest, Judged
from rlhf_bench.diagnostics.preferences import (
    PRIOR_DEVIATION,
    agreement,
    cohens_kappa,
    length_controlled,
    order_effect,
    win_rate,
)

SHAPE = (4, 250)


def lengths(more, seed=0):
    """Extra lengths of an arm that writes `more` characters more than its opponent."""
    return np.random.default_rng(seed).normal(more, 100.0, SHAPE)


@pytest.mark.parametrize(
    ("own_first", "own_second", "expected"),
    [
        ("first", "second", 1.0),
        ("second", "first", 0.0),
        ("tie", "tie", 0.5),
        ("first", "first", 0.5),  # the order decides
        ("second", "second", 0.5),
        ("first", "tie", 0.75),
        ("tie", "first", 0.25),
    ],
)
def test_each_order_counts_half(own_first, own_second, expected):
    assert Judged(own_first, own_second).preference == expected


@pytest.mark.parametrize("verdicts", [(None, "first"), ("first", None), (None, None)])
def test_a_contest_without_both_verdicts_has_no_preference(verdicts):
    assert math.isnan(Judged(*verdicts).preference)


def test_a_win_rate_is_the_mean_over_seeds_and_prompts():
    table = np.array([[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 0.0, 0.5]])
    assert win_rate(table).mean == pytest.approx(5 / 8)
    assert win_rate(table).seeds is not None and win_rate(table[:1]).seeds is None
    assert win_rate(table[:1, :1]).parts == ()


@pytest.mark.parametrize("more", [-150.0, 0.0, 80.0, 200.0])
def test_a_judge_that_only_prefers_longer_responses_gives_one_half_at_equal_length(more):
    extra = lengths(more)
    expected = special.expit(2 * np.tanh(extra / extra.std()))  # the judge's probability, given nothing but the lengths
    found = length_controlled(expected, extra)
    assert found.win_rate == pytest.approx(0.5, abs=2e-3)
    assert found.length_coefficient == pytest.approx(2.0, abs=0.02)
    if more:
        assert abs(expected.mean() - 0.5) > 0.1  # which the plain win rate does not see


def test_its_interval_holds_one_half_as_often_as_it_says():
    held, judgements = 0, np.random.default_rng(1)
    for seed in range(200):
        extra = lengths(100.0, seed)
        wins = (judgements.random(SHAPE) < special.expit(2 * np.tanh(extra / extra.std()))).astype(float)
        held += length_controlled(wins, extra).interval.contains(0.5)
    assert held >= 0.93 * 200


@pytest.mark.parametrize("skill", [-1.0, 0.7])
def test_what_is_better_at_every_length_is_found_whatever_the_lengths(skill):
    extra = lengths(150.0)
    preferences = special.expit(skill + 1.5 * np.tanh(extra / extra.std()))
    assert length_controlled(preferences, extra).win_rate == pytest.approx(special.expit(skill), abs=5e-3)


def test_own_and_other_exchanged_give_one_less_it():
    extra = lengths(60.0)
    wins = (np.random.default_rng(2).random(SHAPE) < 0.6).astype(float)
    one, other = length_controlled(wins, extra), length_controlled(1 - wins, -extra)
    assert one.win_rate + other.win_rate == pytest.approx(1.0)
    assert one.interval.low + other.interval.high == pytest.approx(1.0)
    assert one.length_coefficient == pytest.approx(other.length_coefficient)


def test_it_is_the_minimum_that_another_optimiser_finds():
    extra = lengths(40.0)
    wins = np.random.default_rng(3).choice([0.0, 0.25, 0.5, 0.75, 1.0], SHAPE)
    x = np.tanh(extra / extra.std()).ravel()

    def loss(w):
        z = w[0] + w[1] * x
        return np.sum(np.log1p(np.exp(z)) - wins.ravel() * z) + (w @ w) / 2 / PRIOR_DEVIATION**2

    best = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = length_controlled(wins, extra)
    assert (special.logit(found.win_rate), found.length_coefficient) == pytest.approx(tuple(best), abs=1e-5)


@pytest.mark.parametrize("all_of_them", [0.0, 1.0])
def test_an_arm_that_wins_or_loses_all_has_a_finite_rate(all_of_them):
    found = length_controlled(np.full(SHAPE, all_of_them), lengths(0.0))
    assert abs(found.win_rate - all_of_them) < 0.01 and math.isfinite(found.length_coefficient)


def test_without_any_difference_in_length_it_is_the_win_rate():
    wins = np.random.default_rng(4).choice([0.0, 1.0], SHAPE, p=[0.3, 0.7])
    assert length_controlled(wins, np.zeros(SHAPE)).win_rate == pytest.approx(wins.mean(), abs=1e-4)


def test_a_judge_that_names_the_first_response_whatever_it_says():
    found = order_effect([Judged("first", "first")] * 3 + [Judged(None, "first")])
    assert (found.contests, found.consistent, found.first) == (3, 0.0, 1.0)


def test_a_judge_without_a_bias():
    found = order_effect([Judged("first", "second"), Judged("second", "first"), Judged("tie", "tie")])
    assert (found.contests, found.consistent, found.first) == (3, 1.0, 0.5)
    assert math.isnan(order_effect([Judged("tie", "tie")]).first) and math.isnan(order_effect([]).consistent)


def test_agreement_by_hand():
    # Agrees twice, is told apart by the order once, opposes once.
    found = agreement([1.0, 0.0, 0.5, 1.0], [1.0, 0.0, 1.0, 0.0])
    assert found.share == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert (found.same, found.opposite, found.undecided) == (2, 1, 1)


def test_kappa_is_scikit_learns():
    generator = np.random.default_rng(5)
    judge, people = generator.choice(3, 200, p=[0.5, 0.2, 0.3]), generator.choice(3, 200)
    judge = np.where(generator.random(200) < 0.5, people, judge)
    table = np.zeros((3, 3))
    np.add.at(table, (judge, people), 1)
    assert cohens_kappa(table) == pytest.approx(cohen_kappa_score(judge, people))
    found = agreement(judge / 2, people / 2)
    assert found.kappa == pytest.approx(cohen_kappa_score(judge, people))
    assert found.kappa_interval.contains(found.kappa) and found.interval.contains(found.share)


def test_a_judge_that_tosses_coins_is_not_told_apart_from_chance():
    generator = np.random.default_rng(6)
    found = agreement(generator.choice([0.0, 0.5, 1.0], 400), generator.choice([0.0, 1.0], 400))
    assert found.interval.contains(0.5) and found.kappa_interval.contains(0.0)


def test_a_judge_that_says_one_thing_only_has_no_kappa():
    assert agreement([1.0, 1.0], [1.0, 1.0]).kappa == 0.0


def test_the_extra_length_is_in_characters():
    assert Contest("p", "four", "ä").extra_length == 3
