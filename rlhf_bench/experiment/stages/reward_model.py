"""The reward model: a given one, or a scalar head trained on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Group, Pair, Sampling
from rlhf_bench.experiment.stages.sft import Say, _train
from rlhf_bench.methods.supervised import REWARD_MODEL
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.models.validation import identity
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import REWARD_SEED, Inputs
from rlhf_bench.training.judging import Judge, reward_groups, row_of
from rlhf_bench.training.pairs import preference_pairs, rows_of
from rlhf_bench.training.roles import Roles


def _reward_model(
    recipe: Recipe,
    inputs: Inputs,
    roles: Roles,
    cache: Cache,
    base: Path,
    pairs: list[Pair],
    say: Say,
) -> tuple[Path, dict[str, Any]]:
    """The given one, or a scalar head on the base policy, trained on pairs; in either case its scores are shifted and scaled
    to mean 0 and deviation 1 on the base's samples. The folder says where the weights are and how scores are read."""
    settings, scorer, given = recipe.reward_model, roles.scorer, recipe.reward_model.name_or_path
    assert scorer is not None, "a reward model is made only where there is a scorer"

    def make(folder: Path) -> dict[str, Any]:
        roles.learner.load("policy", base, REWARD_SEED)
        roles.sync.send(0)
        prompts = inputs.train[-settings.start_policy_prompts :]
        sampling = Sampling(
            recipe.data.candidates_per_prompt, recipe.data.max_response_tokens, recipe.data.temperature, REWARD_SEED
        )
        groups, total = roles.pool.generate(prompts, sampling)
        made: dict[str, Any] = {}
        if given is None:
            made, cost = train(folder, groups)
            total += cost
        RewardScaling(given).write(folder)
        scorer.load(folder, recipe.model.dtype)
        scores, scoring = scorer.score([row_of(g) for g in groups])
        flat = np.array([s for row in scores for s in row])
        if not np.isfinite(flat).all():
            raise RunFailed(
                "reward model: a score of the start policy's samples is no finite number; use another model"
            )
        deviation = float(flat.std()) or 1.0
        RewardScaling(given, scale=1 / deviation, offset=float(flat.mean()) / deviation).write(folder)
        return {"cost": asdict(total + scoring), **made}

    def train(folder: Path, groups: Sequence[Group]) -> tuple[dict[str, Any], Cost]:
        training, total = list(pairs) if settings.pairs != "start_policy" else [], Cost()
        if settings.pairs != "off_policy":
            judged, judging = Judge(inputs.task, inputs.tokenizer)(groups)
            training += preference_pairs(reward_groups(judged, "judge", None)[0], settings.pairs_per_prompt)
            total = judging
        if not training:
            raise RunFailed("reward model: no pairs to train on; use reward_model.pairs: both")
        roles.learner.load("critic", base, REWARD_SEED, settings.learning_rate, settings.max_grad_norm)
        last, cost = _train(roles, REWARD_MODEL, rows_of(training), settings, REWARD_SEED, "reward model", say)
        roles.learner.save("critic", folder)
        inputs.tokenizer.save_pretrained(folder)
        return {"pairs": len(training), "train_accuracy": last["accuracy"]}, total + cost

    key = [
        inputs.fingerprint,
        settings.model_dump(mode="json"),
        recipe.data.model_dump(mode="json"),
        base.name,
        repr(pairs) if given is None else identity(given),
    ]
    path, meta, found = cache.get("reward", key, make)
    if given is None:
        say(f"reward model: {'from the cache' if found else 'trained'} on {meta['pairs']} pairs ({path.name})")
    else:
        say(f"reward model: {given}, its scale {'from the cache' if found else 'measured'} ({path.name})")
    roles.learner.free("critic")
    return path, meta
