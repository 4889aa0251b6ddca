"""The report's sections, docs pages and kept data, on small recorded directories with and without each ingredient."""

import json
import math
import re
import shutil

import pandas as pd
import pytest
import yaml
from scipy import stats

from rlhf_bench.core.errors import BadInput
from rlhf_bench.report import write_report
from rlhf_bench.report.archive import archive
from rlhf_bench.report.docs_page import write_page
from rlhf_bench.report.measures import Measure, directions, judged, remarks
from rlhf_bench.report.page import sections
from rlhf_bench.report.sections.field import field_section
from rlhf_bench.report.sections.gradients import gradients
from rlhf_bench.report.sections.own_pairs import own_pairs
from rlhf_bench.report.sections.pairs import Right, against, displacement, ranking
from rlhf_bench.report.sections.pairwise import pairwise
from rlhf_bench.report.sections.properties import dispersion, rejected_drop, suppression
from rlhf_bench.report.sections.sensitivity import sensitivity
from rlhf_bench.report.series import series_labels, write_series
from rlhf_bench.report.sweeps import range_of_noise
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize

NAN = float("nan")
LIMIT = 1e12
SEEDS = (1, 2, 3)
NOISE = {1: 0.01, 2: -0.02, 3: 0.01}
"""Sums to 0, so that means over the seeds are the numbers below."""
SPEED = {"dpo": -0.04, "flex": -0.01, "ppo": 0.0, "dpo.beta=0.2": -0.02, "dpo.beta=0.4": -0.01}
"""Nats that the rejected response loses with an update."""
FINAL = {"dpo": 0.4, "flex": 0.6, "ppo": 0.7, "dpo.beta=0.2": 0.45, "dpo.beta=0.4": 0.55}
DISTANCE = (0.2, 0.4, 0.6, 0.8)
ARMS = ("dpo", "flex", "ppo")
CLAIM = {"statement": "Flex | beats <b>DPO</b>", "more": "flex", "less": "dpo", "metric": "score"}


def look(arm, seed, step):
    """One evaluation: the base policy, half way, the end. DPO loses both sides, Flex the rejected one only."""
    update, noise = 50 * step, NOISE[seed] * step
    down = SPEED[arm] * update
    up = {"dpo": 0.5 * down, "flex": -down}.get(arm, 0.0)
    numbers = {
        "chosen_logratio": up + noise, "rejected_logratio": down + noise, "margin": up - down,
        "chosen_logprob": -10 + up + noise, "rejected_logprob": -12 + down + noise,
        "displaced": 0.5 * step if arm == "dpo" else 0.1, "accuracy": 0.5 + 0.2 * step, "accuracy/unseen": 0.5,
        "probe/base_samples": -8 - 0.1 * step, "probe/base_samples_logratio": -0.1 * step,
        "probe/permuted": -30 + step + noise, "probe/permuted_logratio": step + noise if arm == "dpo" else noise,
        "kl": 1.0 * step, "entropy": 1.2 - 0.1 * step, "argmax_confidence": 0.5 + 0.1 * step,
        "gradient/chosen_norm": 10.0, "gradient/rejected_norm": 10.0 + 5 * step + noise, "gradient/cosine": 0.3,
        "gradient/falling": 0.25,
    }  # fmt: skip
    if arm != "ppo":
        numbers |= {
            "partial/log_ratio": 1.0,
            "partial/pi_log_ratio": 2.0 + step,
            "partial/pi_log_ratio_theory": 2.0 + step,
        }
    row = {"arm": arm, "method": "dpo", "seed": seed, "phase": "evaluation", "update": update,
           "fraction": step / 2, "mark": step / 2}  # fmt: skip
    score = 0.5 + (FINAL[arm] - 0.5 + 3 * NOISE[seed]) * step / 2
    return [row | {"split": "in_distribution", "score": score} | numbers, row | {"split": "unseen", "score": score / 2}]


def pairs_of(arm, seed, step):
    """Four pairs: the chosen response loses more the closer both sides are, in proportion to the distance."""
    for number, distance in enumerate(DISTANCE):
        moved = (distance - 1 + NOISE[seed]) * step if arm == "dpo" else 0.1 * number * step
        yield {"arm": arm, "seed": seed, "mark": step / 2, "update": 50 * step, "split": "in_distribution",
               "pair_id": f"p{number}", "chosen_logprob": -10 + moved, "rejected_logprob": -12 - step,
               "chosen_logratio": moved, "rejected_logratio": -1.0 * step, "chosen_tokens": 4, "rejected_tokens": 5,
               "ches": -distance, "ches_normalised": -distance / 4, "edit_distance": distance,
               "reward_margin": 1.0 if number else -1.0}  # fmt: skip


