"""Supervised fine-tuning: the base policy, and the weaker one that makes pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Objective
from rlhf_bench.methods.supervised import SFT
from rlhf_bench.recipe import Recipe, StageSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import Inputs
from rlhf_bench.training.roles import Roles, Step

Say = Callable[[str], None]


def _base(
    recipe: Recipe, inputs: Inputs, roles: Roles, cache: Cache, part: float, seed: int, name: str, say: Say
) -> tuple[Path, dict[str, Any]]:
    """Supervised fine-tuning of the fresh (or given) model, for `part` of the recipe's steps."""
    assert recipe.sft is not None, "material.prepare refuses sft: null where a policy must be fine-tuned"
    settings = recipe.sft.model_copy(update={"steps": max(1, round(recipe.sft.steps * part))})

    def make(folder: Path) -> dict[str, Any]:
        roles.learner.load("policy", inputs.model, seed, settings.learning_rate, settings.max_grad_norm)
        last, cost = _train(roles, SFT, inputs.demonstrations, settings, seed, f"{name}: fine-tuning", say)
        roles.learner.save("policy", folder)
        inputs.tokenizer.save_pretrained(folder)
        return {"cost": asdict(cost), "loss": last["loss"]}

    key = [inputs.fingerprint, settings.model_dump(mode="json"), seed]
    path, meta, found = cache.get(name, key, make)
    say(f"{name} policy: {'from the cache' if found else 'trained'}, final loss {meta['loss']:.3f} ({path.name})")
    return path, meta


def _train(
    roles: Roles, objective: Objective, rows: Sequence[Row], settings: StageSettings, seed: int, what: str, say: Say
) -> tuple[dict[str, float], Cost]:
    """`steps` optimizer steps over shuffled epochs of `rows`. The last step's numbers, and the whole cost."""
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
        found, cost = roles.learner.steps(work)
        total += cost
        for step, means in enumerate(found, first + 1):
            if not math.isfinite(means["loss"]):
                raise RunFailed(
                    f"{what}: the loss is {means['loss']} after {step} steps; lower the stage's learning_rate"
                )
        say(f"{what}: step {first + len(work)}/{settings.steps}, loss {means['loss']:.3f}")
    return means, total


def ramp(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 % of steps, then linear decay to a tenth."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 1.0 - 0.9 * (step - warm) / max(1, steps - warm)
