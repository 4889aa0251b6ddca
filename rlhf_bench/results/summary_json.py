"""`summary.json`: what stands in it, as closed models, and its JSON Schema. A number that is absent or not finite is null."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rlhf_bench.core.costs import Column
from rlhf_bench.core.files import finite_or_null
from rlhf_bench.core.types import HeldOutSplit
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.equal_kl import AtEqualKL
from rlhf_bench.diagnostics.intervals import Interval, IntervalMethod
from rlhf_bench.results.benchmark_results import BenchmarkResult, Measured
from rlhf_bench.results.claims import PairedComparison, Verdict
from rlhf_bench.results.judged_json import Closed, Ends, JudgingEntry, Number, judging_entry
from rlhf_bench.results.schema import Status
from rlhf_bench.results.standing import Difference
from rlhf_bench.results.summary import ArmResult, BaseResult, SeedResult, Summary

METHOD = "how the interval was found"


class Budget(Closed):
    unit: Column = Field(description="column of the ledger that is the budget")
    limit: float = Field(description="what each arm and seed may spend of it")


class BaseEntry(Closed):
    score: float = Field(description="the base policy's score on the main split")
    scores: dict[HeldOutSplit, float] = Field(description="the same of every held-out split")
    ci95: Ends = Field(description="95% interval of the score, over prompts")
    greedy_score: Number = Field(description="score of its most likely tokens on the main split")
    greedy_ci95: Ends = Field(description="95% interval of that, over prompts")
    best_of_score: Number = Field(description="expected best score among n responses, where the recipe asks for it")
    entropy: Number = Field(description="entropy of its next-token distribution, nats per token")


class SharperBase(BaseEntry):
    """The base policy at another temperature, without any training. Its greedy responses are those of the base policy."""

    temperature: float = Field(description="the sampling temperature")
    kl: Number = Field(description="KL to the base policy at the recipe's temperature, nats per response")


class Base(BaseEntry):
    at_temperature: tuple[SharperBase, ...] = Field(description="the same at other temperatures")


class SeedStability(Closed):
    best_score: Number = Field(description="best score of its evaluations")
    drawdown: Number = Field(description="largest fall from the best score so far")
    gradient_norm_spikes: int | None = Field(description="updates whose gradient norm is far above its running median")
    skipped_updates: int = Field(description="updates skipped, since their numbers were not finite")


class Seed(Closed):
    seed: int = Field(description="the seed")
    status: Status = Field(description="how it ended")
    spent: dict[Column, float] = Field(description="what it spent, by column of the ledger")
    score: Number = Field(description="final score on the main split")
    greedy_score: Number = Field(description="the same of the most likely tokens")
    best_of_score: Number = Field(description="expected best score among n responses, where the recipe asks for it")
    kl: Number = Field(description="final KL to the base policy, nats per response")
    kl_error: Number = Field(description="standard error of that over prompts")
    entropy: Number = Field(description="final entropy of the next-token distribution, nats per token")
    stability: SeedStability


class Score(Closed):
    mean: Number = Field(description="mean over finished seeds")
    iqm: Number = Field(description="interquartile mean over finished seeds")
    ci95: Ends = Field(description="95% interval of the mean")
    ci95_method: IntervalMethod | None = Field(description=METHOD)
    iqm_ci95: Ends = Field(description="95% interval of the interquartile mean")
    iqm_ci95_method: IntervalMethod | None = Field(description=METHOD)
    best: Number = Field(description="mean over finished seeds of each one's best evaluation")
    finished_seeds: int = Field(description="how many seeds finished")


class Greedy(Closed):
    mean: Number = Field(description="mean score of the most likely tokens over finished seeds")
    ci95: Ends = Field(description="95% interval of the mean")
    ci95_method: IntervalMethod | None = Field(description=METHOD)


class Stability(Closed):
    seed_spread: Number = Field(description="standard deviation of the score over finished seeds")
    drawdown: Number = Field(description="largest drawdown of any seed")
    gradient_norm_spikes: int | None = Field(description="over all seeds")
    diverged: int = Field(description="seeds that diverged")


class Arm(Closed):
    method: str = Field(description="the arm's method")
    data: str | None = Field(description="the arm's kind of data")
    seeds: tuple[Seed, ...]
    score: Score
    greedy: Greedy
    best_of_score: Number = Field(description="mean expected best score among n responses over finished seeds")
    entropy: Number = Field(description="mean final entropy over finished seeds, nats per token")
    kl: Number = Field(description="mean final KL over finished seeds, nats per response")
    kl_error: Number = Field(description="standard error of that over prompts")
    stability: Stability


class Improvement(Closed):
    value: Number = Field(description="probability that a run of `arm` has more than a run of `against`")
    ci95: Ends = Field(description="95% interval")
    ci95_method: IntervalMethod | None = Field(description=METHOD)


class Comparison(Closed):
    """`ci95` and `p` stand alone; `ci95_holm` and `p_holm` are corrected for the family, and decide the verdict."""

    arm: str = Field(description="the arm that may have more")
    against: str = Field(description="the other arm")
    metric: str = Field(description="what is compared")
    verdict: Verdict = Field(description="whether `arm` has more of the metric")
    difference: Number = Field(description="mean over common seeds of `arm` less `against`")
    ci95: Ends = Field(description="95% interval of the difference, by Student's t")
    ci95_holm: Ends = Field(description="the same, corrected by Holm for the family of comparisons")
    p: Number = Field(description="p of the paired t-test")
    p_holm: Number = Field(description="the same, corrected by Holm for the family of comparisons")
    p_permutation: Number = Field(description="p of the exact sign-flip test")
    probability_of_improvement: Improvement
    seeds: tuple[int, ...] = Field(description="common seeds")
    left_out_seeds: tuple[int, ...] = Field(description="the other seeds of either arm")
    why: str | None = Field(description="why there is no test, or no comparison")


class Statement(Closed):
    statement: str = Field(description="the claim in the recipe's words")


class ClaimEntry(Comparison, Statement):
    """A claim of the recipe, and the comparison that decides it."""


class EqualKLArm(Closed):
    mean: Number = Field(description="mean score at that KL over finished seeds")
    ci95: Ends = Field(description="95% interval")
    ci95_method: IntervalMethod | None = Field(description=METHOD)
    seeds: dict[int, float] = Field(description="each seed's score at that KL")


class EqualKL(Closed):
    kl: Number = Field(description="largest KL that every finished seed reached, nats per response")
    arms: dict[str, EqualKLArm]
    why: str | None = Field(description="why there is no comparison at equal KL")
    left_out: list[str] = Field(description="arms that were not evaluated at or below that KL, after the base policy")


class BenchmarkScore(Closed):
    mean: Number = Field(description="mean over the policies that were measured")
    ci95: Ends = Field(description="95% interval: over seeds and prompts; of a single base policy over prompts")
    ci95_method: IntervalMethod | None = Field(description=METHOD)
    seeds: dict[int, float] = Field(description="each one's number")


class BenchmarkEntry(Closed):
    """A number of lm-eval, on the same prompts for all."""

    task: str = Field(description="the task, or the group whose mean it is")
    metric: str = Field(description="lm-eval's name of the number")
    filter: str = Field(description="lm-eval's filter of the responses")
    higher_is_better: bool | None = Field(description="null where lm-eval does not say")
    prompts: int = Field(description="prompts that were asked")
    shots: int | None = Field(description="examples in each prompt; null where they differ within a group")
    version: str = Field(description="the task's version in lm-eval")
    lm_eval: str = Field(description="version of lm-eval")
    base: BenchmarkScore | None = Field(description="the base policy's; null where it was not measured")
    arms: dict[str, BenchmarkScore]


class Settled(Closed):
    """A difference in final score, paired by seed and prompt. It is settled where `ci95_holm` leaves out 0."""

    arm: str = Field(description="the arm")
    against: str = Field(description="the other arm, or `the base policy`")
    difference: Number = Field(description="mean over common seeds of `arm` less `against`")
    ci95_holm: Ends = Field(description="its 95% interval, by Student's t, corrected by Holm over all differences")
    p_holm: Number = Field(description="p of the paired t-test, corrected alike")
    settled: bool = Field(description="whether the interval leaves out 0")
    seeds: int = Field(description="common seeds")
    more_seeds: int | None = Field(description="more seeds that would settle it, were mean and spread to stay")
    wants_prompts: bool = Field(description="more held-out prompts are lacking, and not seeds")


class VerdictEntry(Closed):
    """Which arm leads, and what is settled: all arms and the base policy are one family of differences."""

    text: str = Field(description="the verdict in words")
    leader: str | None = Field(description="the arm with the highest mean score")
    over: tuple[Settled, ...] = Field(description="the leader against every other arm")
    against_base: tuple[Settled, ...] = Field(description="every arm against the base policy, the highest score first")
    greedy_against_base: tuple[Settled, ...] = Field(
        description="the same of greedy scores, corrected by Holm as a family of their own"
    )
    compared: int = Field(description="differences in the family that Holm's correction is for")


class Timing(Closed):
    """Of the last run into the directory; older runs recorded less."""

    wall_seconds: Number = Field(None, description="wall time of the last run into the directory")
    driver_share: Number = Field(None, description="of the fleets' time, that in which no engine was busy")
    fleets: int | None = Field(None, description="fleets that trained arms at the same time")
    first_update_seconds: Number = Field(None, description="from the start to the first update of an arm")
    before_arms: dict[str, Number] = Field({}, description="seconds of the first fleet by activity, before the arms")


class MLflow(Closed):
    store: str = Field(description="MLflow's address, without a password")
    lacks: tuple[str, ...] = Field(description="what it did not get of the run, and why; empty where it has all")


class SummaryFile(Closed):
    """The numbers of a comparison's report."""

    recipe: dict[str, Any] = Field(description="the recipe with every key")
    budget: Budget
    base: Base
    arms: dict[str, Arm]
    baseline: str | None = Field(description="the recipe's baseline arm")
    comparisons: tuple[Comparison, ...] = Field(description="every other arm against the baseline")
    claims: tuple[ClaimEntry, ...]
    equal_kl: EqualKL
    verdict: VerdictEntry
    benchmarks: tuple[BenchmarkEntry, ...] = Field(description="what `rlhf-bench evaluate` has measured by lm-eval")
    timing: Timing
    run_key: str | None = Field(description="the comparison's key in MLflow")
    commit: str | None = Field(description="commit of rlhf-bench")
    machine: str | None = Field(description="machines of the run")
    versions: dict[str, str] = Field(description="version of rlhf-bench, Python, and each package that computes")
    threads: dict[str, str] = Field(description="with how many threads each process of a role computes")
    mlflow: MLflow | None = Field(description="what MLflow lacks; null while the run is in progress, and of older runs")
    judgings: tuple[JudgingEntry, ...] = Field(description="what language models judged; empty where none was asked")