def record(directory, arms=ARMS, seeds=SEEDS, pairs=True, without=(), tuning=None, grid=None, **recipe):
    """Write a comparison as a run would; `without` names column prefixes that were not recorded."""
    directory.mkdir(parents=True, exist_ok=True)
    runs = [(arm, seed) for arm in arms for seed in seeds]
    looks = [row for run in runs for step in (0, 1, 2) for row in look(*run, step)]
    train = [{"arm": arm, "seed": seed, "phase": "train", "update": update, "fraction": update / 100, "grad_norm": 1.0,
              "reward": 0.1 * update, "unread": 1.0} for arm, seed in runs for update in range(1, 101)]  # fmt: skip
    metrics = pd.DataFrame(looks + train)
    dropped = [column for column in metrics.columns if any(column.startswith(prefix) for prefix in without)]
    metrics.drop(columns=dropped).to_parquet(directory / "metrics.parquet")
    asked = {"split": "unseen", "prompt_id": "p", "prompt": "1+1=", "reference": "2", "response": "2", "score": 1.0}
    pd.DataFrame([{"arm": "base", "seed": 0, "mark": NAN} | asked]).to_parquet(directory / "samples.parquet")
    costs = dict.fromkeys(("generated_tokens", "trained_tokens", "scored_tokens", "judge_queries", "device_seconds"), 0)
    ledger = [{"arm": arm, "seed": seed, "phase": "learning", "flops": LIMIT, **costs} for arm, seed in runs]
    pd.DataFrame(ledger).to_parquet(directory / "ledger.parquet")
    if pairs:
        base = [row | {"arm": "base", "seed": 0} for row in pairs_of("flex", seeds[0], 0)]
        moved = [row for run in runs for step in (0, 1, 2) for row in pairs_of(*run, step)]
        pd.DataFrame(base + moved).to_parquet(directory / "pairs.parquet")
    if tuning is not None:
        (directory / "tuning.json").write_text(json.dumps(tuning))

    def result(arm, seed):
        return {
            "seed": seed,
            "status": "done",
            "score": FINAL[arm] + 3 * NOISE[seed],
            "kl": 2.0,
            "spent": {"flops": LIMIT},
        }

    settings = {"dpo": {"method": "dpo", "beta": 0.1}, "flex": {"method": "flex_dpo"}, "ppo": {"method": "ppo"}}
    whole = {"name": "tiny", "description": "A <i>small</i> one.", "compute": {"column": "flops", "limit": LIMIT},
             "arms": {arm: settings.get(arm, {"method": "dpo", "beta": float(arm.rpartition("=")[2] or 0.1) if "=" in arm else 0.1})
                      for arm in arms}}  # fmt: skip
    recipe |= {"tuning": grid} if grid else {}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(whole | recipe))
    base_numbers = {"entropy": 1.2, "argmax_confidence": 0.5, "kl": 0.0}
    (directory / "base.json").write_text(
        json.dumps({"score": {"in_distribution": 0.5, "unseen": 0.25}, "numbers": base_numbers})
    )
    found = {arm: {"method": "dpo", "data": "offline", "seeds": [result(arm, seed) for seed in seeds]} for arm in arms}
    timing = {"wall_seconds": 61.0}
    (directory / "results.json").write_text(
        json.dumps({"arms": found, "timing": timing, "commit": "abc", "run_key": "k"})
    )
    return directory


def of(make, directory):
    recorded = read_recorded(directory)
    return make(recorded, summarize(recorded))


def row_of(section, arm, table=0):
    return next(row for row in section.tables[table].rows if row["Arm"] == arm)


