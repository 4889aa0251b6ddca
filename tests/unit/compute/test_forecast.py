"""What a recipe will cost: reckoned here from the steps that are taken, and never less than what will be charged."""

import re
from dataclasses import replace

import pytest
import torch

from rlhf_bench.compute.forecast import (
    FixedData,
    Lengths,
    arm_forecast,
    check_budget,
    data_use,
    largest_step,
    look_flops,
    pair_forecast,
    reward_model_forecast,
)
from rlhf_bench.compute.memory import memory_gib, transient_gib
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.models import cpu_kernels
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops, side_gradients_flops, training_flops
from rlhf_bench.models.layout import Layout
from rlhf_bench.models.loading import load_model, random_init_shape, write_random_model
from rlhf_bench.models.lora import add_adapters
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.models.settings import LoraSettings, ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.recipe import parse_recipe

SHAPE = ModelShape(
    50_000, layers=2, attention_width=32, head_weights=640, parameters=51_000, linear_width=600, vocabulary=20
)
SCALAR = replace(SHAPE, head_weights=32)
N = Lengths(prompt=7, response=5)
ARMS = {
    "ppo": {"method": "ppo", "prompts_per_update": 8, "samples_per_prompt": 4, "epochs_per_update": 3},
    "offline": {"method": "dpo", "pairs_per_update": 16},
    "on-policy": {"method": "flex_dpo", "data": "on_policy", "pairs_per_update": 16},
    "online": {"method": "dpo", "data": "online", "prompts_per_update": 4, "feedback": "reward_model"},
}


def recipe(arms=ARMS, limit=1e15, column="flops", **sections):
    base = {"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": limit, "column": column}, "arms": arms}
    data = {"candidates_per_prompt": 6}
    reward_model = {"steps": 20, "examples_per_step": 8, "start_policy_prompts": 12}
    return parse_recipe(base | {"data": data, "reward_model": reward_model} | sections)


def alone(samples):
    return Layout.of([(7, [5])] * samples)


def forecast(name, **sections):
    r = recipe(**sections)  # `arms` too, where they are not `ARMS`
    return arm_forecast(r, r.arms[name], SHAPE, N)


def test_an_offline_update_is_one_look_at_the_reference_and_one_step():
    f = forecast("offline")
    layout, tokens = Layout.of([(7, [5] * 2)] * 16), 16 * 2 * 5
    flops = forward_flops(SHAPE, layout, tokens) + training_flops(SHAPE, layout, tokens)
    assert f.before == Cost()
    assert f.update == Cost(flops=pytest.approx(flops), trained_tokens=tokens, scored_tokens=tokens)


def test_what_all_prompts_begin_with_is_paid_once_in_a_micro_batch():
    """16 pairs in two micro-batches of eight."""
    n, r = Lengths(40, 5, shared=30, micro_batch=30 + 8 * 20), recipe()
    layout, tokens = Layout.of([(40, [5] * 2)] * 8, prefix=30), 8 * 2 * 5
    flops = 2 * (forward_flops(SHAPE, layout, tokens) + training_flops(SHAPE, layout, tokens))
    assert arm_forecast(r, r.arms["offline"], SHAPE, n).update.flops == pytest.approx(flops)
    assert 16 * pair_forecast(r.arms["offline"], SHAPE, n, 5, 5).flops == pytest.approx(flops)
    by_row, apart = (
        arm_forecast(r, r.arms["offline"], SHAPE, replace(n, **x)).update for x in ({"micro_batch": 30}, {"shared": 0})
    )
    assert by_row.flops == pytest.approx(apart.flops, rel=0.02) and by_row.flops > 1.3 * flops  # one row shares nothing
    saved = largest_step(r, replace(n, shared=0)) - largest_step(r, n)
    assert saved > 0 and saved % 30 == 0


def test_the_datas_own_responses_are_as_long_as_they_are():
    r, n = recipe(), replace(N, side=3)
    shorter = replace(N, response=3)
    assert arm_forecast(r, r.arms["offline"], SHAPE, n) == arm_forecast(r, r.arms["offline"], SHAPE, shorter)
    for sampled in ("on-policy", "online", "ppo"):
        assert arm_forecast(r, r.arms[sampled], SHAPE, n) == arm_forecast(r, r.arms[sampled], SHAPE, N)
    looks = [look_flops(r, SHAPE, x, [r.arms["offline"]]) for x in (shorter, n, N)]
    assert looks[0] < looks[1] < looks[2]  # the policy's samples are at full length


