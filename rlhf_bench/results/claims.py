"""Which arm has more of a metric: paired comparisons of arms on recorded numbers, and the verdict on each claim.

Works on any recorded directory. A comparison that is impossible says why in a sentence; it never costs the report.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import HELD_OUT_SPLITS, MAIN_SPLIT, OWN
from rlhf_bench.diagnostics import stability, statistics
from rlhf_bench.diagnostics.equal_kl import AtEqualKL, at_equal_kl
from rlhf_bench.diagnostics.matched import Curve, Matched, matched
from rlhf_bench.diagnostics.resampling import Improvement, probability_of_improvement
from rlhf_bench.diagnostics.statistics import Adjusted, Paired
from rlhf_bench.results.final_scores import final_scores
from rlhf_bench.results.metrics import SCORE, SCORES
from rlhf_bench.results.reader import RecordedComparison, numbers

Verdict = Literal["yes", "no", "not resolved at this budget", "not evaluated"]
SCORE_AT_EQUAL_KL = "score_at_equal_kl"
SLOPE = "slope:"
PER_MARGIN = "per_margin:"
AT_MARGIN = "at_margin:"

_CURVE_METRICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "best_score": stability.best_score,
    "drawdown": stability.drawdown,
}

Wanted = tuple[str, str, str]
"""(more, less, metric): is the metric of arm `more` larger than that of arm `less`?"""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Arm `more` minus arm `less` in one metric, over `seeds`, which both finished with that metric recorded.

    `left_out` are the other seeds of either arm. `paired` and `improvement` are None where there is nothing to
    compare; `adjusted` is None where nothing was tested; `why` then says why.
    """

    more: str
    less: str
    metric: str
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    paired: Paired | None = None
    adjusted: Adjusted | None = None
    improvement: Improvement | None = None
    why: str = ""

    @property
    def difference(self) -> float:
        return self.paired.mean if self.paired else float("nan")

    @property
    def verdict(self) -> Verdict:
        """Of "`more` has more of the metric than `less`": by the interval that is adjusted for the family."""
        if self.paired is None:
            return "not evaluated"
        interval = self.adjusted.interval if self.adjusted else None
        if interval and interval.low > 0:
            return "yes"
        if interval and interval.high < 0:
            return "no"
        return "not resolved at this budget"


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the recipe, and the comparison that decides it."""

    statement: str
    comparison: PairedComparison

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict


def evaluate_claims(recorded: RecordedComparison) -> tuple[Claim, ...]:
    """The recipe's claims with their verdicts, corrected as one family; empty where the recipe makes none."""
    entries = recorded.recipe.get("claims") or []
    if not isinstance(entries, list):
        entries = [entries]
    problems = [_malformed(entry) for entry in entries]
    sound = [entry for entry, problem in zip(entries, problems, strict=True) if not problem]
    wanted = [(str(e["more"]), str(e["less"]), str(e.get("metric", SCORE))) for e in sound]
    compared = iter(compare(recorded, wanted))
    claims = []
    for entry, problem in zip(entries, problems, strict=True):
        comparison = PairedComparison("", "", "", why=problem) if problem else next(compared)
        statement = entry.get("statement") if isinstance(entry, Mapping) else None
        claims.append(Claim(str(statement or entry), comparison))
    return tuple(claims)


def against_baseline(recorded: RecordedComparison) -> tuple[PairedComparison, ...]:
    """Every other arm against the recipe's baseline arm in final score, one family; empty without a baseline."""
    baseline = recorded.recipe.get("baseline")
    if baseline is None:
        return ()
    return compare(recorded, [(arm, str(baseline), SCORE) for arm in _arms(recorded) if arm != baseline])


def compare(recorded: RecordedComparison, wanted: Sequence[Wanted]) -> tuple[PairedComparison, ...]:
    """One comparison for each of `wanted`, in order, with Holm's correction over all of them that can be tested."""
    compared = [_compare(recorded, *one) for one in wanted]
    family = [one.paired for one in compared if one.paired and one.paired.tested]
    adjusted = iter(statistics.adjust(family))
    return tuple(replace(one, adjusted=next(adjusted)) if one.paired and one.paired.tested else one for one in compared)