def page_of(directory):
    write_report(directory)
    return (directory / "report.html").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison with every ingredient, and its page: rendered once, not to be changed."""
    trial = {"settings": {"learning_rate": 1e-4}, "score": 0.4, "status": "done", "spent": {"flops": 1e11}}
    diverged = {"settings": {"learning_rate": 1e-2}, "score": None, "status": "diverged", "spent": {"flops": 1e10}}
    directory = record(
        tmp_path_factory.mktemp("whole"), arms=tuple(SPEED), baseline="dpo", claims=[CLAIM], sweep={"beta": [0.2, 0.4]},
        tuning={arm: [diverged | {"score": NAN}, trial] for arm in SPEED},
    )  # fmt: skip
    return directory, page_of(directory)


def test_the_page_has_every_section_and_its_contents_lead_to_them(whole):
    page = whole[1]
    anchors = re.findall(r'<li><a href="#([\w-]+)"', page)
    for anchor in ("claims", "rejected", "suppression", "dispersion", "gradients", "field", "ranking", "displacement",
                   "sensitivity", "pairwise", "run"):  # fmt: skip
        assert anchor in anchors
    assert all(page.count(f'id="{anchor}"') == 1 for anchor in anchors)
    assert len(page) < 3e6


def test_the_page_is_one_file_that_a_reader_by_ear_can_use(whole):
    page = whole[1]
    assert not re.search(r'(?:src|href)="(?!#|data:image/png)', page) and "<script" not in page
    assert all('aria-label="' in tag for tag in re.findall(r'<div class="plot[^>]*>', page))
    assert all('aria-label="' in tag for tag in re.findall(r'<div class="scroll[^>]*>', page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_text_of_the_recipe_is_escaped_on_both_pages(whole, tmp_path):
    assert "<b>DPO" not in whole[1] and "Flex | beats &lt;b&gt;DPO&lt;/b&gt;" in whole[1]
    write_page(whole[0], tmp_path / "tiny.md")
    text = (tmp_path / "tiny.md").read_text()
    assert "Flex \\| beats \\<b>DPO\\</b>" in text and "A \\<i>small\\</i> one." in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert min(widths) > 2  # the statement's own bar opens no column
    table = [
        line
        for line in text.splitlines()
        if line.startswith("|") and "Verdict" in line or "Flex \\| beats" in line[:40]
    ]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table if line.startswith("|")}) == 1


def test_claims_and_baseline_stand_under_the_comparison(whole):
    page = whole[1]
    assert (
        page.index("Comparison of the arms")
        < page.index("The recipe&#39;s claims")
        < page.index("Every arm against dpo")
    )
    assert page.index("Every arm against dpo") < page.index('id="rejected"')
    assert re.search(r"Flex \| beats.*?<td>yes</td>", page)


def test_without_claims_and_baseline_the_page_says_so(tmp_path):
    page = page_of(record(tmp_path, pairs=False, without=("probe", "gradient", "partial")))
    assert "The recipe makes no claim." in page and "names no baseline" in page


def test_the_drop_of_the_rejected_is_a_slope_by_compute_and_by_margin(whole):
    section = of(rejected_drop, whole[0])
    assert row_of(section, "dpo")["Slope (nats per budget)"].startswith("-4 [")
    # dpo: chosen −0.02, rejected −0.04 an update, so the margin grows by 0.02; flex: +0.01 and −0.01.
    assert row_of(section, "dpo")["Slope per nat of margin"].startswith("-2 [")
    assert row_of(section, "flex")["Slope per nat of margin"].startswith("-0.5 [")
    assert row_of(section, "dpo")["Δ⁻ at a margin of 2 (nats)"].startswith("-4 [")
    assert row_of(section, "flex")["Δ⁻ at a margin of 2 (nats)"].startswith("-1 [")
    assert row_of(section, "ppo")["Δ⁻ at a margin of 2 (nats)"] == "–"
    assert "fell in dpo and flex" in section.seen[0] and "most in dpo: -4" in section.seen[0]
    assert "so that the chosen response fell as well, in dpo (-2 [" in section.seen[1]
    assert "fell by less than 1 nat, or rose, in flex (-0.5 [" in section.seen[1]
    assert any("not settled, in ppo" in sentence for sentence in section.seen)


def test_an_arm_that_makes_a_tenth_of_the_updates_falls_as_fast_by_compute(tmp_path):
    """PPO's update may cost ten times as much: by update it would fall ten times as fast."""
    directory = record(tmp_path)
    metrics = pd.read_parquet(directory / "metrics.parquet")
    fewer = metrics["update"].where(metrics["arm"] != "dpo", metrics["update"] // 10)
    metrics.assign(update=fewer).to_parquet(directory / "metrics.parquet")
    assert row_of(of(rejected_drop, directory), "dpo")["Slope (nats per budget)"].startswith("-4 [")


def test_directions_are_corrected_for_all_that_a_section_judges():
    """Each of twenty numbers alone has an interval above 0; together they are no more than twenty draws of luck."""
    luck = [Measure(f"arm{i}", {1: 0.4, 2: 0.5 + 0.01 * i, 3: 0.5}) for i in range(20)]
    assert {one.side for one in luck} == {"above"}
    (alone,), (together,) = judged(luck[:1]), judged(luck)
    assert alone[0].side == "above" and {one.side for one in together} == {"open"}
    assert remarks(together)[0].count("corrected by Holm over the 20 numbers") == 1
    sure = Measure("sure", {1: 1.00, 2: 1.001, 3: 0.999})
    assert judged([sure], luck)[0][0].side == "above"


def test_a_number_is_judged_by_what_it_is_compared_with():
    (half,) = judged([Measure("a", {1: 0.61, 2: 0.60, 3: 0.62}, origin=0.5)])
    assert half[0].side == "above" and half[0].cell().startswith("0.61 [0.585")
    assert Measure("a", {1: 0.5, 2: 0.5, 3: 0.5}, origin=0.5).side == "same"


def test_the_interval_of_a_share_stays_within_0_and_1(tmp_path):
    directory = record(tmp_path)
    metrics = pd.read_parquet(directory / "metrics.parquet")
    near_one = metrics["displaced"].where(metrics["mark"] < 1, 0.98 + 2 * metrics["seed"].map(NOISE))
    metrics.assign(displaced=near_one).to_parquet(directory / "metrics.parquet")
    assert row_of(of(suppression, directory), "dpo")["Displaced share"].endswith(", 1]")


def test_predicates_read_as_one_sentence():
    rising, falling, unsure, still = (
        Measure(arm, dict(enumerate(values, 1)))
        for arm, values in {"a": (1, 1.1, 0.9), "b": (-1, -1.1, -0.9), "c": (1, -1, 0), "d": (0, 0, 0)}.items()
    )
    said = directions("The entropy", [rising, falling, unsure, still], "fell in", "rose in")
    assert re.fullmatch(
        r"The entropy fell in b \(.*\), rose in a \(.*\), has no settled direction in c, and did not change in d\.",
        said,
    )


def test_suppression_tells_a_loss_with_a_falling_score_from_a_mere_loss(whole):
    section = of(suppression, whole[0])
    assert row_of(section, "dpo")["Δ⁺ (nats)"].startswith("-2 [") and row_of(section, "dpo")[
        "Displaced share"
    ].startswith("1 [")
    assert "lost probability in dpo (" in section.seen[0] and "gained probability in flex (" in section.seen[0]
    assert "has no settled direction in ppo." in section.seen[0]
    # dpo: 0.4 ± spread of 0.05 against 0.5: with three seeds that fall is not settled.
    assert "settled in none of the arms" in section.seen[1]
    assert "that of dpo: 1" in section.seen[2]


def test_dispersion_names_what_rose_and_what_was_not_recorded(whole):
    section = of(dispersion, whole[0])
    permuted = next(sentence for sentence in section.seen if "“chosen, tokens permuted”" in sentence)
    assert "rose in dpo (+2 [" in permuted and "no settled direction in flex" in permuted
    assert any("Not recorded: answers to other prompts and random tokens" in sentence for sentence in section.seen)
    assert any(
        sentence.startswith("Since the base policy, the entropy per token fell in dpo") for sentence in section.seen
    )
    assert row_of(section, "base")["Entropy (nats per token)"] == "1.2"
    assert "Random tokens (nats)" not in row_of(section, "dpo")


def test_gradients_compare_the_measured_ratio_with_theory(whole, tmp_path):
    section = of(gradients, whole[0])
    assert any("agrees with theory" in sentence and "dpo and flex" in sentence for sentence in section.seen)
    assert row_of(section, "ppo")["Its log in π space, measured"] == "–"
    directory = record(tmp_path, without=("partial/pi_log_ratio_theory",), pairs=False)
    assert "Theory has no ratio for the loss of dpo and flex." in of(gradients, directory).seen
    metrics = pd.read_parquet(whole[0] / "metrics.parquet")
    shutil.copytree(whole[0], tmp_path / "off")
    metrics.assign(**{"partial/pi_log_ratio": metrics["partial/pi_log_ratio"] + 0.5}).to_parquet(
        tmp_path / "off" / "metrics.parquet"
    )
    assert any(
        "It differs from theory in dpo (0.5 nats)" in sentence for sentence in of(gradients, tmp_path / "off").seen
    )


def test_the_field_has_one_drawing_for_each_arm_and_none_for_copies_of_a_sweep(whole, tmp_path):
    section = of(field_section, whole[0])
    assert [sentence.partition(":")[0] for sentence in section.seen] == ["dpo", "flex", "ppo"]
    assert "the rejected lost 2 nats" in section.seen[0]
    drawings = section.draw()
    assert [plot.title for plot in drawings] == [f"Gradient field: {arm}" for arm in ARMS] and all(
        plot.on_white for plot in drawings
    )
    assert "no loss on pairs" in drawings[2].how_to_read
    bare = of(field_section, record(tmp_path, pairs=False))
    assert bare.draw() == () and "pairs.parquet" in bare.seen[0]


def test_a_field_that_cannot_be_drawn_says_why_without_a_path(tmp_path):
    record(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"arms": {"dpo": {"method": "gone"}}}))
    section = of(field_section, tmp_path)
    assert section.draw() == () and section.seen[0].startswith("No field can be drawn: recipe.yaml")
    assert str(tmp_path) not in section.seen[0]


