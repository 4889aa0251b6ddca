"""Final scores of arms and of the base policy: by seed, and by seed and prompt where the run recorded every prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.crossed import crossed_mean, mean_over_prompts
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.diagnostics.statistics import Paired
from rlhf_bench.results.base import recorded_seeds
from rlhf_bench.results.metrics import SCORE
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import BASE


@dataclass(frozen=True, eq=False)
class FinalScores:
    """Of an arm's finished seeds, or of the base policy. `table` [seeds, prompts], index and columns by their names: None
    where only the means over prompts were recorded."""

    seeds: Mapping[int, float]  # seed -> mean over prompts
    table: pd.DataFrame | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(list(self.seeds.values()))

    @property
    def interval(self) -> Interval | None:
        """Of the mean, over seeds and prompts, within [0, 1]; over seeds alone where no prompts were recorded. None below two
        seeds."""
        if self.table is None or len(self.table) < 2 or self.table.shape[1] < 2:
            return statistics.share_interval(list(self.seeds.values()))
        return crossed_mean(self.table.to_numpy()).interval().within(0.0, 1.0)

    def minus(self, other: FinalScores, *, flips: bool = True) -> Paired:
        """Over the seeds, and prompts, that both have. `flips`: see `statistics.paired`."""
        common = sorted(self.seeds.keys() & other.seeds.keys())
        if self.table is None or other.table is None or not common:
            return statistics.paired([self.seeds[s] for s in common], [other.seeds[s] for s in common], flips=flips)
        prompts = self.table.columns.intersection(other.table.columns, sort=False)
        difference = self.table.loc[common, prompts] - other.table.loc[common, prompts]
        return statistics.paired_table(difference.to_numpy(), flips=flips)


@dataclass(frozen=True, eq=False)
class ArmScores:
    """An arm's final scores, and those of the base policy that each of its seeds began with."""

    final: FinalScores
    base: FinalScores


def final_scores(recorded: RecordedComparison, split: str = MAIN_SPLIT, column: str = SCORE) -> dict[str, ArmScores]:
    """By arm, of the arms with a finished seed that has the score. `column`: of metrics.parquet and scores.parquet."""
    of_seeds = recorded_seeds(recorded.base)
    found = {}
    for arm, result in recorded.results["arms"].items():
        final = _means(recorded, arm, split, column, [seed for seed in result["seeds"] if seed["status"] == "done"])
        if not final:
            continue
        last, first = _tables(recorded, arm, split, column, sorted(final))
        if first is None:
            known = {s: number_or_nan((of_seeds.get(s, recorded.base).get(column) or {}).get(split)) for s in final}
            base = {seed: score for seed, score in known.items() if math.isfinite(score)}
        else:
            base = first.mean(axis=1).to_dict()
        found[arm] = ArmScores(FinalScores(final, last), FinalScores(base, first))
    return found


def base_interval(
    recorded: RecordedComparison, name: str = BASE, split: str = MAIN_SPLIT, column: str = SCORE
) -> Interval | None:
    """Of the base policy's mean score: over prompts, and over seeds where each has a base policy of its own. None where no
    prompts were recorded. `name`: it may stand there at another temperature."""
    rows = _rows(recorded, name, split)
    table = rows.pivot_table(index="seed", columns="prompt_id", values=column, sort=False) if len(rows) else rows
    if table.shape[1] < 2 or not len(table):
        return None
    estimate = crossed_mean(table.to_numpy()) if len(table) > 1 else mean_over_prompts(table.to_numpy()[0])
    return estimate.interval().within(0.0, 1.0)


def _means(
    recorded: RecordedComparison, arm: str, split: str, column: str, done: Sequence[Mapping[str, Any]]
) -> dict[int, float]:
    """Seed -> the last evaluation's score, of the seeds that recorded it."""
    if column == SCORE and split == MAIN_SPLIT:
        final = {result["seed"]: number_or_nan(result.get(SCORE)) for result in done}
    else:
        evaluations = recorded.evaluations_by_seed.get((arm, split), {})
        seeds = [result["seed"] for result in done if result["seed"] in evaluations]
        final = {seed: float(numbers(evaluations[seed], column).iloc[-1]) for seed in seeds}
    return {seed: final[seed] for seed in sorted(final) if math.isfinite(final[seed])}


def _tables(
    recorded: RecordedComparison, arm: str, split: str, column: str, seeds: list[int]
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """[seeds, prompts] of the last evaluation and of the first one; None where a seed lacks it."""
    rows = _rows(recorded, arm, split)
    if column not in rows.columns:
        return None, None
    by_seed = {int(seed): own for seed, own in rows[rows["seed"].isin(seeds)].groupby("seed")}
    if sorted(by_seed) != seeds:
        return None, None
    ends = []
    for at in ("max", "min"):
        chosen = pd.concat([own[own["mark"] == getattr(own["mark"], at)()] for own in by_seed.values()])
        # A mark at the very end is evaluated twice, on the same draws.
        chosen = chosen.drop_duplicates(["seed", "prompt_id"], keep="last")
        ends.append(chosen.pivot(index="seed", columns="prompt_id", values=column).astype("float64"))
    last, first = ends
    if first.empty or not (rows["mark"] == 0).any():
        return last, None
    return last, first


def _rows(recorded: RecordedComparison, name: str, split: str) -> pd.DataFrame:
    return recorded.scores[(recorded.scores["arm"] == name) & (recorded.scores["split"] == split)]
