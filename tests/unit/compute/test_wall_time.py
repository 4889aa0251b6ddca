"""How long a comparison takes: what it is made of, what it follows, and the budget that a given time allows."""

from dataclasses import replace

import pytest

from actors.rollout import vllm_engine
from rlhf_bench.compute import forecast, memory, wall_time
from rlhf_bench.compute.forecast import FixedData, Lengths
from rlhf_bench.compute.speed import Speed, Speeds, core_speed, speeds_of
from rlhf_bench.compute.wall_time import REPORT_SECONDS, budget_for, comparison_time
from rlhf_bench.core.errors import BadInput
from rlhf_bench.diagnostics import pair_gradients, probes
from rlhf_bench.experiment.stages import own_pairs
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import parse_recipe

SHAPE = ModelShape(
    100_000_000, layers=30, attention_width=576, head_weights=28_000_000, parameters=134_000_000, linear_width=200_000,
    vocabulary=49_152,
)  # fmt: skip
N = Lengths(prompt=55, response=32)
CORE = Speed(60e9, 60e9, 8e9, cores=2)
SPEEDS = Speeds(CORE, Speed(1e15, 1e15, 3e12))
ARMS = {
    "ppo": {"method": "ppo", "prompts_per_update": 16, "epochs_per_update": 1},
    "offline": {"method": "dpo", "pairs_per_update": 16},
    "on-policy": {"method": "dpo", "data": "on_policy", "pairs_per_update": 16},
    "twice": {"method": "dpo", "data": "on_policy", "pairs_per_update": 16, "epochs": 2},
}
TRIALS = {"trials": [{"learning_rate": 1e-5}, {"learning_rate": 1e-4}], "seeds": [7], "prompts": 32}