def test_ranking_compares_implicit_with_explicit_rewards_by_split(whole, tmp_path):
    section = of(ranking, whole[0])
    assert row_of(section, "dpo")["In distribution (4 pairs)"].startswith("0.9 [")
    explicit = row_of(section, "reward model (explicit)")
    limits = stats.binomtest(3, 4).proportion_ci(0.95, method="exact")
    assert explicit["In distribution (4 pairs)"] == f"0.75 [{limits.low:.3g}, {limits.high:.3g}]"
    assert explicit["Unseen elements"] == "–"
    # Four pairs tell little: the reward model's interval, .19 to .99, holds every arm's.
    assert section.seen[0].endswith(
        "of 4 pairs right; the implicit reward of dpo, flex and ppo cannot be told from it."
    )
    bare = of(ranking, record(tmp_path, pairs=False, without=("accuracy",)))
    assert bare.tables == () and bare.draw() == () and len(bare.seen) == 2


def test_a_reward_is_better_than_another_only_where_pairs_and_seeds_both_say_so():
    right = Right(share=0.6, pairs=96, low=0.5, high=0.7)
    arms = {"far": (0.8, 0.81, 0.79), "near": (0.71, 0.72, 0.69), "below": (0.4, 0.41, 0.42), "one": (0.49,)}
    own = [Measure(arm, dict(enumerate(values, 1))) for arm, values in arms.items()]
    assert against(right, own) == (
        "the implicit reward of below and one ranks fewer right; the implicit reward of far ranks more right; "
        "the implicit reward of near cannot be told from it"
    )


