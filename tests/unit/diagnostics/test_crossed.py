"""Means over seeds and prompts: variance against brute force, coverage by simulations of which the truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import special, stats

from rlhf_bench.diagnostics.crossed import crossed_interval, crossed_mean, interval_over_prompts
from rlhf_bench.diagnostics.intervals import Estimate, Interval, Part
from rlhf_bench.diagnostics.statistics import adjust, paired, paired_table, seeds_to_settle, wants_prompts

RUNS = 800
NOMINAL_UP_TO_LUCK = 0.93


@dataclass(frozen=True)
class Regime:
    """Arms answer prompt p right with probability sigmoid(skill + seed's effect + prompt's effect): both effects normal."""

    seeds: int
    prompts: int
    draws: int
    seed_effect: float
    prompt_effect: float

    def __str__(self):
        return f"S{self.seeds}-P{self.prompts}-k{self.draws}-seeds{self.seed_effect}-prompts{self.prompt_effect}"


REGIMES = [
    Regime(3, 64, 1, 0.0, 1.5),
    Regime(3, 128, 4, 0.3, 0.0),
    Regime(3, 256, 4, 0.5, 2.0),
    Regime(5, 64, 4, 0.0, 0.0),
    Regime(5, 128, 1, 0.3, 1.5),
    Regime(5, 256, 4, 0.1, 2.0),
    Regime(10, 64, 1, 0.5, 0.0),
    Regime(10, 128, 4, 0.3, 1.5),
    Regime(10, 256, 1, 0.0, 2.0),
]


def expected(skill, *effects):
    """The mean of sigmoid(skill + normal effects), by Gauss and Hermite."""
    at, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ special.expit(skill + np.linalg.norm(effects) * at) / weights.sum())


class World:
    """Draws of one regime, `RUNS` times: common prompts, own seeds; each arm also finds some prompts easier than others."""

    def __init__(self, regime, seed):
        self.regime, self.generator = regime, np.random.default_rng(seed)
        self.prompt = regime.prompt_effect * self.generator.normal(size=(RUNS, 1, regime.prompts))
        self.common = self.generator.random((RUNS, 1, regime.prompts, regime.draws))

    def chances(self, skill, seeds):
        """Of the right answer [RUNS, S or 1, P]; the base policy is one model, without an effect of the seed."""
        r, normal = self.regime, self.generator.normal
        own = r.prompt_effect / 3 * normal(size=(RUNS, 1, r.prompts))
        if not seeds:
            return special.expit(skill + self.prompt + own)
        return special.expit(skill + self.prompt + own + r.seed_effect * normal(size=(RUNS, r.seeds, 1)))

    def scores(self, chances, common_draws=False):
        """Mean over the sampled responses [RUNS, S, P]: each response by a draw of its own, or all by the same ones."""
        if common_draws:
            return (self.common < chances[..., None]).mean(-1)
        return self.generator.binomial(self.regime.draws, chances) / self.regime.draws

    def truth(self, skill, seeds):
        r = self.regime
        return expected(skill, r.prompt_effect, r.prompt_effect / 3, r.seed_effect if seeds else 0.0)


def compared(regime, with_base, common_draws=False, seed=0):
    """Tables of differences [RUNS, S, P], and the difference that other seeds and other prompts would have on average."""
    world = World(regime, seed)
    arm = world.scores(world.chances(0.4, seeds=True), common_draws)
    other = world.scores(world.chances(0.1, seeds=not with_base), common_draws)
    return arm - other, world.truth(0.4, True) - world.truth(0.1, not with_base)


@pytest.mark.parametrize("regime", REGIMES, ids=str)
@pytest.mark.parametrize("with_base", [False, True], ids=["between arms", "against the base"])
def test_intervals_over_seeds_and_prompts_hold_the_truth(regime, with_base):
    tables, truth = compared(regime, with_base)
    held = np.mean([crossed_interval(table).contains(truth) for table in tables])
    assert held >= NOMINAL_UP_TO_LUCK


@pytest.mark.parametrize("regime", REGIMES, ids=str)
def test_so_do_those_of_one_arm_and_of_the_base_alone(regime):
    world = World(regime, seed=1)
    arm, base = world.scores(world.chances(0.4, True)), world.scores(world.chances(0.1, False))[:, 0]
    truths = world.truth(0.4, True), world.truth(0.1, False)
    assert np.mean([crossed_interval(table).contains(truths[0]) for table in arm]) >= NOMINAL_UP_TO_LUCK
    assert np.mean([interval_over_prompts(scores).contains(truths[1]) for scores in base]) >= NOMINAL_UP_TO_LUCK


@pytest.mark.parametrize("with_base", [False, True], ids=["between arms", "against the base"])
@pytest.mark.parametrize("common_draws", [False, True], ids=["own draws", "common draws"])
def test_intervals_over_seeds_alone_do_not(with_base, common_draws):
    """As it was: one mean per seed, with all arms and seeds scored by the same draws, or by own ones."""
    tables, truth = compared(Regime(5, 128, 4, 0.1, 3.0), with_base, common_draws)
    assert np.mean([paired(t.mean(1), np.zeros(5)).interval.contains(truth) for t in tables]) < 0.90


def normal_tables(generator, runs, seeds, prompts, seed_effect, prompt_effect):
    """Tables [runs, S, P] of mean 0, the rest's variance 1."""
    return (
        seed_effect * generator.normal(size=(runs, seeds, 1))
        + prompt_effect * generator.normal(size=(runs, 1, prompts))
        + generator.normal(size=(runs, seeds, prompts))
    )