def test_on_policy_candidates_are_paid_with_the_update_that_learns_from_them():
    offline, drawn, samples = forecast("offline"), forecast("on-policy"), 16 * 6
    sampled = drawn.update.flops - offline.update.flops
    assert drawn.before == Cost() and drawn.steady == drawn.update  # every pair's reference is measured once
    assert sampled == pytest.approx(generation_flops(SHAPE, [(7, 0, 5)] * samples))
    assert (drawn.update.generated_tokens, drawn.update.judge_queries) == (samples * 5, samples)


@pytest.mark.parametrize("epochs", [2, 5])
def test_with_several_epochs_candidates_come_before_and_leave_room_to_train_on_them(epochs):
    arms, samples = {"on-policy": ARMS["on-policy"] | {"epochs": epochs}}, 16 * 6
    limit = 100 * forecast("on-policy").update.flops
    f = forecast("on-policy", arms=arms, limit=limit)
    draw = generation_flops(SHAPE, [(7, 0, 5)] * samples)
    draws = f.before.flops / draw
    assert draws == pytest.approx(round(draws)) and f.update == forecast("offline").update
    each = draw + f.update.flops + (epochs - 1) * f.steady.flops
    assert draws * each == pytest.approx(limit, abs=each) and draws * each <= limit
    assert f.least.flops == pytest.approx(draw + f.update.flops)


PAIRS = {"offline": (None, 16 * 10 / 40), "on-policy": (1, 16 * 10 / 64), "mixed": (1, 16 * 10 / 40), "online": (1, 4 * 10 / 64),
         "twice": (2, None), "ppo": (None, 8 * 10 / 64)}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_passes_over_pairs_and_over_prompts(name):
    """Ten updates; the data has 40 pairs and 64 prompts."""
    more = {"mixed": ARMS["on-policy"] | {"data": "chosen_on_policy"}, "twice": ARMS["on-policy"] | {"epochs": 2}}
    arms = {name: (ARMS | more)[name] | {"feedback": "judge"}} if name != "offline" else {name: ARMS[name]}
    data = {"candidates_per_prompt": 6, "train_prompts": 64}
    one = forecast(name, arms=arms, data=data)
    limit = 10 * one.update.flops if name != "twice" else 10 * (one.least.flops + one.steady.flops)
    r = recipe(arms, limit=limit, data=data)
    use = data_use(r, r.arms[name], arm_forecast(r, r.arms[name], SHAPE, N), FixedData(40))
    if name == "offline":
        assert (use.pair_passes, use.prompt_passes) == pytest.approx((PAIRS[name][1], None))
    elif name == "twice":
        assert use.pair_passes == 2 and use.prompt_passes == pytest.approx(16 * 10 / 64, rel=0.15)
    else:
        assert (use.pair_passes, use.prompt_passes) == pytest.approx(PAIRS[name])


def test_training_on_a_pair_is_forecast_from_its_own_lengths():
    arm = recipe().arms["on-policy"]
    thrice = arm.model_copy(update={"epochs": 3})
    f = forecast("offline")
    assert 16 * pair_forecast(arm, SHAPE, N, 5, 5).flops == pytest.approx(f.update.flops)
    assert 16 * pair_forecast(thrice, SHAPE, N, 5, 5).flops == pytest.approx(f.update.flops + 2 * f.steady.flops)
    assert pair_forecast(thrice, SHAPE, N, 4, 9).trained_tokens == 3 * 13
    adaptive = METHODS["adaptive_flex_dpo"].settings(data="on_policy", adapt_every=4)
    flops = side_gradients_flops(SHAPE, Layout.of([(7, [5, 5])] * 2), 20) / 2 / 4
    assert pair_forecast(adaptive, SHAPE, N, 5, 5).flops - pair_forecast(arm, SHAPE, N, 5, 5).flops == pytest.approx(
        flops, rel=0.1
    )


