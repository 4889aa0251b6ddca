"""Comparisons and claims on small recorded directories whose numbers can be checked by hand."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from rlhf_bench.report import render_text_table, tables, write_report
from rlhf_bench.report.notes import notes
from rlhf_bench.report.verdict import claim_lines
from rlhf_bench.results.claims import at_matched_margin, compare, metric_values, scores_at_equal_kl
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize
from rlhf_bench.results.summary_json import to_json

NAN = float("nan")
LIMIT = 1e12
SEEDS = (1, 2, 3, 4, 5)
LUCK = {1: 0.00, 2: 0.03, 3: -0.02, 4: 0.01, 5: -0.01}
"""What a seed adds to the score of every arm: paired tests must not mind it."""
NOISE = {1: 0.004, 2: -0.003, 3: 0.001, 4: -0.002, 5: 0.002}
LEVEL = {"online": 0.70, "offline": 0.60, "twin": 0.60}


def final_score(arm, seed):
    return LEVEL[arm] + LUCK[seed] + NOISE[seed] * {"online": 1, "offline": 0, "twin": -1}[arm]


def looks(arm, seed):
    """Base, a peak half way and the end; KL and margin grow with the updates, twice as fast online."""
    for step, score in enumerate((0.5, final_score(arm, seed) + 0.05, final_score(arm, seed))):
        update = step * (20 if arm == "online" else 10)
        row = {"arm": arm, "method": "dpo", "seed": seed, "phase": "evaluation", "update": update,
               "fraction": step / 2, "mark": step / 2}  # fmt: skip
        margin = 0.1 * update
        numbers = {"kl": 0.2 * update, "margin": margin, "rejected_logratio": -(2 + 0.01 * seed) * margin,
                   "displaced": 0.4 + NOISE[seed] if arm == "online" else NAN}  # fmt: skip
        yield row | {"split": "in_distribution", "score": score} | numbers
        yield row | {"split": "unseen", "score": score / 2}


def record(directory, recipe=None, statuses=None, seeds=SEEDS):
    """Write a comparison of three arms as a run would; `statuses`: (arm, seed) → status, "done" by default."""
    statuses = statuses or {}
    runs = [(arm, seed) for arm in LEVEL for seed in seeds]
    rows = [row for run in runs for row in looks(*run)]
    train = [{"arm": arm, "seed": seed, "phase": "train", "update": 1, "grad_norm": 1.0} for arm, seed in runs]
    pd.DataFrame(rows + train).to_parquet(directory / "metrics.parquet")
    sample = {"arm": "base", "seed": 0, "mark": NAN, "split": "unseen", "score": 1.0}
    asked = {"prompt_id": "p", "prompt": "1+1=", "reference": "2", "response": "2"}
    pd.DataFrame([sample | asked]).to_parquet(directory / "samples.parquet")
    costs = dict.fromkeys(("generated_tokens", "trained_tokens", "scored_tokens", "judge_queries", "device_seconds"), 0)
    ledger = [{"arm": arm, "seed": seed, "phase": "learning", "flops": LIMIT, **costs} for arm, seed in runs]
    pd.DataFrame(ledger).to_parquet(directory / "ledger.parquet")

    def result(arm, seed):
        status = statuses.get((arm, seed), "done")
        score = final_score(arm, seed) if status == "done" else None
        return {"seed": seed, "status": status, "score": score, "kl": 1.0, "spent": {"flops": LIMIT}}

    arms = {arm: {"method": "dpo", "data": arm, "seeds": [result(arm, seed) for seed in seeds]} for arm in LEVEL}
    base = {"name": "tiny", "compute": {"column": "flops", "limit": LIMIT}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(base | (recipe or {})))
    (directory / "base.json").write_text(json.dumps({"score": {"in_distribution": 0.5}}))
    (directory / "results.json").write_text(json.dumps({"arms": arms}))
    return directory


def claim(more, less, metric="score", statement="S"):
    return {"statement": statement, "more": more, "less": less, "metric": metric}


@pytest.fixture
def recorded(tmp_path):
    return read_recorded(record(tmp_path))


def summary_of(directory):
    return json.loads(json.dumps(to_json(summarize(read_recorded(directory)), "in words"), allow_nan=False))


def test_a_claim_is_decided_by_the_paired_test(tmp_path):
    claims = [claim("online", "offline"), claim("offline", "online"), claim("twin", "offline")]
    found = summary_of(record(tmp_path, {"claims": claims}))["claims"]
    assert [one["verdict"] for one in found] == ["yes", "no", "not resolved at this budget"]
    first = found[0]
    scores = [[final_score(arm, seed) for seed in SEEDS] for arm in ("online", "offline")]
    assert first["statement"] == "S" and first["seeds"] == list(SEEDS) and first["why"] is None
    assert first["difference"] == pytest.approx(0.1 + np.mean(list(NOISE.values())))
    assert first["p"] == pytest.approx(stats.ttest_rel(*scores).pvalue)
    assert first["p_holm"] == pytest.approx(3 * first["p"])
    assert first["p_permutation"] == 1 / 16
    limits = stats.ttest_rel(*scores).confidence_interval(1 - 0.05 / 3)
    assert first["ci95_holm"] == pytest.approx([limits.low, limits.high])
    assert first["probability_of_improvement"]["value"] == 1.0
    assert found[1]["difference"] == pytest.approx(-first["difference"])


def test_every_arm_is_compared_with_the_baseline(tmp_path):
    found = summary_of(record(tmp_path, {"baseline": "offline"}))
    assert found["baseline"] == "offline" and found["claims"] == []
    assert [(one["arm"], one["against"], one["verdict"]) for one in found["comparisons"]] == [
        ("online", "offline", "yes"),
        ("twin", "offline", "not resolved at this budget"),
    ]
    score = found["arms"]["online"]["score"]
    assert score["best"] == pytest.approx(score["mean"] + 0.05)
    assert score["iqm_ci95"][0] < score["iqm"] < score["iqm_ci95"][1]


def test_the_report_is_written_with_claims_that_cannot_be_judged(tmp_path):
    directory = record(tmp_path, {"baseline": "nobody", "claims": [claim("a", "b"), claim("online", "offline", "?")]})
    write_report(directory)
    written = json.loads((directory / "summary.json").read_text())
    assert {**written, "verdict": None} == {**summary_of(directory), "verdict": None}
    assert [one["verdict"] for one in written["claims"]] == ["not evaluated"] * 2
    assert (directory / "report.html").exists()


def test_an_older_directory_without_the_keys_compares_nothing_and_says_nothing_of_it(tmp_path):
    directory = record(tmp_path)
    found = summary_of(directory)
    assert found["baseline"] is None and found["comparisons"] == found["claims"] == []
    text = render_text_table(summarize(read_recorded(directory)))
    assert "Against" not in text.splitlines()[-1] and "Claims" not in text


def test_the_terminal_shows_one_line_per_arm_and_claim(tmp_path):
    recipe = {"baseline": "offline", "claims": [claim("online", "offline", statement="Online wins")]}
    summary = summarize(read_recorded(record(tmp_path, recipe)))
    lines = render_text_table(summary).splitlines()
    assert lines[-6] == "Against offline, paired by seed:"
    assert re.fullmatch(r"  online: better \(\+0\.100 \[\+0\.09\d, \+0\.10\d\], p < 0\.001, seeds: 5\)", lines[-5])
    assert lines[-4].startswith("  twin: not resolved at this budget (+0.000 [")
    assert lines[-2] == "Claims:"
    assert lines[-1].startswith("  Online wins: yes (score of online minus offline +0.100 [+0.09")
    said = " ".join(notes(summary))
    assert "2 against the baseline and, apart, 1 claimed" in said
    assert "with 5 seeds, cannot fall below 1/16." in said


def test_the_tables_hold_the_same_verdicts(tmp_path):
    recipe = {"baseline": "offline", "claims": [claim("online", "offline", statement="Online wins")]}
    summary = summarize(read_recorded(record(tmp_path, recipe)))
    (row,) = tables.claims_table(summary)
    assert row["Claim"] == "Online wins" and row["Verdict"] == "yes" and row["p (Holm)"] == "<0.001"
    assert row["P(improvement) [95% interval]"] == "1.00 [0.48, 1.00]" and row["Common seeds"] == "5"
    assert [row["Arm has more"] for row in tables.paired_table(summary.comparisons)] == [
        "yes", "not resolved at this budget",
    ]  # fmt: skip
    assert [row["Arm"] for row in tables.equal_kl_table(summary)] == ["online", "offline", "twin"]
    assert tables.stability_table(summary)[0]["Best score"] == "0.752"


def test_metrics_of_the_last_look_and_of_the_whole_curve(recorded):
    def of(metric, seed=2):
        return metric_values(recorded, "online", metric)[seed]

    assert of("score") == of("score/in_distribution") == final_score("online", 2)
    assert of("best_score") == pytest.approx(final_score("online", 2) + 0.05)
    assert of("drawdown") == pytest.approx(0.05)
    assert of("score/unseen") == pytest.approx(final_score("online", 2) / 2)
    assert of("kl") == pytest.approx(8.0) and of("displaced") == pytest.approx(0.4 + NOISE[2])
    assert of("slope:margin") == pytest.approx(4.0)  # over the whole budget
    assert of("slope:rejected_logratio") == pytest.approx(-8.08)
    assert of("per_margin:rejected_logratio") == pytest.approx(-2.02)
    table = recorded.metrics.assign(
        **{"own/margin": 4 * recorded.metrics["margin"], "own/x": recorded.metrics["margin"]}
    )
    own = replace(recorded, metrics=table)  # an own column goes by the margin of the same pairs
    assert metric_values(own, "online", "per_margin:own/x")[2] == pytest.approx(0.25)
    assert metric_values(recorded, "offline", "displaced") == {}
    assert metric_values(recorded, "online", "method") == metric_values(recorded, "online", "slope:method") == {}


def test_at_equal_kl_each_seed_is_read_where_the_slower_arm_ends(recorded):
    at = scores_at_equal_kl(recorded, ["online", "offline"])
    assert at.kl == pytest.approx(4.0)
    assert at.scores["online"][3] == pytest.approx(final_score("online", 3) + 0.05)  # its second look lies there
    assert at.scores["offline"][3] == pytest.approx(final_score("offline", 3))
    (found,) = compare(recorded, [("online", "offline", "score_at_equal_kl")])
    assert found.verdict == "yes" and found.difference == pytest.approx(0.15 + np.mean(list(NOISE.values())))


def test_a_slope_is_by_compute_however_many_updates_that_buys(tmp_path):
    """Offline makes half as many updates of twice the work: per update it moves as fast, per FLOP half as fast."""
    recorded = read_recorded(record(tmp_path))
    assert metric_values(recorded, "offline", "slope:margin")[1] == pytest.approx(2.0)
    metrics = recorded.metrics.assign(update=recorded.metrics["update"] ** 2)
    metrics.to_parquet(tmp_path / "metrics.parquet")
    assert metric_values(read_recorded(tmp_path), "offline", "slope:margin")[1] == pytest.approx(2.0)


def test_at_a_matched_margin_each_seed_is_read_where_the_slower_arm_ends(recorded):
    at = at_matched_margin(recorded, ["online", "offline"], "score")
    assert at.level == pytest.approx(2.0)
    assert at.values["online"][3] == pytest.approx(final_score("online", 3) + 0.05)  # its second look lies there
    assert at.values["offline"][3] == pytest.approx(final_score("offline", 3))
    found, none = compare(recorded, [("online", "offline", m) for m in ("at_margin:kl", "at_margin:displaced")])
    assert found.difference == pytest.approx(0.0) and found.verdict == "not resolved at this budget"
    assert none.why == "at_margin:displaced was not recorded for offline."


NOT_COMPARABLE = {
    ("onlin", "offline", "score"): "No arm is called onlin: the arms are online, offline and twin.",
    ("a", "b", "score"): "No arm is called a or b: the arms are online, offline and twin.",
    ("twin", "twin", "score"): "twin is compared with itself.",
    ("online", "offline", "magin"): "magin was not recorded for online and offline; margin was.",
    ("online", "offline", "slope:magin"): "slope:magin was not recorded for online and offline; slope:margin was.",
    ("online", "offline", "method"): "method was not recorded for online and offline.",
    ("online", "offline", "displaced"): "displaced was not recorded for offline.",
    ("online", "offline", "best_scores"): "best_scores was not recorded for online and offline; best_score was.",
}


def test_what_cannot_be_compared_says_why_and_loses_nothing_else(tmp_path):
    claims = [claim(*wanted) for wanted in NOT_COMPARABLE] + [claim("online", "offline")]
    summary = summarize(read_recorded(record(tmp_path, {"claims": claims})))
    *bad, good = to_json(summary, "in words")["claims"]
    assert [one["why"] for one in bad] == list(NOT_COMPARABLE.values())
    assert {one["verdict"] for one in bad} == {"not evaluated"} and {one["difference"] for one in bad} == {None}
    assert good["verdict"] == "yes" and good["p_holm"] == pytest.approx(good["p"])  # the family is what was tested
    lines = [f"  S: not evaluated ({said.removesuffix('.')})" for said in NOT_COMPARABLE.values()]
    assert claim_lines(summary)[1:-1] == lines


@pytest.mark.parametrize("claims", ["online wins", ["online wins"], [{"statement": "S"}], [{"more": "online"}], 3])
def test_claims_that_are_no_claims_do_not_lose_the_report(tmp_path, claims):
    (found,) = summary_of(record(tmp_path, {"claims": claims}))["claims"]
    assert found["verdict"] == "not evaluated" and found["why"]


def test_a_baseline_that_does_not_exist_is_said_in_one_line(tmp_path):
    directory = record(tmp_path, {"baseline": "nobody"})
    assert "Baseline: no arm is called nobody, so no arm is compared with it." in render_text_table(
        summarize(read_recorded(directory))
    )


def test_two_common_seeds_give_a_difference_and_a_sentence_for_the_interval(tmp_path):
    lost = {("online", seed): "diverged" for seed in (1, 2)} | {("offline", 3): "failed"}
    directory = record(tmp_path, {"claims": [claim("online", "offline")]}, lost)
    (found,) = summary_of(directory)["claims"]
    assert found["seeds"] == [4, 5] and found["left_out_seeds"] == [1, 2, 3]
    assert found["verdict"] == "not resolved at this budget"
    assert found["difference"] == pytest.approx(0.1 + (NOISE[4] + NOISE[5]) / 2)
    assert found["ci95"] is found["ci95_holm"] is found["p"] is found["p_holm"] is found["p_permutation"] is None
    assert found["why"] == "The two arms share 2 seeds: an interval and a test take 3."
    (line,) = claim_lines(summarize(read_recorded(directory)))[1:]
    assert "+0.100. The two arms share 2 seeds" in line


def test_lost_seeds_are_left_out_of_the_pairs_and_named(tmp_path):
    directory = record(tmp_path, {"baseline": "offline"}, {("online", 2): "diverged"})
    found = summary_of(directory)["comparisons"][0]
    assert found["seeds"] == [1, 3, 4, 5] and found["left_out_seeds"] == [2]
    rest = [s for s in SEEDS if s != 2]
    scores = [[final_score(arm, seed) for seed in rest] for arm in ("online", "offline")]
    assert found["p"] == pytest.approx(stats.ttest_rel(*scores).pvalue)
    assert "seeds: 4, without 2" in render_text_table(summarize(read_recorded(directory)))


def test_an_arm_that_finished_nothing_is_said_to(tmp_path):
    lost = {("online", seed): "failed" for seed in SEEDS}
    found = summary_of(record(tmp_path, {"baseline": "offline"}, lost))
    assert found["comparisons"][0]["why"] == "online finished no seed."
    assert found["comparisons"][1]["verdict"] == "not resolved at this budget"
    assert set(found["equal_kl"]["arms"]) == {"offline", "twin"}


def test_one_seed_is_reported_without_a_test(tmp_path):
    directory = record(tmp_path, {"baseline": "offline", "claims": [claim("online", "offline")]}, seeds=(1,))
    found = summary_of(directory)
    assert "share 1 seed:" in found["claims"][0]["why"]
    assert not math.isnan(found["claims"][0]["difference"])


def test_the_order_of_the_rows_on_disk_changes_nothing(tmp_path):
    recipe = {
        "claims": [claim("online", "offline", "per_margin:rejected_logratio"), claim("online", "twin", "drawdown")]
    }
    directory = record(tmp_path, recipe)
    before = summary_of(directory)["claims"]
    metrics = pd.read_parquet(directory / "metrics.parquet")
    metrics.sample(frac=1, random_state=0).to_parquet(directory / "metrics.parquet")
    for one, other in zip(before, summary_of(directory)["claims"], strict=True):
        assert other["verdict"] == one["verdict"] and other["difference"] == pytest.approx(one["difference"])
