"""Which arm leads, against whom that is settled, and which arms beat the base policy: one rule, and how often it errs."""

import numpy as np
import pandas as pd
import pytest

from rlhf_bench.diagnostics.statistics import paired
from rlhf_bench.results.final_scores import ArmScores, FinalScores
from rlhf_bench.results.standing import BASE_POLICY
from rlhf_bench.results.standing import standing as standing_of


def by_seed(*scores):
    return dict(enumerate(scores, 1))


def standing(scores, base_score):
    """Of arms without prompts: arm -> seed -> score. `base_score`: one that is known, or by seed."""
    of = base_score if callable(base_score) else lambda _: base_score
    return standing_of(
        {
            arm: ArmScores(FinalScores(seeds), FinalScores({seed: of(seed) for seed in seeds}))
            for arm, seeds in scores.items()
            if seeds
        }
    )


def by_prompt(table):
    """Seeds from 1, prompts p0, p1, …: [S, P]"""
    frame = pd.DataFrame(table, index=range(1, len(table) + 1), columns=[f"p{i}" for i in range(table.shape[1])])
    return FinalScores(frame.mean(axis=1).to_dict(), frame)


CLEAR = {
    "high": by_seed(0.80, 0.81, 0.79, 0.80, 0.81),
    "low": by_seed(0.60, 0.61, 0.60, 0.59, 0.61),
    "middle": by_seed(0.70, 0.90, 0.50, 0.75, 0.66),
}


def test_the_leader_is_settled_against_those_it_is_far_above():
    found = standing(CLEAR, base_score=0.61)
    assert found.ranking == ("high", "middle", "low") and found.leader == "high" and found.compared == 6
    assert [(one.against, one.above, one.settled) for one in found.over] == [
        ("middle", False, False),
        ("low", True, True),
    ]
    assert [(one.arm, one.above) for one in found.against_base] == [("high", True), ("middle", False), ("low", False)]
    assert all(one.against == BASE_POLICY and one.seeds == 5 for one in found.against_base)
    assert found.over[1].mean == pytest.approx(0.2, abs=0.003) and found.over[1].more_seeds == 0


def test_an_arm_below_the_base_policy_is_settled_too():
    found = standing(CLEAR, base_score=0.7)
    (low,) = [one for one in found.against_base if one.arm == "low"]
    assert low.below and low.settled and not low.above


def test_an_arm_is_compared_with_the_base_policy_of_each_of_its_seeds():
    base = {0: 0.5, 1: 0.6, 2: 0.7}
    found = standing({"a": {0: 0.51, 1: 0.61, 2: 0.71}}, base.get)
    (one,) = found.against_base
    assert one.paired.differences == pytest.approx((0.01, 0.01, 0.01)) and one.above