def metric_values(recorded: RecordedComparison, arm: str, metric: str) -> dict[int, float]:
    """Seed → the metric, of the finished seeds of `arm` that recorded it. Metrics of a single arm:

    - `score`: the final held-out score; `score/SPLIT`: that of another held-out split; `greedy_score` and `best_of_score`, also
      with a split, alike;
    - `best_score`, `drawdown`: of the curve of scores, see `rlhf_bench.diagnostics.stability`;
    - any number column of the evaluations (`kl`, `margin`, `displaced`, ...): its value at the last one;
    - `slope:COLUMN`: least-squares slope of the column over compute, in shares of the budget; `per_margin:COLUMN`: over
      the margin, that of the same pairs (`own/margin` for a column `own/…`).

    All without a split on in-distribution prompts and pairs.
    """
    done = {seed["seed"]: seed for seed in _arms(recorded)[arm]["seeds"] if seed["status"] == "done"}
    if metric in (SCORE, f"{SCORE}/{MAIN_SPLIT}"):
        values = {seed: float(result["score"]) for seed, result in done.items()}
    else:
        kind, _, of_split = metric.partition("/")
        scored = kind in SCORES and of_split in HELD_OUT_SPLITS
        split, column = (of_split, kind) if scored else (MAIN_SPLIT, metric)
        values = {
            seed: _of_curve(rows, column)
            for seed, rows in recorded.evaluations_by_seed.get((arm, split), {}).items()
            if seed in done
        }
    return {seed: values[seed] for seed in sorted(values) if math.isfinite(values[seed])}


def kl_curves(recorded: RecordedComparison, arm: str) -> dict[int, Curve]:
    """Seed → KL and score of its evaluations, in time order, of the finished seeds of `arm` that recorded both."""
    return _curves(recorded, arm, "kl", SCORE)


def scores_at_equal_kl(recorded: RecordedComparison, arms: Sequence[str]) -> AtEqualKL:
    """Every finished seed's score at the largest KL that all of `arms` reach; arms that recorded no KL take no part."""
    return at_equal_kl({arm: kl_curves(recorded, arm) for arm in arms})


def at_matched_margin(recorded: RecordedComparison, arms: Sequence[str], column: str) -> Matched:
    """The column where every finished seed first has the largest margin that all of `arms` reach, straight in the margin
    between two evaluations; arms that did not record both take no part. The margin is that of the column's own pairs."""
    curves = {arm: _curves(recorded, arm, margin_of(column), column) for arm in arms}
    return matched(curves, "margin", lambda margin: margin)


def _curves(recorded: RecordedComparison, arm: str, across: str, up: str) -> dict[int, Curve]:
    """Seed → two columns of its evaluations, in time order, of the finished seeds of `arm` that recorded both."""
    done = {seed["seed"] for seed in _arms(recorded)[arm]["seeds"] if seed["status"] == "done"}
    curves = {}
    for seed, rows in recorded.evaluations_by_seed.get((arm, MAIN_SPLIT), {}).items():
        both = pd.DataFrame({"across": _column(rows, across), "up": _column(rows, up)})
        both = both[np.isfinite(both).all(axis=1)]
        if seed in done and not both.empty:
            curves[seed] = (both["across"].tolist(), both["up"].tolist())
    return curves


def _compare(recorded: RecordedComparison, more: str, less: str, metric: str) -> PairedComparison:
    bare = PairedComparison(more, less, metric)
    arms = _arms(recorded)
    if unknown := [name for name in dict.fromkeys((more, less)) if name not in arms]:
        there = f"the arms are {listed(list(arms))}" if arms else "there are none"
        return replace(bare, why=f"No arm is called {' or '.join(unknown)}: {there}.")
    if more == less:
        return replace(bare, why=f"{more} is compared with itself.")
    if absent := [arm for arm in (more, less) if not any(s["status"] == "done" for s in arms[arm]["seeds"])]:
        return replace(bare, why=f"{listed(absent)} finished no seed.")
    values, why = _values(recorded, more, less, metric)
    if why:
        return replace(bare, why=why)
    if missing := [arm for arm in (more, less) if not values[arm]]:
        return replace(bare, why=f"{metric} was not recorded for {listed(missing)}{_hint(recorded, metric)}.")
    common = sorted(values[more].keys() & values[less].keys())
    left_out = {s["seed"] for arm in (more, less) for s in arms[arm]["seeds"]} - set(common)
    return replace(
        bare,
        seeds=tuple(common),
        left_out=tuple(sorted(left_out)),
        paired=_paired(recorded, (more, less, metric), values) if common else None,
        improvement=probability_of_improvement(*(list(values[arm].values()) for arm in (more, less))),
        why=_too_few(len(common)),
    )


