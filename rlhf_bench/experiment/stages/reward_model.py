"""Reward models: a given one, or the base policy with a scalar head, trained on pairs; or several of these as an ensemble.

In either case scores are shifted and scaled to mean 0 and standard deviation 1 on samples of the base policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.given import GOLD_REWARD_MODEL, REWARD_MODEL
from rlhf_bench.core.types import Group, Pair, Sampling
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.sft import train
from rlhf_bench.methods.supervised import REWARD_MODEL as REWARD_OBJECTIVE
from rlhf_bench.models.heads import combined
from rlhf_bench.models.loading import REWARD, RewardScaling, member_folder
from rlhf_bench.recipe import RewardModelSettings
from rlhf_bench.training.inputs import GOLD_SEED, REWARD_SEED
from rlhf_bench.training.judging import Judge, reward_groups, row_of
from rlhf_bench.training.pairs import preference_pairs, rows_of
from rlhf_bench.training.roles import RewardScorer

MEMBER_SEEDS = 100
"""Between the seeds of an ensemble's members. The first has that of a single model."""


@dataclass(frozen=True)
class Wanted:
    """A reward model of the recipe: `name` in what is said, `key` in the recipe."""

    name: str
    key: str
    settings: RewardModelSettings
    seed: int


def wanted(context: StageContext) -> Wanted:
    """The one that arms learn from."""
    return Wanted("reward model", REWARD_MODEL, context.recipe.reward_model, context.seed_of(REWARD_SEED))


def wanted_gold(context: StageContext) -> Wanted | None:
    """The one that evaluations alone ask, if there is one."""
    settings = context.recipe.gold_reward_model
    if settings is None:
        return None
    return Wanted("gold reward model", GOLD_REWARD_MODEL, settings, context.seed_of(GOLD_SEED))


def make_reward_model(
    context: StageContext, scorer: RewardScorer, base: Path, pairs: list[Pair], which: Wanted
) -> tuple[Path, Cost]:
    """A note of where the weights are and how scores are scaled, and the cost of it. The scorer is left with any model."""
    recipe, settings, given = context.recipe, which.settings, which.settings.name_or_path

    def make(folder: Path) -> dict[str, Any]:
        return _Making(context, scorer, base, which, folder).make(pairs)

    key = [
        context.inputs.fingerprint,
        settings.model_dump(mode="json"),
        which.seed,
        recipe.data.model_dump(mode="json"),
        base.name,
        repr(pairs) if given is None else context.inputs.given[which.key].identity,
    ]
    path, made, found = context.cache.get("reward", key, make)
    if given is None:
        origin, several = "from the cache" if found else "trained", settings.ensemble
        as_one = "" if several is None else f", {several.size} members by their {several.combine}"
        context.say(f"{which.name}: {origin}, {made['pairs']} training pairs{as_one} ({path.name})")
    else:
        context.say(f"{which.name}: {given}, its scale {'from the cache' if found else 'measured'} ({path.name})")
    context.roles.learner.free("critic")
    return path / REWARD, Cost(**made["cost"])


