"""What a recipe will cost and need, from shapes alone: for `check`, and to refuse a budget that no update fits into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlhf_bench.compute.memory import critic_shape
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops, training_flops
from rlhf_bench.models.layout import Layout
from rlhf_bench.recipe import Recipe


@dataclass(frozen=True)
class ArmForecast:
    """`before`: spent before the first update (reward model, one-shot candidates). `update`: one of the first updates.
    `steady`: one of the last, when every row of a fixed set has been measured."""

    before: Cost
    update: Cost
    steady: Cost


@dataclass(frozen=True)
class Lengths:
    """Tokens of a typical prompt, and of the longest response that may be sampled."""

    prompt: int
    response: int


def sampling(shape: ModelShape, n: Lengths, samples: int, judged: bool) -> Cost:
    flops = samples * generation_flops(shape, [(n.prompt, 0, n.response)])
    return Cost(flops=flops, generated_tokens=samples * n.response, judge_queries=samples if judged else 0)


def scoring(shape: ModelShape, n: Lengths, samples: int) -> Cost:
    layout, many = _rows(n, 1, samples)
    return Cost(
        flops=many * forward_flops(shape.merged, layout, len(layout.rows)),
        scored_tokens=samples * (n.prompt + n.response),
    )


def _rows(n: Lengths, responses: int, rows: int) -> tuple[Layout, float]:
    """A layout of one or two rows, and the factor from its cost to that of `rows` rows, which may be any number."""
    layout = Layout.of([(n.prompt, [n.response] * responses)] * min(rows, 2))  # two neighbours may share a block
    return layout, rows / len(layout.rows)


def arm_forecast(
    recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths, reward: ModelShape | None = None
) -> ArmForecast:
    """Costs with every response at full length: an upper estimate. device_seconds are not forecast.

    Here and below, `reward` is the shape of a given reward model; None where it is trained and has the policy's shape."""
    scorer, critic = reward or shape, critic_shape(arm, shape, reward)
    method, data = METHODS[arm.method], recipe.data
    judged = getattr(arm, "feedback", "judge") == "judge"
    before = reward_model_forecast(recipe, shape, n, reward) if uses_reward_model(arm) else Cost()
    update, samples = Cost(), 0
    if method.consumes == "samples":
        rows, responses = arm.prompts_per_update, arm.samples_per_prompt
        samples = rows * responses
    else:
        rows, responses = (arm.prompts_per_update if arm.data == "online" else arm.pairs_per_update), 2
        samples = rows * data.candidates_per_prompt if arm.data == "online" else 0
    if arm.data not in ("offline", "online"):
        candidates = data.on_policy_prompts * data.candidates_per_prompt
        before += sampling(shape, n, candidates, judged) + (Cost() if judged else scoring(scorer, n, candidates))
    if samples:
        update += sampling(shape, n, samples, judged)
        if not judged:
            update += scoring(scorer, n, samples)
    layout, many = _rows(n, responses, rows)
    per_row = responses * n.response
    heads = rows * per_row

    def look(model: ModelShape) -> float:
        return many * forward_flops(model, layout, per_row * len(layout.rows))

    def learn(model: ModelShape) -> float:
        return many * training_flops(model, layout, per_row * len(layout.rows))

    of_need = {"values": critic, "reference_logprobs": shape.merged}
    looked = [of_need.get(need, shape) for need in method.needs(arm)]
    measuring = Cost(flops=sum(map(look, looked)), scored_tokens=len(looked) * heads)
    learned = [critic if o.model == "critic" else shape for o in method.objectives]
    epochs = getattr(arm, "epochs_per_update", 1)
    update += Cost(flops=epochs * sum(map(learn, learned)), trained_tokens=epochs * len(learned) * heads)
    if (
        method.adapt is not None
    ):  # one forward and two backward passes: at the first update, then every `adapt_every` updates
        flops = 2 * learn(shape) - look(shape)
        before += Cost(flops=flops, scored_tokens=heads)
        update += Cost(flops=flops / arm.adapt_every, scored_tokens=heads / arm.adapt_every)
    fresh_rows = method.consumes == "samples" or arm.data == "online"
    return ArmForecast(before, update + measuring, update + measuring if fresh_rows else update)


