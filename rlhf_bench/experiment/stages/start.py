"""The starting point of all arms: base policy, off-policy pairs, reward model, held-out pairs of the arms' own kinds.

Each is made once and kept in the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Pair
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.own_pairs import with_own_pairs
from rlhf_bench.experiment.stages.pairs import OffPolicyPairs, prepare_weaker_pairs
from rlhf_bench.experiment.stages.reward_model import make_reward_model, wanted, wanted_gold
from rlhf_bench.experiment.stages.sft import fine_tune
from rlhf_bench.training.inputs import BASE_SEED, StartingPoint
from rlhf_bench.training.pairs import rows_of
from rlhf_bench.training.roles import RewardScorer


def make_start(context: StageContext) -> StartingPoint:
    """Train base policy and reward models and sample pairs, unless they are given or in the cache. There are reward models
    where the roles have a scorer."""
    base, base_cost, pairs = _base_and_pairs(context)
    start = StartingPoint(
        base=base,
        pairs=pairs.train,
        held_out_pairs={split: found for split, found in pairs.held_out.items() if found},
        reward_model=None,
        base_cost=base_cost,
        pairs_cost=pairs.cost,
        reward_model_cost=Cost(),
        reward_margins={},
    )
    scorer = context.roles.scorer
    if scorer is not None:
        start = _with_reward_model(context, scorer, start)
    start = with_own_pairs(context, start)
    if not start.held_out_pairs:
        context.say("held-out pairs: none, so likelihoods are not evaluated; raise data.held_out_pairs to see them")
    return start if scorer is None else _with_margins(context, scorer, _with_gold_one(context, scorer, start))


def _base_and_pairs(context: StageContext) -> tuple[Path, Cost, OffPolicyPairs]:
    """The base policy, its cost, and off-policy pairs. Where a weaker policy makes the pairs, the engines sample them
    while the learner trains the base policy."""
    recipe, inputs = context.recipe, context.inputs
    given_up = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="pairs") as background:
        try:
            making = None
            if inputs.pairs is None:
                making = background.submit(prepare_weaker_pairs(context, given_up))
            base, cost = inputs.model, Cost()
            if recipe.sft:
                base, cost = fine_tune(context, name="base", fraction=1.0, seed=context.seed_of(BASE_SEED))
            if making is not None:
                return base, cost, making.result()
        finally:
            given_up.set()
    assert inputs.pairs is not None
    return base, cost, OffPolicyPairs(inputs.pairs, {recipe.evaluation.splits[0]: inputs.held_out_pairs}, Cost())


def _with_reward_model(context: StageContext, scorer: RewardScorer, start: StartingPoint) -> StartingPoint:
    """With the reward model that an arm of the recipe learns from, which the scorer then holds."""
    if "reward_model" not in context.recipe.reward_models:
        return start
    path, cost = make_reward_model(context, scorer, start.base, start.pairs, wanted(context))
    scorer.load(path, context.recipe.model.dtype)
    return replace(start, reward_model=path, reward_model_cost=cost)


def _with_gold_one(context: StageContext, scorer: RewardScorer, start: StartingPoint) -> StartingPoint:
    """With the gold reward model, if the recipe has one, and its margins on the held-out pairs. The scorer is left with it."""
    if (gold := wanted_gold(context)) is None:
        return start
    path, cost = make_reward_model(context, scorer, start.base, start.pairs, gold)
    scorer.load(path, context.recipe.model.dtype)
    margins = _margins(scorer, start.held_out_pairs)
    start = replace(start, gold_reward_model=path, gold_reward_model_cost=cost, gold_margins=margins)
    _say_accuracy(context, gold.name, start.gold_accuracy)
    return start


def _with_margins(context: StageContext, scorer: RewardScorer, start: StartingPoint) -> StartingPoint:
    """With the reward model's margins on the held-out pairs. The scorer holds that one from now on."""
    if start.reward_model is None:
        return start
    if start.gold_reward_model is not None:
        scorer.load(start.reward_model, context.recipe.model.dtype)
    start = replace(start, reward_margins=_margins(scorer, start.held_out_pairs))
    _say_accuracy(context, "reward model", start.reward_model_accuracy)
    return start


def _say_accuracy(context: StageContext, name: str, accuracies: Mapping[str, float]) -> None:
    if accuracies:
        shown = ", ".join(f"{split} {share:.3f}" for split, share in accuracies.items())
        context.say(f"{name}: accuracy on held-out pairs {shown}")


def _margins(scorer: RewardScorer, held_out: Mapping[str, Sequence[Pair]]) -> dict[str, float]:
    """Score of the chosen side minus that of the rejected one, by the pair's id."""
    pairs = [pair for found in held_out.values() for pair in found]
    if not pairs:
        return {}
    scores, _ = scorer.score(rows_of(pairs))
    return {pair.id: chosen - rejected for pair, (chosen, rejected) in zip(pairs, scores, strict=True)}
