"""How much memory a recipe's models need on each device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.lm_head import tokens_in_chunk
from rlhf_bench.recipe import Recipe, RolloutPlacement

BYTES = {"float32": 4, "bfloat16": 2}


def critic_shape(arm: Any, shape: ModelShape, reward: ModelShape | None) -> ModelShape:
    """Of an arm's critic, which starts from the reward model where the arm uses that."""
    return reward if reward is not None and uses_reward_model(arm) else shape


ACTIVATION_FACTOR = {"float32": 1.25, "bfloat16": 1.17}
"""Numbers that a forward pass keeps for the backward one, for every input and output of a linear layer: norms, products
and activations keep some too. Measured in tests/unit/compute/test_forecast.py."""
GPU_ACTIVATION_FACTOR = {"float32": 1.25, "bfloat16": 1.4}
"""The same where transformers' own norms keep 32 bits."""

LIBRARIES_GIB = 1.0
"""CUDA's context and the libraries' own buffers, of one process on a GPU."""
HOST_LIBRARIES_GIB = {"learner": 0.69, "rollout": 0.78, "evaluator": 0.78, "scorer": 0.66}
"""Of a process without a GPU, before any weight: torch, transformers and Ray; DeepSpeed in the learner, vLLM in engines.
Measured, docs/benchmarks.md."""
HOST_REST_GIB = 1.4
"""The driver, 0.8 GiB, and Ray's own processes on one machine. Measured, as above."""
ENGINE_TOKENS, LOGITS_AT_ONCE = 2048, 5
"""Tokens in a step of an engine, see actors/rollout/vllm_engine.py; and arrays as large as its logits, in float32, that it
draws tokens with: logits, probabilities, log-probabilities and random numbers."""
GRADIENT_TOKENS = 512
"""That the evaluator's gradients keep at most: diagnostics/pair_gradients.py has 256, its prompts twice."""
FLOAT32 = 4


def reward_models(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, gold: ModelShape | None = None
) -> dict[str, list[ModelShape]]:
    """The members of every reward model that the recipe makes, by its key. `reward`, `gold`: shapes of given ones; one that is
    trained has the policy's."""
    given = {"reward_model": reward, "gold_reward_model": gold}
    return {key: [(given[key] or shape).merged] * made.members for key, made in recipe.reward_models.items()}


def memory_gib(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, gold: ModelShape | None = None
) -> dict[str, float]:
    """GiB of weights, gradients, optimizer and cache by role and process; activations and libraries are not included. Here and
    below, `reward` and `gold` are as in `reward_models`: the scorer holds one of them at a time, the evaluator both."""
    number, learner = BYTES[recipe.model.dtype], recipe.placement.learner
    size = shape.parameters * number
    scoring = [sum(m.parameters for m in held) * number for held in reward_models(recipe, shape, reward, gold).values()]
    master = 0 if recipe.model.dtype == "float32" else 4  # mixed precision keeps a float32 copy
    weights = number / (learner.actors if learner.zero_stage == 3 else 1)
    gradients = number / (learner.actors if learner.zero_stage >= 2 else 1)
    optimizer = (8 + master) / (learner.actors if learner.zero_stage >= 1 else 1)
    trained = _trained(recipe, shape, reward)
    learning, held = sum(m.trained for m in trained), sum(m.parameters + m.adapter_weights for m in trained)
    # Where DeepSpeed keeps no gradients of its own, a step ends without any: policy and critic never have theirs at a time.
    at_once = learning if master or learner.zero_stage else max(m.trained for m in trained)
    head = shape.head_weights * number
    rollout, evaluator = (
        recipe.placement.device.memory_gib * 2**30 * role.gpu_memory_fraction
        if role.gpus
        # Without a GPU vLLM multiplies with packed copies, keeps what a sync brings until it is packed, and packs a head again.
        else 2 * size + head + role.cache_mib * 2**20
        for role in (recipe.placement.rollout, recipe.placement.evaluator)
    )
    bytes_by_role = {
        "learner": held * weights + at_once * gradients + learning * optimizer + shape.parameters * weights,
        "rollout": rollout,
        "evaluator": 2 * size + sum(scoring) + evaluator,
        "scorer": max(scoring, default=(reward or shape).parameters * number),
    }
    return {role: b / 2**30 for role, b in bytes_by_role.items()}


def _trained(recipe: Recipe, shape: ModelShape, reward: ModelShape | None) -> list[ModelShape]:
    """What the learner trains at the same time, at most: the policy and, where an arm has a critic, the largest critic."""
    arms = [a for a in recipe.arms.values() if any(o.model == "critic" for o in METHODS[a.method].objectives)]
    critics = sorted((critic_shape(a, shape, reward) for a in arms), key=lambda s: s.parameters)
    return [shape, *critics[-1:]]


