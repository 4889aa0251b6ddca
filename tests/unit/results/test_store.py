"""What a comparison leaves on disk: tables of the same order however late the evaluator was, and one row per held-out pair."""

import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import yaml

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import BASE_POINT, EvalPoint, Evaluation, PairEvaluation, PromptScore, Row, SplitResult
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.directory import open_directory
from rlhf_bench.results.schema import METRICS_TABLE, PAIRS_TABLE, SCORES_TABLE, TABLES
from rlhf_bench.results.store import ArmRecords, merge_parts, pair_rows, sample_rows, score_rows
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.update import dump_skipped_update

SPLITS = ("in_distribution", "unseen")
MARGINS = {"in_distribution-0": 1.5, "unseen-1": -0.5}


def looked_at(mark):
    """An evaluation whose every number tells which it is: `mark`, and pairs 0 and 1 of two splits."""
    splits = {
        s: SplitResult(
            (PromptScore(f"{s}-p", mark, 1.0), PromptScore(f"{s}-q", mark, 0.0)),
            {"answer": mark},
            2.0,
            ((f"{s}-p", "1+1=", "2", "2", mark),),
        )
        for s in SPLITS
    }
    pairs = tuple(
        PairEvaluation(s, f"{s}-{i}", -mark, -2.0, -mark, -1.0, 3, 4, 0.25, 0.125, 0.5) for s in SPLITS for i in (0, 1)
    )
    return Evaluation(splits, {"kl": mark, "margin": 1.0 - mark}, {}, 0.1, pairs)


def look(mark, update):
    return EvalPoint(mark, update, Cost(flops=update).as_dict(), update / 4, float(update))


LOOKS = [(BASE_POINT, looked_at(0.0)), (look(0.5, 2), looked_at(0.5)), (look(0.75, 2), looked_at(0.75)), (look(1.0, 4), looked_at(1.0))]  # fmt: skip


def part(directory, arrivals, arm="a", seed=1):
    """Four updates; `arrivals` says before which update (5: after the last) each look is told of."""
    made = ArmRecords(directory, arm, "dpo", "offline", seed)
    for update in range(1, 6):
        for at, (when, evaluation) in zip(arrivals, LOOKS, strict=True):
            if at == update:
                made.evaluated(when, evaluation, MARGINS)
        if update < 5:
            made.update(update, {"loss": 1 / update}, Cost(flops=update).as_dict(), update / 4, float(update))
    made.finish({"learning": Cost(flops=4)}, {"score": 1.0})
    return {name: pd.read_parquet(made.folder / f"{name}.parquet") for name in TABLES}


@pytest.mark.parametrize("arrivals", [(1, 3, 3, 5), (1, 4, 5, 5), (5, 5, 5, 5), (2, 3, 4, 5)])
def test_the_tables_are_the_same_however_late_a_look_arrives(arrivals, tmp_path):
    prompt, late = part(tmp_path / "prompt", (1, 3, 3, 5)), part(tmp_path / "late", arrivals)
    for name in prompt:
        pd.testing.assert_frame_equal(prompt[name], late[name], check_exact=True)


def test_metrics_are_in_the_order_of_the_run(tmp_path):
    rows = part(tmp_path, (5, 5, 5, 5))["metrics"]
    told = [(r.phase, r.update, r.mark, r.split) for r in rows.itertuples()]
    looks = lambda update, mark: [("evaluation", update, mark, s) for s in SPLITS]  # noqa: E731
    steps = [("train", update) for update in (1, 2, 3, 4)]
    assert [t if t[0] == "evaluation" else t[:2] for t in told] == [
        *looks(0, 0.0), *steps[:2], *looks(2, 0.5), *looks(2, 0.75), *steps[2:], *looks(4, 1.0),
    ]  # fmt: skip
    # The numbers of the main split's pairs stand on that split's row and nowhere else.
    assert rows[rows["kl"].notna()]["split"].unique().tolist() == ["in_distribution"]
    assert list(rows.columns[: len(METRICS_TABLE.keys)]) == list(METRICS_TABLE.keys)