def recipe(arms=ARMS, limit=1e14, column="flops", **sections):
    base = {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": limit, "column": column}, "arms": arms}
    sizes = {
        "data": {"held_out_pairs": 32}, "evaluation": {"prompts": 8}, "sft": {"steps": 2, "examples_per_step": 8},
        "reward_model": {"start_policy_prompts": 32, "steps": 2, "examples_per_step": 8},
    }  # fmt: skip
    return parse_recipe(base | sizes | sections)


def time(r, speeds=SPEEDS, n=N, pairs=512):
    return comparison_time(r, SHAPE, n, speeds, fixed=FixedData(pairs))


def test_all_is_what_comes_before_and_every_arm_with_every_seed():
    found = time(recipe(seeds=[1, 2, 3]))
    arms = sum(arm.seconds for arm in found.arms.values())
    assert found.seconds == pytest.approx(sum(found.before.values()) + 3 * arms + REPORT_SECONDS)
    halved = time(recipe(seeds=[1, 2, 3], placement={"fleets": 2}))
    assert found.seconds - halved.seconds == pytest.approx(3 * arms / 2)


def test_an_arm_of_fixed_pairs_neither_samples_nor_syncs():
    parts = time(recipe()).arms["offline"].parts
    assert parts["sampling"] == parts["scoring"] == parts["sync"] == 0 and parts["learning"] > 0
    assert min(x for name, x in time(recipe()).arms["ppo"].parts.items() if name != "evaluation") > 0


def test_samples_of_the_start_policy_are_drawn_by_the_first_arm_that_needs_them():
    """The arm twice trains on each pair twice, so it draws for fewer prompts than the arm before it."""
    both, alone = time(recipe()).arms, time(recipe({"twice": ARMS["twice"]})).arms["twice"]
    assert both["on-policy"].parts["sampling"] > alone.parts["sampling"] > both["twice"].parts["sampling"] == 0
    turned = time(recipe({name: ARMS[name] for name in ("twice", "on-policy")})).arms
    drawn = sum(arm.parts["sampling"] for arm in turned.values())
    assert turned["twice"].parts["sampling"] == alone.parts["sampling"]
    assert drawn == pytest.approx(both["on-policy"].parts["sampling"])


@pytest.mark.parametrize("name", ARMS)
def test_ten_times_the_budget_trains_about_ten_times_as_long(name):
    """What the reward model costs is taken from both, and its making is not an arm's time."""
    one, ten = (
        sum(time(recipe({name: ARMS[name]}, limit)).arms[name].parts[p] for p in ("sampling", "scoring", "learning"))
        for limit in (1e15, 1e16)
    )
    assert ten == pytest.approx(10 * one, rel=0.1)


def test_devices_twice_as_fast_take_half_the_time_for_products():
    faster = Speeds(replace(CORE, learner_flops=2 * CORE.learner_flops), SPEEDS.gpu)
    before, after = (time(recipe(), speeds).arms["offline"].parts["learning"] for speeds in (SPEEDS, faster))
    assert before == pytest.approx(2 * after)
    two = time(recipe(placement={"learner": {"cpus": 2}})).arms["offline"].parts["learning"]
    assert before == pytest.approx(2 * two)


def test_few_sequences_at_once_take_longer_than_many():
    def sampling(at_once):
        placement = {"rollout": {"concurrent_requests": at_once}}
        return time(recipe(placement=placement)).arms["ppo"].parts["sampling"]

    assert sampling(1) > 2 * sampling(8) > 2 * sampling(64)


def test_looks_are_hidden_beside_long_training_and_waited_for_after_a_short_one():
    """With a core for each; with one core the arm waits for all of them."""
    looks = {}
    for limit in (1e12, 1e17):
        parts = time(recipe(limit=limit, evaluation={"prompts": 64, "marks": [0.25, 0.5, 1.0]})).arms["offline"].parts
        looks[limit] = parts["evaluation"]
    alone = Speeds(replace(CORE, cores=1), SPEEDS.gpu)
    all_three = time(recipe(evaluation={"prompts": 64, "marks": [0.25, 0.5, 1.0]}), alone).arms["offline"]
    assert looks[1e17] == pytest.approx(all_three.parts["evaluation"] / 3)
    assert looks[1e17] < looks[1e12] <= all_three.parts["evaluation"]


def test_a_base_policy_at_another_temperature_costs_a_part_of_the_first_look():
    """It draws samples and measures KL; greedy responses, held-out pairs and their gradients are those of the first."""
    once, twice, thrice = (
        time(recipe(evaluation={"prompts": 8, "base_temperatures": others})).before["base evaluation"]
        for others in ([], [0.3], [0.3, 0.6])
    )
    assert 0 < twice - once < once / 2 and thrice - twice == pytest.approx(twice - once)


def test_trials_and_the_reward_model_are_counted_where_there_are_some():
    judged = {"ppo": ARMS["ppo"] | {"feedback": "judge"}}
    assert "reward model" in time(recipe()).before and "reward model" not in time(recipe(judged)).before
    tuned = time(recipe(tuning=TRIALS | {"fraction": 0.5}))
    assert tuned.before["trials"] > sum(arm.parts["learning"] for arm in tuned.arms.values())
    assert "trials" not in time(recipe()).before


def test_the_references_pass_over_fixed_pairs_grows_with_them_and_is_left_out_where_no_arm_learns_from_them():
    few, many = (time(recipe(), pairs=pairs).before["reference"] for pairs in (64, 640))
    assert 5 * few < many < 10 * few  # the model is loaded once
    assert "reference" not in time(recipe({"on-policy": ARMS["on-policy"]})).before


def test_a_budget_in_seconds_is_taken_at_its_word():
    arm = time(recipe(column="device_seconds", limit=300, arms={"a": ARMS["offline"]})).arms["a"]
    assert arm.parts["learning"] == 300 and arm.seconds > 300


@pytest.mark.parametrize("minutes", [300, 1200])
@pytest.mark.parametrize("column", ["flops", "trained_tokens"])
def test_a_comparison_with_the_budget_of_a_time_takes_that_time(minutes, column):
    r = recipe(column=column, seeds=[1, 2])
    limit = budget_for(60 * minutes, r, SHAPE, N, SPEEDS, fixed=FixedData(512))
    r = recipe(column=column, seeds=[1, 2], limit=limit)
    assert time(r).seconds == pytest.approx(60 * minutes, rel=0.05)


def test_a_time_that_start_and_evaluation_take_alone_is_refused():
    with pytest.raises(
        BadInput, match=r"budget: 30 s is less than start, evaluation .* take here, \d+ s; allow more time"
    ):
        budget_for(30, recipe(), SHAPE, N, SPEEDS, fixed=FixedData(512))


def test_a_core_is_timed_unless_the_recipe_says_how_fast_it_is():
    named = speeds_of(recipe(placement={"device": {"peak_tflops": 2}}))
    assert named.core.learner_flops == named.core.engine_flops == 2e12
    timed = speeds_of(recipe()).core
    assert 1e8 < timed.learner_flops < 1e13 and 1e8 < timed.bytes_per_second < 1e12 and timed.cores
    assert speeds_of(recipe()).core is core_speed("float32") is timed


def test_gpus_go_by_their_data_sheet_and_no_core_is_timed():
    gpus = {role: {"gpus": 1} for role in ("learner", "rollout", "scorer", "evaluator")}
    found = speeds_of(recipe(model={"dtype": "bfloat16"}, placement=gpus))
    assert found.core is None and found.gpu.learner_flops == 989e12
    r = recipe(model={"dtype": "bfloat16"}, placement=gpus | {"device": {"peak_tflops": 100, "utilisation": 0.5}})
    arm = comparison_time(r, SHAPE, N, speeds_of(r), fixed=FixedData(512)).arms["offline"]
    assert arm.parts["learning"] == pytest.approx(arm.flops / (100e12 * 0.5))


def test_the_forecast_counts_what_the_actors_do():
    """Rooms that the forecast may not import have these numbers of their own."""
    assert own_pairs.PROMPTS_AT_ONCE == wall_time.OWN_PROMPTS
    assert vllm_engine.CPU_BLOCK_TOKENS == wall_time.CACHED_BLOCK
    assert len(probes.PROBE_SETS) == forecast.PROBE_SETS
    assert pair_gradients.GRADIENT_TOKENS <= memory.GRADIENT_TOKENS
