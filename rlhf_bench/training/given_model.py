"""What a recipe says of model, tokenizer and reward model, checked and measured before any role loads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_bench.core.given import MODEL, REWARD_MODEL, TOKENIZER, Given
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import random_init_shape, write_random_model
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.models.validation import check_tokenizer, pretrained_model, pretrained_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.tasks import Task
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.encoded_rows import DATA_SEED
from rlhf_bench.training.local_model import LocalModel

Local = Mapping[str, LocalModel]
"""By the recipe's key."""


def tokenizer_and_shape(recipe: Recipe, task: Task | None, local: Local) -> tuple[Any, ModelShape | None]:
    """The tokenizer and, where a model is given, its shape. The model is checked first: transformers reads its configuration to
    find the tokenizer, and would blame the tokenizer for what is wrong there. `task`: needed for a tokenizer that is trained on
    its texts."""
    settings = recipe.model.tokenizer

    def built() -> Any:
        path = local[TOKENIZER].path if TOKENIZER in local else None
        corpus = task.corpus() if task is not None else []
        return build_tokenizer(settings.model_copy(update={"name_or_path": path}), corpus)

    if recipe.model.name_or_path is None:
        return built(), None
    scalar = any(_makes_scalar(recipe, arm) for arm in recipe.arms.values())
    scalar = scalar or any(settings.name_or_path is None for settings in recipe.reward_models.values())
    model, shape = pretrained_model(local[MODEL].path, recipe.model.max_length, scalar)
    tokenizer = built()
    check_tokenizer(recipe.model.name_or_path, model, tokenizer)
    return tokenizer, shape


def _makes_scalar(recipe: Recipe, arm: MethodSettings) -> bool:
    """Whether the arm has a critic that is made of the policy, by way of a reward model or not."""
    if uses_reward_model(arm):  # its critic starts from that
        return recipe.reward_model.name_or_path is None
    return any(o.model == "critic" for o in METHODS[arm.method].objectives)


def given_reward_shape(recipe: Recipe, tokenizer: Any, local: Local, key: str = REWARD_MODEL) -> ModelShape | None:
    """The shape of a given reward model, and of the critic that starts from it. The gold one (`key`) has no critic."""
    if key not in local:
        return None
    shape = pretrained_reward_model(local[key].path, recipe.model.max_length, tokenizer, key)
    lora = recipe.model.lora if key == REWARD_MODEL else None
    return shape if lora is None else replace(shape, lora_rank=lora.rank)


def policy_shape(recipe: Recipe, given: ModelShape | None, tokenizer: Any) -> ModelShape:
    """Of a given model, with its adapters where it has some, or of a fresh one."""
    if given is None:
        return random_init_shape(recipe.model, len(tokenizer))
    lora = recipe.model.lora
    return given if lora is None else replace(given, lora_rank=lora.rank)


def model_folder(
    recipe: Recipe, tokenizer: Any, cache: Cache, local: Local, given: Mapping[str, Given]
) -> tuple[Path, dict[str, str]]:
    """Where the model is, and what the caches know it by. A fresh one is written into the cache."""
    settings, own = recipe.model, given[TOKENIZER].identity if TOKENIZER in given else ""
    if MODEL in local:
        lora, known = settings.lora, given[MODEL].identity
        others = {"dtype": settings.dtype} | ({} if own == known else {"tokenizer": own})
        if lora is None:
            return Path(local[MODEL].path), {"model": known, **others}
        learned = json.dumps({"name_or_path": known, "lora": lora.model_dump(mode="json")})
        return Path(local[MODEL].path), {"model": learned, **others}
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = {"model": settings.model_dump(mode="json", exclude={"lora"}), "tokenizer": vocabulary}

    def make(folder: Path) -> dict[str, Any]:
        write_random_model(settings, tokenizer, DATA_SEED, folder)
        return {}

    path, _, _ = cache.get("fresh", key, make)
    return path, {"model": json.dumps(key, sort_keys=True)}
