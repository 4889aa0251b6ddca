"""Everything a comparison needs before any process starts: task, tokenizer, encoded prompts and pairs, model folder.

All of the user's data passes through here once, so that wrong data is refused before the first engine starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.compute.forecast import Lengths
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.plain_data import content_digest
from rlhf_bench.core.types import Pair, Prompt, Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import random_init_shape, write_random_model
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.models.validation import check_tokenizer, identity, pretrained_model, pretrained_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.tasks import Task, build_task
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.encoding import _draws, _Encoder

DATA_SEED = 0
"""Prompts, demonstrations and pairs are the same for every seed of the comparison: seeds vary training, not data."""


@dataclass(frozen=True)
class Inputs:
    task: Task
    tokenizer: Any
    model: Path
    shape: ModelShape
    train: list[Prompt]
    held_out: dict[str, list[Prompt]]
    demonstrations: list[Row]
    tuning: list[Prompt]  # held-out prompts for tuning trials only
    pairs: list[Pair] | None  # that come with the data; None where the weaker policy makes them
    held_out_pairs: list[Pair]
    fingerprint: dict[str, str]  # hashes of model and data, for stage caches
    notes: tuple[str, ...] = ()  # what a reader of the results must know of the data
    reward_shape: ModelShape | None = None  # of a given reward model; else it has the policy's

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id


def prepare_inputs(recipe: Recipe, cache: Cache) -> Inputs:
    """Build and check all of it. Raises BadInput, naming key or row, before anything else has happened."""
    task = build_task(recipe.task)
    missing = [s for s in recipe.evaluation.splits if s not in task.splits]
    if missing:
        raise BadInput(
            f"evaluation.splits: the data has no {missing[0]} prompts (it has {', '.join(task.splits[1:])}); remove it"
        )
    tokenizer, given = _tokenizer(recipe, task)
    rewarding = recipe.reward_model.name_or_path
    reward_shape = pretrained_reward_model(rewarding, recipe.model.max_length, tokenizer) if rewarding else None
    if reward_shape is not None and recipe.model.lora is not None:  # of the critic that starts from it
        reward_shape = replace(reward_shape, lora_rank=recipe.model.lora.rank)
    encode = _Encoder(recipe, tokenizer)
    train = [encode.prompt(p) for p in task.prompts("train", recipe.data.train_prompts, DATA_SEED)]
    evaluated, tried = recipe.evaluation.prompts, recipe.tuning.prompts if recipe.tuning else 0
    main = recipe.evaluation.splits[0]  # trials look at further prompts of it
    held_out: dict[str, list[Prompt]] = {
        s: [encode.prompt(p) for p in task.prompts(s, evaluated + (tried if s == main else 0), DATA_SEED)]
        for s in recipe.evaluation.splits
    }
    tuning, held_out[main] = held_out[main][evaluated:], held_out[main][:evaluated]
    demonstrations = []
    if recipe.sft:
        demonstrations = [encode.demonstration(d) for d in task.demonstrations(recipe.sft.demonstrations, DATA_SEED)]
    if task.pairs is None and recipe.sft is None:
        raise BadInput(
            "sft: null needs a task whose data has pairs: where it has none, a weaker policy that is fine-tuned makes them; set sft, or give pairs"
        )
    pairs, looked_at, notes = None, list[Pair](), list(task.notes)
    if task.pairs is not None:
        wanted = recipe.data.off_policy_pairs + recipe.data.held_out_pairs
        encoded = [encode.pair(i, p) for i, p in enumerate(task.pairs(wanted, DATA_SEED))]
        offered, looked_at = encoded[: recipe.data.off_policy_pairs], encoded[recipe.data.off_policy_pairs :]
        pairs = _of_other_prompts(offered, looked_at)
        if len(pairs) < len(offered):
            notes.append(
                f"{len(offered) - len(pairs)} of {len(offered)} pairs are left out, since held-out pairs have their prompts"
            )
    encode.check_draws(_draws(recipe, train, held_out, pairs))
    model, shape, fingerprint = _model(recipe, tokenizer, given, cache)
    data = [train, held_out, demonstrations, pairs, looked_at]
    fingerprint |= {
        "task": json.dumps(recipe.task.model_dump(mode="json"), sort_keys=True),
        "data": content_digest(data),
    }
    return Inputs(
        task, tokenizer, model, shape, train, held_out, demonstrations, tuning, pairs, looked_at, fingerprint,
        tuple(notes), reward_shape,
    )  # fmt: skip


def _of_other_prompts(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """Those whose prompt no held-out pair has: else what is learnt of a prompt would pass for what is known without it."""
    known = {p.prompt.token_ids for p in held_out}
    others = [p for p in pairs if p.prompt.token_ids not in known]
    if not others:
        raise BadInput(
            f"data.held_out_pairs: {len(held_out)} held-out pairs have the prompts of all others, so none is left to train "
            "on; lower it, or give pairs on more prompts"
        )
    return others


def _tokenizer(recipe: Recipe, task: Task) -> tuple[Any, ModelShape | None]:
    """The tokenizer and, where the model is given, its shape. The model is looked at first: transformers reads its
    configuration to find the tokenizer, and would blame that for what is wrong there."""
    name, settings = recipe.model.name_or_path, recipe.model.tokenizer
    if name is None:
        return build_tokenizer(settings, task.corpus()), None
    if settings.kind != "pretrained":
        raise BadInput(
            f"model.tokenizer.kind: {settings.kind} does not fit weights from {name}; use {{kind: pretrained, name_or_path: {name}}}"
        )
    scalar = any(_makes_scalar(recipe, arm) for arm in recipe.arms.values())
    model, shape = pretrained_model(name, recipe.model.max_length, scalar)
    tokenizer = build_tokenizer(settings, task.corpus())
    check_tokenizer(name, model, tokenizer)
    return tokenizer, shape


def _makes_scalar(recipe: Recipe, arm: MethodSettings) -> bool:
    """Whether the arm has a reward model or critic that is made of the policy's."""
    if uses_reward_model(arm):  # its critic too starts from that
        return recipe.reward_model.name_or_path is None
    return any(o.model == "critic" for o in METHODS[arm.method].objectives)


def _model(
    recipe: Recipe, tokenizer: Any, given: ModelShape | None, cache: Cache
) -> tuple[Path, ModelShape, dict[str, str]]:
    settings = recipe.model
    if settings.name_or_path is not None and given is not None:
        path, lora, weights = Path(settings.name_or_path), settings.lora, identity(settings.name_or_path)
        if lora is None:
            return path, given, {"model": weights}
        learned = json.dumps({"name_or_path": weights, "lora": lora.model_dump(mode="json")})
        return path, replace(given, lora_rank=lora.rank), {"model": learned}
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = {"model": settings.model_dump(mode="json", exclude={"lora"}), "tokenizer": vocabulary}

    def make(folder: Path) -> dict[str, Any]:
        write_random_model(settings, tokenizer, DATA_SEED, folder)
        return {}

    path, _, _ = cache.get("fresh", key, make)
    return path, random_init_shape(settings, len(tokenizer)), {"model": json.dumps(key, sort_keys=True)}


def lengths_of(recipe: Recipe, inputs: Inputs) -> Lengths:
    return Lengths(round(float(np.mean([len(p.token_ids) for p in inputs.train]))), recipe.data.max_response_tokens)


BASE_SEED, WEAKER_SEED, PAIR_SEED, REWARD_SEED = 101, 102, 103, 104


@dataclass(frozen=True)
class StartingPoint:
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
