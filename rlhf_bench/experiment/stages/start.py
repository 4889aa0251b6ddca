"""What comes before the arms: base policy, off-policy pairs, reward model. Each is made once and kept in the cache."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.compute.ledger import Cost
from rlhf_bench.core.types import Group, Pair, Prompt, Row, RunFailed, Sampling
from rlhf_bench.methods.base import Objective
from rlhf_bench.methods.supervised import REWARD_MODEL, SFT
from rlhf_bench.models.loading import Reward
from rlhf_bench.models.validation import identity
from rlhf_bench.recipe import Recipe, StageSettings
from rlhf_bench.training.inputs import Cache, Material, rows_of
from rlhf_bench.training.judging import Judge, best_and_worst, preference_pairs, row_of, with_rewards
from rlhf_bench.training.roles import Roles, Step

Say = Callable[[str], None]
BASE_SEED, WEAKER_SEED, PAIR_SEED, REWARD_SEED = 101, 102, 103, 104


@dataclass(frozen=True)
class Start:
    """Where every arm and seed starts from, and what it cost to get there."""

    base: Path
    pairs: list[Pair]
    held_out_pairs: dict[str, list[Pair]]  # by split
    reward_model: Path | None
    base_cost: Cost
    pairs_cost: Cost
    reward_model_cost: Cost
    reward_margins: dict[str, float]  # held-out pair's id -> r(chosen) − r(rejected); empty without a reward model

    @property
    def reward_model_accuracy(self) -> dict[str, float]:
        """Share of held-out pairs that the reward model orders rightly, by split."""
        found = {
            s: [self.reward_margins[p.id] > 0 for p in pairs if p.id in self.reward_margins]
            for s, pairs in self.held_out_pairs.items()
        }
        return {split: float(np.mean(right)) for split, right in found.items() if right}


def make_start(recipe: Recipe, material: Material, roles: Roles, cache: Cache, say: Say) -> Start:
    """Train or fetch base policy, pairs and (where an arm needs it) reward model, unless that is given."""
    base, base_cost, (pairs, held_out, pairs_cost) = _base_and_pairs(recipe, material, roles, cache, say)
    held_out = {split: found for split, found in held_out.items() if found}
    if not held_out:
        say("held-out pairs: none, so likelihoods are not looked at; raise data.held_out_pairs to see them")
    reward_path, reward_cost, margins = None, Cost(), {}
    if roles.scorer is not None:
        reward_path, meta = _reward_model(recipe, material, roles, cache, base, pairs, say)
        reward_cost = Cost(**meta["cost"])
        roles.scorer.load(reward_path, recipe.model.dtype)
        looked_at = [p for found in held_out.values() for p in found]
        if looked_at:
            scores, _ = roles.scorer.score(rows_of(looked_at))
            margins = {p.id: up - down for p, (up, down) in zip(looked_at, scores, strict=True)}
    start = Start(base, pairs, held_out, reward_path, base_cost, pairs_cost, reward_cost, margins)
    if accuracies := start.reward_model_accuracy:
        shown = ", ".join(f"{split} {share:.3f}" for split, share in accuracies.items())
        say(f"reward model: accuracy on held-out pairs {shown}")
    return start


Pairs = tuple[list[Pair], dict[str, list[Pair]], Cost]
"""To train on; held out, by split; what they cost."""


def _base_and_pairs(
    recipe: Recipe, material: Material, roles: Roles, cache: Cache, say: Say
) -> tuple[Path, Cost, Pairs]:
    """The base policy and off-policy pairs, both at once where a weaker policy makes the pairs: the engines sample
    them while the learner trains the base."""
    given_up = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="pairs") as aside:
        try:
            making = None
            if material.pairs is None:
                making = aside.submit(_weaker_pairs(recipe, material, roles, cache, given_up, say))
            base, meta = material.model, dict[str, Any](cost={})
            if recipe.sft:
                base, meta = _base(recipe, material, roles, cache, 1.0, BASE_SEED, "base", say)
            if making is not None:
                return base, Cost(**meta["cost"]), making.result()
        finally:
            given_up.set()
    assert material.pairs is not None
    return base, Cost(**meta["cost"]), (material.pairs, {recipe.evaluation.splits[0]: material.held_out_pairs}, Cost())


def _base(
    recipe: Recipe, material: Material, roles: Roles, cache: Cache, part: float, seed: int, name: str, say: Say
) -> tuple[Path, dict[str, Any]]:
    """Supervised fine-tuning of the fresh (or given) model, for `part` of the recipe's steps."""
    assert recipe.sft is not None, "material.prepare refuses sft: null where a policy must be fine-tuned"
    settings = recipe.sft.model_copy(update={"steps": max(1, round(recipe.sft.steps * part))})

    def make(folder: Path) -> dict[str, Any]:
        roles.learner.load("policy", material.model, seed, settings.learning_rate, settings.max_grad_norm)
        last, cost = _train(roles, SFT, material.demonstrations, settings, seed, f"{name}: fine-tuning", say)
        roles.learner.save("policy", folder)
        material.tokenizer.save_pretrained(folder)
        return {"cost": asdict(cost), "loss": last["loss"]}

    key = [material.fingerprint, settings.model_dump(mode="json"), seed]
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


