"""The reward model: a given one, or the base policy with a scalar head, trained on pairs.

In either case its scores are shifted and scaled to mean 0 and standard deviation 1 on samples of the base policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core import given as given_models
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Group, Pair, Sampling
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.sft import train
from rlhf_bench.methods.supervised import REWARD_MODEL
from rlhf_bench.models.loading import REWARD, RewardScaling
from rlhf_bench.training.inputs import REWARD_SEED
from rlhf_bench.training.judging import Judge, reward_groups, row_of
from rlhf_bench.training.pairs import preference_pairs, rows_of
from rlhf_bench.training.roles import RewardScorer


def make_reward_model(context: StageContext, scorer: RewardScorer, base: Path, pairs: list[Pair]) -> tuple[Path, Cost]:
    """A note of where the weights are and how scores are scaled. The cost is charged to each arm that uses it."""
    recipe, settings = context.recipe, context.recipe.reward_model
    given = settings.name_or_path

    def make(folder: Path) -> dict[str, Any]:
        groups, cost = _sample_base(context, base)
        made: dict[str, Any] = {}
        if given is None:
            made, training = _train(context, folder, base, pairs, groups)
            cost += training
        cost += _set_scale(context, scorer, folder, groups)
        return {"cost": asdict(cost), **made}

    key = [
        context.inputs.fingerprint,
        settings.model_dump(mode="json"),
        recipe.data.model_dump(mode="json"),
        base.name,
        repr(pairs) if given is None else context.inputs.given[given_models.REWARD_MODEL].identity,
    ]
    path, made, found = context.cache.get("reward", key, make)
    if given is None:
        origin = "from the cache" if found else "trained"
        context.say(f"reward model: {origin}, {made['pairs']} training pairs ({path.name})")
    else:
        context.say(f"reward model: {given}, its scale {'from the cache' if found else 'measured'} ({path.name})")
    context.roles.learner.free("critic")
    return path / REWARD, Cost(**made["cost"])


def _sample_base(context: StageContext, base: Path) -> tuple[list[Group], Cost]:
    """Samples of the base policy, on the last training prompts."""
    data, prompts = context.recipe.data, context.recipe.reward_model.start_policy_prompts
    seed = context.seed_of(REWARD_SEED)
    context.roles.learner.load("policy", base, seed)
    context.roles.sync.send(0)
    sampling = Sampling(data.candidates_per_prompt, data.max_response_tokens, data.temperature, seed)
    return context.roles.pool.generate(context.inputs.train[-prompts:], sampling)


def _train(
    context: StageContext, folder: Path, base: Path, off_policy: Sequence[Pair], groups: Sequence[Group]
) -> tuple[dict[str, Any], Cost]:
    """Train on the pairs that `reward_model.pairs` names; weights and tokenizer go into `folder`."""
    settings, inputs, learner = context.recipe.reward_model, context.inputs, context.roles.learner
    pairs, total = list(off_policy) if settings.pairs != "start_policy" else [], Cost()
    if settings.pairs != "off_policy":
        judged, total = Judge(inputs.task, inputs.codec)(groups)
        pairs += preference_pairs(reward_groups(judged, "judge", None)[0], settings.pairs_per_prompt)
    if not pairs:
        raise RunFailed("reward model: no training pairs; use reward_model.pairs: both")
    seed = context.seed_of(REWARD_SEED)
    learner.load("critic", base, seed, settings.learning_rate, settings.max_grad_norm)
    last, cost = train(context, REWARD_MODEL, rows_of(pairs), settings=settings, seed=seed, what="reward model")
    learner.save("critic", folder)
    inputs.tokenizer.save_pretrained(folder)
    return {"pairs": len(pairs), "train_accuracy": last["accuracy"]}, total + cost


def _set_scale(context: StageContext, scorer: RewardScorer, folder: Path, groups: Sequence[Group]) -> Cost:
    """Measure the scores of the base policy's samples, and write into `folder` how to scale them."""
    given = None if context.inputs.reward_model is None else str(context.inputs.reward_model)
    scorer.load(RewardScaling(given).write(folder), context.recipe.model.dtype)
    scores, cost = scorer.score([row_of(group) for group in groups])
    flat = np.array([score for row in scores for score in row])
    if not np.isfinite(flat).all():
        raise RunFailed("reward model: a score of the base policy's samples is not finite; use another model")
    deviation = float(flat.std()) or 1.0
    RewardScaling(given, scale=1 / deviation, offset=float(flat.mean()) / deviation).write(folder)
    return cost
