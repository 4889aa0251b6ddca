"""The comparison in numbers: what the tables, the verdict and `summary.json` are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rlhf_bench.core.costs import Column
from rlhf_bench.core.files import number_or_nan
from rlhf_bench.core.types import MAIN_SPLIT, HeldOutSplit
from rlhf_bench.diagnostics import resampling, stability, statistics
from rlhf_bench.diagnostics.equal_kl import AtEqualKL
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.results.base import base_scores, recorded_seeds
from rlhf_bench.results.benchmark_results import BenchmarkResult, benchmark_results
from rlhf_bench.results.claims import Claim, PairedComparison, against_baseline, evaluate_claims, scores_at_equal_kl
from rlhf_bench.results.final_scores import ArmScores, base_interval, final_scores
from rlhf_bench.results.judged import Judging, judging
from rlhf_bench.results.metrics import BEST_OF_SCORE, GREEDY_SCORE, SCORE
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import BASE, Status, base_at
from rlhf_bench.results.standing import Standing, standing


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One arm trained from one seed. Scores, KL and its standard error (nats) and entropy (nats per token) are those of the last
    evaluation; nan where they were not recorded.

    `best_score`, `drawdown` and `gradient_norm_spikes`: see `rlhf_bench.diagnostics.stability`.
    """

    seed: int
    status: Status
    spent: Mapping[Column, float]
    score: float
    greedy_score: float
    best_of_score: float
    kl: float
    kl_error: float
    entropy: float
    best_score: float
    drawdown: float
    gradient_norm_spikes: int | None
    skipped_updates: int = 0  # whose numbers were not finite
    cut_off: float = math.nan  # of the last evaluation's samples

    @property
    def done(self) -> bool:
        return self.status == "done"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm over its seeds. All estimates are over the finished seeds; intervals (of `mean`, of `greedy`, of `iqm`) are None
    below two of them. `greedy` is nan where it was not recorded."""

    name: str
    method: str
    data: str | None
    seeds: tuple[SeedResult, ...]
    mean: float
    iqm: float
    interval: Interval | None
    iqm_interval: Interval | None
    greedy: float
    greedy_interval: Interval | None

    @property
    def finished(self) -> tuple[SeedResult, ...]:
        return tuple(seed for seed in self.seeds if seed.done)

    @property
    def cut_off(self) -> float:
        """Share of the last evaluation's samples, mean over finished seeds; nan where it was not recorded."""
        return fmean(seed.cut_off for seed in self.finished) if self.finished else math.nan

    @property
    def scores(self) -> list[float]:
        return [seed.score for seed in self.finished]

    @property
    def kl(self) -> float:
        """Mean KL to the reference over the finished seeds that recorded it, in nats."""
        return self._over_seeds("kl")

    @property
    def kl_error(self) -> float:
        """Standard error of `kl` over prompts and their samples: the seeds' own errors, in squares."""
        found = [seed.kl_error for seed in self.finished if math.isfinite(seed.kl_error)]
        return math.hypot(*found) / len(found) if found else math.nan

    @property
    def entropy(self) -> float:
        return self._over_seeds("entropy")

    @property
    def best_of_score(self) -> float:
        """Mean over the finished seeds of the expected best of n responses."""
        return self._over_seeds("best_of_score")

    @property
    def best_score(self) -> float:
        """Mean over the finished seeds of each one's best evaluation."""
        return self._over_seeds("best_score")

    def _over_seeds(self, name: str) -> float:
        return statistics.mean([v for seed in self.finished if math.isfinite(v := getattr(seed, name))])

    @property
    def seed_spread(self) -> float:
        return stability.seed_spread(self.scores)

    @property
    def drawdown(self) -> float:
        """The worst seed's drawdown: unfinished seeds count too, since a collapse is what this number shows."""
        return max((seed.drawdown for seed in self.seeds if not math.isnan(seed.drawdown)), default=math.nan)

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


@dataclass(frozen=True, slots=True)
class BaseResult:
    """The base policy as arms begin with it, or at another `temperature`, where its greedy responses are the same ones. nan where
    a number was not recorded."""

    scores: Mapping[HeldOutSplit, float]
    interval: Interval | None  # over prompts, of the main split's score
    greedy: float
    greedy_interval: Interval | None
    kl: float
    entropy: float
    best_of_score: float
    temperature: float

    @property
    def score(self) -> float:
        return self.scores[MAIN_SPLIT]


@dataclass(frozen=True)
class Summary:
    """A whole comparison. `base_at` has the base policy at other temperatures, in the recipe's order.

    `comparisons` holds every other arm against the recipe's `baseline` (empty without one), `claims` the recipe's.
    """

    recipe: Mapping[str, Any]
    unit: Column
    limit: float
    base: BaseResult
    base_at: tuple[BaseResult, ...]
    arms: tuple[ArmResult, ...]
    comparisons: tuple[PairedComparison, ...]
    claims: tuple[Claim, ...]
    standing: Standing  # which arm leads, and which differences in final score are settled
    greedy_standing: Standing  # the same of greedy scores; of no arm where they were not recorded
    equal_kl: AtEqualKL
    timing: Mapping[str, Any]
    run_key: str | None
    commit: str | None
    machine: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of what computed; empty where not recorded
    threads: Mapping[str, str] = field(default_factory=dict)  # with how many each role computed; empty as above
    base_by_seed: Mapping[int, float] = field(default_factory=dict)  # on the main split; empty where seeds share one
    mlflow: Mapping[str, Any] | None = None  # what MLflow lacks; None where that is not known
    judgings: tuple[Judging, ...] = ()  # by language models
    benchmarks: tuple[BenchmarkResult, ...] = ()

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", "comparison"))

    @property
    def baseline(self) -> str | None:
        name = self.recipe.get("baseline")
        return None if name is None else str(name)

    @property
    def best_of(self) -> int | None:
        """The n of the best of n responses, where the recipe asks for it."""
        return (self.recipe.get("evaluation") or {}).get("best_of")

    def base_of(self, seed: int) -> float:
        """The main split's score of the base policy that arms with this seed began from."""
        return self.base_by_seed.get(seed, self.base.score)


