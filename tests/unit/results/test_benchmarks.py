"""benchmarks.json: what counts, how numbers of seeds become one with an interval, and where it is shown."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from rlhf_bench.core.errors import BadInput
from rlhf_bench.diagnostics.crossed import crossed_mean, mean_with_errors
from rlhf_bench.experiment.tracking.outbox import Run
from rlhf_bench.experiment.tracking.recorded import Records, benchmark_name
from rlhf_bench.report import write_report
from rlhf_bench.report.archive import archive
from rlhf_bench.report.sections.benchmarks import benchmark_rows
from rlhf_bench.results.benchmark_results import benchmark_results
from rlhf_bench.results.benchmarks import add_benchmarks, read_benchmarks
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.schema import BASE, BENCHMARKS
from rlhf_bench.results.summary import summarize
from tests.support.benchmarks import complete, measurement
from tests.support.recorded import record


@pytest.fixture
def directory(tmp_path):
    """Two arms with three seeds, whose weights are not recorded."""
    scores = np.random.default_rng(0).uniform(size=(3, 4))
    record(tmp_path, {"dpo": (scores, scores), "ppo": (scores, scores)}, (scores[0], scores[1]), {})
    complete(tmp_path)
    return tmp_path


def recorded_as(directory, **weights):
    """`results.json` with the weights of an arm's seeds."""
    results = json.loads((directory / "results.json").read_text())
    for arm, own in weights.items():
        for seed in results["arms"][arm]["seeds"]:
            seed["weights"] = own
    (directory / "results.json").write_text(json.dumps(results))


# What the file holds


def test_what_is_written_is_read_again_and_a_number_without_an_error_has_none(directory):
    rows = [measurement(), measurement("dpo", 1, 0.25, standard_error=None, shots=None, higher_is_better=None)]
    add_benchmarks(directory, rows)
    assert read_benchmarks(directory) == rows


def test_measuring_again_replaces_the_same_prompts_and_keeps_others(directory):
    add_benchmarks(directory, [measurement("dpo", 1, 0.1), measurement("dpo", 1, 0.2, digest="fewer", prompts=5)])
    add_benchmarks(directory, [measurement("dpo", 1, 0.3)])
    assert [(one.digest, one.value) for one in read_benchmarks(directory)] == [("fewer", 0.2), ("d1", 0.3)]


def test_numbers_of_weights_that_are_no_longer_there_neither_count_nor_stay(directory):
    add_benchmarks(directory, [measurement("dpo", seed, 0.1, weights="old") for seed in (1, 2, 3)])
    assert summarize(read_recorded(directory)).benchmarks[0].arms["dpo"].mean == pytest.approx(0.1)
    recorded_as(directory, dpo="new")
    assert summarize(read_recorded(directory)).benchmarks == ()
    add_benchmarks(directory, [measurement("dpo", 1, 0.7, weights="new")])
    assert [(one.seed, one.weights) for one in read_benchmarks(directory)] == [(2, "old"), (3, "old"), (1, "new")]
    assert summarize(read_recorded(directory)).benchmarks[0].arms["dpo"].seeds == {1: 0.7}


@pytest.mark.parametrize("content", ["", "{", '{"rows": [{"arm": "dpo"}]}', "[]"])
def test_a_damaged_file_is_refused_by_name_with_the_remedy(directory, content):
    (directory / BENCHMARKS).write_text(content)
    with pytest.raises(BadInput, match=r"benchmarks\.json: cannot be read; .*or remove it"):
        read_recorded(directory)


# Intervals


def test_of_one_policy_the_interval_is_students_over_prompts():
    found = mean_with_errors([0.4], [0.05], prompts=26).interval()
    half = stats.t.ppf(0.975, 25) * 0.05
    assert (found.low, found.high) == pytest.approx((0.4 - half, 0.4 + half))


def test_of_several_seeds_both_half_widths_add_in_squares():
    values, errors = [0.4, 0.5, 0.45], [0.05, 0.04, 0.06]
    found = mean_with_errors(values, errors, prompts=101)
    seeds = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    prompts = stats.t.ppf(0.975, 100) * math.sqrt(np.mean(np.square(errors)))
    assert found.interval().high - 0.45 == pytest.approx(math.hypot(seeds, prompts))
    only = mean_with_errors(values, [math.nan] * 3, prompts=101).interval()  # no errors: seeds alone
    assert only.high - 0.45 == pytest.approx(seeds)


def test_nothing_is_said_where_there_is_neither_an_error_nor_a_second_seed():
    assert mean_with_errors([0.4], [math.nan], 100) is None and mean_with_errors([0.4], [0.1], 1) is None


