"""What `rlhf-bench check` prints about a recipe: model, data, budget, memory and time, as lines or as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_bench.cli.data_overview import data_check
from rlhf_bench.cli.example import example_data, example_lines
from rlhf_bench.compute.forecast import DataUse, FixedData, Lengths, arm_forecast, data_use, largest_step
from rlhf_bench.compute.memory import gpu_forecasts, host_gib, host_total_gib, machine_gib, memory_gib, transient_gib
from rlhf_bench.compute.resources import GIB, fleet_needs
from rlhf_bench.compute.speed import Speeds, speeds_of
from rlhf_bench.compute.wall_time import ComparisonTime, Seconds, comparison_time
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.inputs import Inputs, lengths_of


def lines(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    n, shape = lengths_of(recipe, inputs), inputs.shape
    yield (
        f"model: {shape.parameters:,} parameters, vocabulary of {len(inputs.tokenizer)}; a prompt has about {n.prompt} tokens"
    )
    if shape.lora_rank:
        yield f"adapters of rank {shape.lora_rank}: {shape.trained:,} parameters are trained in place of the model's"
    yield from _reward_models(recipe, inputs)
    for note in inputs.notes:
        yield f"data: {note}"
    yield from data_check(inputs)
    yield from example_lines(inputs)
    yield from _budget(recipe, inputs, n)
    speeds = speeds_of(recipe)
    yield from _time(recipe, _forecast_time(recipe, inputs, speeds), speeds)
    yield from _memory(recipe, inputs, n)
    yield _fleet(recipe)


def _reward_models(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """Given ones, and ensembles."""
    given = {"reward_model": inputs.reward_shape, "gold_reward_model": inputs.gold_reward_shape}
    for key, settings in recipe.reward_models.items():
        name = key.replace("_", " ")
        if (shape := given[key]) is not None:
            yield f"{name}: {settings.name_or_path}, {shape.parameters:,} parameters"
        elif settings.ensemble is not None:
            yield f"{name}: {settings.members} models of {inputs.shape.parameters:,} parameters, scored by their {settings.ensemble.combine}"


def as_data(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The same numbers as plain data, with the recipe in full, for scripts."""
    n, shape = lengths_of(recipe, inputs), inputs.shape
    reward, gold = inputs.reward_shape, inputs.gold_reward_shape
    column, limit = recipe.compute.column, recipe.compute.limit
    fixed = _fixed_data(recipe, inputs)
    arms, time = {}, _forecast_time(recipe, inputs, speeds_of(recipe))
    for name, arm in recipe.arms.items():
        f = arm_forecast(recipe, arm, shape, n, reward)
        before, update = (getattr(c, column) for c in (f.before, f.update))
        use = data_use(recipe, arm, f, fixed)
        arms[name] = {
            "before": before,
            "update": update,
            "updates": int(use.updates) if use else None,
            "pair_passes": use.pair_passes if use else None,
            "prompt_passes": use.prompt_passes if use else None,
            "flops": time.arms[name].flops if use else None,
            "seconds": time.arms[name].seconds,
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
        "example": example_data(inputs),
        "budget": {"unit": column, "limit": limit},
        "arms": arms,
        "seconds": time.seconds,
        "memory_gib": memory_gib(recipe, shape, reward, gold),
        "peak_gib": host_gib(recipe, shape, reward, largest_step(recipe, n), gold),
    }


def _fleet(recipe: Recipe) -> str:
    """What one fleet needs, and how many will run. The cluster is not known here, so that may stay open."""
    needs = fleet_needs(recipe.placement, bool(recipe.reward_models))
    gpus = f", {needs['GPU']:g} GPU" if "GPU" in needs else ""
    count, pieces = recipe.placement.fleets, len(recipe.arms) * len(recipe.seeds)
    if count is None and recipe.compute.column == "device_seconds":
        count = 1
    if count is None:
        at_once = f"as many as the cluster has room for, {pieces} at most"
    else:
        at_once = f"{min(count, pieces)}"
    return f"a fleet: {needs['CPU']:g} CPU{gpus}, {needs['memory'] / GIB:g} GiB; fleets that work on arms at once: {at_once}"


def _forecast_time(recipe: Recipe, inputs: Inputs, speeds: Speeds) -> ComparisonTime:
    n = lengths_of(recipe, inputs)
    return comparison_time(
        recipe, inputs.shape, n, speeds, inputs.reward_shape, inputs.gold_reward_shape, weaker=inputs.pairs is None,
        fixed=_fixed_data(recipe, inputs),
    )  # fmt: skip


def _fixed_data(recipe: Recipe, inputs: Inputs) -> FixedData:
    """The data's, or as many pairs as a weaker policy is asked for."""
    pairs = recipe.data.off_policy_pairs if inputs.pairs is None else len(inputs.pairs)
    return FixedData(pairs, None if inputs.labelled is None else len(inputs.labelled))