def transient_gib(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, largest: int | None = None,
    gold: ModelShape | None = None,
) -> dict[str, float]:  # fmt: skip
    """GiB by role and process that are needed only at times: activations and logits of a micro-batch, gradients of held-out
    pairs, a whole model while it is loaded and not yet sharded. `largest`: tokens of the largest step that is taken, where
    that is known to be less than a micro-batch."""
    number, cap = BYTES[recipe.model.dtype], recipe.compute.tokens_per_micro_batch
    tokens, learner = min(cap, largest or cap), recipe.placement.learner
    products_in_float32 = number < FLOAT32 and not learner.gpus and _goes_by_float32(recipe.model.dtype)

    def kept(model: ModelShape, tokens: int) -> float:
        factor = (GPU_ACTIVATION_FACTOR if learner.gpus else ACTIVATION_FACTOR)[recipe.model.dtype]
        numbers = factor * model.linear_width * tokens * number
        if products_in_float32:  # inputs, half of the width, and weights, as each product takes them
            numbers += FLOAT32 * (model.linear_width / 2 * tokens + model.matmul_weights)
        return numbers

    def one_layer(model: ModelShape) -> float:
        """Of a forward pass without a backward one, which keeps only its current layer."""
        return 2 * kept(model, tokens) / model.layers

    trained = _trained(recipe, shape, reward)
    learning = max(kept(model, tokens) for model in trained)
    if learner.zero_stage == 3:
        learning = max(learning, *(model.parameters * number for model in trained))
    if number < FLOAT32 and not learner.zero_stage:  # a step takes gradients in float32, when activations are gone
        learning = max(learning, *(model.trained * FLOAT32 for model in trained))
    if shape.lora_rank and not learner.gpus:
        # Merged anew as they are sent, while the process still has what steps used; and as much again lies between the pieces of
        # both before long, where neither fits (measured, docs/benchmarks.md).
        learning += 2 * shape.matmul_weights * number
    sides = min(GRADIENT_TOKENS, 2 * recipe.evaluation.gradient_pairs * recipe.model.max_length)
    scoring = [one_layer(members[0]) for members in reward_models(recipe, shape, reward, gold).values()]
    looking = max(one_layer(shape), *scoring, kept(shape, sides) if sides else 0)
    drawing, looking_too = (
        0.0 if role.gpus else _engine_step(recipe, shape, role)  # of a GPU the engine's share holds it
        for role in (recipe.placement.rollout, recipe.placement.evaluator)
    )
    transient = {
        "learner": learning,
        "rollout": drawing,
        "evaluator": max(looking, looking_too),
        "scorer": max(scoring, default=one_layer(reward or shape)),
    }
    return {role: b / 2**30 for role, b in transient.items()}


def _engine_step(recipe: Recipe, shape: ModelShape, role: RolloutPlacement) -> float:
    """Bytes that an engine needs at times: a layer over all tokens of a step, and what it draws tokens with."""
    layer = 2 * shape.linear_width / shape.layers * BYTES[recipe.model.dtype]
    draws = LOGITS_AT_ONCE * shape.vocabulary * FLOAT32 * role.concurrent_requests
    return layer * max(ENGINE_TOKENS, recipe.model.max_length) + draws


def _goes_by_float32(dtype: str) -> bool:
    """Whether this machine's CPU takes products of that number format by way of float32."""
    import torch

    from rlhf_bench.models.cpu_kernels import faster_in_float32

    return faster_in_float32(torch.empty(0, dtype=getattr(torch, dtype)))


def host_gib(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, largest: int | None = None,
    gold: ModelShape | None = None,
) -> dict[str, float]:  # fmt: skip
    """The largest resident memory, in GiB, of each process whose role has no GPU: with libraries, and with the weights that
    it has in Ray's store, which all of them share and each is counted with. `largest`: see `transient_gib`."""
    resident, transient = memory_gib(recipe, shape, reward, gold), transient_gib(recipe, shape, reward, largest, gold)
    store, found = _weights_gib(recipe, shape), {}
    for role, place in recipe.placement.roles(bool(recipe.reward_models)).items():
        if not place.gpus:
            shared = 0.0 if role == "scorer" else store
            tokens = min(tokens_in_chunk(shape.vocabulary), largest or recipe.compute.tokens_per_micro_batch)
            logits = tokens * shape.vocabulary * FLOAT32 / 2**30 if role in ("learner", "evaluator") else 0.0
            if (
                logits and BYTES[recipe.model.dtype] < FLOAT32
            ):  # policy's and reference's products are taken in float32, of copies
                logits += 2 * shape.head_weights * FLOAT32 / 2**30
            found[role] = HOST_LIBRARIES_GIB[role] + resident[role] + shared + transient[role] + logits
    return found


def host_total_gib(recipe: Recipe, by_role: Mapping[str, float], shape: ModelShape) -> float:
    """Of all processes of one fleet on one machine, with the driver and Ray: what they share in Ray's store once."""
    roles = recipe.placement.roles(True)
    shared = [role for role in by_role if role != "scorer"]
    twice = max(0, sum(roles[role].actors for role in shared) - 1) * _weights_gib(recipe, shape)
    return sum(roles[role].actors * gib for role, gib in by_role.items()) - twice + HOST_REST_GIB


def machine_gib() -> float:
    """Memory of this machine, or of the container that this process is in."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text(encoding="utf-8").strip() if limit.exists() else "max"
    return (pages if allowed == "max" else min(pages, int(allowed))) / 2**30


@dataclass(frozen=True)
class GpuForecast:
    """The roles that share one GPU, the GiB that they always need, and the GiB that they need at times."""

    roles: tuple[str, ...]
    resident: float
    transient: float


def gpu_forecasts(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, largest: int | None = None,
    gold: ModelShape | None = None,
) -> list[GpuForecast]:  # fmt: skip
    """One forecast for each kind of GPU: with `colocated`, actor i of every role shares one. Roles work in turn, so only the
    largest transient need counts, plus the evaluator's, which works at any time."""
    resident, transient = memory_gib(recipe, shape, reward, gold), transient_gib(recipe, shape, reward, largest, gold)
    placement = recipe.placement
    needed = [role for role in resident if role != "scorer" or recipe.reward_models]
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


def check_gpu_memory(
    recipe: Recipe, shape: ModelShape, reward: ModelShape | None = None, gold: ModelShape | None = None
) -> None:
    """BadInput, one line for each kind of GPU whose memory is too small for what is always needed."""
    device, problems = recipe.placement.device, []
    for gpu in gpu_forecasts(recipe, shape, reward, gold=gold):
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
