"""Off-policy pairs from a weaker policy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Pair, Prompt, Sampling
from rlhf_bench.experiment.stages.sft import Say, _base
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import PAIR_SEED, WEAKER_SEED, Inputs
from rlhf_bench.training.judging import Judge, reward_groups
from rlhf_bench.training.pairs import best_and_worst
from rlhf_bench.training.roles import Roles

Pairs = tuple[list[Pair], dict[str, list[Pair]], Cost]
"""To train on; held out, by split; what they cost."""


def _weaker_pairs(
    recipe: Recipe, inputs: Inputs, roles: Roles, cache: Cache, given_up: threading.Event, say: Say
) -> Callable[[], Pairs]:
    """Train another policy (same shape, other seed, less training) and hand it to the engines. What is returned makes
    pairs, and held-out ones by split, among its answers, without the learner; it stops soon after `given_up` is set.

    Dataset cost: charged to nobody.
    """
    weaker, meta = _base(recipe, inputs, roles, cache, recipe.data.weaker_policy_steps, WEAKER_SEED, "weaker", say)
    wanted, kept = recipe.data.off_policy_pairs, recipe.data.held_out_pairs
    key = [
        inputs.fingerprint,
        recipe.data.model_dump(mode="json"),
        weaker.name,
        recipe.evaluation.model_dump(mode="json"),
    ]
    if not cache.has("pairs", key):
        roles.learner.load("policy", weaker, WEAKER_SEED)
        roles.sync.send(0)

    def make(folder: Path) -> dict[str, Any]:
        train, cost = _pairs_from(recipe, inputs, roles, inputs.train, wanted, given_up)
        held: dict[str, list[Pair]] = {}
        for split in recipe.evaluation.splits:
            held[split], more = _pairs_from(recipe, inputs, roles, inputs.held_out[split], kept, given_up)
            cost += more
        if len(train) < wanted:
            say(
                f"off-policy pairs: {len(train)} of the {wanted} asked for (data.off_policy_pairs): other prompts' candidates scored alike"
            )
        return {
            "train": [asdict(p) for p in train],
            "held_out": {split: [asdict(p) for p in found] for split, found in held.items()},
            "cost": asdict(cost),
        }

    def pairs() -> Pairs:
        _, made, found = cache.get("pairs", key, make)
        say(
            f"off-policy pairs: {len(made['train'])} to train on, {', '.join(f'{len(p)} {split}' for split, p in made['held_out'].items())} "
            f"to look at {'(from the cache)' if found else ''}"
        )
        if not made["train"]:
            raise RunFailed(
                "off-policy pairs: none of the weaker policy's prompts had candidates of different quality; change data.weaker_policy_steps"
            )
        return (
            [_pair(p) for p in made["train"]],
            {split: [_pair(p) for p in kept_pairs] for split, kept_pairs in made["held_out"].items()},
            Cost(**made["cost"]) + Cost(**meta["cost"]),
        )

    return pairs


def _pairs_from(
    recipe: Recipe, inputs: Inputs, roles: Roles, prompts: Sequence[Prompt], wanted: int, given_up: threading.Event
) -> tuple[list[Pair], Cost]:
    """Sample candidates prompt by prompt, in chunks, until there are enough pairs or no prompts are left."""
    pairs: list[Pair] = []
    total, at = Cost(), 0
    while at < len(prompts) and len(pairs) < wanted:
        if given_up.is_set():
            raise RunFailed("off-policy pairs: given up, since the run has ended")
        some = prompts[at : at + min(256, max(32, 5 * (wanted - len(pairs)) // 4))]
        sampling = Sampling(
            recipe.data.candidates_per_prompt, recipe.data.max_response_tokens, recipe.data.temperature, PAIR_SEED + at
        )
        groups, cost = roles.pool.generate(some, sampling)
        judged, judging = Judge(inputs.task, inputs.tokenizer)(groups)
        total += cost + judging
        pairs += best_and_worst(reward_groups(judged, "judge", None)[0])
        at += len(some)
    return pairs[:wanted], total


def _pair(data: dict[str, Any]) -> Pair:
    prompt = Prompt(**{**data["prompt"], "token_ids": tuple(data["prompt"]["token_ids"])})
    return Pair(
        **{
            **data,
            "prompt": prompt,
            "chosen_ids": tuple(data["chosen_ids"]),
            "rejected_ids": tuple(data["rejected_ids"]),
        }
    )
