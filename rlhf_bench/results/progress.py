"""How far the comparison in a directory is, and how it stands, from its small files alone: nothing is changed or locked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf_bench.core.lock import Owner, owner_at_work
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.results.integrity import part_place
from rlhf_bench.results.schema import PARTS, RECIPE, RESULT, RESULTS, RUN_KEY, SUMMARY

DEEPEST = 3
"""How many folders down comparisons are looked for: a series has one below it for each value."""


@dataclass(frozen=True)
class Progress:
    """`runs` are arms × seeds of the recipe, `ended` those that have a result, `failed` those of them that failed or diverged.
    `wrong`: why nothing can be said. `leader` has the highest mean score, where a report was made."""

    directory: Path
    name: str
    runs: int
    ended: int
    failed: int
    changed: datetime
    owner: Owner | None
    leader: tuple[str, float] | None
    wrong: str = ""

    @property
    def state(self) -> str:
        if self.wrong:
            return self.wrong
        if self.owner is not None:
            return f"at work: {self.owner}"
        if self.ended < self.runs:
            return "stopped: the same `rlhf-bench run` goes on"
        return f"done, {self.failed} of them failed or diverged" if self.failed else "done"


def comparisons_below(folder: Path, depth: int = DEEPEST) -> Iterator[Progress]:
    """Of every comparison in the folder and those below it, by name. A recipe alone, which lies beside its outputs, is none."""
    if (folder / RECIPE).is_file() and ((folder / RUN_KEY).exists() or (folder / RESULTS).exists()):
        yield progress_of(folder)
        return
    if depth and folder.is_dir():
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink():
                yield from comparisons_below(below, depth - 1)


def progress_of(directory: Path) -> Progress:
    results = _mapping(directory / RESULTS)
    changed = datetime.fromtimestamp(max(_changed(directory / name) for name in (RECIPE, RESULTS, PARTS))).astimezone()
    owner = owner_at_work(directory)
    try:
        recipe = read_yaml((directory / RECIPE).read_text(encoding="utf-8"))
        runs = [(arm, seed) for arm in recipe["arms"] for seed in recipe["seeds"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        wrong = f"its {RECIPE} is no recipe of this version"
        return Progress(directory, directory.name, 0, 0, 0, changed, owner, None, wrong)
    told = {
        (arm, seed.get("seed")): seed.get("status")
        for arm, found in results.get("arms", {}).items()
        for seed in found.get("seeds", [])
    }
    ended = [one for one in runs if one in told or (directory / part_place(*one) / RESULT).exists()]
    failed = sum(told.get(one, "done") != "done" for one in ended)
    name = str(recipe.get("name", directory.name))
    return Progress(directory, name, len(runs), len(ended), failed, changed, owner, _leader(directory))


def _leader(directory: Path) -> tuple[str, float] | None:
    summary = _mapping(directory / SUMMARY)
    arm = summary.get("verdict", {}).get("leader")
    mean = summary.get("arms", {}).get(arm, {}).get("score", {}).get("mean")
    return (str(arm), float(mean)) if isinstance(mean, int | float) else None


def _mapping(path: Path) -> Mapping[str, Any]:
    """Empty where the file is missing or cut short: `rlhf-bench verify` and the next run say so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