def _paired(recorded: RecordedComparison, wanted: Wanted, values: Mapping[str, Mapping[int, float]]) -> Paired:
    """`more` less `less` over the seeds that both have; of a final score also over the prompts, where these were recorded."""
    more, less, metric = wanted
    column, _, split = metric.partition("/")
    if column in SCORES:
        scores = final_scores(recorded, split or MAIN_SPLIT, column)
        return scores[more].final.minus(scores[less].final)
    common = sorted(values[more].keys() & values[less].keys())
    return statistics.paired(*([values[arm][seed] for seed in common] for arm in (more, less)))


def _too_few(common: int) -> str:
    if common >= statistics.MINIMUM_SEEDS:
        return ""
    have = f"{common} seed{'s' if common > 1 else ''}" if common else "no seed"
    return f"The two arms share {have}: an interval and a test take {statistics.MINIMUM_SEEDS}."


def _values(recorded: RecordedComparison, more: str, less: str, metric: str) -> tuple[dict[str, dict[int, float]], str]:
    """Arm → seed → the metric; or, of one that takes both arms together, why there is none."""
    if metric == SCORE_AT_EQUAL_KL:
        scores = scores_at_equal_kl(recorded, (more, less))
        return {arm: dict(seeds) for arm, seeds in scores.scores.items()}, scores.why
    own = _column_of(metric) if metric.startswith(AT_MARGIN) else metric
    values = {arm: metric_values(recorded, arm, own) for arm in (more, less)}
    if metric.startswith(AT_MARGIN) and all(values.values()):
        found = at_matched_margin(recorded, (more, less), own)
        return {arm: dict(seeds) for arm, seeds in found.values.items()}, found.why
    return values, ""


def _column_of(metric: str) -> str:
    """What stands behind a metric's prefix."""
    return metric.partition(":")[2]


def _hint(recorded: RecordedComparison, metric: str) -> str:
    """A name that was recorded and looks like `metric`, as the end of a sentence; empty where none does."""
    prefix = next((p for p in (SLOPE, PER_MARGIN, AT_MARGIN) if metric.startswith(p)), "")
    evaluations = recorded.evaluations
    columns = [c for c in evaluations.columns if _is_number(evaluations, c) and evaluations[c].notna().any()]
    known = [prefix + column for column in columns]
    known += [] if prefix else [*_CURVE_METRICS, SCORE_AT_EQUAL_KL, *(f"{SCORE}/{split}" for split in HELD_OUT_SPLITS)]
    near = [name for name in difflib.get_close_matches(metric, known, n=1) if name != metric]
    return f"; {near[0]} was" if near else ""


def _malformed(entry: Any) -> str:
    """What is wrong with an entry of the recorded recipe's `claims`; the recipe's own check lets none of it pass."""
    if not isinstance(entry, Mapping):
        return "A claim is a mapping with the keys statement, more and less."
    missing = [key for key in ("more", "less") if key not in entry]
    return f"The claim has no key {listed(missing)}." if missing else ""


def _arms(recorded: RecordedComparison) -> Mapping[str, Any]:
    return recorded.results["arms"]


def _of_curve(rows: pd.DataFrame, metric: str) -> float:
    """The metric of one seed's evaluations `rows` on one split, in time order; nan where it was not recorded."""
    if metric in _CURVE_METRICS:
        return _CURVE_METRICS[metric](_column(rows, SCORE))
    if metric.startswith(SLOPE):
        return statistics.slope(_column(rows, "fraction"), _column(rows, _column_of(metric)))
    if metric.startswith(PER_MARGIN):
        column = _column_of(metric)
        return statistics.slope(_column(rows, margin_of(column)), _column(rows, column))
    return _column(rows, metric)[-1]


def margin_of(column: str) -> str:
    """The margin of the pairs that a column was measured on."""
    return f"{OWN}margin" if column.startswith(OWN) else "margin"


def _column(rows: pd.DataFrame, column: str) -> list[float]:
    """The numbers of a column; all nan where it was not recorded or holds no numbers (such as `method`)."""
    return numbers(rows, column).tolist() if _is_number(rows, column) else [float("nan")] * len(rows)


def _is_number(rows: pd.DataFrame, column: str) -> bool:
    return column in rows.columns and pd.api.types.is_numeric_dtype(rows[column])