def _budget(recipe: Recipe, inputs: Inputs, n: Lengths) -> Iterator[str]:
    column, limit, fixed = recipe.compute.column, recipe.compute.limit, _fixed_data(recipe, inputs)
    yield f"budget: {limit:.3g} {column} for each arm and seed"
    for name, arm in recipe.arms.items():
        f = arm_forecast(recipe, arm, inputs.shape, n, inputs.reward_shape)
        before, update = (getattr(c, column) for c in (f.before, f.update))
        use = data_use(recipe, arm, f, fixed)
        updates = f"about {int(use.updates)}" if use else "as many as fit"
        yield (
            f"  {name}: {before:.3g} before the first update, {update:.3g} an update at full length: {updates} updates or "
            f"more{_passes(arm, use, fixed.rows(arm)) if use else ''}"
        )


def _passes(arm: Any, use: DataUse, rows: int) -> str:
    """How often the arm sees its data: its pairs, and the prompts that it samples for."""
    if arm.data == "offline":
        return f"; {use.pair_passes:.2g} passes over {rows} {'labelled responses' if arm.fixed_responses else 'pairs'}"
    again = ", which come again with new samples" if (use.prompt_passes or 0) > 1 else ""
    prompts = f"{use.prompt_passes:.2g} passes over its prompts{again}"
    if not arm.one_shot:
        return f"; {prompts}"
    return f"; each pair in {arm.epochs} epoch{'s' * (arm.epochs > 1)}; {prompts}"


def _time(recipe: Recipe, time: ComparisonTime, speeds: Speeds) -> Iterator[str]:
    yield f"time, with {_devices(recipe, speeds)}, sampled responses at full length, nothing from the cache:"
    yield f"  before the arms: {_parts(time.before)}"
    for name, arm in time.arms.items():
        yield f"  {name}, a seed: {_parts(arm.parts)}"
    seeds = f"{time.seeds} seed{'s' * (time.seeds > 1)}"
    beside = f", {time.fleets} at a time" if time.fleets > 1 else ""
    yield f"  all: {_duration(time.seconds)} for {len(time.arms)} arms × {seeds}{beside}, evaluation and report included"


def _devices(recipe: Recipe, speeds: Speeds) -> str:
    """What the forecast of time goes by."""
    named = "placement.device" if recipe.placement.device.peak_tflops else "timed now"
    parts = []
    if speeds.core is not None:
        parts.append(f"cores that multiply at {speeds.core.learner_flops / 1e9:.0f} GFLOP/s ({named})")
    if any(role.gpus for role in recipe.placement.roles(scorer=True).values()):
        parts.append(f"GPUs of {speeds.gpu.learner_flops / 1e12:g} TFLOP/s (placement.device)")
    return " and ".join(parts)


def _parts(parts: Seconds) -> str:
    """Their sum, and those that are more than a hundredth of it."""
    total = sum(parts.values())
    shown = ", ".join(f"{part} {_duration(x)}" for part, x in parts.items() if x > total / 100)
    return f"{_duration(total)} ({shown})"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _memory(recipe: Recipe, inputs: Inputs, n: Lengths) -> Iterator[str]:
    largest, shape, reward, gold = largest_step(recipe, n), inputs.shape, inputs.reward_shape, inputs.gold_reward_shape
    resident, transient = memory_gib(recipe, shape, reward, gold), transient_gib(recipe, shape, reward, largest, gold)
    device, host = recipe.placement.device, host_gib(recipe, shape, reward, largest, gold)
    yield "memory of each process, GiB: always (weights, gradients, optimizer, cache), and at times (activations, loading):"
    for role, gib in resident.items():
        place = getattr(recipe.placement, role)
        peak = f"; with libraries and weights in transit {host[role]:.2f} at its peak" if role in host else ""
        yield f"  {role}: {place.actors} × {place.cpus} CPU, {place.gpus} GPU; {gib:.2f} and up to {transient[role]:.2f}{peak}"
    for gpu in gpu_forecasts(recipe, shape, reward, largest, gold):
        need = gpu.resident + gpu.transient
        room = (
            "fits" if need <= device.memory_gib else "may not fit: lower compute.tokens_per_micro_batch or spread roles"
        )
        yield (
            f"  a GPU with {' and '.join(gpu.roles)}: {gpu.resident:.1f} and up to {gpu.transient:.1f}, together {need:.1f} of "
            f"{device.memory_gib:g} GiB: {room}"
        )
    if host:
        yield _on_this_machine(host_total_gib(recipe, host, shape), machine_gib())


def _on_this_machine(need: float, has: float) -> str:
    if need <= has:
        return f"  a fleet on one machine, driver and Ray included: {need:.1f} GiB; this one has {has:.1f}"
    return (
        f"  warning: a fleet on one machine, driver and Ray included, needs {need:.1f} GiB, and this one has {has:.1f}; lower "
        "compute.tokens_per_micro_batch or the rows of an update, use model.dtype: bfloat16 or model.lora, or more machines"
    )