def test_a_row_per_mark_and_held_out_pair_with_all_that_is_known_of_it(tmp_path):
    rows = part(tmp_path, (1, 3, 3, 5), arm="x", seed=7)["pairs"]
    assert list(rows.columns) == [
        "arm",
        "seed",
        "mark",
        "update",
        *(f.name for f in fields(PairEvaluation)),
        "reward_margin",
    ]
    assert len(rows) == 4 * 4 and set(rows["arm"]) == {"x"} and set(rows["seed"]) == {7}
    assert list(zip(rows["mark"], rows["pair_id"], strict=True)) == [
        (m, f"{s}-{i}") for m in (0.0, 0.5, 0.75, 1.0) for s in SPLITS for i in (0, 1)
    ]
    assert (rows["chosen_logprob"] == -rows["mark"]).all() and (rows["ches_normalised"] == 0.125).all()
    margins = rows.set_index("pair_id")["reward_margin"]
    assert (margins["in_distribution-0"] == 1.5).all() and (margins["unseen-1"] == -0.5).all()
    assert margins[["in_distribution-1", "unseen-0"]].isna().all()


def test_a_row_per_mark_and_prompt_with_its_scores(tmp_path):
    rows = part(tmp_path, (1, 3, 3, 5), arm="x", seed=7)["scores"]
    assert list(rows.columns) == list(SCORES_TABLE.keys) and set(rows["arm"]) == {"x"}
    assert list(zip(rows["mark"], rows["split"], rows["prompt_id"], strict=True)) == [
        (m, s, f"{s}-{p}") for m in (0.0, 0.5, 0.75, 1.0) for s in SPLITS for p in "pq"
    ]
    assert (rows["score"] == rows["mark"]).all() and rows["greedy_score"].tolist() == [1.0, 0.0] * 8
    metrics = pd.read_parquet(tmp_path / "parts" / "x-seed7" / "metrics.parquet")
    assert metrics["greedy_score"].dropna().tolist() == [0.5] * 8  # a split's is the mean over its prompts


def test_a_run_without_held_out_pairs_has_a_table_without_rows(tmp_path):
    made = ArmRecords(tmp_path, "a", "dpo", "offline", 1)
    made.evaluated(BASE_POINT, replace(looked_at(0.0), pairs=()), {})
    made.finish({}, {})
    rows = pd.read_parquet(made.folder / "pairs.parquet")
    assert len(rows) == 0 and list(rows.columns) == list(PAIRS_TABLE.keys)


def merged(directory, arms):
    base = looked_at(0.0)
    shared = [{"arm": "shared", "seed": 0, "phase": "shared", **Cost(flops=9).as_dict()},
              {"arm": "a", "seed": 5, "phase": "tuning", **Cost(flops=3).as_dict()}]  # fmt: skip
    first = {
        "samples": sample_rows("base", 0, 0.0, base),
        "scores": score_rows("base", 0, 0.0, base),
        "ledger": shared,
        "pairs": pair_rows("base", 0, BASE_POINT, base, MARGINS),
    }
    merge_parts(directory, arms, first)
    return {name: pd.read_parquet(directory / f"{name}.parquet") for name in TABLES}


def test_the_base_policy_comes_first_then_every_finished_arm_and_seed_in_the_recipes_order(tmp_path):
    for arm, seed in (("b", 1), ("a", 2), ("a", 1)):
        part(tmp_path, (1, 3, 3, 5), arm, seed)
    (tmp_path / "parts" / "c-seed1").mkdir()  # begun, not finished
    found = merged(tmp_path, {"a": (1, 2), "b": (1, 2), "c": (1,)})
    order = [("a", 1), ("a", 2), ("b", 1)]
    for name, first in (
        ("pairs", [("base", 0)]),
        ("samples", [("base", 0)]),
        ("scores", [("base", 0)]),
        ("metrics", []),
    ):
        seen = list(dict.fromkeys(zip(found[name]["arm"], found[name]["seed"], strict=True)))
        assert seen == [*first, *order], name
    base = found["pairs"][found["pairs"]["arm"] == "base"]
    assert len(base) == 4 and set(base["mark"]) == {0.0} and set(base["update"]) == {0}
    assert list(found["ledger"]["phase"])[:2] == ["shared", "tuning"] and found["ledger"]["flops"].tolist()[:2] == [
        9,
        3,
    ]