def test_displacement_is_a_rank_correlation_over_pairs(whole, tmp_path):
    section = of(displacement, whole[0])
    dpo = row_of(section, "dpo")
    assert dpo["edit distance: rank correlation with Δ⁺"].startswith("1 [")
    assert dpo["CHES: rank correlation with Δ⁺"].startswith("-1 [")
    assert [plot.title for plot in section.draw()] == ["Δ⁺ against length-normalised CHES", "Δ⁺ against edit distance"]
    bare = of(displacement, record(tmp_path, pairs=False))
    assert bare.tables == () and "Not recorded" in bare.seen[0]


def test_a_sweep_is_shown_apart_and_left_out_of_the_plots(whole):
    directory, page = whole
    section = of(sensitivity, directory)
    (row,) = section.tables[0].rows
    assert row["Values"] == "0.1, 0.2, 0.4" and row["Best at"] == "0.4" and row["Worst at"] == "0.1"
    assert row["Range of the score"] == "0.150"
    error = 0.03 * math.sqrt(3) / math.sqrt(3)  # three seeds 0.03, −0.06, 0.03 around their mean: s = 0.052
    assert row["Standard error of one mean"] == f"{error:.3f}"
    slope = stats.linregress([math.log10(v) for v in (0.1, 0.2, 0.4)], [0.4, 0.45, 0.55]).slope
    assert row["Score per factor of ten [95% interval]"].startswith(f"{slope:+.3f} [")
    assert "ranges over 0.150: it is highest at 0.4 and lowest at 0.1" in section.seen[0]
    assert len(section.draw()) == 3
    assert "2 arms are copies that the recipe's sweep made" in page