def test_a_difference_turned_is_that_of_the_other_arm():
    found = standing(CLEAR, base_score=0.61)
    there, back = found.difference("high", "low"), found.difference("low", "high")
    assert back.mean == -there.mean and back.below and there.above and back.adjusted.p == there.adjusted.p
    assert (back.adjusted.interval.low, back.adjusted.interval.high) == (
        -there.adjusted.interval.high,
        -there.adjusted.interval.low,
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_or_two_settle_nothing(seeds):
    """Two differences would have to say by themselves how far a third may lie."""
    scores = {arm: {s: v for s, v in own.items() if s <= seeds} for arm, own in CLEAR.items()}
    found = standing(scores, base_score=0.1)
    assert found.leader == "high" and found.compared == 0
    assert not any(one.settled or one.more_seeds is not None for one in (*found.over, *found.against_base))


def test_arms_are_compared_on_the_seeds_that_both_finished():
    """Seeds have a score in common: by pairs their difference is 0.1 to the last digit."""
    base = by_seed(0.2, 0.5, 0.8, 0.4)
    more = {seed: score + 0.1 for seed, score in base.items() if seed != 2}
    (one,) = standing({"more": more, "base-like": base}, base_score=0.0).over
    assert one.seeds == 3 and one.above and one.mean == pytest.approx(0.1)


def test_without_a_finished_seed_nobody_leads():
    found = standing({"a": {}, "b": {}}, base_score=0.5)
    assert found.leader is None and found.over == found.against_base == ()


def test_the_seeds_that_are_foreseen_are_enough_where_mean_and_spread_stay():
    found = standing({"a": by_seed(0.50, 0.56, 0.53), "b": by_seed(0.5, 0.5, 0.5)}, base_score=0.5)
    more = found.over[0].more_seeds
    assert more > 0 and not found.over[0].settled
    # The same three differences over and over: a sample with that mean, and very nearly that spread.
    differences = [0.0, 0.06, 0.03] * 30

    def settled(count):
        level = found.over[0].adjusted.confidence
        interval = paired(differences[:count], [0.0] * count).interval
        half = (interval.high - interval.low) / 2
        from scipy import stats

        wider = stats.t.ppf((1 + level) / 2, count - 1) / stats.t.ppf(0.975, count - 1)
        return np.mean(differences[:count]) > half * wider

    assert settled(3 + more + 2) and not settled(3 + max(0, more - 3))


@pytest.mark.parametrize(("arms", "seeds", "trials"), [(4, 3, 250), (4, 5, 250), (13, 5, 50)])
def test_where_no_arm_differs_something_is_called_settled_in_one_comparison_of_twenty(arms, seeds, trials):
    """All arms are the base policy in truth, with noise of their own and noise that a seed gives to all of them."""
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(trials):
        common = generator.normal(0, 0.02, seeds)
        scores = {f"arm{i}": by_seed(*(0.5 + common + generator.normal(0, 0.02, seeds))) for i in range(arms)}
        found = standing(scores, base_score=0.5)
        false += any(one.settled for one in (*found.over, *found.against_base))
    assert false / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def policies(generator, arms, seeds, prompts, samples):
    """Scores [arms, S, P] of policies that are all the base policy in truth, and the base policy's own [P]: prompts differ in
    difficulty, and `samples` responses are drawn for each."""
    difficulty = generator.beta(2, 2, prompts)
    draw = lambda *shape: generator.binomial(samples, difficulty, (*shape, prompts)) / samples  # noqa: E731
    return draw(arms, seeds), draw()


@pytest.mark.parametrize(("seeds", "by_luck"), [(3, 0.05), (5, 0.15)])
def test_a_base_policy_that_had_bad_luck_once_is_not_beaten_by_every_arm(seeds, by_luck):
    """The base policy is scored once, and its luck is in every difference from it: over seeds alone that looks like certainty."""
    generator, trials, false, seeds_alone = np.random.default_rng(11), 120, 0, 0
    for _ in range(trials):
        arms, base = policies(generator, 4, seeds, 64, 4)
        base = by_prompt(np.tile(base, (seeds, 1)))
        found = standing_of({f"arm{i}": ArmScores(by_prompt(one), base) for i, one in enumerate(arms)})
        false += any(one.settled for one in (*found.over, *found.against_base))
        alone = {f"arm{i}": by_prompt(one).seeds for i, one in enumerate(arms)}
        seeds_alone += any(one.settled for one in standing(alone, base.mean).against_base)
    assert false / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert seeds_alone / trials > by_luck


def test_prompts_that_both_share_are_paired_and_a_lack_of_prompts_is_told_from_a_lack_of_seeds():
    generator = np.random.default_rng(2)
    hard = np.linspace(0, 0.9, 40)
    better, base = by_prompt(np.tile(hard + 0.1, (3, 1))), by_prompt(np.tile(hard, (3, 1)))
    (one,) = standing_of({"better": ArmScores(better, base)}).against_base
    assert one.above and one.mean == pytest.approx(0.1)  # 0.1 on every prompt, however hard
    mixed = by_prompt(np.tile(hard + generator.choice([-0.5, 0.55], 40), (3, 1)))
    (other,) = standing_of({"mixed": ArmScores(mixed, base)}).against_base
    assert not other.settled and other.wants_prompts and other.more_seeds is None
