"""Which pairs of responses a judge is to compare.

A judge sees the first response to each held-out prompt of the main split that `samples.parquet` keeps of an arm's last
evaluation. The opponent is the base policy that the arm began from, another arm with the same seed, or the reference answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rlhf_bench.core.contests import Contest
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import listed
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.results.judged import Place
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.schema import BASE

REFERENCE = "reference"


def contests(recorded: RecordedComparison, against: str) -> dict[Place, Contest]:
    """All contests with an opponent, the first prompt of every arm and seed before the second: where a budget ends early, the arms
    have the same prompts. Raises BadInput where there are none."""
    arms = {arm: _done(result) for arm, result in recorded.results["arms"].items()}
    if against not in (*arms, BASE, REFERENCE):
        raise BadInput(
            f"--against {against}: is no opponent; name {BASE}, {REFERENCE} or one of the arms {listed(list(arms))}"
        )
    samples = recorded.samples[recorded.samples["split"] == MAIN_SPLIT]
    if samples.empty:
        raise BadInput(
            f"{recorded.directory}: keeps no responses to judge; run it with evaluation.sample_prompts above 0 (folders that "
            "`rlhf-bench report --page` wrote keep none)"
        )
    found: dict[Place, Contest] = {}
    for arm, seeds in arms.items():
        for seed in seeds:
            own = samples[(samples["arm"] == arm) & (samples["seed"] == seed)]
            other = _opponents(samples, own, against, seed)
            for row in _last(own).to_dict("records"):
                if arm != against and row["prompt_id"] in other:
                    place = Place(arm, seed, row["prompt_id"])
                    found[place] = Contest(row["prompt"], row["response"], other[row["prompt_id"]])
    if not found:
        raise BadInput(
            f"--against {against}: no finished arm and seed has a response beside one of it; name another opponent"
        )
    order = {prompt: number for number, prompt in enumerate(dict.fromkeys(place.prompt_id for place in found))}
    return dict(sorted(found.items(), key=lambda item: order[item[0].prompt_id]))


def _opponents(samples: pd.DataFrame, own: pd.DataFrame, against: str, seed: int) -> dict[str, str]:
    """Prompt -> the opponent's response."""
    if against == BASE:
        rows, column = own[own["mark"] == 0], "response"
    elif against == REFERENCE and REFERENCE not in set(samples["arm"]):
        rows, column = own, REFERENCE
        rows = rows[rows[REFERENCE].astype(str).str.strip() != ""]
    else:
        rows, column = _last(samples[(samples["arm"] == against) & (samples["seed"] == seed)]), "response"
    return dict(zip(rows["prompt_id"], rows[column], strict=True))


def _last(own: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last evaluation, each prompt once: a mark at the very end is evaluated twice, on the same draws."""
    return own[own["mark"] == own["mark"].max()].drop_duplicates("prompt_id", keep="last")


def _done(result: Mapping[str, Any]) -> list[int]:
    return [seed["seed"] for seed in result["seeds"] if seed["status"] == "done"]
