"""The report of a small synthetic comparison whose numbers can be checked by hand."""

import json
import math
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.report import comparison_table, draw_properties, render_text_table, write_report
from rlhf_bench.report.docs_page import write_page
from rlhf_bench.report.format import duration, quantity, visible
from rlhf_bench.report.notes import notes
from rlhf_bench.report.page import data_passes, run_details
from rlhf_bench.report.plots.overview import compute_by_phase, final_scores, time_by_activity
from rlhf_bench.report.plots.style import style
from rlhf_bench.report.tables import ledger_table, without_empty
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize

NAN = float("nan")
LIMIT = 1e12
ATTACK = "<script>alert('x')</script> & \x1b[31m\u202eevil\nnext"
FINALS = {"ppo": [0.7, 0.8, 0.9], "dpo": [0.4, 0.4, 0.4], "single": [0.6], "broken": [NAN]}
DATA = {"ppo": None, "dpo": "offline", "single": "on_policy", "broken": "offline"}


def evaluation(arm, seed, mark, score, split="in_distribution", **numbers):
    return {"arm": arm, "seed": seed, "phase": "evaluation", "split": split, "update": int(10 * mark),
            "fraction": mark, "mark": mark, "score": score, "kl": 4 * mark, **numbers}  # fmt: skip


def arm_rows(arm, seed, final):
    """A dip of 0.1 half way, one gradient spike, and neither rewards nor likelihoods for `dpo`."""
    told = 1.0 if arm != "dpo" else NAN
    own = {"arm": arm, "seed": seed, "phase": "train", "split": None, "mark": NAN, "score": NAN}
    for update in range(1, 11):
        norm = 50.0 if update == 8 else 1.0
        yield own | {"update": update, "fraction": update / 10, "grad_norm": norm, "reward": told * update}
    likelihood = {"chosen_logprob": -10.0 * told, "rejected_logprob": -20.0 * told}
    if math.isnan(final):
        return
    for mark, score in ((0.0, 0.5), (0.5, 0.4), (1.0, final)):
        yield evaluation(arm, seed, mark, score, **likelihood, **{"part/answer": score})
        yield evaluation(arm, seed, mark, score / 2, "unseen", **likelihood)


def sample_rows(arm, mark):
    own = {"arm": arm, "seed": 0, "mark": mark, "split": "in_distribution", "score": 1.0}
    for number in range(6):
        response = ATTACK if arm == "ppo" else f"{arm} says {number}"
        asked = {"prompt_id": f"p{number}", "prompt": f"{number}+1=", "reference": str(number + 1)}
        yield own | asked | {"response": response}


def ledger_rows(arm, seed):
    rest = {"trained_tokens": 20, "scored_tokens": 0, "judge_queries": 0, "device_seconds": 1.5}
    for phase, flops in (("rollout", 0.25 * LIMIT), ("learning", 0.7 * LIMIT), ("evaluation", 9 * LIMIT)):
        yield {"arm": arm, "seed": seed, "phase": phase, "flops": flops, "generated_tokens": 10} | rest


def result_of(arm):
    def seed_of(seed, final):
        done = not math.isnan(final)
        numbers = {"score": final, "kl": 2.0 + seed} if done else {"score": None, "kl": None}
        return {"seed": seed, "status": "done" if done else "failed", "spent": {"flops": 0.95 * LIMIT}} | numbers

    seeds = [seed_of(seed, final) for seed, final in enumerate(FINALS[arm])]
    return {"method": "ppo" if arm == "ppo" else "dpo", "data": DATA[arm], "seeds": seeds}