def test_a_ppo_update_holds_sampling_scoring_measuring_and_every_epoch_of_both_models():
    update, samples, tokens, layout = forecast("ppo").update, 32, 32 * 5, Layout.of([(7, [5] * 4)] * 8)
    charged = generation_flops(SHAPE, [(7, 0, 5)] * samples) + forward_flops(SCALAR, alone(samples), samples)
    charged += 2 * forward_flops(SHAPE, layout, tokens) + forward_flops(SCALAR, layout, tokens + samples)
    charged += 3 * (training_flops(SHAPE, layout, tokens) + training_flops(SCALAR, layout, tokens + samples))
    assert charged <= update.flops <= 1.05 * charged
    assert (update.generated_tokens, update.trained_tokens) == (tokens, 3 * 2 * tokens)
    assert update.scored_tokens == 3 * tokens + samples * 12


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus"])
def test_an_update_without_a_critic_is_ppos_less_what_the_critic_costs(name):
    """The critic's values before, and its steps: all else is the same work."""
    arms = {method: ARMS["ppo"] | {"method": method} for method in ("ppo", name)}
    ppo, own = (forecast(method, arms=arms).update for method in arms)
    tokens, layout = 32 * 5, Layout.of([(7, [5] * 4)] * 8)
    critic = forward_flops(SHAPE, layout, tokens) + 3 * training_flops(SHAPE, layout, tokens)
    assert ppo.flops - own.flops == pytest.approx(critic)
    assert own.trained_tokens == 3 * tokens and own.generated_tokens == ppo.generated_tokens
    assert ppo.scored_tokens - own.scored_tokens == tokens
    free = {name: arms[name] | {"kl_coefficient": 0}}
    assert own.flops - forecast(name, arms=free).update.flops == pytest.approx(forward_flops(SHAPE, layout, tokens))


def test_rejection_sampling_trains_on_one_response_of_all_that_it_draws():
    arms = {"rft": {"method": "rft", "feedback": "judge", "prompts_per_update": 8, "samples_per_prompt": 4}}
    update, layout = forecast("rft", arms=arms).update, Layout.of([(7, [5])] * 8)
    charged = generation_flops(SHAPE, [(7, 0, 5)] * 32) + training_flops(SHAPE, layout, 8 * 5)
    assert charged <= update.flops <= 1.05 * charged
    assert (update.generated_tokens, update.trained_tokens, update.scored_tokens) == (160, 40, 0)
    assert update.judge_queries == 32


def test_only_arms_that_ask_the_reward_model_pay_for_it():
    r = recipe()
    cost = reward_model_forecast(r, SHAPE, N)
    assert cost.flops > 0
    before = {name: arm_forecast(r, arm, SHAPE, N).before for name, arm in r.arms.items()}
    assert before["ppo"] == before["online"] == cost
    assert before["offline"] == before["on-policy"] == Cost()


def test_the_reward_models_forecast_holds_all_that_its_making_charges():
    """Sampling, judging, training, and scoring the samples to set the scale of its scores."""
    cost, samples = reward_model_forecast(recipe(), SHAPE, N), 12 * 6
    flops = generation_flops(SHAPE, [(7, 0, 5)] * samples) + forward_flops(SCALAR, alone(samples), samples)
    flops += 20 * training_flops(SCALAR, Layout.of([(7, [5] * 2)] * 8), 8 * 2 * 5 + 16)
    assert cost.flops >= flops
    assert (cost.trained_tokens, cost.judge_queries) == (20 * 8 * 2 * 5, samples)
    assert cost.scored_tokens >= samples * 12


LARGER = replace(SHAPE, matmul_weights=90_000, parameters=91_000, head_weights=32, linear_width=900)


def test_a_given_reward_model_costs_sampling_and_scoring_by_its_own_shape():
    cost, samples = reward_model_forecast(recipe(), SHAPE, N, LARGER), 12 * 6
    flops = generation_flops(SHAPE, [(7, 0, 5)] * samples) + forward_flops(LARGER, alone(samples), samples)
    scored = samples * 12
    assert cost == Cost(flops=pytest.approx(flops), generated_tokens=samples * 5, scored_tokens=scored)


def test_a_critic_is_as_large_as_the_reward_model_it_starts_from():
    arms = {"model": ARMS["ppo"], "judge": ARMS["ppo"] | {"feedback": "judge"}}
    r, tokens, layout = recipe(arms), 32 * 5, Layout.of([(7, [5] * 4)] * 8)
    given, trained = ({n: arm_forecast(r, a, SHAPE, N, s).update for n, a in r.arms.items()} for s in (LARGER, None))
    assert given["judge"] == trained["judge"]

    def of_rewarding(shape):
        in_learner = forward_flops(shape, layout, tokens) + 3 * training_flops(shape, layout, tokens)
        return in_learner + forward_flops(shape, alone(32), 32)

    dearer = given["model"].flops - trained["model"].flops
    assert dearer == pytest.approx(of_rewarding(LARGER) - of_rewarding(SHAPE))