def reward_model_forecast(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None) -> Cost:
    settings, data = recipe.reward_model, recipe.data
    samples = settings.start_policy_prompts * data.candidates_per_prompt
    if reward is not None:  # nothing to train: only the scale of its scores is found
        return sampling(shape, n, samples, judged=False) + scoring(reward, n, samples)
    total = sampling(shape, n, samples, settings.pairs != "off_policy") + scoring(shape, n, samples)
    per_step = settings.examples_per_step
    layout, many = _rows(n, 2, per_step)
    learning = settings.steps * many * training_flops(shape, layout, 2 * len(layout.rows))
    return total + Cost(flops=learning, trained_tokens=settings.steps * per_step * 2 * n.response)


def check_budget(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None) -> None:
    """Raises BadInput with one line per arm whose budget would never end, or whose first update does not fit into
    compute.limit or into a tuning trial's part of it."""
    column, limit, problems = recipe.compute.column, recipe.compute.limit, []
    for name, arm in recipe.arms.items():
        forecast = arm_forecast(recipe, arm, shape, n, reward)
        before, update = getattr(forecast.before, column), getattr(forecast.update, column)
        if column != "device_seconds" and getattr(forecast.steady, column) == 0:  # device-seconds are not forecast
            problems.append(
                f"compute.column: an update of arm {name} spends no {column}, so its budget would never end; use flops, "
                "trained_tokens or device_seconds, or leave the arm out"
            )
            continue
        if before + update > limit:
            problems.append(
                f"compute.limit: {limit:.3g} {column} is less than arm {name} needs before its first update ({before:.3g}) and "
                f"for it ({update:.3g}); raise it to at least {_rounded_up(before + update):.2g}"
            )
            continue
        if recipe.tuning is None:
            continue
        if uses_reward_model(arm):  # trials are not charged for it
            before -= getattr(reward_model_forecast(recipe, shape, n, reward), column)
        if before + update > limit * recipe.tuning.fraction:
            problems.append(
                f"tuning.fraction: {recipe.tuning.fraction:g} of compute.limit is {limit * recipe.tuning.fraction:.3g} {column}, "
                f"less than a trial of arm {name} needs for its first update ({before + update:.3g}); raise it, or compute.limit"
            )
    if problems:
        raise BadInput(*problems)


def _rounded_up(x: float) -> float:
    """The number rounded up to two digits, so that the advice in the error is enough."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return math.ceil(x / unit) * unit


PEAK_TFLOPS = {"float32": 67.0, "bfloat16": 989.0}
"""Peak of an H100 SXM without sparsity, from NVIDIA's data sheet."""
CORE_TFLOPS = 0.066
"""Peak of one core: half of what two cores reached in matrix products, in docs/benchmarks.md."""
UTILISATION = {"gpu": 0.3, "core": 0.6}


@dataclass(frozen=True)
class TimeForecast:
    """Seconds of one arm with one seed, and what they are computed from: FLOPs, devices, peak of each, share of it."""

    flops: float
    updates: float
    devices: int
    peak_tflops: float
    utilisation: float

    @property
    def seconds(self) -> float:
        return self.flops / (self.devices * self.peak_tflops * 1e12 * self.utilisation)


def time_forecast(
    recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths, reward: ModelShape | None = None
) -> TimeForecast | None:
    """The time if the learner did all of the arm's work. Sampling takes longer per FLOP, but has its own devices. None where
    the budget is in seconds."""
    column, learner, device = recipe.compute.column, recipe.placement.learner, recipe.placement.device
    f = arm_forecast(recipe, arm, shape, n, reward)
    before, update = getattr(f.before, column), getattr(f.update, column)
    if not update:
        return None
    updates = max(0.0, (recipe.compute.limit - before) / update)
    kind = "gpu" if learner.gpus else "core"
    peak = device.peak_tflops or (PEAK_TFLOPS[recipe.model.dtype] if learner.gpus else CORE_TFLOPS)
    return TimeForecast(
        flops=f.before.flops + updates * f.update.flops,
        updates=updates,
        devices=learner.actors * (min(learner.gpus, 1) or learner.cpus),
        peak_tflops=peak,
        utilisation=device.utilisation or UTILISATION[kind],
    )


def shared_flops(recipe: Recipe, shape: ModelShape, n: Lengths, weaker: bool) -> float:
    """FLOPs of fine-tuning the base policy, and a `weaker` one where the data has no pairs. They are charged to no arm."""
    if recipe.sft is None:
        return 0.0
    layout, many = _rows(n, 1, recipe.sft.examples_per_step)
    step = many * training_flops(shape, layout, n.response * len(layout.rows))
    return recipe.sft.steps * (1 + weaker * recipe.data.weaker_policy_steps) * step