def record(directory):
    """Write the synthetic comparison as a run would."""
    runs = [(arm, seed, final) for arm, finals in FINALS.items() for seed, final in enumerate(finals)]
    sampled = [("base", NAN)] + [(arm, mark) for arm in FINALS if arm != "broken" for mark in (0.5, 1.0)]
    tables = {
        "metrics": [row for run in runs for row in arm_rows(*run)],
        "samples": [row for arm, mark in sampled for row in sample_rows(arm, mark)],
        "ledger": [row for arm, seed, _ in runs for row in ledger_rows(arm, seed)],
    }
    for name, rows in tables.items():
        pd.DataFrame(rows).to_parquet(directory / f"{name}.parquet")
    recipe = {"name": "tiny <b>", "compute": {"column": "flops", "limit": LIMIT}}
    results = {"arms": {arm: result_of(arm) for arm in FINALS}, "timing": {"driver_share": 0.031}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (directory / "base.json").write_text(json.dumps({"score": {"in_distribution": 0.5, "unseen": 0.25}}))
    (directory / "results.json").write_text(json.dumps(results))
    return directory


@pytest.fixture
def directory(tmp_path):
    """A comparison that a test may change before it is reported."""
    return record(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The directory of the unchanged comparison, its summary and its page: rendered once."""
    directory = record(tmp_path_factory.mktemp("comparison"))
    summary = write_report(directory)
    return directory, summary, (directory / "report.html").read_text()


@pytest.fixture
def summary(reported):
    return reported[1]


@pytest.fixture
def page(reported):
    return reported[2]


def page_of(directory):
    write_report(directory)
    return (directory / "report.html").read_text()


def row_of(rows, arm):
    return next(row for row in rows if row["Arm"] == arm)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_comparison_table_holds_the_hand_computed_numbers(summary):
    rows = comparison_table(summary)
    assert [row["Arm"] for row in rows] == ["ppo", "single", "dpo", "broken", "base"]
    ppo = row_of(rows, "ppo")
    assert ppo["Score [95% interval]"].startswith("0.800 [0.552, 1.000]")
    assert ppo["Against base"] == "+0.300"
    assert ppo["KL (nats)"] == "3.00"
    assert ppo["Worst drop"] == "0.100"
    assert ppo["Seeds finished"] == "3 of 3"
    assert ppo["Budget spent"] == "95.0% = 950 GFLOP"
    assert row_of(rows, "dpo")["Score [95% interval]"] == "0.400 [0.400, 0.400]"
    assert row_of(rows, "single")["Score [95% interval]"] == "0.600"
    assert row_of(rows, "broken")["Score [95% interval]"] == "–"
    assert row_of(rows, "broken")["Seeds finished"] == "0 of 1, 1 failed"
    assert row_of(rows, "base")["Score [95% interval]"] == "0.500"


def test_the_text_table_shows_every_cell_on_one_line_per_arm(summary):
    lines = render_text_table(summary).splitlines()
    for row in without_empty(comparison_table(summary)):
        assert any(all(cell in line for cell in row.values()) for line in lines)


def test_the_summary_follows_its_schema_and_is_strict_json(reported):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((reported[0] / "summary.json").read_text(), parse_constant=refuse)
    assert summary["budget"] == {"unit": "flops", "limit": LIMIT}
    assert summary["base"]["score"] == 0.5
    ppo = summary["arms"]["ppo"]
    assert ppo["score"]["mean"] == pytest.approx(0.8) and ppo["score"]["iqm"] == pytest.approx(0.8)
    low, high = ppo["score"]["ci95"]
    assert low == pytest.approx(0.8 - 4.302653 * 0.1 / math.sqrt(3)) and high == 1.0  # Student's; no share is above 1
    assert summary["verdict"]["text"].startswith("At equal compute") and summary["verdict"]["leader"] == "ppo"
    over = {one["against"]: one for one in summary["verdict"]["over"]}
    assert over["dpo"]["settled"] and over["dpo"]["difference"] == pytest.approx(0.4) and over["dpo"]["more_seeds"] == 0
    assert not over["single"]["settled"] and over["single"]["ci95_holm"] is over["single"]["p_holm"] is None
    assert [one["arm"] for one in summary["verdict"]["against_base"]] == ["ppo", "single", "dpo"]
    assert ppo["seeds"][1] == {
        "seed": 1, "status": "done", "spent": {"flops": 0.95 * LIMIT}, "score": 0.8, "kl": 3.0,
        "greedy_score": None, "best_of_score": None, "kl_error": None, "entropy": None,
        "stability": {"best_score": 0.8, "drawdown": pytest.approx(0.1), "gradient_norm_spikes": 1, "skipped_updates": 0},
    }  # fmt: skip
    assert ppo["score"]["iqm_ci95_method"] == "t" and ppo["score"]["ci95_method"] == "t"
    assert ppo["score"]["best"] == pytest.approx(0.8)
    assert summary["arms"]["single"]["score"]["ci95"] is summary["arms"]["single"]["score"]["iqm_ci95"] is None
    assert summary["baseline"] is None and summary["comparisons"] == summary["claims"] == []
    assert summary["equal_kl"]["kl"] == 4.0 and summary["equal_kl"]["arms"]["dpo"]["mean"] == pytest.approx(0.4)
    assert summary["arms"]["broken"]["score"]["mean"] is None


def test_the_verdict_says_what_is_settled_and_what_is_not(page):
    assert "ppo has the highest mean score, 0.800 on held-out prompts; the base policy has 0.500." in page
    assert "That lead is settled over dpo. It is not settled over single (1 common seed, and a test needs 3)." in page
    assert (
        "ppo beat the base policy&#39;s 0.500; dpo ended below it; the difference from it is not settled for single."
        in page
    )
    assert "broken finished no seed and is not ranked" in page
    assert "single: one seed: no interval" in page
    assert "dpo: zero width, because all seeds scored the same" in page
    assert "ppo: Student&#39;s t over the seeds" in page
    assert "corrected by Holm for the 3 differences between arms and with the base policy, leaves out 0." in page
    assert "At equal KL (4 nats, the most that every seed reached): ppo 0.800 [" in page


def test_without_a_finished_seed_there_is_nothing_to_rank(directory):
    def fail_everything(results):
        for arm in results["arms"].values():
            for seed in arm["seeds"]:
                seed.update(status="diverged", score=None)
        results["arms"]["never-run"] = {"method": "dpo", "data": "online", "seeds": []}

    edit(directory / "results.json", fail_everything)
    page = page_of(directory)
    assert "No arm finished a seed, so there is nothing to compare." in page
    assert "never-run: no seed was run." in page


def keep_two(results):
    results["arms"] = {name: results["arms"][name] for name in ("ppo", "dpo")}


def test_a_lead_over_all_arms_is_said_to_be_settled(directory):
    edit(directory / "results.json", keep_two)
    assert "0.500. That lead is settled over dpo. " in page_of(directory)


@pytest.mark.parametrize(("base", "said"), [
    (0.3, "Every arm beat the base policy&#39;s 0.300."),
    (0.5, "ppo beat the base policy&#39;s 0.500; dpo ended below it."),
    (0.75, "dpo ended below the base policy&#39;s 0.750; the difference from it is not settled for ppo."),
    (0.85, "dpo ended below the base policy&#39;s 0.850; the difference from it is not settled for ppo."),
])  # fmt: skip
def test_what_was_beaten_is_said_and_what_is_open(directory, base, said):
    edit(directory / "results.json", keep_two)
    edit(directory / "base.json", lambda found: found["score"].update(in_distribution=base))
    assert said in page_of(directory)


def test_with_one_seed_the_verdict_names_the_leader_and_settles_nothing(directory):
    def keep_one_seed(results):
        keep_two(results)
        for arm in results["arms"].values():
            arm["seeds"] = arm["seeds"][:1]

    edit(directory / "results.json", keep_one_seed)
    page = page_of(directory)
    assert "ppo has the highest mean score, 0.700" in page
    assert "No difference is settled: a test needs 3 seeds that both sides finished." in page
    assert not re.search(r"\bbeat\b|is settled over", page.partition("<table")[0])


def test_where_nothing_is_settled_the_verdict_says_so_and_what_would_settle_it(directory):
    def nearly_alike(results):
        keep_two(results)
        results["arms"]["dpo"] = {**results["arms"]["ppo"], "seeds": [dict(s) for s in results["arms"]["ppo"]["seeds"]]}
        for seed, score in zip(results["arms"]["dpo"]["seeds"], (0.69, 0.81, 0.87), strict=True):
            seed["score"] = score

    edit(directory / "results.json", nearly_alike)
    edit(directory / "base.json", lambda found: found["score"].update(in_distribution=0.75))
    page = page_of(directory)
    assert re.search(r"That lead is not settled over dpo \(about \d+ more seeds would settle it\)\.", page)
    assert "No arm&#39;s difference from the base policy&#39;s 0.750 is settled." in page


def test_an_arm_that_spent_less_is_named(directory):
    edit(directory / "results.json", lambda r: r["arms"]["single"]["seeds"][0]["spent"].update(flops=0.5 * LIMIT))
    assert "Compute is not equal: the budget&#39;s share that was spent is single 50%." in page_of(directory)


def test_arms_whose_means_end_below_the_base_policys_are_named(directory):
    assert "Means below the base policy&#39;s: dpo sampled (0.400 against 0.500)." in page_of(directory)
    summary = summarize(read_recorded(directory))
    arms = tuple(replace(arm, greedy=0.2 if arm.name == "ppo" else 0.5) for arm in summary.arms)
    found = notes(replace(summary, arms=arms, base=replace(summary.base, greedy=0.45)))
    assert (
        "Means below the base policy's: ppo greedy (0.200 against 0.450); dpo sampled (0.400 against 0.500)." in found
    )


def test_skipped_updates_are_counted_and_named(directory):
    metrics = pd.read_parquet(directory / "metrics.parquet")
    train = metrics.index[(metrics["arm"] == "ppo") & (metrics["phase"] == "train")]
    metrics.loc[train, "skipped"] = 0.0
    metrics.loc[train[:2], "skipped"] = 1.0
    metrics.to_parquet(directory / "metrics.parquet")
    assert "Updates skipped, since their numbers were not finite: ppo 2." in page_of(directory)


def test_many_responses_that_were_cut_off_are_named(directory):
    metrics = pd.read_parquet(directory / "metrics.parquet")
    metrics["cut_off"] = (metrics["arm"] == "ppo") * 0.25 + 0.05
    metrics.to_parquet(directory / "metrics.parquet")
    page = page_of(directory)
    assert (
        "Responses that reached max_response_tokens, and score 0, at the last evaluation: ppo 30%; the comparison"
        in page
    )


def test_the_answer_comes_first_then_the_table_then_where_to_look(page):
    marks = (
        '<dl class="facts">', 'class="verdict"', "final-scores", 'aria-label="Comparison of the arms"', 'href="#plots"',
        'href="#claims"', '<h2 id="plots">', '<h2 id="claims">',
    )  # fmt: skip
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)


def facts_of(page):
    """Name -> (value, what is said about it)."""
    found = re.findall(r"<dt>([^<]*)</dt><dd><strong>([^<]*)</strong><span class=\"how\">([^<]*)</span>", page)
    return {name: (value, about) for name, value, about in found}


def test_the_answers_facts_are_those_of_the_table_and_the_verdict(page, summary):
    facts = facts_of(page)
    assert facts["Highest mean score"] == ("ppo", "0.800 [0.552, 1.000] on held-out prompts")
    value, about = facts["Lead settled over"]
    settled = [one.against for one in summary.standing.over if one.above]
    assert (value, about) == (settled[0] if settled else "nobody yet", about) and "seed" in about
    value, about = facts["Gain over the base policy"]
    assert value == "+0.300" and about.startswith("the base policy has 0.500; ")
    assert facts["The same, most likely tokens"][0] == "–"  # not recorded
    assert facts["Budget per seed"] == ("1 TFLOP", "arms spent 95% of it")


def test_final_scores_are_drawn_with_interval_and_seeds_best_first(summary):
    with style():
        found = final_scores(summary)
    points = {(p.series, p.seed): p for p in found.drawing.points}
    leader = next(arm for arm in summary.arms if arm.name == "ppo")
    mean = points["ppo", ""]
    assert (mean.x, mean.y) == (pytest.approx(0.8), 0)
    assert (mean.x_low, mean.x_high) == pytest.approx((leader.interval.low, leader.interval.high))
    assert [points["ppo", str(seed)].x for seed in range(3)] == [0.7, 0.8, 0.9]
    assert points["dpo", ""].y > points["single", ""].y > 0 and ("broken", "") not in points
    assert points["base", ""].x == summary.base.score


def test_generated_text_is_escaped_and_its_control_characters_are_visible(page):
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; ⟨U+001B⟩[31m⟨U+202E⟩evil↵\nnext" in page
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "<b>" not in page and "tiny &lt;b&gt;" in page


def test_samples_stand_side_by_side_for_the_same_prompts(page):
    assert page.count("dpo says 0") == 1 and page.count("base says 0") == 1
    assert "no answer recorded" in page  # the arm that failed
    assert "says 4" not in page  # four prompts per split


class _Loads(HTMLParser):
    """Collects whatever a browser would fetch or run, and every id."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action") and not value.startswith(
                ("#", "data:image/png")
            ):
                self.fetched.append((tag, name, value))
            if name.startswith("on"):
                self.fetched.append((tag, name, value))
            if name == "id":
                self.ids.append(value)


def test_the_page_loads_nothing_and_its_ids_are_unique(page):
    loads = _Loads()
    loads.feed(page)
    assert loads.fetched == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(loads.ids) == len(set(loads.ids)) > 0
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert referenced <= set(loads.ids)


def test_numbers_that_were_not_recorded_are_said_to_be_absent(page):
    assert "Not recorded: reward of dpo." in page
    assert "Not recorded: chosen and rejected log-probabilities of dpo and broken." in page
    assert "Not recorded: gold of any arm." in page
    assert "<dt>Wall time</dt><dd>–</dd>" in page
    assert "<dt>Driver&#39;s own share of wall time, before this report</dt><dd>3.1%</dd>" in page


def test_the_page_says_with_what_the_run_computed_or_that_it_was_not_recorded(directory, tmp_path):
    target = tmp_path / "page.md"
    write_page(directory, target)
    older = target.read_text()
    assert "- Threads of each process: not recorded\n- Versions: not recorded\n" in older
    made_with = {"machine": "1 node", "versions": {"python": "3.12.1", "torch": "2.11"}, "threads": {"learner": "2"}}
    edit(directory / "results.json", lambda results: results.update(made_with))
    write_page(directory, target)
    told = target.read_text()
    assert "- Machine: 1 node\n- Threads of each process: learner 2\n- Versions: python 3.12.1, torch 2.11\n" in told
    page = page_of(directory)
    assert "<dd>learner 2</dd>" in page and "<dd>python 3.12.1, torch 2.11</dd>" in page
    said = json.loads((directory / "summary.json").read_text())
    assert {key: said[key] for key in made_with} == made_with


def test_the_other_splits_and_the_ledger_are_tabulated(page):
    assert re.search(r'<th scope="row">ppo</th><td>0\.800 \[[^<]*</td><td>0\.400 \[', page)
    assert re.search(r'<th scope="row">ppo</th><td>learning</td><td>yes</td><td>700G</td>', page)
    assert re.search(r'<th scope="row">ppo</th><td>evaluation</td><td>no</td><td>9T</td>', page)


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_else(directory):
    write_report(directory)
    first = {path.name: path.read_bytes() for path in directory.iterdir()}
    write_report(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == first


def test_figures_drawn_in_another_process_are_the_same_and_come_last(directory):
    write_report(directory)
    alone, order = (directory / "report.html").read_bytes(), []

    def elsewhere(*handed):
        order.append("begun")
        pickled = pickle.dumps(handed)  # as they travel

        def result():
            order.append("waited for")
            return draw_properties(*pickle.loads(pickled))

        return result

    write_report(directory, elsewhere)
    assert (directory / "report.html").read_bytes() == alone and order == ["begun", "waited for"]


def test_every_missing_file_is_named_with_a_remedy(tmp_path):
    with pytest.raises(BadInput) as raised:
        write_report(tmp_path)
    assert len(raised.value.problems) == 6
    assert all("rlhf-bench run" in line for line in raised.value.problems)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("base.json", lambda base: base.clear(), "base.json: score.in_distribution is missing"),
        ("results.json", lambda r: r["arms"]["ppo"]["seeds"][2].update(status="lost"), "ppo seed 2: status is 'lost'"),
        ("results.json", lambda r: r["arms"]["ppo"]["seeds"][0].update(score=None), "ppo seed 0: done, but its score"),
        ("results.json", lambda r: r["arms"]["dpo"]["seeds"][0].update(spent={}), "dpo seed 0: spent has no flops"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_before_anything_is_written(directory, file, change, said):
    edit(directory / file, change)
    with pytest.raises(BadInput, match=re.escape(said)):
        write_report(directory)
    assert not (directory / "report.html").exists() and not (directory / "summary.json").exists()


@pytest.mark.parametrize("name", ["metrics.parquet", "results.json", "recipe.yaml"])
def test_a_damaged_file_is_named(directory, name):
    (directory / name).write_text("{ [")
    with pytest.raises(BadInput, match=re.escape(name)):
        write_report(directory)


@pytest.mark.parametrize(
    ("value", "column", "expected"),
    [
        (1.5e12, "flops", "1.5 TFLOP"),
        (12_345, "generated_tokens", "12.3k generated tokens"),
        (999_999, "", "1M"),
        (0, "", "0"),
        (1.5, "device_seconds", "1.5 device-seconds"),
        (NAN, "flops", "–"),
    ],
)
def test_quantities_carry_their_unit(value, column, expected):
    assert quantity(value, column) == expected


def test_durations_and_invisible_characters_read_plainly():
    assert [duration(s) for s in (42, 725, 12_000, NAN)] == ["42.0 s", "12 min 5 s", "3 h 20 min", "–"]
    assert visible("a\tb\x00\u200b") == "a⇥\tb⟨U+0000⟩⟨U+200B⟩"


def test_what_is_metered_apart_is_not_shown_as_charged(tmp_path):
    """Trials and evaluation stand in the ledger's table, but a bar of the budget holds neither."""
    directory = record(tmp_path)
    ledger = pd.read_parquet(directory / "ledger.parquet")
    trial = ledger[ledger["phase"] == "learning"].assign(phase="tuning", seed=99, flops=5 * LIMIT)
    before = ledger_table(read_recorded(directory))
    pd.concat([ledger, trial]).to_parquet(directory / "ledger.parquet")
    recorded = read_recorded(directory)
    assert [
        row for row in ledger_table(recorded) if row["Phase"] != "tuning"
    ] == before  # the trials' seed is none of them
    ppo = next(row for row in ledger_table(recorded) if (row["Arm"], row["Phase"]) == ("ppo", "tuning"))
    assert ppo["Flop"] == quantity(15 * LIMIT)  # all of them together
    charged = {row["Phase"]: row["Charged"] for row in ledger_table(recorded)}
    assert charged == {"rollout": "yes", "learning": "yes", "evaluation": "no", "tuning": "no"}
    with style():
        plot = compute_by_phase(recorded, summarize(recorded))
    assert "learning" in plot.svg and "tuning" not in plot.svg and "evaluation" not in plot.svg


def test_wall_time_is_drawn_by_what_the_engines_were_at_or_said_to_be_missing(tmp_path):
    directory = record(tmp_path)
    with style():
        bare = time_by_activity(read_recorded(directory), summarize(read_recorded(directory)))
    assert bare.svg == "" and bare.absent == "Not recorded: what the engines did."
    results = json.loads((directory / "results.json").read_text())
    results["timing"]["before_arms"] = {"starting": 5.0, "driver": 1.0}
    for arm in results["arms"].values():
        for seed in arm["seeds"]:
            seed["seconds"] = {"learning": 3.0, "rollout": 2.0 + seed["seed"], "driver": 0.5}
    (directory / "results.json").write_text(json.dumps(results))
    with style():
        plot = time_by_activity(read_recorded(directory), summarize(read_recorded(directory)))
    assert all(part in plot.svg for part in ("before the arms", "starting", "learning", "rollout", "driver"))
    assert "scoring" not in plot.svg and plot.absent == ""


def test_the_run_says_how_often_each_arm_used_its_data(directory):
    recorded, summary = read_recorded(directory), summarize(read_recorded(directory))
    assert data_passes(recorded, summary) == {}  # as in runs that did not record it
    updates = recorded.metrics["phase"] == "train"
    recorded.metrics.loc[updates & (recorded.metrics["arm"] == "dpo"), "pair_passes"] = 2.5 * recorded.metrics["update"]
    recorded.metrics.loc[updates & (recorded.metrics["arm"] == "single"), ["pair_passes", "prompt_passes"]] = (1.0, 0.3)
    del recorded.__dict__["updates"]  # read anew
    assert data_passes(recorded, summary) == {
        "Passes over each arm's pairs": "dpo 25, single 1", "Over its prompts": "single 0.3",
    }  # fmt: skip
    assert run_details(recorded, summary).items() >= data_passes(recorded, summary).items()
