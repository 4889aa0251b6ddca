"""How much memory a recipe's models need on each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}


def critic_shape(arm: Any, shape: ModelShape, reward: ModelShape | None) -> ModelShape:
    """Of an arm's critic, which starts from the reward model where the arm uses that."""
    return reward if reward is not None and uses_reward_model(arm) else shape


ACTIVATION_FACTOR = {"float32": 1.25, "bfloat16": 1.4}
"""Numbers that a forward pass keeps for the backward one, for every input and output of a linear layer: norms, products
and activations keep some too, and in 16 bits norms keep theirs in 32. Measured in tests/unit/compute/test_forecast.py."""

LIBRARIES_GIB = 1.0
"""CUDA's context and the libraries' own buffers, of one process on a GPU."""


def memory_gib(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> dict[str, float]:
    """GiB of weights, gradients, optimizer and cache by role and process; activations and libraries are not included."""
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
        if role.gpus
        else size + role.cache_mib * 2**20
        for role in (recipe.placement.rollout, recipe.placement.evaluator)
    )
    bytes_by_role = {
        "learner": held * weights + learning * (gradients + optimizer) + shape.parameters * weights,
        "rollout": rollout,
        "evaluator": 2 * size + evaluator,
        "scorer": scorer,
    }
    return {role: b / 2**30 for role, b in bytes_by_role.items()}


def _trained(recipe: Recipe, shape: ModelShape, reward: ModelShape | None) -> list[ModelShape]:
    """What the learner trains at the same time, at most: the policy and, where an arm has a critic, the largest critic."""
    arms = [a for a in recipe.arms.values() if any(o.model == "critic" for o in METHODS[a.method].objectives)]
    critics = sorted((critic_shape(a, shape, reward) for a in arms), key=lambda s: s.parameters)
    return [shape, *critics[-1:]]


def transient_gib(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> dict[str, float]:
    """GiB by role and process that are needed only at times: activations of a micro-batch, gradients of held-out pairs, a
    whole model while it is loaded and not yet sharded."""
    number, tokens = BYTES[recipe.model.dtype], recipe.compute.tokens_per_micro_batch
    size = shape.parameters * number

    def kept(model: ModelShape) -> float:
        return ACTIVATION_FACTOR[recipe.model.dtype] * model.linear_width * number * tokens

    def one_layer(model: ModelShape) -> float:
        return 2 * kept(model) / model.layers  # a forward pass without a backward pass keeps only its current layer

    trained, whole = _trained(recipe, shape, reward), recipe.placement.learner.zero_stage == 3
    learning = max(max(kept(model), model.parameters * number * whole) for model in trained)
    looking = max(one_layer(shape), 2 * size + kept(shape) if recipe.evaluation.gradient_pairs else 0)
    transient = {"learner": learning, "rollout": 0.0, "evaluator": looking, "scorer": one_layer(reward or shape)}
    return {role: b / 2**30 for role, b in transient.items()}


@dataclass(frozen=True)
class GpuForecast:
    """The roles that share one GPU, the GiB that they always need, and the GiB that they need at times."""

    roles: tuple[str, ...]
    resident: float
    transient: float


def gpu_forecasts(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> list[GpuForecast]:
    """One forecast for each kind of GPU: with `colocated`, actor i of every role shares one. Roles work in turn, so only the
    largest transient need counts, plus the evaluator's, which works at any time."""
    resident, transient = memory_gib(recipe, shape, reward), transient_gib(recipe, shape, reward)
    placement = recipe.placement
    needed = [role for role in resident if role != "scorer" or any(map(uses_reward_model, recipe.arms.values()))]
    places = {role: getattr(placement, role) for role in needed if getattr(placement, role).gpus}
    if placement.colocated:
        most = max((place.actors for place in places.values()), default=0)
        groups = [tuple(role for role, place in places.items() if place.actors > i) for i in range(most)]
    else:
        groups = [(role,) for role in places]
    return [
        GpuForecast(
            roles,
            sum(resident[role] + LIBRARIES_GIB for role in roles),
            max((transient[role] for role in roles if role != "evaluator"), default=0.0)
            + (transient["evaluator"] if "evaluator" in roles else 0.0),
        )
        for roles in dict.fromkeys(groups)
    ]


def check_gpu_memory(recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None) -> None:
    """BadInput, one line for each kind of GPU whose memory is too small for what is always needed."""
    device, problems = recipe.placement.device, []
    for gpu in gpu_forecasts(recipe, shape, reward):
        if gpu.resident > device.memory_gib:
            problems.append(
                f"placement: {' and '.join(gpu.roles)} need{'s' * (len(gpu.roles) == 1)} {gpu.resident:.0f} GiB on one GPU before any activation, and "
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