def test_an_ensemble_is_trained_held_and_asked_by_the_member():
    """Samples and judgements are drawn once; training, scoring and weights come three times."""
    settings = {"steps": 20, "examples_per_step": 8, "start_policy_prompts": 12}
    one, three = (recipe(reward_model=settings | more) for more in ({}, {"ensemble": {"size": 3, "combine": "min"}}))
    sampled = Cost(generated_tokens=12 * 6 * 5, judge_queries=12 * 6)
    sampled += Cost(flops=generation_flops(SHAPE, [(7, 0, 5)] * 72))
    single, several = (reward_model_forecast(r, SHAPE, N) for r in (one, three))
    assert several.flops - sampled.flops == pytest.approx(3 * (single.flops - sampled.flops))
    assert (several.generated_tokens, several.judge_queries) == (single.generated_tokens, single.judge_queries)
    assert several.trained_tokens == 3 * single.trained_tokens
    a, b = (arm_forecast(r, r.arms["ppo"], SHAPE, N).update for r in (one, three))
    assert b.flops - a.flops == pytest.approx(2 * 32 * forward_flops(SHAPE, alone(1), 1), rel=1e-2)
    gib = 4 * SHAPE.parameters / 2**30
    held, more = memory_gib(one, SHAPE), memory_gib(three, SHAPE)
    assert more["scorer"] == pytest.approx(3 * gib) and more["evaluator"] - held["evaluator"] == pytest.approx(2 * gib)
    assert more["learner"] == held["learner"]  # a critic starts from one member
    looks = [look_flops(r, SHAPE, N, [r.arms["ppo"]]) for r in (one, three)]
    scored = forward_flops(SHAPE, Layout.of([(7, [5] * 4)] * 64), 64 * 4)
    assert looks[1] - looks[0] == pytest.approx(2 * scored)


def test_a_gold_reward_model_is_held_by_the_evaluator_and_paid_for_by_no_arm():
    gold = {"start_policy_prompts": 24, "ensemble": {"size": 2}}
    without, with_it = recipe(), recipe(gold_reward_model=gold)
    ppo, again = (arm_forecast(r, r.arms["ppo"], SHAPE, N) for r in (without, with_it))
    assert ppo == again
    held, more = memory_gib(without, SHAPE), memory_gib(with_it, SHAPE, gold=LARGER)
    assert more["evaluator"] - held["evaluator"] == pytest.approx(4 * 2 * LARGER.parameters / 2**30)
    alone_ = recipe({"a": ARMS["offline"]}, gold_reward_model=gold)
    assert memory_gib(alone_, SHAPE)["evaluator"] == pytest.approx(held["evaluator"] + 4 * SHAPE.parameters / 2**30)
    scored = forward_flops(LARGER, Layout.of([(7, [5] * 4)] * 64), 64 * 4)
    looks = [look_flops(r, SHAPE, N, [r.arms["ppo"]], gold=LARGER) for r in (without, with_it)]
    assert looks[1] - looks[0] == pytest.approx(2 * scored)


def test_a_given_reward_models_memory_is_its_own():
    gib, more = SHAPE.parameters / 2**30, LARGER.parameters / 2**30
    ppo, judged = ({"a": ARMS["ppo"] | feedback} for feedback in ({}, {"feedback": "judge"}))
    found = memory_gib(recipe(ppo), SHAPE, LARGER)
    assert found["scorer"] == pytest.approx(4 * more)
    # Policy and critic, gradients of the larger one, the reference.
    assert found["learner"] == pytest.approx(12 * (gib + more) + 4 * more + 4 * gib)
    assert memory_gib(recipe(judged), SHAPE, LARGER)["learner"] == pytest.approx(2 * 12 * gib + 4 * gib + 4 * gib)
    passing = transient_gib(recipe(ppo), SHAPE, LARGER), transient_gib(recipe(ppo), SHAPE)
    assert passing[0]["scorer"] / passing[1]["scorer"] == pytest.approx(900 / 600)


def test_candidates_that_the_reward_model_ranks_are_scored():
    arms = {"a": {"method": "dpo", "data": "on_policy", "feedback": "reward_model"}}
    r = recipe(arms)
    found, candidates = arm_forecast(r, r.arms["a"], SHAPE, N), 32 * 6
    assert found.before == reward_model_forecast(r, SHAPE, N)
    assert found.update.scored_tokens == candidates * 12 + 32 * 2 * 5  # and the pairs' reference