def summarize(recorded: RecordedComparison) -> Summary:
    """Reduce the recorded rows to the numbers of the comparison."""
    compute, results = recorded.recipe["compute"], recorded.results
    scores, greedy = final_scores(recorded), final_scores(recorded, column=GREEDY_SCORE)
    arms = tuple(
        _arm(name, result, recorded, scores.get(name), greedy.get(name)) for name, result in results["arms"].items()
    )
    return Summary(
        recipe=recorded.recipe,
        unit=compute["column"],
        limit=float(compute["limit"]),
        base=_base(recorded, recorded.base, BASE, (recorded.recipe.get("evaluation") or {}).get("temperature", 1.0)),
        base_at=tuple(
            _base(recorded, found, base_at(float(temperature)), float(temperature))
            for temperature, found in (recorded.base.get("at_temperature") or {}).items()
        ),
        arms=arms,
        comparisons=against_baseline(recorded),
        claims=evaluate_claims(recorded),
        standing=standing(scores),
        greedy_standing=standing(greedy),
        equal_kl=scores_at_equal_kl(recorded, [arm.name for arm in arms if arm.finished]),
        timing=results.get("timing", {}),
        run_key=results.get("run_key"),
        commit=results.get("commit"),
        machine=results.get("machine"),
        versions=results.get("versions") or {},
        threads=results.get("threads") or {},
        base_by_seed=base_scores(recorded.base),
        mlflow=recorded.mlflow,
        judgings=tuple(
            judging(about, rows, {arm.name: [seed.seed for seed in arm.finished] for arm in arms})
            for about, rows in recorded.judged
        ),
        benchmarks=benchmark_results(
            recorded.benchmarks, [arm.name for arm in arms], own_bases=bool(recorded_seeds(recorded.base))
        ),
    )


def _base(recorded: RecordedComparison, found: Mapping[str, Any], name: str, temperature: float) -> BaseResult:
    """`found`: what base.json says of it; `name`: under which its prompts' scores stand."""
    known = found.get("numbers") or {}
    return BaseResult(
        scores={split: float(score) for split, score in found["score"].items()},
        interval=base_interval(recorded, name),
        greedy=number_or_nan((found.get(GREEDY_SCORE) or {}).get(MAIN_SPLIT)),
        greedy_interval=base_interval(recorded, name, column=GREEDY_SCORE),
        kl=number_or_nan(known.get("kl")),
        entropy=number_or_nan(known.get("entropy")),
        best_of_score=number_or_nan((found.get(BEST_OF_SCORE) or {}).get(MAIN_SPLIT)),
        temperature=temperature,
    )


def _arm(
    name: str,
    result: Mapping[str, Any],
    recorded: RecordedComparison,
    scored: ArmScores | None,
    greedily: ArmScores | None,
) -> ArmResult:
    seeds = tuple(_seed(name, seed, recorded) for seed in result["seeds"])
    scores = [seed.score for seed in seeds if seed.done]
    return ArmResult(
        name=name,
        method=result["method"],
        data=result.get("data"),
        seeds=seeds,
        mean=statistics.mean(scores),
        iqm=resampling.interquartile_mean(scores),
        interval=scored.final.interval if scored else None,
        iqm_interval=resampling.interquartile_interval(scores),
        greedy=greedily.final.mean if greedily else math.nan,
        greedy_interval=greedily.final.interval if greedily else None,
    )


def _seed(arm: str, result: Mapping[str, Any], recorded: RecordedComparison) -> SeedResult:
    def own(rows):
        return rows[(rows["arm"] == arm) & (rows["seed"] == result["seed"])]

    evaluations = own(recorded.evaluations)
    main = evaluations[evaluations["split"] == MAIN_SPLIT]
    scores = numbers(main, SCORE)

    def last(column: str) -> float:
        return float(numbers(main, column).iloc[-1]) if len(main) else math.nan

    return SeedResult(
        seed=result["seed"],
        status=result["status"],
        spent={column: float(value) for column, value in result["spent"].items()},
        score=number_or_nan(result.get("score")),
        greedy_score=last(GREEDY_SCORE),
        best_of_score=last(BEST_OF_SCORE),
        kl=number_or_nan(result.get("kl")),
        kl_error=last("kl_error"),
        entropy=last("entropy"),
        best_score=stability.best_score(scores),
        drawdown=stability.drawdown(scores),
        gradient_norm_spikes=stability.gradient_norm_spikes(numbers(own(recorded.updates), "grad_norm")),
        skipped_updates=int(numbers(own(recorded.updates), "skipped").sum()),
        cut_off=last("cut_off"),
    )
