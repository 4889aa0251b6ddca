"""The comparison in numbers: what the tables, the verdict and `summary.json` are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlhf_bench.core.costs import Column
from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.types import MAIN_SPLIT, HeldOutSplit
from rlhf_bench.diagnostics import stability, statistics
from rlhf_bench.diagnostics.equal_kl import AtEqualKL
from rlhf_bench.diagnostics.statistics import Interval
from rlhf_bench.results.claims import Claim, PairedComparison, against_baseline, evaluate_claims, scores_at_equal_kl
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import Status
from rlhf_bench.results.standing import Standing, standing


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One arm trained from one seed. `score` and `kl` (nats) are nan where they were not recorded.

    `best_score`, `drawdown` and `gradient_norm_spikes`: see `rlhf_bench.diagnostics.stability`.
    """

    seed: int
    status: Status
    spent: Mapping[Column, float]
    score: float
    kl: float
    best_score: float
    drawdown: float
    gradient_norm_spikes: int | None
    skipped_updates: int = 0  # whose numbers were not finite

    @property
    def done(self) -> bool:
        return self.status == "done"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm over its seeds. All estimates are over the finished seeds; `interval` (of `mean`) and `iqm_interval` are None
    below two of them."""

    name: str
    method: str
    data: str | None
    seeds: tuple[SeedResult, ...]
    mean: float
    iqm: float
    interval: Interval | None
    iqm_interval: Interval | None

    @property
    def finished(self) -> tuple[SeedResult, ...]:
        return tuple(seed for seed in self.seeds if seed.done)

    @property
    def scores(self) -> list[float]:
        return [seed.score for seed in self.finished]

    @property
    def kl(self) -> float:
        """Mean KL to the reference over the finished seeds that recorded it, in nats."""
        return statistics.mean([seed.kl for seed in self.finished if math.isfinite(seed.kl)])

    @property
    def best_score(self) -> float:
        """Mean over the finished seeds of each one's best evaluation."""
        return statistics.mean([seed.best_score for seed in self.finished if math.isfinite(seed.best_score)])

    @property
    def seed_spread(self) -> float:
        return stability.seed_spread(self.scores)

    @property
    def drawdown(self) -> float:
        """The worst seed's drawdown: unfinished seeds count too, since a collapse is what this number shows."""
        recorded = [seed.drawdown for seed in self.seeds if not math.isnan(seed.drawdown)]
        return max(recorded, default=float("nan"))

    @property
    def gradient_norm_spikes(self) -> int | None:
        """Spikes over all seeds; None where no seed recorded gradient norms."""
        recorded = [seed.gradient_norm_spikes for seed in self.seeds if seed.gradient_norm_spikes is not None]
        return sum(recorded) if recorded else None

    @property
    def diverged(self) -> int:
        return stability.diverged_count([seed.status for seed in self.seeds])

    @property
    def skipped_updates(self) -> int:
        return sum(seed.skipped_updates for seed in self.seeds)

    def spent(self, column: Column) -> float:
        """Mean spent per finished seed, or per seed where none finished."""
        return statistics.mean([seed.spent[column] for seed in self.finished or self.seeds])


@dataclass(frozen=True)
class Summary:
    """A whole comparison. `base_scores` maps a held-out split to the base model's score.

    `comparisons` holds every other arm against the recipe's `baseline` (empty without one), `claims` the recipe's.
    """

    recipe: Mapping[str, Any]
    unit: Column
    limit: float
    base_scores: Mapping[HeldOutSplit, float]
    arms: tuple[ArmResult, ...]
    comparisons: tuple[PairedComparison, ...]
    claims: tuple[Claim, ...]
    equal_kl: AtEqualKL
    timing: Mapping[str, Any]
    run_key: str | None
    commit: str | None

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", "comparison"))

    @property
    def baseline(self) -> str | None:
        name = self.recipe.get("baseline")
        return None if name is None else str(name)

    @property
    def base_score(self) -> float:
        return self.base_scores[MAIN_SPLIT]

    @cached_property
    def standing(self) -> Standing:
        """Which arm leads, and which differences in final score are settled."""
        scores = {arm.name: {seed.seed: seed.score for seed in arm.finished} for arm in self.arms}
        return standing(scores, self.base_score)


def summarize(recorded: RecordedComparison) -> Summary:
    """Reduce the recorded rows to the numbers of the comparison."""
    compute, results = recorded.recipe["compute"], recorded.results
    arms = tuple(_arm(name, result, recorded) for name, result in results["arms"].items())
    return Summary(
        recipe=recorded.recipe,
        unit=compute["column"],
        limit=float(compute["limit"]),
        base_scores={split: float(score) for split, score in recorded.base["score"].items()},
        arms=arms,
        comparisons=against_baseline(recorded),
        claims=evaluate_claims(recorded),
        equal_kl=scores_at_equal_kl(recorded, [arm.name for arm in arms if arm.finished]),
        timing=results.get("timing", {}),
        run_key=results.get("run_key"),
        commit=results.get("commit"),
    )


def _arm(name: str, result: Mapping[str, Any], recorded: RecordedComparison) -> ArmResult:
    seeds = tuple(_seed(name, seed, recorded) for seed in result["seeds"])
    scores = [seed.score for seed in seeds if seed.done]
    return ArmResult(
        name=name,
        method=result["method"],
        data=result.get("data"),
        seeds=seeds,
        mean=statistics.mean(scores),
        iqm=statistics.interquartile_mean(scores),
        interval=statistics.share_interval(scores),
        iqm_interval=statistics.interquartile_interval(scores),
    )


def _seed(arm: str, result: Mapping[str, Any], recorded: RecordedComparison) -> SeedResult:
    def own(rows):
        return rows[(rows["arm"] == arm) & (rows["seed"] == result["seed"])]

    evaluations = own(recorded.evaluations)
    scores = numbers(evaluations[evaluations["split"] == MAIN_SPLIT], "score")
    return SeedResult(
        seed=result["seed"],
        status=result["status"],
        spent={column: float(value) for column, value in result["spent"].items()},
        score=number_or_nan(result.get("score")),
        kl=number_or_nan(result.get("kl")),
        best_score=stability.best_score(scores),
        drawdown=stability.drawdown(scores),
        gradient_norm_spikes=stability.gradient_norm_spikes(numbers(own(recorded.updates), "grad_norm")),
        skipped_updates=int(numbers(own(recorded.updates), "skipped").sum()),
    )