def _weaker_pairs(
    recipe: Recipe, material: Material, roles: Roles, cache: Cache, given_up: threading.Event, say: Say
) -> Callable[[], Pairs]:
    """Train another policy (same shape, other seed, less training) and hand it to the engines. What is returned makes
    pairs, and held-out ones by split, among its answers, without the learner; it stops soon after `given_up` is set.

    Dataset cost: charged to nobody.
    """
    weaker, meta = _base(recipe, material, roles, cache, recipe.data.weaker_policy_steps, WEAKER_SEED, "weaker", say)
    wanted, kept = recipe.data.off_policy_pairs, recipe.data.held_out_pairs
    key = [
        material.fingerprint,
        recipe.data.model_dump(mode="json"),
        weaker.name,
        recipe.evaluation.model_dump(mode="json"),
    ]
    if not cache.has("pairs", key):
        roles.learner.load("policy", weaker, WEAKER_SEED)
        roles.sync.send(0)

    def make(folder: Path) -> dict[str, Any]:
        train, cost = _pairs_from(recipe, material, roles, material.train, wanted, given_up)
        held: dict[str, list[Pair]] = {}
        for split in recipe.evaluation.splits:
            held[split], more = _pairs_from(recipe, material, roles, material.held_out[split], kept, given_up)
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
    recipe: Recipe, material: Material, roles: Roles, prompts: Sequence[Prompt], wanted: int, given_up: threading.Event
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
        judged, judging = Judge(material.task, material.tokenizer)(groups)
        total += cost + judging
        pairs += best_and_worst(with_rewards(judged, "judge", None)[0])
        at += len(some)
    return pairs[:wanted], total


def _reward_model(
    recipe: Recipe,
    material: Material,
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
        prompts = material.train[-settings.start_policy_prompts :]
        sampling = Sampling(
            recipe.data.candidates_per_prompt, recipe.data.max_response_tokens, recipe.data.temperature, REWARD_SEED
        )
        groups, total = roles.pool.generate(prompts, sampling)
        made: dict[str, Any] = {}
        if given is None:
            made, cost = train(folder, groups)
            total += cost
        Reward(given).write(folder)
        scorer.load(folder, recipe.model.dtype)
        scores, scoring = scorer.score([row_of(g) for g in groups])
        flat = np.array([s for row in scores for s in row])
        if not np.isfinite(flat).all():
            raise RunFailed(
                "reward model: a score of the start policy's samples is no finite number; use another model"
            )
        deviation = float(flat.std()) or 1.0
        Reward(given, scale=1 / deviation, offset=float(flat.mean()) / deviation).write(folder)
        return {"cost": asdict(total + scoring), **made}

    def train(folder: Path, groups: Sequence[Group]) -> tuple[dict[str, Any], Cost]:
        training, total = list(pairs) if settings.pairs != "start_policy" else [], Cost()
        if settings.pairs != "off_policy":
            judged, judging = Judge(material.task, material.tokenizer)(groups)
            training += preference_pairs(with_rewards(judged, "judge", None)[0], settings.pairs_per_prompt)
            total = judging
        if not training:
            raise RunFailed("reward model: no pairs to train on; use reward_model.pairs: both")
        roles.learner.load("critic", base, REWARD_SEED, settings.learning_rate, settings.max_grad_norm)
        last, cost = _train(roles, REWARD_MODEL, rows_of(training), settings, REWARD_SEED, "reward model", say)
        roles.learner.save("critic", folder)
        material.tokenizer.save_pretrained(folder)
        return {"pairs": len(training), "train_accuracy": last["accuracy"]}, total + cost

    key = [
        material.fingerprint,
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