def test_a_part_is_done_once_its_result_is_written(tmp_path):
    assert ArmRecords(tmp_path, "a", "dpo", "offline", 1).result is None
    part(tmp_path, (1, 3, 3, 5))
    assert ArmRecords(tmp_path, "a", "dpo", "offline", 1).result == {"score": 1.0}


def test_what_is_not_a_number_is_null_in_json(tmp_path):
    made = ArmRecords(tmp_path, "a", "dpo", "offline", 1)
    made.finish({}, {"score": math.nan, "spent": {"flops": math.inf}, "marks": [0.5, -math.inf]})
    assert json.loads((made.folder / "result.json").read_text()) == {"score": None, "spent": {"flops": None}, "marks": [0.5, None]}  # fmt: skip


SMALL = {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e9},
         "arms": {"a": {"method": "dpo"}, "b": {"method": "ppo"}}}  # fmt: skip
CLAIM = {"statement": "a beats b", "more": "a", "less": "b"}
TRIALS = {"trials": [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}]}


@pytest.mark.parametrize("more", [
    {"seeds": [1, 2, 3, 4]}, {"baseline": "a"}, {"claims": [CLAIM]}, {"description": "other words"}, {"sweep": {"beta": [0.5]}},
    {"tracking": {"uri": "sqlite:///x.db"}}, {"arms": {**SMALL["arms"], "c": {"method": "ipo"}}},
], ids=lambda more: next(iter(more)))  # fmt: skip
def test_a_directory_may_go_on_with_what_changes_no_number_in_it(more, tmp_path):
    open_directory(tmp_path / "out", parse_recipe(SMALL), "data")
    open_directory(tmp_path / "out", parse_recipe(SMALL | more), "data")


@pytest.mark.parametrize(("more", "lines"), [
    ({"compute": {"limit": 2e9}}, ["compute.limit is 1000000000.0 there, and 2000000000.0 here"]),
    ({"tuning": TRIALS}, ["tuning is null there, and {.*… here"]),
    ({"evaluation": {"gradient_pairs": 3, "prompts": 5}}, ["evaluation.prompts is .* there, and 5 here", "evaluation.gradient_pairs is .*, and 3 here"]),
    ({"arms": {"a": {"method": "dpo", "beta": 0.3}}}, ["arms.a.beta is 0.1 there, and 0.3 here"]),
    ({"arms": {"a": {"method": "ipo"}}}, ["arms.a.method is \"dpo\" there, and \"ipo\" here", ".*"]),
])  # fmt: skip
def test_a_directory_of_another_recipe_is_refused_by_every_key_that_differs_with_both_values(more, lines, tmp_path):
    open_directory(tmp_path / "out", parse_recipe(SMALL), "data")
    with pytest.raises(BadInput) as refused:
        open_directory(tmp_path / "out", parse_recipe(SMALL | more), "data")
    told = list(refused.value.problems)
    assert len(told) >= len(lines) and told[-1].endswith("; give it the recorded values, or choose another directory")
    start = f"--output {tmp_path / 'out'}: holds a comparison of another recipe: "
    assert all(line.startswith(start) for line in told)
    for line in lines:
        assert any(re.match(line, one.removeprefix(start)) for one in told), (line, told)