@dataclass(frozen=True)
class _Making:
    context: StageContext
    scorer: RewardScorer
    base: Path
    which: Wanted
    folder: Path

    def make(self, off_policy: Sequence[Pair]) -> dict[str, Any]:
        """What the cache keeps beside the files in `folder`."""
        groups, cost = self._sample_base()
        made: dict[str, Any] = {}
        if self.which.settings.name_or_path is None:
            pairs, judging = self._training_pairs(off_policy, groups)
            accuracies = []
            for index, folder in enumerate(self._folders()):
                accuracy, training = self._train(pairs, folder, self.which.seed + MEMBER_SEEDS * index)
                accuracies.append(accuracy)
                cost += training
            cost += judging
            made = {"pairs": len(pairs), "train_accuracy": float(np.mean(accuracies))}
        return {"cost": asdict(cost + self._set_scale(groups)), **made}

    def _folders(self) -> list[Path]:
        """Of the weights of each model."""
        settings = self.which.settings
        if settings.ensemble is None:
            return [self.folder]
        return [member_folder(self.folder, index) for index in range(settings.members)]

    def _sample_base(self) -> tuple[list[Group], Cost]:
        """Samples of the base policy, on the last training prompts."""
        context, seed = self.context, self.which.seed
        data, prompts = context.recipe.data, self.which.settings.start_policy_prompts
        context.roles.learner.load("policy", self.base, seed)
        context.roles.sync.send(0)
        sampling = Sampling(data.candidates_per_prompt, data.max_response_tokens, data.temperature, seed)
        return context.roles.pool.generate(context.inputs.train[-prompts:], sampling)

    def _training_pairs(self, off_policy: Sequence[Pair], groups: Sequence[Group]) -> tuple[list[Pair], Cost]:
        """Those that `pairs` of the settings names; and what judging them cost."""
        settings, inputs = self.which.settings, self.context.inputs
        pairs, cost = list(off_policy) if settings.pairs != "start_policy" else [], Cost()
        if settings.pairs != "off_policy":
            judged, cost = Judge(inputs.task, inputs.codec)(groups)
            pairs += preference_pairs(reward_groups(judged, "judge", None)[0], settings.pairs_per_prompt)
        if not pairs:
            key = self.which.key.partition(".")[0]
            raise RunFailed(f"{self.which.name}: no training pairs; use {key}.pairs: both")
        return pairs, cost

    def _train(self, pairs: Sequence[Pair], folder: Path, seed: int) -> tuple[float, Cost]:
        """One model, by a head and an order of the data that follow the seed: weights and tokenizer go into `folder`. Returns the
        accuracy in the last step."""
        settings, inputs, learner = self.which.settings, self.context.inputs, self.context.roles.learner
        folder.mkdir(parents=True, exist_ok=True)
        learner.load("critic", self.base, seed, settings.learning_rate, settings.max_grad_norm)
        last, cost = train(
            self.context, REWARD_OBJECTIVE, rows_of(pairs), settings=settings, seed=seed, what=self.which.name
        )
        learner.save("critic", folder)
        inputs.tokenizer.save_pretrained(folder)
        return last["accuracy"], cost

    def _set_scale(self, groups: Sequence[Group]) -> Cost:
        """Measure the scores of the base policy's samples, and write into `folder` how to scale them.

        Members of an ensemble are shifted to a mean of 0 each and not scaled: their unit is the same, the log-odds of a
        preference, and in it they are combined."""
        path, settings = self.context.inputs.reward_models.get(self.which.key), self.which.settings
        given = None if path is None else str(path)
        found, cost = [], Cost()
        for folder in self._folders():
            scores, scoring = self._scores(RewardScaling(given).write(folder), groups)
            found.append(scores)
            cost += scoring
        if settings.ensemble is None:
            note, (flat,) = RewardScaling(given), found
        else:
            offsets = tuple(float(scores.mean()) for scores in found)
            centred = torch.from_numpy(np.stack(found) - np.array(offsets)[:, None])
            flat = combined(centred, settings.ensemble.combine).numpy()
            note = RewardScaling(offsets=offsets, combine=settings.ensemble.combine)
        deviation = float(flat.std()) or 1.0
        scaled = {"scale": 1 / deviation, "offset": float(flat.mean()) / deviation}
        RewardScaling(**asdict(note) | scaled).write(self.folder)
        return cost

    def _scores(self, note: Path, groups: Sequence[Group]) -> tuple[np.ndarray, Cost]:
        """Of all samples, as the model of that note says."""
        self.scorer.load(note, self.context.recipe.model.dtype)
        scores, cost = self.scorer.score([row_of(group) for group in groups])
        flat = np.array([score for row in scores for score in row])
        if not np.isfinite(flat).all():
            raise RunFailed(f"{self.which.name}: a score of the base policy's samples is not finite; use another model")
        return flat, cost
