"""What `rlhf-bench check` prints about a recipe: model, data, budget, memory and time, as lines or as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_bench.cli.data_overview import data_check
from rlhf_bench.compute.forecast import Lengths, arm_forecast, shared_flops, time_forecast
from rlhf_bench.compute.memory import gpu_forecasts, memory_gib, transient_gib
from rlhf_bench.compute.resources import GIB, fleet_needs
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.inputs import Inputs, lengths_of


def lines(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    n, shape = lengths_of(recipe, inputs), inputs.shape
    yield (
        f"model: {shape.parameters:,} parameters, vocabulary of {len(inputs.tokenizer)}; a prompt has about {n.prompt} tokens"
    )
    if shape.lora_rank:
        yield f"adapters of rank {shape.lora_rank}: {shape.trained:,} parameters are trained in place of the model's"
    reward = inputs.reward_shape
    if reward is not None:
        yield f"reward model: {recipe.reward_model.name_or_path}, {reward.parameters:,} parameters"
    for note in inputs.notes:
        yield f"data: {note}"
    yield from data_check(inputs)
    yield from _budget(recipe, shape, n, reward)
    yield from _time(recipe, shape, n, reward, weaker=inputs.pairs is None)
    yield from _memory(recipe, shape, reward)
    yield _fleet(recipe)


def as_data(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The same numbers as plain data, with the recipe in full, for scripts."""
    n, shape, reward = lengths_of(recipe, inputs), inputs.shape, inputs.reward_shape
    column, limit = recipe.compute.column, recipe.compute.limit
    arms = {}
    for name, arm in recipe.arms.items():
        f, time = arm_forecast(recipe, arm, shape, n, reward), time_forecast(recipe, arm, shape, n, reward)
        before, update = (getattr(c, column) for c in (f.before, f.update))
        arms[name] = {
            "before": before,
            "update": update,
            "updates": int((limit - before) / update) if update else None,
            "flops": time.flops if time else None,
            "seconds": time.seconds if time else None,
        }
    return {
        "recipe": recipe.resolved(),
        "model": {
            "parameters": shape.parameters,
            "trained": shape.trained,
            "vocabulary": len(inputs.tokenizer),
            "prompt_tokens": n.prompt,
        },
        "notes": list(inputs.notes),
        "budget": {"unit": column, "limit": limit},
        "arms": arms,
        "memory_gib": memory_gib(recipe, shape, reward),
    }


def _fleet(recipe: Recipe) -> str:
    """What one fleet needs, and how many will run. The cluster is not known here, so that may stay open."""
    needs = fleet_needs(recipe.placement, any(uses_reward_model(arm) for arm in recipe.arms.values()))
    gpus = f", {needs['GPU']:g} GPU" if "GPU" in needs else ""
    count, pieces = recipe.placement.fleets, len(recipe.arms) * len(recipe.seeds)
    if count is None and recipe.compute.column == "device_seconds":
        count = 1
    if count is None:
        at_once = f"as many as the cluster has room for, {pieces} at most"
    else:
        at_once = f"{min(count, pieces)}"
    return f"a fleet: {needs['CPU']:g} CPU{gpus}, {needs['memory'] / GIB:g} GiB; fleets that work on arms at once: {at_once}"


def _budget(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None) -> Iterator[str]:
    column, limit = recipe.compute.column, recipe.compute.limit
    yield f"budget: {limit:.3g} {column} for each arm and seed"
    for name, arm in recipe.arms.items():
        f = arm_forecast(recipe, arm, shape, n, reward)
        before, update = (getattr(c, column) for c in (f.before, f.update))
        updates = f"about {int((limit - before) / update)}" if update else "as many as fit"
        yield f"  {name}: {before:.3g} before the first update, {update:.3g} an update at full length: {updates} updates or more"


def _time(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None, weaker: bool) -> Iterator[str]:
    found = {name: time_forecast(recipe, arm, shape, n, reward) for name, arm in recipe.arms.items()}
    times = {name: time for name, time in found.items() if time is not None}
    if not times:
        yield f"time: the budget is in seconds: {recipe.compute.limit:.3g} × devices for each arm and seed"
        return
    one = next(iter(times.values()))
    kind = "GPU" if recipe.placement.learner.gpus else "core"
    yield (
        f"time, if the learner did all the work, on {one.devices} {kind}{'s' * (one.devices > 1)} of {one.peak_tflops:g} "
        f"TFLOP/s at a utilisation of {one.utilisation:.0%} (placement.device):"
    )
    for name, time in times.items():
        yield f"  {name}: {time.flops:.3g} FLOPs, {_duration(time.seconds)} a seed"
    shared = shared_flops(recipe, shape, n, weaker)
    each = sum(time.flops for time in times.values())
    total = shared + len(recipe.seeds) * each
    seconds = total / one.flops * one.seconds
    yield (
        f"  all: {total:.3g} FLOPs, {_duration(seconds)} for {len(recipe.seeds)} seed{'s' * (len(recipe.seeds) > 1)} and "
        f"{shared:.3g} FLOPs of fine-tuning; without evaluation and trials"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _memory(recipe: Recipe, shape: ModelShape, reward: ModelShape | None) -> Iterator[str]:
    resident, transient = memory_gib(recipe, shape, reward), transient_gib(recipe, shape, reward)
    device = recipe.placement.device
    yield "memory of each process, GiB: always (weights, gradients, optimizer, cache), and at times (activations, loading):"
    for role, gib in resident.items():
        place = getattr(recipe.placement, role)
        yield f"  {role}: {place.actors} × {place.cpus} CPU, {place.gpus} GPU; {gib:.2f} and up to {transient[role]:.2f}"
    for gpu in gpu_forecasts(recipe, shape, reward):
        need = gpu.resident + gpu.transient
        room = (
            "fits" if need <= device.memory_gib else "may not fit: lower compute.tokens_per_micro_batch or spread roles"
        )
        yield (
            f"  a GPU with {' and '.join(gpu.roles)}: {gpu.resident:.1f} and up to {gpu.transient:.1f}, together {need:.1f} of "
            f"{device.memory_gib:g} GiB: {room}"
        )
