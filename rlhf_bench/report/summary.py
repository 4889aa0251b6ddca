"""The comparison in numbers: what `summary.json` holds, and what the tables and the verdict are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_bench.diagnostics import stability, statistics
from rlhf_bench.diagnostics.statistics import Interval
from rlhf_bench.report.recorded import MAIN_SPLIT, Recorded, numbers


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One arm trained from one seed. `score` and `kl` (nats) are nan where they were not recorded.

    `drawdown` and `gradient_norm_spikes`: see `rlhf_bench.diagnostics.stability`.
    """

    seed: int
    status: str
    spent: Mapping[str, float]
    score: float
    kl: float
    drawdown: float
    gradient_norm_spikes: int | None

    @property
    def done(self) -> bool:
        return self.status == "done"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm over its seeds. All estimates are over the finished seeds; `interval` is None below two of them."""

    name: str
    method: str
    data: str | None
    seeds: tuple[SeedResult, ...]
    mean: float
    iqm: float
    interval: Interval | None

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
    def seed_spread(self) -> float:
        return stability.seed_spread(self.scores)

    @property
    def drawdown(self) -> float:
        """The worst seed's drawdown: unfinished seeds count, a collapse is what this column is there to show."""
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

    def spent(self, column: str) -> float:
        """Mean spent per finished seed, or per seed where none finished."""
        return statistics.mean([seed.spent[column] for seed in self.finished or self.seeds])


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole comparison. `base_scores` maps a held-out split to the base model's score."""

    recipe: Mapping[str, Any]
    unit: str
    limit: float
    base_scores: Mapping[str, float]
    arms: tuple[ArmResult, ...]
    timing: Mapping[str, Any]
    run_key: str | None
    commit: str | None

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", "comparison"))

    @property
    def base_score(self) -> float:
        return self.base_scores[MAIN_SPLIT]

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`: a number that is absent or not finite is null."""
        return _nullable(
            {
                "recipe": self.recipe,
                "budget": {"unit": self.unit, "limit": self.limit},
                "base": {"score": self.base_score, "scores": self.base_scores},
                "arms": {arm.name: _arm_json(arm) for arm in self.arms},
                "timing": self.timing,
                "run_key": self.run_key,
                "commit": self.commit,
            }
        )


def summarize(recorded: Recorded) -> Summary:
    """Reduce the recorded rows to the numbers of the comparison."""
    compute, results = recorded.recipe["compute"], recorded.results
    return Summary(
        recipe=recorded.recipe,
        unit=compute["column"],
        limit=float(compute["limit"]),
        base_scores={split: float(score) for split, score in recorded.base["score"].items()},
        arms=tuple(_arm(name, result, recorded) for name, result in results["arms"].items()),
        timing=results.get("timing", {}),
        run_key=results.get("run_key"),
        commit=results.get("commit"),
    )


def _arm(name: str, result: Mapping[str, Any], recorded: Recorded) -> ArmResult:
    seeds = tuple(_seed(name, seed, recorded) for seed in result["seeds"])
    scores = [seed.score for seed in seeds if seed.done]
    return ArmResult(
        name=name,
        method=result["method"],
        data=result.get("data"),
        seeds=seeds,
        mean=statistics.mean(scores),
        iqm=statistics.interquartile_mean(scores),
        interval=statistics.confidence_interval(scores),
    )


def _seed(arm: str, result: Mapping[str, Any], recorded: Recorded) -> SeedResult:
    def own(rows):
        return rows[(rows["arm"] == arm) & (rows["seed"] == result["seed"])]

    evaluations = own(recorded.evaluations)
    return SeedResult(
        seed=result["seed"],
        status=result["status"],
        spent={column: float(value) for column, value in result["spent"].items()},
        score=_number(result.get("score")),
        kl=_number(result.get("kl")),
        drawdown=stability.drawdown(numbers(evaluations[evaluations["split"] == MAIN_SPLIT], "score")),
        gradient_norm_spikes=stability.gradient_norm_spikes(numbers(own(recorded.updates), "grad_norm")),
    )


def _arm_json(arm: ArmResult) -> dict[str, Any]:
    interval = arm.interval
    return {
        "method": arm.method,
        "data": arm.data,
        "seeds": [
            {
                "seed": seed.seed,
                "status": seed.status,
                "spent": seed.spent,
                "score": seed.score,
                "kl": seed.kl,
                "stability": {"drawdown": seed.drawdown, "gradient_norm_spikes": seed.gradient_norm_spikes},
            }
            for seed in arm.seeds
        ],
        "score": {
            "mean": arm.mean,
            "iqm": arm.iqm,
            "ci95": [interval.low, interval.high] if interval else None,
            "ci95_method": interval.method if interval else None,
            "finished_seeds": len(arm.finished),
        },
        "kl": arm.kl,
        "stability": {
            "seed_spread": arm.seed_spread,
            "drawdown": arm.drawdown,
            "gradient_norm_spikes": arm.gradient_norm_spikes,
            "diverged": arm.diverged,
        },
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _nullable(value: Any) -> Any:
    """`value` with every number that JSON cannot hold turned into null."""
    if isinstance(value, Mapping):
        return {str(key): _nullable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nullable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
