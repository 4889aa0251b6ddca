"""What a recipe will cost and need, from shapes alone: for `check`, and to refuse a budget that no update fits into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_bench.compute.ledger import Cost
from rlhf_bench.core.types import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.attention import Layout
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops, training_flops
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.inputs import Material

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
        flops=many * forward_flops(shape.merged, layout, len(layout.rows)),
        scored_tokens=samples * (n.prompt + n.response),
    )


def _rows(n: Lengths, responses: int, rows: int) -> tuple[Layout, float]:
    """One row or two, and how many times their cost is that of `rows` such: a recipe may ask for any number."""
    layout = Layout.of([(n.prompt, [n.response] * responses)] * min(rows, 2))  # two neighbours may share a block
    return layout, rows / len(layout.rows)


def arm_forecast(
    recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths, reward: ModelShape | None = None
) -> ArmForecast:
    """Costs with every response at full length: an upper estimate. device_seconds are not forecast.

    Here and below, `reward` is the shape of a given reward model; None where it is trained, and so of the policy's."""
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
    update += Cost(flops=sum(map(look, looked)), scored_tokens=len(looked) * heads)
    learnt = [critic if o.model == "critic" else shape for o in method.objectives]
    epochs = getattr(arm, "epochs_per_update", 1)
    update += Cost(flops=epochs * sum(map(learn, learnt)), trained_tokens=epochs * len(learnt) * heads)
    if method.adapt is not None:  # one forward and two backward passes: at the first update, and then now and again
        flops = 2 * learn(shape) - look(shape)
        before += Cost(flops=flops, scored_tokens=heads)
        update += Cost(flops=flops / arm.adapt_every, scored_tokens=heads / arm.adapt_every)
    return ArmForecast(before, update)


def critic_shape(arm: Any, shape: ModelShape, reward: ModelShape | None) -> ModelShape:
    """Of an arm's critic, which starts from the reward model where the arm uses that."""
    return reward if reward is not None and uses_reward_model(arm) else shape


def reward_model_forecast(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None) -> Cost:
    settings, data = recipe.reward_model, recipe.data
    samples = settings.start_policy_prompts * data.candidates_per_prompt
    if reward is not None:  # nothing to train: its scores' scale alone
        return sampling(shape, n, samples, judged=False) + scoring(reward, n, samples)
    total = sampling(shape, n, samples, settings.pairs != "off_policy") + scoring(shape, n, samples)
    per_step = settings.examples_per_step
    layout, many = _rows(n, 2, per_step)
    learning = settings.steps * many * training_flops(shape, layout, 2 * len(layout.rows))
    return total + Cost(flops=learning, trained_tokens=settings.steps * per_step * 2 * n.response)


def refuse_small_budget(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None) -> None:
    """BadInput, one line per arm whose first update does not fit into compute.limit, or into a tuning trial's part of it."""
    column, limit, problems = recipe.compute.column, recipe.compute.limit, []
    for name, arm in recipe.arms.items():
        forecast = arm_forecast(recipe, arm, shape, n, reward)
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
            before -= getattr(reward_model_forecast(recipe, shape, n, reward), column)
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


KEPT = {"float32": 1.25, "bfloat16": 1.4}
"""Numbers that a forward pass keeps for the backward one, for every input and output of a linear layer: norms, products
and activations keep some too, and in 16 bits norms keep theirs in 32. Measured in tests/unit/test_forecast.py."""
LIBRARIES_GIB = 1.0
"""CUDA's context and the libraries' own buffers, of one process on a GPU."""
PEAK_TFLOPS = {"float32": 67.0, "bfloat16": 989.0}
"""Of an H100 SXM without sparsity, by NVIDIA's data sheet."""
CORE_TFLOPS = 0.066
"""Of one core: half of what two do in products of matrices, by docs/benchmarks.md."""
UTILISATION = {"gpu": 0.3, "core": 0.6}