@pytest.mark.parametrize("column", ["flops", "generated_tokens", "trained_tokens", "scored_tokens"])
def test_a_budget_that_no_update_fits_into_is_refused_by_the_arms_name(column):
    arms = {name: ARMS[name] for name in ("ppo", "online")}
    with pytest.raises(BadInput) as refused:
        check_budget(recipe(arms, limit=1, column=column), SHAPE, N)
    problems = refused.value.problems
    assert [re.match(rf"compute\.limit: 1 {column} is less than arm (\S+) needs", p)[1] for p in problems] == list(arms)
    assert all("raise it to" in p for p in problems)


@pytest.mark.parametrize(("column", "endless"), [
    ("flops", []), ("trained_tokens", []), ("device_seconds", []),
    ("generated_tokens", ["offline", "epochs"]),
    ("scored_tokens", ["offline", "epochs"]),  # a row's reference is charged once
    ("judge_queries", ["ppo", "offline", "online", "epochs"]),  # their samples are scored by the reward model, or given
])  # fmt: skip
def test_an_arm_that_never_spends_the_budgets_column_is_refused_by_name(column, endless):
    several = {} if column == "device_seconds" else {"epochs": ARMS["on-policy"] | {"epochs": 2}}
    arms = recipe(ARMS | several, column=column, limit=1e15)
    if not endless:
        return check_budget(arms, SHAPE, N)
    with pytest.raises(BadInput) as refused:
        check_budget(arms, SHAPE, N)
    named = [
        re.match(rf"compute\.column: an update of arm (\S+) spends no {column},", p)[1] for p in refused.value.problems
    ]
    assert named == endless
    assert all("use flops, trained_tokens or device_seconds" in p for p in refused.value.problems)


@pytest.mark.parametrize("prompts", [3, 5, 7, 11])
def test_the_limit_that_the_refusal_names_is_accepted(prompts):
    arms = {"a": {"method": "ppo", "prompts_per_update": prompts}}
    with pytest.raises(BadInput) as refused:
        check_budget(recipe(arms, limit=10), SHAPE, N)
    (named,) = re.findall(r"raise it to at least (\S+)", str(refused.value))
    check_budget(recipe(arms, limit=float(named)), SHAPE, N)


def test_a_budget_of_exactly_one_update_is_enough():
    f = forecast("ppo")
    check_budget(recipe(limit=f.before.flops + f.update.flops, arms={"ppo": ARMS["ppo"]}), SHAPE, N)


@pytest.mark.parametrize("name", ["ppo", "offline", "on-policy"])
def test_a_trial_that_no_update_fits_into_is_refused_too(name):
    f, arms = forecast(name), {name: ARMS[name]}
    limit, first = 4 * (f.before.flops + f.update.flops), f.update.flops
    if name == "ppo":  # a trial has its share of what the reward model leaves
        limit += reward_model_forecast(recipe(), SHAPE, N).flops
    trials = {"trials": [{"learning_rate": 1e-5}, {"learning_rate": 1e-4}], "seeds": [7]}
    horizon = limit - f.before.flops
    check_budget(recipe(arms, limit=limit, tuning=trials | {"fraction": 1.001 * first / horizon}), SHAPE, N)
    with pytest.raises(
        BadInput, match=f"tuning.fraction: .* of what arm {name} has for training .* less than a trial needs"
    ):
        check_budget(recipe(arms, limit=limit, tuning=trials | {"fraction": 0.999 * first / horizon}), SHAPE, N)


def test_memory_falls_with_sharding_and_counts_every_trained_model():
    gib = SHAPE.parameters / 2**30
    dpo = {"offline": ARMS["offline"]}
    whole = memory_gib(recipe(dpo), SHAPE)["learner"]
    assert whole == pytest.approx(gib * (4 + 4 + 8 + 4))  # policy's weights, gradients, Adam's moments; the reference
    # And a critic. Gradients are gone after a step, unless DeepSpeed keeps them.
    assert memory_gib(recipe(), SHAPE)["learner"] == pytest.approx(gib * (2 * 12 + 4 + 4))
    sharded = memory_gib(recipe(placement={"learner": {"zero_stage": 1}}), SHAPE)
    assert sharded["learner"] == pytest.approx(gib * (2 * 16 + 4))
    by_stage = [
        memory_gib(recipe(dpo, placement={"learner": {"actors": 4, "zero_stage": stage}}), SHAPE)["learner"]
        for stage in (0, 1, 2, 3)
    ]
    expected = [4 + 4 + 8 + 4, 4 + 4 + 2 + 4, 4 + 1 + 2 + 4]
    assert by_stage[:3] == pytest.approx([gib * bytes_ for bytes_ in expected]) and by_stage[3] < by_stage[2]
    half = memory_gib(recipe(dpo, model={"dtype": "bfloat16"}), SHAPE)
    assert half["learner"] == pytest.approx(gib * (2 + 2 + 8 + 4 + 2)) and half["scorer"] == pytest.approx(gib * 2)


