"""Off-policy pairs: from the answers of a weaker policy, where the data have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Pair, Prompt, Sampling
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.sft import fine_tune
from rlhf_bench.training.inputs import PAIR_SEED, WEAKER_SEED
from rlhf_bench.training.judging import Judge, reward_groups
from rlhf_bench.training.pairs import best_and_worst


@dataclass(frozen=True)
class OffPolicyPairs:
    train: list[Pair]
    held_out: dict[str, list[Pair]]  # by split
    cost: Cost


STORED = TypeAdapter(OffPolicyPairs)
"""How the cache keeps them. A side that did not end may have a score of nan or minus infinity, which it keeps."""


def prepare_weaker_pairs(context: StageContext, given_up: threading.Event) -> Callable[[], OffPolicyPairs]:
    """Train a weaker policy (same shape, other seed, fewer steps) and hand it to the engines. The function returned makes
    pairs of its answers, without the learner; it raises RunFailed soon after `given_up` is set.

    The cost is part of the data's: no arm is charged for it.
    """
    recipe, cache = context.recipe, context.cache
    weaker, training_cost = fine_tune(
        context, name="weaker", fraction=recipe.data.weaker_policy_steps, seed=context.seed_of(WEAKER_SEED)
    )
    key = [
        context.inputs.fingerprint,
        recipe.data.model_dump(mode="json"),
        weaker.name,
        recipe.evaluation.model_dump(mode="json"),
    ]
    if not cache.has("pairs", key):
        context.roles.learner.load("policy", weaker, WEAKER_SEED)
        context.roles.sync.send(0)

    def make(folder: Path) -> dict[str, Any]:
        return STORED.dump_python(_sample_pairs(context, given_up))

    def pairs() -> OffPolicyPairs:
        _, stored, found = cache.get("pairs", key, make)
        made = STORED.validate_python(stored)
        held_out = ", ".join(f"{len(pairs)} {split}" for split, pairs in made.held_out.items())
        origin = " (from the cache)" if found else ""
        context.say(f"off-policy pairs: {len(made.train)} training; held-out: {held_out}{origin}")
        if not made.train:
            raise RunFailed(
                "off-policy pairs: none, since all candidates of the weaker policy have the same score on every prompt; "
                "change data.weaker_policy_steps"
            )
        return OffPolicyPairs(made.train, made.held_out, made.cost + training_cost)

    return pairs


def _sample_pairs(context: StageContext, given_up: threading.Event) -> OffPolicyPairs:
    """Pairs of what the engines hold now, for training and for each split."""
    recipe, inputs = context.recipe, context.inputs
    wanted = recipe.data.off_policy_pairs
    train, cost = _pairs_on(context, inputs.train, wanted, given_up)
    held_out: dict[str, list[Pair]] = {}
    for split in recipe.evaluation.splits:
        held_out[split], more = _pairs_on(context, inputs.held_out[split], recipe.data.held_out_pairs, given_up)
        cost += more
    if len(train) < wanted:
        context.say(
            f"off-policy pairs: {len(train)} of {wanted} (data.off_policy_pairs): all candidates of each other prompt "
            "have the same score"
        )
    return OffPolicyPairs(train, held_out, cost)


def _pairs_on(
    context: StageContext, prompts: Sequence[Prompt], wanted: int, given_up: threading.Event
) -> tuple[list[Pair], Cost]:
    """Sample candidates in chunks of prompts, until there are enough pairs or no prompts are left."""
    data, inputs = context.recipe.data, context.inputs
    pairs: list[Pair] = []
    total, at = Cost(), 0
    while at < len(prompts) and len(pairs) < wanted:
        if given_up.is_set():
            raise RunFailed("off-policy pairs: given up, since the run has ended")
        chunk = prompts[at : at + min(256, max(32, 5 * (wanted - len(pairs)) // 4))]
        sampling = Sampling(
            data.candidates_per_prompt, data.max_response_tokens, data.temperature, context.seed_of(PAIR_SEED) + at
        )
        groups, cost = context.roles.pool.generate(chunk, sampling)
        judged, judging = Judge(inputs.task, inputs.codec)(groups)
        total += cost + judging
        pairs += best_and_worst(reward_groups(judged, "judge", None)[0])
        at += len(chunk)
    return pairs[:wanted], total