@pytest.mark.parametrize(
    ("count", "expected"), [(2, 2 / math.sqrt(math.pi)), (3, 3 / math.sqrt(math.pi)), (5, 2.32593), (12, 3.25846)]
)
def test_the_range_of_noise_is_that_of_normal_draws(count, expected):
    """Closed forms for two and three draws; the others from tables of Shewhart's d2."""
    assert range_of_noise(count) == pytest.approx(expected, abs=1e-5)


def test_tuning_is_tabulated_and_uneven_tuning_is_called_out(whole, tmp_path):
    section = of(sensitivity, whole[0])
    kept = [row for row in section.tables[1].rows if row["Arm"] == "dpo"]
    assert [(row["Settings"], row["Status"], row["Kept"]) for row in kept] == [
        ("learning_rate 0.01", "diverged", ""), ("learning_rate 0.0001", "done", "yes"),
    ]  # fmt: skip
    assert kept[1]["Spent"] == "100 GFLOP" and "Every arm had 2 tuning trials and" in section.seen[-2]
    assert "at an edge" in section.seen[-1] and "for dpo (learning_rate 0.0001, the smallest)" in section.seen[-1]
    one = {"settings": {"beta": 0.1}, "score": 0.4, "status": "done", "spent": {"flops": 1e11}}
    uneven = of(sensitivity, record(tmp_path, tuning={"dpo": [one, one], "flex": [one]}))
    assert "not tuned alike" in uneven.seen[-1] and "dpo 2, flex 1, ppo 0" in uneven.seen[-1]
    assert uneven.seen[0].startswith("No setting was swept")


def test_trials_beyond_an_edge_and_scores_by_seed_are_shown(tmp_path):
    def trial(rate, *scores):
        runs = [{"seed": n, "score": s, "status": "done", "spent": {"flops": 5e10}} for n, s in enumerate(scores)]
        mean = sum(scores) / len(scores)
        return {
            "settings": {"learning_rate": rate},
            "score": mean,
            "status": "done",
            "spent": {"flops": 1e11},
            "runs": runs,
        }

    inner = [trial(1e-4, 0.1, 0.2), trial(1e-3, 0.4, 0.2), trial(1e-2, 0.1, 0.1)]
    found = {
        "dpo": [*inner[:2], inner[2]],
        "flex": inner[:2] + [trial(1e-2, 0.5, 0.3), trial(1e-1, 0.1, 0.1)],
        "ppo": inner,
    }
    grid = {"trials": [t["settings"] for t in inner], "extend": 2}
    section = of(sensitivity, record(tmp_path, tuning=found, grid=grid))
    assert "Every arm had 3 tuning trials and was allowed 2 more beyond an edge (used by flex 1)" in section.seen[-2]
    assert section.seen[-1] == "No arm that was tuned by a single key ended at an edge of what was tried."
    rows = [row for row in section.tables[0].rows if row["Arm"] == "flex"]
    assert [row["Trial"] for row in rows] == ["1", "2", "3", "4, beyond the edge"]
    assert rows[0]["Score on the tuning prompts"] == "0.150 (0.100, 0.200)"


def test_arms_are_compared_pairwise_and_both_ways(whole):
    matrix = of(pairwise, whole[0])
    assert matrix.arms == ARMS and "2 copies of arms" in matrix.left_out
    forward, back = matrix.cells[2][0], matrix.cells[0][2]  # ppo minus dpo, and turned round
    assert forward.difference.startswith("+0.300") and back.difference.startswith("-0.300")
    assert (forward.improvement, back.improvement) == ("1.00", "0.00") and forward.p == back.p
    assert (forward.kind, back.kind) == ("more", "less")
    assert matrix.cells[1][1].difference == ""
    assert matrix.seen == "3 of 3 differences are settled: flex over dpo, ppo over dpo and ppo over flex."


def test_with_one_seed_there_is_a_sentence_in_place_of_every_interval(tmp_path):
    directory = record(tmp_path, seeds=(1,))
    for section in of(sections, directory)[:4]:
        assert section.seen[-1].startswith("Fewer than 3 seeds finished")
        assert not any("[" in cell for table in section.tables for row in table.rows for cell in row.values())
    assert of(pairwise, directory).seen.startswith("No difference was tested: the two arms share 1 seed")