@pytest.mark.parametrize(("seed_effect", "prompt_effect"), [(0.5, 0.0), (0.0, 2.0), (1.0, 2.0)])
def test_the_standard_error_is_the_spread_of_the_mean_when_all_is_drawn_again(seed_effect, prompt_effect):
    tables = normal_tables(np.random.default_rng(2), 2000, 6, 40, seed_effect, prompt_effect)
    estimates = [crossed_mean(table) for table in tables]
    brute_force = np.std([one.mean for one in estimates])
    assert np.sqrt(np.mean([one.standard_error**2 for one in estimates])) == pytest.approx(brute_force, rel=0.06)


def test_the_mean_squares_are_those_of_nested_least_squares():
    """Sums of squares as differences of residuals of regressions on dummies."""
    table = normal_tables(np.random.default_rng(3), 1, 4, 7, 2.0, 3.0)[0]
    seed, prompt = (np.eye(n)[index.ravel()] for n, index in zip((4, 7), np.indices((4, 7)), strict=True))

    def unexplained(*dummies):
        design = np.hstack([np.ones((28, 1)), *dummies])
        return float(((table.ravel() - design @ np.linalg.lstsq(design, table.ravel())[0]) ** 2).sum())

    rest = unexplained(seed, prompt)
    square_seeds, square_prompts = (unexplained(prompt) - rest) / 3, (unexplained(seed) - rest) / 6
    found = crossed_mean(table)
    assert found.standard_error**2 == pytest.approx((square_seeds + square_prompts - rest / 18) / 28)
    assert found.seeds.variance == pytest.approx(table.mean(1).var(ddof=1) / 4) and found.seeds.degrees == 3


def test_at_the_levels_that_holm_asks_for_it_errs_no_more_than_it_says():
    """Few seeds that differ much, and prompts that matter as much: Satterthwaite's common degrees of freedom err 2 to 8
    times as often as they say there."""
    generator, tables = np.random.default_rng(4), 20_000
    seeds, prompts, missed = Part(1.0, 2), Part(0.3, 127), 0.05 / 20
    means = generator.normal(size=tables) * np.sqrt(seeds.variance + prompts.variance)
    drawn = [part.variance * generator.chisquare(part.degrees, tables) / part.degrees for part in (seeds, prompts)]
    wrong, common = 0, 0
    for mean, v_seeds, v_prompts in zip(means, *drawn, strict=True):
        wrong += abs(mean) > Estimate(mean, Part(v_seeds, 2), Part(v_prompts, 127)).half_width(missed)
        degrees = (v_seeds + v_prompts) ** 2 / (v_seeds**2 / 2 + v_prompts**2 / 127)
        common += abs(mean) > -special.stdtrit(degrees, missed / 2) * np.sqrt(v_seeds + v_prompts)
    assert wrong / tables <= missed and common / tables > 2 * missed


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_family_of_arms_equal_to_the_base_is_seldom_told_apart(seeds):
    """Four arms and the base policy on common prompts: ten differences, none of them real."""
    generator, families = np.random.default_rng(7), 150
    wrong = 0
    for _ in range(families):
        arms = [normal_tables(generator, 1, seeds, 96, 0.15, 0.3)[0] for _ in range(4)]
        base = normal_tables(generator, 1, 1, 96, 0.0, 0.3)[0, 0]
        tables = [one - other for i, one in enumerate(arms) for other in arms[i + 1 :]] + [arm - base for arm in arms]
        adjusted = adjust([paired_table(table, flips=False) for table in tables])
        wrong += any(not one.interval.contains(0.0) for one in adjusted)
    assert wrong / families <= 0.05


