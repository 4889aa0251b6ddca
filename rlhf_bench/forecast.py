"""What a recipe will cost and need, from shapes alone: for `check`, and to refuse a budget that no update fits into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_bench.attention import Layout
from rlhf_bench.flops import ModelShape, forward_flops, generation_flops, training_flops
from rlhf_bench.ledger import Cost
from rlhf_bench.material import Material
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.types import BadInput

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ArmForecast:
    """`before`: spent before the first update (reward model, one-shot candidates). `update`: one update."""

    before: Cost
    update: Cost


@dataclass(frozen=True)
class Lengths:
    """Tokens of a typical prompt; responses are reckoned at their longest."""

    prompt: int
    response: int


def lengths_of(recipe: Recipe, material: Material) -> Lengths:
    return Lengths(round(float(np.mean([len(p.token_ids) for p in material.train]))), recipe.data.max_response_tokens)


def sampling(shape: ModelShape, n: Lengths, samples: int, judged: bool) -> Cost:
    flops = samples * generation_flops(shape, [(n.prompt, 0, n.response)])
    return Cost(flops=flops, generated_tokens=samples * n.response, judge_queries=samples if judged else 0)


def scoring(shape: ModelShape, n: Lengths, samples: int) -> Cost:
    layout, many = _rows(n, 1, samples)
    return Cost(
        flops=many * forward_flops(shape, layout, len(layout.rows)), scored_tokens=samples * (n.prompt + n.response)
    )


def _rows(n: Lengths, responses: int, rows: int) -> tuple[Layout, float]:
    """One row or two, and how many times their cost is that of `rows` such: a recipe may ask for any number."""
    layout = Layout.of([(n.prompt, [n.response] * responses)] * min(rows, 2))  # two neighbours may share a block
    return layout, rows / len(layout.rows)


def arm_forecast(recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths) -> ArmForecast:
    """Costs with every response at full length: an upper estimate. device_seconds are not forecast."""
    method, data = METHODS[arm.method], recipe.data
    judged = getattr(arm, "feedback", "judge") == "judge"
    before = reward_model_forecast(recipe, shape, n) if uses_reward_model(arm) else Cost()
    update, samples = Cost(), 0
    if method.consumes == "samples":
        rows, responses = arm.prompts_per_update, arm.samples_per_prompt
        samples = rows * responses
    else:
        rows, responses = (arm.prompts_per_update if arm.data == "online" else arm.pairs_per_update), 2
        samples = rows * data.candidates_per_prompt if arm.data == "online" else 0
    if arm.data not in ("offline", "online"):
        candidates = data.on_policy_prompts * data.candidates_per_prompt
        before += sampling(shape, n, candidates, judged) + (Cost() if judged else scoring(shape, n, candidates))
    if samples:
        update += sampling(shape, n, samples, judged)
        if not judged:
            update += scoring(shape, n, samples)
    layout, many = _rows(n, responses, rows)
    per_row = responses * n.response
    one_look = many * forward_flops(shape, layout, per_row * len(layout.rows))
    one_pass = many * training_flops(shape, layout, per_row * len(layout.rows))
    heads = rows * per_row
    looks = len(method.needs(arm))
    update += Cost(flops=looks * one_look, scored_tokens=looks * heads)
    learning = getattr(arm, "epochs_per_update", 1) * len(method.objectives)
    update += Cost(flops=learning * one_pass, trained_tokens=learning * heads)
    if method.adapt is not None:  # one forward and two backward passes: at the first update, and then now and again
        flops = 2 * one_pass - one_look
        before += Cost(flops=flops, scored_tokens=heads)
        update += Cost(flops=flops / arm.adapt_every, scored_tokens=heads / arm.adapt_every)
    return ArmForecast(before, update)


def reward_model_forecast(recipe: Recipe, shape: ModelShape, n: Lengths) -> Cost:
    settings, data = recipe.reward_model, recipe.data
    samples = settings.start_policy_prompts * data.candidates_per_prompt
    total = sampling(shape, n, samples, settings.pairs != "off_policy") + scoring(shape, n, samples)
    per_step = settings.examples_per_step
    layout, many = _rows(n, 2, per_step)
    learning = settings.steps * many * training_flops(shape, layout, 2 * len(layout.rows))
    return total + Cost(flops=learning, trained_tokens=settings.steps * per_step * 2 * n.response)


def refuse_small_budget(recipe: Recipe, shape: ModelShape, n: Lengths) -> None:
    """BadInput, one line per arm whose first update does not fit into compute.limit, or into a tuning trial's part of it."""
    column, limit, problems = recipe.compute.column, recipe.compute.limit, []
    for name, arm in recipe.arms.items():
        forecast = arm_forecast(recipe, arm, shape, n)
        before, update = getattr(forecast.before, column), getattr(forecast.update, column)
        if before + update > limit:
            problems.append(
                f"compute.limit: {limit:.3g} {column} is less than arm {name} needs before its first update ({before:.3g}) and "
                f"for it ({update:.3g}); raise it to {_rounded_up(before + update):.2g} at the very least"
            )
            continue
        if recipe.tuning is None:
            continue
        if uses_reward_model(arm):  # trials are not charged for it
            before -= getattr(reward_model_forecast(recipe, shape, n), column)
        if before + update > limit * recipe.tuning.fraction:
            problems.append(
                f"tuning.fraction: {recipe.tuning.fraction:g} of compute.limit is {limit * recipe.tuning.fraction:.3g} {column}, "
                f"less than a trial of arm {name} needs for its first update ({before + update:.3g}); raise it, or compute.limit"
            )
    if problems:
        raise BadInput(*problems)


def _rounded_up(x: float) -> float:
    """The next number of two digits, so that following the advice is enough."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return math.ceil(x / unit) * unit


def memory_gib(recipe: Recipe, shape: ModelShape) -> dict[str, float]:
    """GiB of weights, gradients, optimizer and cache by role and process; activations and libraries come on top."""
    size, learner = shape.parameters * BYTES[recipe.model.dtype], recipe.placement.learner
    master = 0 if recipe.model.dtype == "float32" else 4  # mixed precision keeps a float32 copy
    trained = sum(1 for _ in {o.model for a in recipe.arms.values() for o in METHODS[a.method].objectives})
    share = {stage: learner.actors for stage in (1, 2, 3)}
    weights = size / (share.get(3, 1) if learner.zero_stage == 3 else 1)
    gradients = size / (learner.actors if learner.zero_stage >= 2 else 1)
    optimizer = shape.parameters * (8 + master) / (learner.actors if learner.zero_stage >= 1 else 1)
    cache = recipe.placement.rollout.cache_mib * 2**20
    bytes_by_role = {
        "learner": trained * (weights + gradients + optimizer) + weights,
        "rollout": size + cache, "evaluator": 3 * size + cache, "scorer": size,
    }  # fmt: skip
    return {role: b / 2**30 for role, b in bytes_by_role.items()}