def test_an_older_run_has_sentences_in_place_of_figures(tmp_path):
    without = (
        "chosen",
        "rejected",
        "margin",
        "displaced",
        "probe",
        "gradient",
        "partial",
        "entropy",
        "argmax",
        "accuracy",
    )
    found = of(sections, record(tmp_path, pairs=False, without=without))
    for section in found:
        assert section.seen
        assert not any(plot.svg for plot in section.draw() if section.anchor != "dispersion")
        assert section.tables == () or section.anchor == "dispersion"  # which has KL
    page = page_of(tmp_path)
    assert "Not recorded: log-probabilities of held-out pairs" in page and "Not recorded: probe sets." in page


@pytest.mark.parametrize("name", ["pairs.parquet", "tuning.json"])
def test_a_damaged_optional_file_is_named(tmp_path, name):
    record(tmp_path, tuning={})
    (tmp_path / name).write_text("{ [")
    with pytest.raises(BadInput, match=re.escape(name)):
        write_report(tmp_path)


def test_a_docs_page_is_made_again_byte_for_byte(tmp_path):
    directory = record(tmp_path / "run", arms=("dpo", "flex"), claims=[CLAIM])
    (tmp_path / "recipes" / "experiments").mkdir(parents=True)
    (tmp_path / "recipes" / "experiments" / "tiny.yaml").write_text("name: tiny")
    target = tmp_path / "docs" / "results" / "tiny.md"
    target.parent.mkdir(parents=True)
    write_page(directory, target)
    first = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    assert set(first) == {"tiny.md", "tiny.png"}
    write_page(directory, target)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == first
    text = target.read_text()
    assert "[recipes/experiments/tiny.yaml](../../recipes/experiments/tiny.yaml)" in text
    assert "`rlhf-bench run recipes/experiments/tiny.yaml`" in text and "Commit: abc; run key: k" in text
    assert "**yes**" in text and "![" in text and "(tiny.png)" in text
    for heading in ("Drastic drop", "Degradation", "Dispersion", "Not recorded"):
        assert f"## {heading}" in text


def test_kept_data_are_small_and_give_the_same_page(whole, tmp_path):
    archive(whole[0], tmp_path / "kept")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"recipe.yaml", "base.json", "results.json", "tuning.json", "metrics.parquet", "ledger.parquet",
                     "samples.parquet", "pairs.parquet"}  # fmt: skip
    metrics = pd.read_parquet(tmp_path / "kept" / "metrics.parquet")
    assert "unread" not in metrics.columns and (metrics["phase"] == "train").sum() == 100 * len(SPEED) * len(SEEDS)
    assert pd.read_parquet(tmp_path / "kept" / "samples.parquet").empty
    for name, source in (("a", whole[0]), ("b", tmp_path / "kept")):
        (tmp_path / name).mkdir()
        write_page(source, tmp_path / name / "tiny.md")
    assert (tmp_path / "a" / "tiny.md").read_bytes() == (tmp_path / "b" / "tiny.md").read_bytes()
    assert "No sample generations were recorded." in page_of(tmp_path / "kept")
    archive(tmp_path / "kept", tmp_path / "again")
    assert (tmp_path / "again" / "pairs.parquet").read_bytes() == (tmp_path / "kept" / "pairs.parquet").read_bytes()


def test_nothing_is_kept_or_written_of_what_cannot_be_read(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "here").write_text("kept")
    for attempt in (
        lambda: archive(tmp_path / "none", tmp_path / "old"),
        lambda: write_page(tmp_path / "none", tmp_path / "p.md"),
    ):
        with pytest.raises(BadInput, match="no such file"):
            attempt()
    assert (tmp_path / "old" / "here").exists() and not (tmp_path / "p.md").exists()


def test_a_series_has_its_table_its_page_and_its_kept_data(tmp_path):
    labels = ["sft.steps=10", "sft.steps=20"]
    for label in labels:
        record(tmp_path / "run" / label, arms=("dpo", "flex"), claims=[CLAIM])
    text = write_series(tmp_path / "run", labels)
    assert series_labels(tmp_path / "run") == labels and (tmp_path / "run" / "series.png").exists()
    assert re.search(r"sft\.steps=20 +flex +0\.500 +0\.600 \[[\d., ]+\] +\+0\.100 +2\.00 +3", text)
    archive(tmp_path / "run", tmp_path / "kept")
    for name, source in (("a", "run"), ("b", "kept")):
        (tmp_path / name).mkdir()
        write_page(tmp_path / source, tmp_path / name / "tiny.md")
    page = (tmp_path / "a" / "tiny.md").read_text()
    assert page == (tmp_path / "b" / "tiny.md").read_text()
    assert "once for each value of `sft.steps`" in page and "## sft.steps=10" in page and page.count("**yes**") == 2
    (tmp_path / "run" / "series.json").write_text("{}")
    with pytest.raises(BadInput, match="series.json"):
        series_labels(tmp_path / "run")


