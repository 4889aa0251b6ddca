"""What comes before the arms: base policy, off-policy pairs, reward model. Each is made once and kept in the cache."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlhf_bench.core.costs import Cost
from rlhf_bench.experiment.stages.pairs import Pairs, _weaker_pairs
from rlhf_bench.experiment.stages.reward_model import _reward_model
from rlhf_bench.experiment.stages.sft import Say, _base
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import BASE_SEED, Inputs, StartingPoint
from rlhf_bench.training.pairs import rows_of
from rlhf_bench.training.roles import Roles


def make_start(recipe: Recipe, inputs: Inputs, roles: Roles, cache: Cache, say: Say) -> StartingPoint:
    """Train or fetch base policy, pairs and (where an arm needs it) reward model, unless that is given."""
    base, base_cost, (pairs, held_out, pairs_cost) = _base_and_pairs(recipe, inputs, roles, cache, say)
    held_out = {split: found for split, found in held_out.items() if found}
    if not held_out:
        say("held-out pairs: none, so likelihoods are not looked at; raise data.held_out_pairs to see them")
    reward_path, reward_cost, margins = None, Cost(), {}
    if roles.scorer is not None:
        reward_path, meta = _reward_model(recipe, inputs, roles, cache, base, pairs, say)
        reward_cost = Cost(**meta["cost"])
        roles.scorer.load(reward_path, recipe.model.dtype)
        looked_at = [p for found in held_out.values() for p in found]
        if looked_at:
            scores, _ = roles.scorer.score(rows_of(looked_at))
            margins = {p.id: up - down for p, (up, down) in zip(looked_at, scores, strict=True)}
    start = StartingPoint(base, pairs, held_out, reward_path, base_cost, pairs_cost, reward_cost, margins)
    if accuracies := start.reward_model_accuracy:
        shown = ", ".join(f"{split} {share:.3f}" for split, share in accuracies.items())
        say(f"reward model: accuracy on held-out pairs {shown}")
    return start


def _base_and_pairs(recipe: Recipe, inputs: Inputs, roles: Roles, cache: Cache, say: Say) -> tuple[Path, Cost, Pairs]:
    """The base policy and off-policy pairs, both at once where a weaker policy makes the pairs: the engines sample
    them while the learner trains the base."""
    given_up = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="pairs") as aside:
        try:
            making = None
            if inputs.pairs is None:
                making = aside.submit(_weaker_pairs(recipe, inputs, roles, cache, given_up, say))
            base, meta = inputs.model, dict[str, Any](cost={})
            if recipe.sft:
                base, meta = _base(recipe, inputs, roles, cache, 1.0, BASE_SEED, "base", say)
            if making is not None:
                return base, Cost(**meta["cost"]), making.result()
        finally:
            given_up.set()
    assert inputs.pairs is not None
    return base, Cost(**meta["cost"]), (inputs.pairs, {recipe.evaluation.splits[0]: inputs.held_out_pairs}, Cost())
