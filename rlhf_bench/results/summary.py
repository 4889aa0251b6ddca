"""The comparison in numbers: what `summary.json` holds, and what the tables and the verdict are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.diagnostics import stability, statistics
from rlhf_bench.diagnostics.equal_kl import AtEqualKL
from rlhf_bench.diagnostics.statistics import Interval
from rlhf_bench.results.claims import Claim, PairedComparison, against_baseline, evaluate_claims, scores_at_equal_kl
from rlhf_bench.results.reader import RecordedComparison, numbers


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One arm trained from one seed. `score` and `kl` (nats) are nan where they were not recorded.

    `best_score`, `drawdown` and `gradient_norm_spikes`: see `rlhf_bench.diagnostics.stability`.
    """

    seed: int
    status: str
    spent: Mapping[str, float]
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
        """Mean over the finished seeds of each one's best look."""
        return statistics.mean([seed.best_score for seed in self.finished if math.isfinite(seed.best_score)])

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

    @property
    def skipped_updates(self) -> int:
        return sum(seed.skipped_updates for seed in self.seeds)

    def spent(self, column: str) -> float:
        """Mean spent per finished seed, or per seed where none finished."""
        return statistics.mean([seed.spent[column] for seed in self.finished or self.seeds])


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole comparison. `base_scores` maps a held-out split to the base model's score.

    `comparisons` holds every other arm against the recipe's `baseline` (empty without one), `claims` the recipe's.
    """

    recipe: Mapping[str, Any]
    unit: str
    limit: float
    base_scores: Mapping[str, float]
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

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`: a number that is absent or not finite is null."""
        return _nullable(
            {
                "recipe": self.recipe,
                "budget": {"unit": self.unit, "limit": self.limit},
                "base": {"score": self.base_score, "scores": self.base_scores},
                "arms": {arm.name: _arm_json(arm) for arm in self.arms},
                "baseline": self.baseline,
                "comparisons": [_comparison_json(comparison) for comparison in self.comparisons],
                "claims": [_claim_json(claim) for claim in self.claims],
                "equal_kl": _equal_kl_json(self.equal_kl),
                "timing": self.timing,
                "run_key": self.run_key,
                "commit": self.commit,
            }
        )


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
        interval=statistics.confidence_interval(scores),
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
        score=_number(result.get("score")),
        kl=_number(result.get("kl")),
        best_score=stability.best_score(scores),
        drawdown=stability.drawdown(scores),
        gradient_norm_spikes=stability.gradient_norm_spikes(numbers(own(recorded.updates), "grad_norm")),
        skipped_updates=int(numbers(own(recorded.updates), "skipped").sum()),
    )


def _arm_json(arm: ArmResult) -> dict[str, Any]:
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
                "stability": {
                    "best_score": seed.best_score,
                    "drawdown": seed.drawdown,
                    "gradient_norm_spikes": seed.gradient_norm_spikes,
                    "skipped_updates": seed.skipped_updates,
                },
            }
            for seed in arm.seeds
        ],
        "score": {
            "mean": arm.mean,
            "iqm": arm.iqm,
            "ci95": _ends(arm.interval),
            "ci95_method": _method(arm.interval),
            "iqm_ci95": _ends(arm.iqm_interval),
            "iqm_ci95_method": _method(arm.iqm_interval),
            "best": arm.best_score,
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


def _comparison_json(comparison: PairedComparison) -> dict[str, Any]:
    """`ci95` and `p` stand alone; `ci95_holm` and `p_holm` are corrected for the family, and decide the verdict."""
    paired, adjusted, improvement = comparison.paired, comparison.adjusted, comparison.improvement
    return {
        "arm": comparison.more,
        "against": comparison.less,
        "metric": comparison.metric,
        "verdict": comparison.verdict,
        "difference": comparison.difference,
        "ci95": _ends(paired.interval if paired else None),
        "ci95_holm": _ends(adjusted.interval if adjusted else None),
        "p": paired.p_t if paired else None,
        "p_holm": adjusted.p if adjusted else None,
        "p_permutation": paired.p_permutation if paired else None,
        "probability_of_improvement": {
            "value": improvement.probability if improvement else None,
            "ci95": _ends(improvement.interval if improvement else None),
            "ci95_method": _method(improvement.interval if improvement else None),
        },
        "seeds": comparison.seeds,
        "left_out_seeds": comparison.left_out,
        "why": comparison.why or None,
    }


def _claim_json(claim: Claim) -> dict[str, Any]:
    return {"statement": claim.statement, **_comparison_json(claim.comparison)}


def _equal_kl_json(at: AtEqualKL) -> dict[str, Any]:
    arms = {}
    for arm, scores in at.scores.items():
        interval = statistics.confidence_interval(list(scores.values()))
        arms[arm] = {
            "mean": statistics.mean(list(scores.values())),
            "ci95": _ends(interval),
            "ci95_method": _method(interval),
            "seeds": scores,
        }
    return {"kl": at.kl, "arms": arms, "why": at.why or None}


def _ends(interval: Interval | None) -> list[float] | None:
    return [interval.low, interval.high] if interval else None


def _method(interval: Interval | None) -> str | None:
    return interval.method if interval else None


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