def with_own(directory, **kinds):
    """Arms of these kinds, whose own pairs moved half as far as the fixed ones; every pair once more as one of each kind."""
    results = json.loads((directory / "results.json").read_text())
    for arm, result in results["arms"].items():
        result["own_kind"] = kinds.get(arm, "fixed")
    (directory / "results.json").write_text(json.dumps(results))
    metrics = pd.read_parquet(directory / "metrics.parquet")
    moved = ["margin", "chosen_logratio", "rejected_logratio", "rejected_logprob", "chosen_logprob"]
    own = {f"own/{name}": metrics[name] / 2 for name in moved}
    metrics.assign(**own, **{"own/displaced": metrics["displaced"]}).to_parquet(directory / "metrics.parquet")
    pairs = pd.read_parquet(directory / "pairs.parquet")
    others = [pairs.assign(kind=kind, chosen_logratio=9.0, ches=5.0, reward_margin=-1.0) for kind in {*kinds.values()}]
    pd.concat([pairs.assign(kind="fixed"), *others]).to_parquet(directory / "pairs.parquet")
    return directory


def test_arms_are_shown_on_pairs_of_their_own_kind(tmp_path):
    directory = with_own(record(tmp_path), flex="on_policy", ppo="on_policy")
    (section,) = of(own_pairs, directory)
    assert {row["Arm"]: row["Pairs"] for row in section.tables[0].rows} == {
        "dpo": "fixed", "flex": "on_policy", "ppo": "on_policy",
    }  # fmt: skip
    assert row_of(section, "flex")["Margin Δ⁺ − Δ⁻ (nats)"].startswith("1 ")
    assert row_of(section, "flex")["Rejected, per nat of margin"].startswith("-0.5 ")  # half of both sides' move
    assert row_of(section, "dpo")["Rejected, per nat of margin"].startswith("-2 ")
    seen = " ".join(section.seen)
    assert "Pairs of kind on_policy: flex and ppo." in seen and "Pairs of kind fixed: dpo." in seen
    assert "fell by less than 1 nat, or rose, in flex" in seen and "fell as well, in dpo" in seen
    assert "a rate per nat means nothing there" in seen and "settled in ppo" in seen  # whose margin did not move
    assert "gained probability in flex" in seen and "lost probability in dpo" in seen
    plots = section.draw()
    assert all(plot.svg for plot in plots) and "own kind" in page_of(directory)


def test_arms_of_one_kind_are_compared_at_matched_margin(tmp_path):
    (section,) = of(own_pairs, with_own(record(tmp_path), dpo="on_policy", flex="on_policy", ppo="chosen_on_policy"))
    at = {arm: row_of(section, arm)["Δ⁻ at matched margin (nats)"] for arm in ARMS}
    assert at["dpo"].startswith("-2 ") and at["flex"].startswith("-0.5 ") and at["ppo"] == "–"
    assert "reaches whose margin grew, 1 nats on on_policy pairs" in section.tables[0].caption


def test_sections_on_the_fixed_pairs_leave_pairs_of_other_kinds_out(tmp_path):
    before, after = record(tmp_path / "before"), with_own(record(tmp_path / "after"), flex="on_policy")
    for make in (ranking, displacement, rejected_drop, suppression):
        assert of(make, before).seen == of(make, after).seen
        assert [t.rows for t in of(make, before).tables] == [t.rows for t in of(make, after).tables]


def test_without_another_kind_than_the_fixed_one_no_further_section_is_shown(tmp_path):
    assert of(own_pairs, record(tmp_path / "old")) == () == of(own_pairs, with_own(record(tmp_path / "offline")))


def test_kept_data_have_the_pairs_of_every_kind(tmp_path):
    directory = with_own(record(tmp_path / "run"), flex="on_policy")
    archive(directory, tmp_path / "kept")
    kept = pd.read_parquet(tmp_path / "kept" / "pairs.parquet")
    assert kept.groupby("kind").size().nunique() == 1 and set(kept["kind"]) == {"fixed", "on_policy"}
    assert of(own_pairs, tmp_path / "kept")[0].tables == of(own_pairs, directory)[0].tables
