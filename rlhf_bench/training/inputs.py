"""Everything a comparison needs before any process starts: task, tokenizer, encoded prompts and pairs, model folder.

All of the user's data passes through here once, so that wrong data is refused before the first engine starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from rlhf_bench.training.encoding import Encoder, draws_of

DATA_SEED = 0
"""Prompts, demonstrations and pairs are the same for every seed of the comparison: seeds vary training, not data."""


@dataclass(frozen=True)
class Inputs:
    """What is known before any engine starts."""

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


@dataclass(frozen=True)
class _Prompts:
    """All prompts of a comparison, encoded."""

    train: list[Prompt]
    held_out: dict[str, list[Prompt]]
    tuning: list[Prompt]


@dataclass(frozen=True)
class _Pairs:
    """The data's pairs, encoded. `training` is None where the task's data has no pairs."""

    training: list[Pair] | None = None
    held_out: list[Pair] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def prepare_inputs(recipe: Recipe, cache: Cache) -> Inputs:
    """Build and check all of it. Raises BadInput, naming key or row, before anything else has happened."""
    task = build_task(recipe.task)
    _check_task(recipe, task)
    tokenizer, given = _tokenizer(recipe, task)
    reward_shape = _reward_shape(recipe, tokenizer)
    encoder = Encoder(recipe, tokenizer)
    prompts, demonstrations = _prompts(recipe, task, encoder), _demonstrations(recipe, task, encoder)
    _check_pairs_can_be_made(recipe, task)
    pairs = _pairs(recipe, task, encoder)
    encoder.check_draws(draws_of(recipe, prompts.train, prompts.held_out, pairs.training))
    model, shape, fingerprint = _model(recipe, tokenizer, given, cache)
    data = [prompts.train, prompts.held_out, demonstrations, pairs.training, pairs.held_out]
    fingerprint |= {
        "task": json.dumps(recipe.task.model_dump(mode="json"), sort_keys=True),
        "data": content_digest(data),
    }
    return Inputs(
        task=task,
        tokenizer=tokenizer,
        model=model,
        shape=shape,
        train=prompts.train,
        held_out=prompts.held_out,
        demonstrations=demonstrations,
        tuning=prompts.tuning,
        pairs=pairs.training,
        held_out_pairs=pairs.held_out,
        fingerprint=fingerprint,
        notes=(*task.notes, *pairs.notes),
        reward_shape=reward_shape,
    )


def _check_task(recipe: Recipe, task: Task) -> None:
    missing = [s for s in recipe.evaluation.splits if s not in task.splits]
    if missing:
        raise BadInput(
            f"evaluation.splits: the data has no {missing[0]} prompts (it has {', '.join(task.splits[1:])}); remove it"
        )


def _check_pairs_can_be_made(recipe: Recipe, task: Task) -> None:
    if task.pairs is None and recipe.sft is None:
        raise BadInput(
            "sft: null needs a task whose data has pairs: where it has none, a weaker policy that is fine-tuned makes them; set sft, or give pairs"
        )


def _reward_shape(recipe: Recipe, tokenizer: Any) -> ModelShape | None:
    """The shape of a given reward model, and of the critic that starts from it."""
    name = recipe.reward_model.name_or_path
    if name is None:
        return None
    shape = pretrained_reward_model(name, recipe.model.max_length, tokenizer)
    return shape if recipe.model.lora is None else replace(shape, lora_rank=recipe.model.lora.rank)


def _prompts(recipe: Recipe, task: Task, encoder: Encoder) -> _Prompts:
    """Trials have held-out prompts of the main split to themselves, beyond those of the comparison."""
    evaluated, for_trials = recipe.evaluation.prompts, recipe.tuning.prompts if recipe.tuning else 0
    main = recipe.evaluation.splits[0]

    def drawn(split: Any, count: int) -> list[Prompt]:
        return [encoder.prompt(p) for p in task.prompts(split, count, DATA_SEED)]

    train = drawn("train", recipe.data.train_prompts)
    held_out: dict[str, list[Prompt]] = {
        s: drawn(s, evaluated + (for_trials if s == main else 0)) for s in recipe.evaluation.splits
    }
    tuning, held_out[main] = held_out[main][evaluated:], held_out[main][:evaluated]
    return _Prompts(train, held_out, tuning)


def _demonstrations(recipe: Recipe, task: Task, encoder: Encoder) -> list[Row]:
    if recipe.sft is None:
        return []
    return [encoder.demonstration(d) for d in task.demonstrations(recipe.sft.demonstrations, DATA_SEED)]


def _pairs(recipe: Recipe, task: Task, encoder: Encoder) -> _Pairs:
    if task.pairs is None:
        return _Pairs()
    wanted = recipe.data.off_policy_pairs + recipe.data.held_out_pairs
    encoded = [encoder.pair(i, p) for i, p in enumerate(task.pairs(wanted, DATA_SEED))]
    offered, held_out = encoded[: recipe.data.off_policy_pairs], encoded[recipe.data.off_policy_pairs :]
    training = _of_other_prompts(offered, held_out)
    left_out = len(offered) - len(training)
    note = f"{left_out} of {len(offered)} pairs are left out, since held-out pairs have their prompts"
    return _Pairs(training, held_out, (note,) if left_out else ())


def _of_other_prompts(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """Pairs whose prompt no held-out pair has: otherwise memory of a prompt would pass for generalisation."""
    known = {p.prompt.token_ids for p in held_out}
    others = [p for p in pairs if p.prompt.token_ids not in known]
    if not others:
        raise BadInput(
            f"data.held_out_pairs: {len(held_out)} held-out pairs have the prompts of all others, so none is left to train "
            "on; lower it, or give pairs on more prompts"
        )
    return others


def _tokenizer(recipe: Recipe, task: Task) -> tuple[Any, ModelShape | None]:
    """The tokenizer and, where the model is given, its shape. The model is checked first: transformers reads its
    configuration to find the tokenizer, and would blame the tokenizer for what is wrong there."""
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
