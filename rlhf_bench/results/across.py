"""Arms of several directories together: whether they may be compared, and how they stand."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.core.differing import differing
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.results.final_scores import final_scores
from rlhf_bench.results.reader import RecordedComparison, read_recorded
from rlhf_bench.results.standing import BASE_POLICY, Difference, Standing, standing
from rlhf_bench.results.summary import Summary, summarize

MUST_AGREE = (
    "task", "model", "sft", "data.max_response_tokens", "compute.column", "evaluation.prompts", "evaluation.samples_per_prompt",
    "evaluation.temperature",
)  # fmt: skip
"""Keys of recipes whose scores mean the same: what is asked, who answers first, and how it is measured. Budgets may differ."""
BETWEEN = ": "
"""Stands between a directory and its arm."""


@dataclass(frozen=True)
class Together:
    """Several comparisons by the names of their directories. `standing` has all arms, as DIRECTORY: ARM, in one family."""

    summaries: Mapping[str, Summary]
    standing: Standing

    @property
    def across(self) -> list[Difference]:
        """Between arms of two directories."""

        def directory(arm: str) -> str:
            return arm.rpartition(BETWEEN)[0]

        found = self.standing.differences.values()
        return [d for d in found if d.against != BASE_POLICY and directory(d.arm) != directory(d.against)]


def together(directories: Sequence[Path]) -> Together:
    """BadInput, with a line for each reason, where they may not be compared."""
    places = list(dict.fromkeys(directory.resolve() for directory in directories))
    if len(places) < 2:
        raise BadInput("compare: give two directories or more, each the --output of a run")
    recorded = {_name(place, places): read_recorded(place) for place in places}
    (first, of_first), *others = recorded.items()
    if problems := [line for name, one in others for line in _obstacles(first, of_first, name, one)]:
        raise BadInput(*problems)
    scores = {
        f"{name}{BETWEEN}{arm}": found for name, one in recorded.items() for arm, found in final_scores(one).items()
    }
    return Together({name: summarize(one) for name, one in recorded.items()}, standing(scores))


def _name(place: Path, places: Sequence[Path]) -> str:
    """The end of its path that tells it from the others."""
    for count in range(1, len(place.parts)):
        end = place.parts[-count:]
        if sum(other.parts[-count:] == end for other in places) == 1:
            return os.path.join(*end)
    return str(place)


def _obstacles(name: str, one: RecordedComparison, other_name: str, other: RecordedComparison) -> Iterator[str]:
    """Why the scores of these two do not mean the same, a line for each."""
    for key in MUST_AGREE:
        differences = list(differing(_value(one.recipe, key), _value(other.recipe, key), key))
        kinds = [
            found for found in differences if found.key == "task.kind"
        ]  # whose other keys are not the same ones either
        for found in kinds or differences:
            yield f"{name} and {other_name} cannot be compared: {found.key} is {found.one} in the first, and {found.other} in the second"
    if _prompts(one) != _prompts(other):
        yield f"{name} and {other_name} cannot be compared: they were not scored on the same held-out prompts"
    scores = [found.base["score"][MAIN_SPLIT] for found in (one, other)]
    if not math.isclose(*scores, rel_tol=1e-9):
        yield (
            f"{name} and {other_name} cannot be compared: their base policies score {scores[0]:.4g} and {scores[1]:.4g}, so they "
            "began with other weights, or were measured on another machine or by another version"
        )


def _value(recipe: Mapping[str, Any], key: str) -> Any:
    found: Any = recipe
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _prompts(recorded: RecordedComparison) -> set[str]:
    scores = recorded.scores
    return set(scores.loc[scores["split"] == MAIN_SPLIT, "prompt_id"]) if len(scores) else set()
