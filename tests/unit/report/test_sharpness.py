"""Sampled and greedy scores side by side: what a gain is worth that the most likely tokens do not show."""

import numpy as np
import pytest

from rlhf_bench.report import comparison_table, write_report
from rlhf_bench.report.archive import archive
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize
from rlhf_bench.results.summary_json import to_json
from tests.support.recorded import record

SEEDS, PROMPTS = 5, 200


def drawn(generator, probability, shape):
    """Mean scores of four responses to each prompt."""
    return generator.binomial(4, np.broadcast_to(probability, shape)) / 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Prompts of which four fifths are known greedily. `sharper` puts more probability on the same answers, `abler` has learned
    new ones, `worse` is sharper and has lost some."""
    generator = np.random.default_rng(4)
    knows = np.arange(PROMPTS) < 0.8 * PROMPTS
    learned, lost = np.arange(PROMPTS) < 0.95 * PROMPTS, np.arange(PROMPTS) < 0.6 * PROMPTS
    sampled = lambda known, share: drawn(generator, share * known, (SEEDS, PROMPTS))  # noqa: E731
    greedy = lambda known: np.tile(known.astype(float), (SEEDS, 1))  # noqa: E731
    arms = {
        "sharper": (sampled(knows, 0.9), greedy(knows)),
        "abler": (sampled(learned, 0.9), greedy(learned)),
        "worse": (sampled(lost, 1.0), greedy(lost)),
    }
    base = (drawn(generator, 0.5 * knows, PROMPTS), knows.astype(float))
    at = {0.5: (drawn(generator, 0.93 * knows, PROMPTS), knows.astype(float))}
    return record(tmp_path_factory.mktemp("sharp"), arms, base, at)


@pytest.fixture(scope="module")
def summary(directory):
    return summarize(read_recorded(directory))


def test_the_verdict_says_whose_gain_vanishes_greedily_and_who_fell(summary):
    told = verdict(summary)
    assert [one.arm for one in summary.standing.against_base if one.above] == ["abler", "sharper", "worse"]
    assert (
        "Scored greedily, the gain of sharper (0.800) vanishes: the difference from the base policy's 0.800 is not settled."
        in told
    )
    assert "Scored greedily, worse (0.600) ended below the base policy's 0.800." in told
    assert "abler (0.9" not in told


def test_the_verdict_says_what_the_base_policy_scores_when_it_is_only_sharper(summary):
    sharper = summary.base_at[0].score
    assert (
        f"Without any training, the base policy at temperature 0.5 scores {sharper:.3f}: only the mean of abler is higher, and no test "
        "compares them with it." in verdict(summary)
    )


def test_the_table_has_both_scores_and_the_sharper_base_policy(summary):
    rows = {row["Arm"]: row for row in comparison_table(summary)}
    assert list(rows) == ["abler", "sharper", "worse", "base", "base at temperature 0.5"]
    assert rows["abler"]["Greedy [95% interval]"].startswith("0.950 [")
    assert rows["base"]["Greedy [95% interval]"].startswith("0.800 [")
    assert rows["abler"]["KL (nats)"] == "1.00 ± 0.04"  # five seeds' errors of 0.1
    assert rows["base"]["Entropy (nats per token)"] == "1.500"
    assert float(rows["base at temperature 0.5"]["Against base"]) > 0.3


def test_intervals_are_over_prompts_too(summary):
    """Greedily all seeds are alike: what is left is which prompts were asked."""
    arm = summary.arms[0]
    half = 1.972 * np.sqrt(0.8 * 0.2 / (PROMPTS - 1))
    assert (arm.greedy_interval.low, arm.greedy_interval.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.002)
    assert arm.interval.method == "crossed" and summary.base.interval.method == "t"


def test_scripts_are_told_the_same(summary):
    data = to_json(summary, verdict(summary))
    greedy = {one["arm"]: one for one in data["verdict"]["greedy_against_base"]}
    assert not greedy["sharper"]["settled"] and greedy["abler"]["settled"] and greedy["worse"]["difference"] < -0.19
    assert data["arms"]["worse"]["greedy"]["mean"] == pytest.approx(0.6)
    assert (
        data["base"]["greedy_score"] == pytest.approx(0.8) and data["base"]["at_temperature"][0]["temperature"] == 0.5
    )


def test_an_archive_says_the_same(directory, summary, tmp_path):
    archive(directory, tmp_path / "kept")
    again = summarize(read_recorded(tmp_path / "kept"))
    assert verdict(again) == verdict(summary) and comparison_table(again) == comparison_table(summary)


def test_a_comparison_of_which_no_arm_ran_yet_has_a_report(tmp_path):
    """As when a run ends after its base policy."""
    none = np.zeros((0, 2))
    record(tmp_path, {"later": (none, none)}, (np.array([0.5, 0.25]), np.array([1.0, 0.0])), {})
    assert "so there is nothing to compare" in verdict(write_report(tmp_path))
