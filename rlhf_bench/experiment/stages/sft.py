"""Supervised fine-tuning: the base policy, and the weaker one whose answers become pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Row
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.methods.base import Objective
from rlhf_bench.methods.supervised import SFT
from rlhf_bench.recipe import StageSettings
from rlhf_bench.training.roles import Step


def fine_tune(context: StageContext, *, name: str, fraction: float, seed: int) -> tuple[Path, Cost]:
    """The fresh (or given) model after `fraction` of the recipe's fine-tuning steps, and what that cost."""
    sft, inputs, learner = context.recipe.sft, context.inputs, context.roles.learner
    assert sft is not None, "prepare_inputs refuses sft: null where a policy must be fine-tuned"
    settings = sft.model_copy(update={"steps": max(1, round(sft.steps * fraction))})

    def make(folder: Path) -> dict[str, Any]:
        learner.load("policy", inputs.weights, seed, settings.learning_rate, settings.max_grad_norm)
        what = f"{name}: fine-tuning"
        last, cost = train(context, SFT, inputs.demonstrations, settings=settings, seed=seed, what=what)
        learner.save("policy", folder)
        inputs.codec.save(folder)
        return {"cost": asdict(cost), "loss": last["loss"]}

    key = [inputs.fingerprint, settings.model_dump(mode="json", exclude={"seed_follows"}), seed]
    path, made, found = context.cache.get(name, key, make)
    origin = "from the cache" if found else "trained"
    context.say(f"{name} policy: {origin}, final loss {made['loss']:.3f} ({path.name})")
    return path, Cost(**made["cost"])


def train(
    context: StageContext, objective: Objective, rows: Sequence[Row], *, settings: StageSettings, seed: int, what: str
) -> tuple[dict[str, float], Cost]:
    """`steps` optimizer steps over shuffled epochs of `rows`. Returns the last step's numbers, and the total cost.

    Raises RunFailed where a loss is not finite. `what` begins the lines that report progress.
    """
    rng, total = np.random.default_rng(seed), Cost()
    order: list[int] = []
    size, means = min(settings.examples_per_step, len(rows)), {"loss": math.nan}
    # Many steps to a call: a call takes milliseconds, and so does a step of a small model.
    many = min(100, max(1, settings.steps // 5))
    for first in range(0, settings.steps, many):
        work = []
        for step in range(first, min(first + many, settings.steps)):
            while len(order) < size:
                order += rng.permutation(len(rows)).tolist()
            batch, order = [rows[i] for i in order[:size]], order[size:]
            work.append(Step(objective, batch, None, settings.learning_rate * ramp(step, settings.steps)))
        found, cost = context.roles.learner.steps(work)
        total += cost
        for step, means in enumerate(found, first + 1):
            if not math.isfinite(means["loss"]):
                raise RunFailed(
                    f"{what}: the loss is {means['loss']} after {step} steps; lower the stage's learning_rate"
                )
        context.say(f"{what}: step {first + len(work)}/{settings.steps}, loss {means['loss']:.3f}")
    return means, total


def ramp(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over the first 5 % of steps, then linear decay to a tenth."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 1.0 - 0.9 * (step - warm) / max(1, steps - warm)
