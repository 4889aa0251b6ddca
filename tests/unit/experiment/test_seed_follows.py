"""A base policy for each seed: `sft.seed_follows`. One lucky base policy then carries no comparison."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from rlhf_bench.experiment.comparison import Comparison
from rlhf_bench.models.weights import weights_sha256
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.standing import BASE_POLICY
from rlhf_bench.results.summary import summarize
from tests.chaos.compare import differences
from tests.support.side_by_side import ARMS, RECIPE, Made

FOLLOWS = {"sft": RECIPE["sft"] | {"seed_follows": True}}
SCORED_BY_MODEL = {"method": "dpo", "pairs_per_update": 4, "data": "online", "feedback": "reward_model"}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A comparison of two seeds, each with a base policy of its own."""
    made = Made(tmp_path_factory.mktemp("followed"), **FOLLOWS)
    made.run()
    return made


def base_of(made):
    return json.loads((made.directory / "base.json").read_text())


def starts(made):
    """The seed of each arm that was trained, and the folder of the policy that it began from."""
    return {
        (seed, path.name)
        for one in made.learners
        for name, path, seed in one.loaded
        if name == "policy" and 0 < seed < 101
    }


def test_every_seed_has_a_base_policy_of_its_own_which_all_its_arms_start_from(followed):
    (one, first), (two, second) = sorted(starts(followed))
    assert (one, two) == (1, 2) and first != second  # four arms, and one folder a seed
    base = base_of(followed)
    assert base["seeds"].keys() == {"1", "2"}
    for number, folder in ((1, first), (2, second)):
        assert base["seeds"][str(number)]["weights"] == weights_sha256(followed.cache.folder / folder)
    scores = [base["seeds"][seed]["score"]["in_distribution"] for seed in "12"]
    assert scores[0] != scores[1] and base["score"]["in_distribution"] == pytest.approx(sum(scores) / 2)
    assert "weights" not in base and f"{scores[0]:.3f} (seed 1), {scores[1]:.3f} (seed 2)" in base["setup"]["notes"][0]


def test_otherwise_all_seeds_share_one(tmp_path):
    made = Made(tmp_path)
    made.run()
    assert [seed for seed, _ in sorted(starts(made))] == [1, 2] and len({folder for _, folder in starts(made)}) == 1
    assert "seeds" not in base_of(made) and len(base_of(made)["weights"]) == 64
    assert [charged for *_, charged in made.begun] == [True]  # one evaluator, told once


def test_weaker_policy_pairs_and_their_cost_are_the_seeds_own_too(followed):
    weaker = {path.name for path in followed.cache.folder.glob("weaker-*")}
    pairs = {path.name for path in followed.cache.folder.glob("pairs-*")}
    assert len(weaker) == len(pairs) == 2
    ledger = pd.read_parquet(followed.directory / "ledger.parquet")
    shared = ledger[ledger["arm"] == "shared"]
    assert list(shared["seed"]) == [1, 2] and (shared["flops"] > 0).all()


def test_each_curve_begins_with_its_own_seeds_base_policy_and_is_compared_with_that(followed):
    recorded = read_recorded(followed.directory)
    scores = {
        seed: base["score"]["in_distribution"]
        for seed, base in ((s, base_of(followed)["seeds"][str(s)]) for s in (1, 2))
    }
    first = recorded.main_split[recorded.main_split["mark"] == 0]
    assert all(row.score == scores[row.seed] for row in first.itertuples()) and len(first) == 2 * len(ARMS)
    summary = summarize(recorded)
    for arm in summary.arms:
        own = {seed.seed: seed.score - scores[seed.seed] for seed in arm.finished}
        assert summary.standing.difference(arm.name, BASE_POLICY).paired.differences == pytest.approx(
            tuple(own[seed] for seed in sorted(own))
        )
    for table in ("samples", "scores"):
        rows = pd.read_parquet(followed.directory / f"{table}.parquet")
        assert set(rows.loc[rows["arm"] == "base", "seed"]) == {1, 2}


def test_the_evaluator_is_told_of_the_base_policy_whenever_the_seed_changes_and_charged_once_for_each(followed):
    (_, first), (_, second) = sorted(starts(followed))
    assert [(folder, charged) for _, folder, _, charged in followed.begun] == [
        (first, True), (second, True), (first, False), (second, False),
    ]  # fmt: skip


def test_the_numbers_do_not_depend_on_how_many_fleets_there_are_or_on_a_lost_one(followed, tmp_path):
    made = Made(tmp_path, 3, seconds=0.01, loses=[1, 2], **FOLLOWS)
    made.run()
    assert made.recovered and base_of(made) == base_of(followed)
    assert [d for seed in (1, 2) for d in differences(made.directory, followed.directory, list(ARMS), seed)] == []


def test_a_further_seed_is_added_and_those_that_are_done_are_not_made_again(followed, tmp_path):
    Made(tmp_path, seeds=[1], **FOLLOWS).run()
    made = Made(tmp_path, seeds=[1, 2], **FOLLOWS)
    made.run()
    assert len(made.begun) == 1 and [seed for seed, _ in starts(made)] == [2]
    assert base_of(made) == base_of(followed)
    assert [d for seed in (1, 2) for d in differences(made.directory, followed.directory, list(ARMS), seed)] == []
    again = Made(tmp_path, seeds=[1, 2], **FOLLOWS)
    again.run()
    assert again.begun == [] and starts(again) == set() and base_of(again) == base_of(followed)


def test_without_a_report_a_run_ends_with_its_tables_also_where_it_has_no_arm_to_train(followed, tmp_path):
    made = Made(tmp_path, **FOLLOWS)
    spec = replace(made.comparison.spec, arms=[])
    bases_only = Comparison(spec, replace(made.comparison.runtime, begin_report=None))
    assert bases_only.run() is None
    assert base_of(made) == base_of(followed) and starts(made) == set()


def test_trials_start_from_the_base_policy_of_their_own_seed(tmp_path):
    tuning = {"trials": [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}], "prompts": 2, "seeds": [7]}
    made = Made(tmp_path, arms={"offline": ARMS["offline"]}, tuning=tuning, **FOLLOWS)
    made.run()
    by_seed = dict(starts(made))
    assert by_seed.keys() == {1, 2, 7} and len(set(by_seed.values())) == 3
    assert made.begun[0][1:] == (by_seed[7], True, True) and base_of(made)["seeds"].keys() == {"1", "2"}


def test_reward_models_are_the_seeds_own_and_each_scores_its_own_arms(tmp_path):
    made = Made(
        tmp_path, arms={"scored": SCORED_BY_MODEL, "other": SCORED_BY_MODEL}, compute={"limit": 4000.0}, **FOLLOWS
    )
    made.run()
    (one, other) = made.cache.folder.glob("reward-*")
    loaded = [
        path.parent.name
        for path in made.scorer.loaded
        if path.parent.parent == made.cache.folder and path.parent.name[0] != "."
    ]
    assert len(loaded) == 4 and loaded[:2] == loaded[2:] and set(loaded) == {one.name, other.name}