def test_its_prompts_part_is_never_below_that_of_single_prompts():
    """The rule of final scores, which needs every prompt's score, on the same tables."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        seeds, prompts = rng.integers(2, 8), rng.integers(5, 60)
        table = rng.normal(0, rng.uniform(0, 0.5), (seeds, 1)) + rng.normal(0, rng.uniform(0, 1), prompts)
        table = table + rng.normal(0, 0.5, (seeds, prompts))
        errors = table.std(axis=1, ddof=1) / math.sqrt(prompts)
        own, full = mean_with_errors(table.mean(1), errors, prompts), crossed_mean(table)
        assert own.mean == pytest.approx(full.mean)
        assert own.prompts.variance >= full.prompts.variance
        assert own.seeds.variance <= full.seeds.variance * (1 + 1e-9)


# Summary, report and MLflow


def rows_of_three_seeds():
    return [
        measurement(BASE, 0, 0.5),
        *(measurement("dpo", seed, value) for seed, value in ((1, 0.6), (2, 0.7), (3, 0.8))),
        measurement("ppo", 1, 0.4),
        measurement(BASE, 0, 3.5, metric="f1", filter="strict-match", higher_is_better=False, standard_error=None),
    ]


def test_arms_are_means_over_seeds_and_one_seed_has_no_interval(directory):
    accuracy, other = benchmark_results(rows_of_three_seeds(), ["dpo", "ppo"], own_bases=False)
    assert accuracy.arms["dpo"].mean == pytest.approx(0.7) and accuracy.arms["dpo"].seeds == {1: 0.6, 2: 0.7, 3: 0.8}
    assert accuracy.arms["ppo"].interval is None and accuracy.base.interval.method == "t"
    assert accuracy.arms["dpo"].interval.method == "crossed"
    assert (accuracy.name, other.name) == ("acc", "f1 (strict-match)") and other.arms == {} and other.base.mean == 3.5


def test_of_base_policies_by_seed_the_interval_is_over_seeds_too():
    rows = [measurement(BASE, seed, value) for seed, value in ((1, 0.5), (2, 0.7))]
    (found,) = benchmark_results(rows, [], own_bases=True)
    assert found.base.mean == pytest.approx(0.6) and found.base.interval.method == "crossed"
    (found,) = benchmark_results(rows[:1], [], own_bases=True)
    assert found.base.interval is None


def test_numbers_of_other_prompts_stand_in_a_row_of_their_own(directory):
    add_benchmarks(directory, [measurement("dpo", 1, 0.1, digest="few", prompts=5), measurement("dpo", 2, 0.9)])
    rows = benchmark_rows(summarize(read_recorded(directory)))
    assert [(row["Prompts"], row["dpo"], row["base"]) for row in rows] == [("5", "0.100", "–"), ("100", "0.900", "–")]


def test_summary_and_report_have_the_numbers_and_runs_without_them_no_section(directory):
    write_report(directory)
    assert "Outside benchmarks" not in (directory / "report.html").read_text()
    assert json.loads((directory / "summary.json").read_text())["benchmarks"] == []
    add_benchmarks(directory, rows_of_three_seeds())
    write_report(directory)
    page = (directory / "report.html").read_text()
    assert "Outside benchmarks" in page and "lm-eval 0.4.13" in page and "ppo (1 of 3 seeds)" in page
    first, second = json.loads((directory / "summary.json").read_text())["benchmarks"]
    assert (first["task"], first["metric"], first["prompts"]) == ("sums", "acc", 100)
    assert first["arms"]["dpo"]["mean"] == pytest.approx(0.7) and first["arms"]["dpo"]["seeds"]["3"] == 0.8
    assert first["base"]["ci95"][0] < 0.5 < first["base"]["ci95"][1]
    assert second["base"]["ci95"] is None and second["higher_is_better"] is False


def test_the_numbers_are_archived_with_the_records(directory, tmp_path_factory):
    add_benchmarks(directory, rows_of_three_seeds())
    kept = tmp_path_factory.mktemp("kept") / "made"
    archive(directory, kept)
    assert summarize(read_recorded(kept)).benchmarks == summarize(read_recorded(directory)).benchmarks


def test_mlflow_gets_an_arms_numbers_in_its_run_and_the_bases_in_the_comparisons(directory):
    add_benchmarks(directory, [*rows_of_three_seeds(), measurement("dpo", 1, 0.2, digest="few", prompts=5)])
    records = Records(directory)
    told = [(p.step, dict(p.metrics)) for p in records.run("dpo", 1).points if "benchmark/sums/acc" in p.metrics]
    assert told == [(100, {"benchmark/sums/acc": 0.6}), (5, {"benchmark/sums/acc": 0.2})]
    whole = [(p.step, dict(p.metrics)) for p in records.of(Run("0123456789ab")).points]
    assert whole == [(100, {"benchmark/sums/acc": 0.5}), (100, {"benchmark/sums/f1/strict-match": 3.5})]


def test_a_name_in_mlflow_has_only_what_mlflow_takes_and_the_last_measuring_counts(directory):
    assert benchmark_name(measurement(task="a@b", metric="pass@1", filter="x,y")) == "benchmark/a_b/pass_1/x_y"
    add_benchmarks(directory, [measurement("dpo", 1, 0.1, digest="before")])
    add_benchmarks(directory, [measurement("dpo", 1, 0.3, digest="after")])
    told = [p.metrics for p in Records(directory).run("dpo", 1).points if "benchmark/sums/acc" in p.metrics]
    assert told == [{"benchmark/sums/acc": 0.3}]