def test_where_prompts_do_not_matter_it_is_students_over_the_seeds():
    table = np.outer([0.3, 0.1, 0.4, 0.2], np.ones(5))
    found, oracle = crossed_mean(table), stats.ttest_1samp(table[:, 0], 0)
    assert found.p == pytest.approx(oracle.pvalue)
    assert found.interval().low == pytest.approx(oracle.confidence_interval(0.95).low)


def test_where_seeds_do_not_matter_it_is_students_over_the_prompts():
    scores = np.array([0.0, 1.0, 0.25, 0.75, 0.5, 1.0])
    oracle = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    for found in (crossed_interval(np.tile(scores, (3, 1))), interval_over_prompts(scores)):
        assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_seeds_of_equal_means_still_have_an_uncertainty():
    """Three seeds, each right at another two of six prompts: by v_s/S + v_p/P − v_r/(S P) the variance would be below 0."""
    found = crossed_mean(np.kron(np.eye(3), np.ones(2)))
    assert found.standard_error > 0 and found.interval().low < 1 / 3 < found.interval().high


def test_interval_and_p_are_one_statement():
    for seed in range(20):
        found = crossed_mean(normal_tables(np.random.default_rng(seed), 1, 4, 30, 0.3, 0.5)[0] + 0.3)
        touching = found.interval(1 - found.p)
        assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0.0, abs=1e-6)
        assert (found.p < 0.05) == (not found.interval().contains(0.0))


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_cells_leave_no_width(value):
    found = paired_table(np.full((3, 4), value))
    assert found.interval == Interval(value, value, "degenerate") and found.p_t == float(value == 0)


def test_rounding_is_no_difference():
    table = np.tile([0.7 - 0.5, 0.4 - 0.2, 0.3 - 0.1], (3, 1))
    assert np.ptp(table) > 0, "this case is about rounding"
    assert paired_table(table).interval.method == "degenerate"


def table_of_differences(shift=0.3, seeds=5, prompts=40, seed_effect=0.05):
    return shift + normal_tables(np.random.default_rng(5), 1, seeds, prompts, seed_effect, 1.0)[0]


def test_a_paired_table_has_the_differences_of_its_seeds_and_turns_over():
    table = table_of_differences()
    one, other = paired_table(table), paired_table(-table)
    assert one.differences == pytest.approx(tuple(table.mean(1))) and one.interval.method == "crossed"
    assert one.turned().differences == other.differences
    assert one.turned().interval.low == pytest.approx(other.interval.low) == pytest.approx(-one.interval.high)
    assert one.p_t == pytest.approx(other.p_t) and one.p_permutation == other.p_permutation


def test_a_family_of_tables_is_corrected_like_any_other():
    family = [paired_table(table_of_differences(shift)) for shift in (0.2, 0.5, 0.9)]
    for one, adjusted in zip(family, adjust(family), strict=True):
        assert adjusted.p >= one.p_t and (adjusted.p < 0.05) == (not adjusted.interval.contains(0.0))
        assert adjusted.interval.method == "crossed"


@pytest.mark.parametrize(("seeds", "prompts"), [(2, 40), (1, 40), (3, 1)])
def test_too_few_seeds_or_a_single_prompt_are_not_tested(seeds, prompts):
    found = paired_table(table_of_differences(seeds=seeds, prompts=prompts))
    assert not found.tested and np.isnan(found.p_t) and len(found.differences) == seeds


@pytest.mark.parametrize("table", [np.zeros(3), np.zeros((0, 4)), np.array([[0.0, np.nan]] * 3)])
def test_what_is_no_table_is_refused(table):
    with pytest.raises(ValueError, match="table of seeds and prompts|finite"):
        paired_table(table)


def test_more_seeds_shrink_the_seeds_part_alone():
    def settling(shift):
        one = paired_table(shift + normal_tables(np.random.default_rng(6), 1, 4, 40, 1.0, 2.0)[0])
        (adjusted,) = adjust([one])
        return seeds_to_settle(one, adjusted), wants_prompts(one, adjusted)

    assert settling(9.0) == (0, False)
    more, prompts = settling(1.5)
    assert more > 0 and not prompts
    assert settling(0.0) == (None, True)


def test_a_comparison_of_seeds_alone_never_wants_prompts():
    one = paired([0.1, -0.1, 0.05], [0.0, 0.0, 0.0])
    assert not wants_prompts(one, adjust([one])[0])