def memory_gib(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> dict[str, float]:
    """GiB of weights, gradients, optimizer and cache by role and process; activations and libraries come on top."""
    number, learner = BYTES[recipe.model.dtype], recipe.placement.learner
    size, scorer = shape.parameters * number, (reward or shape).parameters * number
    master = 0 if recipe.model.dtype == "float32" else 4  # mixed precision keeps a float32 copy
    weights = number / (learner.actors if learner.zero_stage == 3 else 1)
    gradients = number / (learner.actors if learner.zero_stage >= 2 else 1)
    optimizer = (8 + master) / (learner.actors if learner.zero_stage >= 1 else 1)
    trained = _trained(recipe, shape, reward)
    learning, held = sum(m.trained for m in trained), sum(m.parameters + m.adapter_weights for m in trained)
    rollout, evaluator = (
        recipe.placement.device.memory_gib * 2**30 * role.gpu_memory_fraction
        if role.gpus else size + role.cache_mib * 2**20
        for role in (recipe.placement.rollout, recipe.placement.evaluator)
    )  # fmt: skip
    bytes_by_role = {
        "learner": held * weights + learning * (gradients + optimizer) + shape.parameters * weights,
        "rollout": rollout, "evaluator": 2 * size + evaluator, "scorer": scorer,
    }  # fmt: skip
    return {role: b / 2**30 for role, b in bytes_by_role.items()}


def _trained(recipe: Recipe, shape: ModelShape, reward: ModelShape | None) -> list[ModelShape]:
    """What the learner trains at a time, at most: the policy, and a critic, the largest, where an arm has one."""
    arms = [a for a in recipe.arms.values() if any(o.model == "critic" for o in METHODS[a.method].objectives)]
    critics = sorted((critic_shape(a, shape, reward) for a in arms), key=lambda s: s.parameters)
    return [shape, *critics[-1:]]


def passing_gib(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> dict[str, float]:
    """GiB by role and process that come and go: activations of a micro-batch, gradients of held-out pairs, a whole model
    while it is loaded and not yet sharded."""
    number, tokens = BYTES[recipe.model.dtype], recipe.compute.tokens_per_micro_batch
    size = shape.parameters * number

    def kept(model: ModelShape) -> float:
        return KEPT[recipe.model.dtype] * model.linear_width * number * tokens

    def one_layer(model: ModelShape) -> float:
        return 2 * kept(model) / model.layers  # a forward pass alone keeps nothing but the layer it is in

    trained, whole = _trained(recipe, shape, reward), recipe.placement.learner.zero_stage == 3
    learning = max(max(kept(model), model.parameters * number * whole) for model in trained)
    looking = max(one_layer(shape), 2 * size + kept(shape) if recipe.evaluation.gradient_pairs else 0)
    passing = {"learner": learning, "rollout": 0.0, "evaluator": looking, "scorer": one_layer(reward or shape)}
    return {role: b / 2**30 for role, b in passing.items()}


@dataclass(frozen=True)
class GpuForecast:
    """What shares one GPU: the roles' processes, GiB that stay, and GiB that come and go."""

    roles: tuple[str, ...]
    standing: float
    passing: float


def gpu_forecasts(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> list[GpuForecast]:
    """Every kind of GPU there is: with `colocated`, actor i of every role shares one. Roles take turns, so of what comes
    and goes only the largest is there at a time, and the evaluator's beside it, which does not wait for its turn."""
    standing, passing = memory_gib(recipe, shape, reward), passing_gib(recipe, shape, reward)
    placement = recipe.placement
    needed = [role for role in standing if role != "scorer" or any(map(uses_reward_model, recipe.arms.values()))]
    places = {role: getattr(placement, role) for role in needed if getattr(placement, role).gpus}
    if placement.colocated:
        most = max((place.actors for place in places.values()), default=0)
        groups = [tuple(role for role, place in places.items() if place.actors > i) for i in range(most)]
    else:
        groups = [(role,) for role in places]
    return [
        GpuForecast(
            roles,
            sum(standing[role] + LIBRARIES_GIB for role in roles),
            max((passing[role] for role in roles if role != "evaluator"), default=0.0)
            + (passing["evaluator"] if "evaluator" in roles else 0.0),
        )
        for roles in dict.fromkeys(groups)
    ]


def refuse_small_gpus(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> None:
    """BadInput, one line for each kind of GPU whose memory cannot hold even what stays there."""
    device, problems = recipe.placement.device, []
    for gpu in gpu_forecasts(recipe, shape, reward):
        if gpu.standing > device.memory_gib:
            problems.append(
                f"placement: {' and '.join(gpu.roles)} need{'s' * (len(gpu.roles) == 1)} {gpu.standing:.0f} GiB on one GPU before any activation, and "
                f"placement.device.memory_gib is {device.memory_gib:g}; give them GPUs of their own (colocated: false), "
                "shard over more ranks (learner.actors, zero_stage: 3), or name a larger GPU"
            )
    for role in ("rollout", "evaluator"):
        place = getattr(recipe.placement, role)
        share, weights = place.gpu_memory_fraction * device.memory_gib, _weights_gib(recipe, shape)
        if place.gpus and share < weights:
            problems.append(
                f"placement.{role}.gpu_memory_fraction: {place.gpu_memory_fraction:g} of a GPU is {share:.0f} GiB, too small "
                f"for an engine's {weights:.0f} GiB of weights and a cache; raise it, or name a larger GPU"
            )
    if problems:
        raise BadInput(*problems)


def _weights_gib(recipe: Recipe, shape: ModelShape) -> float:
    return shape.parameters * BYTES[recipe.model.dtype] / 2**30


@dataclass(frozen=True)
class TimeForecast:
    """Seconds of one arm with one seed, and what they were reckoned with: FLOPs, devices, 10¹² FLOP/s each, share of them."""

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
    """As if all of an arm's work were the learner's: sampling is slower a FLOP, and has devices of its own. None where
    the budget is in seconds already."""
    column, learner, device = recipe.compute.column, recipe.placement.learner, recipe.placement.device
    f = arm_forecast(recipe, arm, shape, n, reward)
    before, update = getattr(f.before, column), getattr(f.update, column)
    if not update:
        return None
    updates = max(0.0, (recipe.compute.limit - before) / update)
    kind = "gpu" if learner.gpus else "core"
    peak = device.peak_tflops or (PEAK_TFLOPS[recipe.model.dtype] if learner.gpus else CORE_TFLOPS)
    return TimeForecast(
        flops=f.before.flops + updates * f.update.flops, updates=updates,
        devices=learner.actors * (min(learner.gpus, 1) or learner.cpus), peak_tflops=peak,
        utilisation=device.utilisation or UTILISATION[kind],
    )  # fmt: skip


def shared_flops(recipe: Recipe, shape: ModelShape, n: Lengths, weaker: bool) -> float:
    """Of fine-tuning the base policy, and a `weaker` one where the data has no pairs: shared, and paid by no arm."""
    if recipe.sft is None:
        return 0.0
    layout, many = _rows(n, 1, recipe.sft.examples_per_step)
    step = many * training_flops(shape, layout, n.response * len(layout.rows))
    return recipe.sft.steps * (1 + weaker * recipe.data.weaker_policy_steps) * step