def summary_schema() -> dict[str, Any]:
    """The JSON Schema of summary.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SummaryFile.model_json_schema()}


def to_json(summary: Summary, verdict: str) -> dict[str, Any]:
    """The content of summary.json. `verdict`: in words."""
    known = {key: value for key, value in summary.timing.items() if key in Timing.model_fields}
    file = SummaryFile(
        recipe=dict(summary.recipe),
        budget=Budget(unit=summary.unit, limit=summary.limit),
        base=Base(
            **_base(summary.base),
            at_temperature=tuple(
                SharperBase(**_base(one), temperature=one.temperature, kl=one.kl) for one in summary.base_at
            ),
        ),
        arms={arm.name: _arm(arm) for arm in summary.arms},
        baseline=summary.baseline,
        comparisons=tuple(Comparison(**_compared(comparison)) for comparison in summary.comparisons),
        claims=tuple(ClaimEntry(statement=one.statement, **_compared(one.comparison)) for one in summary.claims),
        equal_kl=_equal_kl(summary.equal_kl),
        verdict=VerdictEntry(
            text=verdict,
            leader=summary.standing.leader,
            over=tuple(map(_settled, summary.standing.over)),
            against_base=tuple(map(_settled, summary.standing.against_base)),
            greedy_against_base=tuple(map(_settled, summary.greedy_standing.against_base)),
            compared=summary.standing.compared,
        ),
        benchmarks=tuple(map(_benchmark, summary.benchmarks)),
        timing=Timing(**known),
        run_key=summary.run_key,
        commit=summary.commit,
        machine=summary.machine,
        versions=dict(summary.versions),
        threads=dict(summary.threads),
        mlflow=None
        if summary.mlflow is None
        else MLflow(store=summary.mlflow["store"], lacks=tuple(summary.mlflow["lacks"])),
        judgings=tuple(map(judging_entry, summary.judgings)),
    )
    return finite_or_null(file.model_dump(exclude_unset=True))


def _base(base: BaseResult) -> dict[str, Any]:
    return {
        "score": base.score,
        "scores": dict(base.scores),
        "ci95": _ends(base.interval),
        "greedy_score": base.greedy,
        "greedy_ci95": _ends(base.greedy_interval),
        "best_of_score": base.best_of_score,
        "entropy": base.entropy,
    }


def _arm(arm: ArmResult) -> Arm:
    return Arm(
        method=arm.method,
        data=arm.data,
        seeds=tuple(map(_seed, arm.seeds)),
        score=Score(
            mean=arm.mean,
            iqm=arm.iqm,
            ci95=_ends(arm.interval),
            ci95_method=_method(arm.interval),
            iqm_ci95=_ends(arm.iqm_interval),
            iqm_ci95_method=_method(arm.iqm_interval),
            best=arm.best_score,
            finished_seeds=len(arm.finished),
        ),
        greedy=Greedy(mean=arm.greedy, ci95=_ends(arm.greedy_interval), ci95_method=_method(arm.greedy_interval)),
        best_of_score=arm.best_of_score,
        entropy=arm.entropy,
        kl=arm.kl,
        kl_error=arm.kl_error,
        stability=Stability(
            seed_spread=arm.seed_spread,
            drawdown=arm.drawdown,
            gradient_norm_spikes=arm.gradient_norm_spikes,
            diverged=arm.diverged,
        ),
    )


def _seed(seed: SeedResult) -> Seed:
    return Seed(
        seed=seed.seed,
        status=seed.status,
        spent=dict(seed.spent),
        score=seed.score,
        greedy_score=seed.greedy_score,
        best_of_score=seed.best_of_score,
        kl=seed.kl,
        kl_error=seed.kl_error,
        entropy=seed.entropy,
        stability=SeedStability(
            best_score=seed.best_score,
            drawdown=seed.drawdown,
            gradient_norm_spikes=seed.gradient_norm_spikes,
            skipped_updates=seed.skipped_updates,
        ),
    )


def _compared(comparison: PairedComparison) -> dict[str, Any]:
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
        "probability_of_improvement": Improvement(
            value=improvement.probability if improvement else None,
            ci95=_ends(improvement.interval if improvement else None),
            ci95_method=_method(improvement.interval if improvement else None),
        ),
        "seeds": comparison.seeds,
        "left_out_seeds": comparison.left_out,
        "why": comparison.why or None,
    }


def _settled(one: Difference) -> Settled:
    return Settled(
        arm=one.arm,
        against=one.against,
        difference=one.mean,
        ci95_holm=_ends(one.adjusted.interval if one.adjusted else None),
        p_holm=one.adjusted.p if one.adjusted else None,
        settled=one.settled,
        seeds=one.seeds,
        more_seeds=one.more_seeds,
        wants_prompts=one.wants_prompts,
    )


def _equal_kl(at: AtEqualKL) -> EqualKL:
    arms = {}
    for arm, scores in at.scores.items():
        values = list(scores.values())
        interval = statistics.share_interval(values)
        arms[arm] = EqualKLArm(
            mean=statistics.mean(values), ci95=_ends(interval), ci95_method=_method(interval), seeds=dict(scores)
        )
    return EqualKL(kl=at.kl, arms=arms, why=at.why or None, left_out=list(at.left_out))


def _benchmark(one: BenchmarkResult) -> BenchmarkEntry:
    of = one.of
    return BenchmarkEntry(
        task=of.task,
        metric=of.metric,
        filter=of.filter,
        higher_is_better=of.higher_is_better,
        prompts=of.prompts,
        shots=of.shots,
        version=of.version,
        lm_eval=of.lm_eval,
        base=None if one.base is None else _measured(one.base),
        arms={arm: _measured(found) for arm, found in one.arms.items()},
    )


def _measured(found: Measured) -> BenchmarkScore:
    ends, method = _ends(found.interval), _method(found.interval)
    return BenchmarkScore(mean=found.mean, ci95=ends, ci95_method=method, seeds=dict(found.seeds))


def _ends(interval: Interval | None) -> Ends:
    return (interval.low, interval.high) if interval else None


def _method(interval: Interval | None) -> IntervalMethod | None:
    return interval.method if interval else None