@pytest.mark.parametrize("rank", [4, 64])
def test_with_adapters_a_forward_pass_keeps_about_as_much(rank, tmp_path):
    sizes = ModelSettings(hidden_size=128, layers=4, heads=4, intermediate_size=384, max_length=256)
    note = write_random_model(sizes, build_tokenizer(sizes.tokenizer, ["0123456789"]), 0, tmp_path)
    plain, model = (load_model(str(note), "causal", "float32", 0) for _ in range(2))
    add_adapters(model, LoraSettings(rank=rank), 0)
    rows = [Row(str(n), (5 + n,) * 40, ((6,) * 60, (7,) * 60)) for n in range(4)]
    assert kept_bytes(model, rows) == pytest.approx(kept_bytes(plain, rows), rel=0.15)


def kept_bytes(model, rows):
    """Of all that a forward pass keeps for the backward one, the weights aside."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(micro_batch(rows), 1.0)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("width", "layers", "inner"), [(128, 4, 384), (256, 3, 1024)])
def test_activations_are_those_that_a_forward_pass_keeps(dtype, width, layers, inner, tmp_path, monkeypatch):
    # As on a GPU: a CPU without instructions for 16 bits goes by way of float32, and keeps that.
    monkeypatch.setattr(cpu_kernels, "_bfloat16_is_faster", lambda: True)
    sizes = ModelSettings(
        hidden_size=width, layers=layers, heads=4, intermediate_size=inner, max_length=256, dtype=dtype
    )
    tokenizer = build_tokenizer(sizes.tokenizer, ["0123456789"])
    note = write_random_model(sizes, tokenizer, 0, tmp_path)
    model = load_model(str(note), "causal", dtype, 0)
    rows = [Row(str(n), (5 + n,) * 40, ((6,) * 60, (7,) * 60)) for n in range(4)]
    r = recipe(
        ARMS, model={"dtype": dtype}, compute={"limit": 1e15, "tokens_per_micro_batch": sum(row.tokens for row in rows)}
    )
    expected = transient_gib(r, random_init_shape(sizes, len(tokenizer)))["learner"] * 2**30
    assert kept_bytes(model, rows) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_adapters_alone_gradients_and_optimizer_are_kept(dtype):
    """12 bytes a number that learns in float32, 16 with a float32 copy beside 16 bits; policy and reference are whole."""
    arms, lora = {"offline": ARMS["offline"]}, replace(SHAPE, lora_rank=3)
    number, learning = (4, 4 + 4 + 8) if dtype == "float32" else (2, 2 + 2 + 8 + 4)
    r = recipe(arms, model={"dtype": dtype})
    found = memory_gib(r, lora)
    assert found["learner"] * 2**30 == pytest.approx(2 * number * SHAPE.parameters + learning * 3 * 600)
    others = memory_gib(r, SHAPE)
    assert {role: found[role] for role in ("rollout", "evaluator", "scorer")} == {
        role: others[role] for role in ("rollout", "evaluator", "scorer")
    }
    sharded = recipe(arms, model={"dtype": dtype}, placement={"learner": {"actors": 4, "zero_stage": 3}})
    assert memory_gib(sharded, lora)["learner"] == pytest.approx(found["learner"] / 4)


def test_an_update_of_adapters_is_a_look_at_the_plain_reference_and_a_step_that_costs_less():
    r, lora = recipe(), replace(SHAPE, lora_rank=3)
    layout, tokens = Layout.of([(7, [5] * 2)] * 16), 16 * 2 * 5
    flops = forward_flops(SHAPE, layout, tokens) + training_flops(lora, layout, tokens)
    assert arm_forecast(r, r.arms["offline"], lora, N).update.flops == pytest.approx(flops)
    assert flops < arm_forecast(r, r.arms["offline"], SHAPE, N).update.flops
    assert arm_forecast(r, r.arms["on-policy"], lora, N).before == arm_forecast(r, r.arms["on-policy"], SHAPE, N).before