def test_of_very_many_keys_that_differ_ten_are_named(tmp_path):
    arms = {f"arm-{n}": {"method": "dpo", "beta": 0.1} for n in range(30)}
    open_directory(tmp_path / "out", parse_recipe(SMALL | {"arms": arms}), "data")
    others = {name: arm | {"beta": 0.2} for name, arm in arms.items()}
    with pytest.raises(BadInput) as refused:
        open_directory(tmp_path / "out", parse_recipe(SMALL | {"arms": others}), "data")
    assert len(refused.value.problems) == 11 and "20 more keys differ" in refused.value.problems[-1]


def test_a_directory_of_other_data_is_refused_and_stays_as_it_was(tmp_path):
    """As when a file of the task's is edited between two runs, whose paths are the same."""
    open_directory(tmp_path / "out", parse_recipe(SMALL), "data")
    with pytest.raises(BadInput, match="^--output .*out: holds a comparison on other data: a file .*; bring back"):
        open_directory(tmp_path / "out", parse_recipe(SMALL | {"seeds": [1, 2, 3, 4]}), "other")
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["seeds"] == list(parse_recipe(SMALL).seeds)
    open_directory(tmp_path / "out", parse_recipe(SMALL), "data")


def test_a_directory_of_another_version_is_refused_by_that_name(tmp_path):
    open_directory(tmp_path / "out", parse_recipe(SMALL), "data")
    (tmp_path / "out" / "data_digest").write_text("0123abcd\n")  # as version 0.1 wrote it
    with pytest.raises(
        BadInput, match="^--output .*out: holds a comparison that another version of rlhf-bench has begun; .*"
    ):
        open_directory(tmp_path / "out", parse_recipe(SMALL), "data")


@pytest.mark.parametrize("spoil", [
    lambda out: out.write_text(""),
    lambda out: [out.mkdir(), (out / "recipe.yaml").write_text("a: [\n...\n")],
    lambda out: [out.mkdir(), (out / "recipe.yaml").write_bytes(b"\xff")],
], ids=["a file", "a recipe that is no YAML", "a recipe that is no text"])  # fmt: skip
def test_a_directory_that_cannot_be_used_is_refused_in_one_line(spoil, tmp_path):
    spoil(tmp_path / "out")
    with pytest.raises(BadInput, match="^--output .*out: cannot be used .*; choose another directory$") as refused:
        open_directory(tmp_path / "out", parse_recipe(SMALL), "data")
    assert len(refused.value.problems) == 1


def test_the_data_of_a_skipped_update_are_kept_as_they_were(tmp_path):
    rows = [Row("a", (1, 2), ((3, 4), (5,)))]
    rewards = [(np.float32("nan"), float("inf"))]  # as scorers and judges give them
    logprobs = [(np.array([-1.5, -np.inf], np.float32), np.array([np.nan], np.float32))]
    batch = Batch(rows, rewards, {}, False, measured={"logprobs": logprobs})
    kept = dump_skipped_update(tmp_path, "ppo-seed1", 7, "a reward is not finite", batch)
    read = json.loads(kept.read_text())
    (row,) = read["rows"]
    assert (read["why"], read["update"]) == ("a reward is not finite", 7)
    assert (row["id"], row["prompt_ids"], row["responses"]) == ("a", [1, 2], [[3, 4], [5]])
    assert math.isnan(row["rewards"][0]) and row["rewards"][1] == math.inf
    assert row["measured"]["logprobs"][0] == [-1.5, -math.inf] and math.isnan(row["measured"]["logprobs"][1][0])


def test_no_more_is_kept_of_an_arm_that_is_in_trouble_all_the_time(tmp_path):
    batch = Batch([Row("a", (1,), ((2,),))], [(0.0,)], {}, False)
    kept = [dump_skipped_update(tmp_path, "ppo-seed1", update, "why", batch) for update in range(12)]
    assert [path is not None for path in kept] == [True] * 10 + [False] * 2
    assert dump_skipped_update(tmp_path, "dpo-seed1", 1, "why", batch) is not None  # another arm has its own
