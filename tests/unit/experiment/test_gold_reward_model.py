"""What a gold reward model costs, and whom: a comparison with one and without, engines scripted."""

import json

import pandas as pd

from rlhf_bench.core.costs import COLUMNS
from tests.support.side_by_side import ARMS, Made

COUNTED = [column for column in COLUMNS if column != "device_seconds"]
MADE = {"steps": 1, "start_policy_prompts": 4}
SCORED = {"scored": {**ARMS["online"], "feedback": "reward_model"}}


def run(folder, **recipe):
    made = Made(folder, arms=SCORED, reward_model=MADE, **recipe)
    made.run()
    ledger = pd.read_parquet(made.directory / "ledger.parquet").set_index(["arm", "seed", "phase"])[COUNTED]
    return made, ledger.sort_index(), json.loads((made.directory / "base.json").read_text())


def test_arms_spend_the_same_with_a_gold_reward_model_and_its_making_is_nobodys(tmp_path):
    _, without, plain = run(tmp_path / "without")
    made, with_it, base = run(tmp_path / "with", gold_reward_model={**MADE, "start_policy_prompts": 8})
    arms = without.index.get_level_values("arm") != "shared"
    pd.testing.assert_frame_equal(with_it.drop("shared"), without[arms])
    more = with_it.loc["shared"].iloc[0] - without.loc["shared"].iloc[0]
    assert (more >= 0).all() and more["flops"] > 0 and more["generated_tokens"] > 0 and more["judge_queries"] > 0
    assert made.scorer is not None and set(base["gold_reward_model"]) == {"accuracy", "accuracies", "scale"}
    assert "gold_reward_model" not in plain and base["reward_model"] == plain["reward_model"]
