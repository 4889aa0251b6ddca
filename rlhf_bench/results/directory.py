"""What DIR is known by: its recipe, its data, its first day and its key. A run that goes on must agree with all of them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from rlhf_bench.core.differing import differing
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import clear_aside, make_private, write_text
from rlhf_bench.core.given import Given
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.given import check_given, given_as_text
from rlhf_bench.results.integrity import part_place, record_damage, unreadable
from rlhf_bench.results.schema import (
    CHECKPOINTS,
    DATA_DIGEST,
    FIRST_DAY,
    GIVEN,
    PARTS,
    RECIPE,
    RESULTS,
    RUN_KEY,
    TUNING,
)

MAY_DIFFER = ("tracking", "placement", "reliability", "seeds", "arms", "description", "baseline", "claims", "sweep")
"""Keys of a recipe that change no number which is recorded already (arms are checked one by one)."""
DIGEST_FORMAT = "3:"
"""Stands before the digest of the data. It tells a digest that another version made in another way from one of other data."""


def first_day(directory: Path) -> date | None:
    """The date that the prompts of the run in DIR have; None where none is recorded. BadInput where the file holds none."""
    path = directory / FIRST_DAY
    try:
        return date.fromisoformat(path.read_text(encoding="utf-8").strip()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{directory}: {FIRST_DAY} holds no date ({error}); write the day on which the run began into it, such as 2026-01-31"
        ) from None


def run_key(directory: Path) -> str:
    """DIR's key in MLflow: one per directory, so that a resumed run is the same run there. Made where there is none yet. One
    that is lost or damaged is taken from `results.json`; BadInput where that has none."""
    path, results = directory / RUN_KEY, directory / RESULTS
    key = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    if re.fullmatch(KEY_PATTERN, key):
        return key
    known = {} if unreadable(results) else json.loads(results.read_text(encoding="utf-8"))
    key = str(known.get("run_key"))
    if not re.fullmatch(KEY_PATTERN, key):
        if path.exists():
            raise BadInput(
                f"--output {directory}: {RUN_KEY} {_emptied(path)}; write into it what MLflow shows as the tag run_key of this "
                "comparison, or remove it: then MLflow gets another run of it"
            )
        key = uuid.uuid4().hex[:12]
    write_text(path, key)
    return key


KEY_PATTERN = "[0-9a-f]{12}"


def open_directory(
    directory: Path, recipe: Recipe, data: str, day: date | None = None, given: Mapping[str, Given] | None = None
) -> None:
    """Make DIR this recipe's, or check that it is. Raises BadInput where results of another recipe or of other data are in
    it, or where a file is damaged that cannot be made again. `data`: a digest of what the recipe's data are, which a file that
    has changed gives another value. `day`: the date that the chat template writes, if it writes one; it is recorded for
    `first_day`. `given`: the models and tokenizers that the recipe names, which must be what they were when the comparison began.

    Where a run is recorded, where it is placed, what is claimed, and more seeds or arms may differ: no result changes.
    """
    new = recipe.resolved()
    try:
        make_private(directory)
        _check_recipe(directory, new)
        check_given(directory, given or {})
        _check_data(directory, data)
        _check_records(directory, recipe)
        run_key(directory)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise BadInput(f"--output {directory}: cannot be used ({reason}); choose another directory") from None
    for folder in (directory, directory / PARTS, directory / CHECKPOINTS):
        clear_aside(folder)
    if day is not None:
        write_text(directory / FIRST_DAY, f"{day.isoformat()}\n")
    write_text(directory / DATA_DIGEST, f"{DIGEST_FORMAT}{data}\n")
    if given:
        write_text(directory / GIVEN, given_as_text(given))
    # Last: where it is, the others are.
    write_text(directory / RECIPE, yaml.safe_dump(new, sort_keys=False, allow_unicode=True, explicit_end=True))


def _check_recipe(directory: Path, new: Mapping[str, Any]) -> None:
    """BadInput where DIR holds results of another recipe, or does not tell of which."""
    path = directory / RECIPE
    if not path.exists():
        if (directory / PARTS).exists():
            raise BadInput(f"--output {directory}: {RECIPE} is missing; {COPY_OF_RECIPE}")
        return
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise BadInput(f"--output {directory}: {RECIPE} is empty; {COPY_OF_RECIPE}")
    if not text.endswith(END_OF_RECIPE):
        raise BadInput(
            f"--output {directory}: {RECIPE} has been cut short, or an older version has written it: it does not end with "
            f"the line `...`; if it is whole, add that line; if not, {COPY_OF_RECIPE}"
        )
    old = read_yaml(text)
    if not isinstance(old, dict) or not isinstance(old.get("arms"), dict):
        raise ValueError(f"its {RECIPE} is no recipe")
    found = [one for key in sorted(new) if key not in MAY_DIFFER for one in differing(old.get(key), new[key], key)]
    for arm in new["arms"]:
        if arm in old["arms"]:
            found += differing(old["arms"][arm], new["arms"][arm], f"arms.{arm}")
    if found:
        shown = [f"{one.key} is {one.one} there, and {one.other} here" for one in found[:MOST_DIFFERING]]
        if len(found) > len(shown):
            shown.append(f"{len(found) - len(shown)} more keys differ")
        *others, last = (f"--output {directory}: holds a comparison of another recipe: {line}" for line in shown)
        raise BadInput(*others, f"{last}; give it the recorded values, or choose another directory")


MOST_DIFFERING = 10
"""Keys that are named where a recipe is not the recorded one."""


END_OF_RECIPE = "\n...\n"
"""YAML's own mark: whatever is cut short lacks it."""
COPY_OF_RECIPE = (
    "nothing else tells what its results are of: bring back a copy of it (MLflow has one of the comparison, and README.md of "
    "a finished policy shows it), or choose another directory"
)


def _check_data(directory: Path, data: str) -> None:
    """BadInput where DIR holds results on other data."""
    path = directory / DATA_DIGEST
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8", errors="replace")
    if not before.endswith("\n"):  # its last byte
        raise BadInput(
            f"--output {directory}: {DATA_DIGEST} {_emptied(path)}; if the files that the task names are what they were, "
            "remove it, and it is made again"
        )
    if not before.startswith(DIGEST_FORMAT):
        raise BadInput(
            f"--output {directory}: holds a comparison that another version of rlhf-bench has begun; continue with that "
            "version, or choose another directory"
        )
    if before.strip() != DIGEST_FORMAT + data:
        raise BadInput(
            f"--output {directory}: holds a comparison on other data: a file that task names has changed since; "
            "bring back what it held, or choose another directory"
        )


def _check_records(directory: Path, recipe: Recipe) -> None:
    """BadInput with a line for every file of finished arms and of trials that is damaged."""
    problems = []
    tuning = directory / TUNING
    if tuning.exists() and (wrong := unreadable(tuning)):
        problems.append(f"{TUNING} {wrong}; bring back a copy of it, or remove it, and the trials run again")
    for arm in recipe.arms:
        for seed in recipe.seeds:
            remedy = f"bring back a copy of it, or remove {part_place(arm, seed)}, and that arm and seed runs again"
            problems += [f"{damage}; {remedy}" for damage in record_damage(directory, arm, seed)]
    if problems:
        raise BadInput(*(f"--output {directory}: {problem}" for problem in problems))


def _emptied(path: Path) -> str:
    return "is damaged" if path.stat().st_size else "is empty"
