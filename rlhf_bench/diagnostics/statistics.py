"""Comparisons over seeds, or over seeds and prompts, and their correction as a family.

The mean is what the tables rank by. Two arms are compared on the seeds, and prompts, that they share. docs/statistics.md
defines every number and says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_bench.diagnostics.crossed import crossed_mean
from rlhf_bench.diagnostics.intervals import CONFIDENCE, Estimate, Interval, Part, finite, students
from rlhf_bench.diagnostics.resampling import sign_flip_p

MINIMUM_SEEDS = 3
"""Below this many common seeds two arms are not tested: with two, one number would have to stand for the spread."""
MAX_FORESEEN_SEEDS = 200
"""More seeds than that are no plan."""
ROUNDING = 8 * float(np.finfo(np.float64).eps)
"""Relative differences up to that are none."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Arm A minus arm B, one difference per common seed [n]. Below `MINIMUM_SEEDS` there is no estimate, and p is nan.

    `estimate` is the mean difference with its uncertainty over seeds, or over seeds and prompts where the scores of
    every prompt were at hand. `interval` and `p_t` follow from it; `p_permutation` is that of `sign_flip_p`, over seeds.
    """

    differences: tuple[float, ...]
    estimate: Estimate | None
    p_permutation: float

    @property
    def mean(self) -> float:
        return self.estimate.mean if self.estimate else mean(self.differences)

    @property
    def tested(self) -> bool:
        return self.estimate is not None

    @property
    def interval(self) -> Interval | None:
        return self.estimate.interval() if self.estimate else None

    @property
    def p_t(self) -> float:
        return self.estimate.p if self.estimate else float("nan")

    def turned(self) -> Paired:
        """Arm B minus arm A."""
        estimate = self.estimate.negated() if self.estimate else None
        return replace(self, differences=tuple(-one for one in self.differences), estimate=estimate)


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What is left of one comparison's certainty when its whole family is judged together: see `adjust`. `confidence` is
    the level of the interval."""

    p: float
    interval: Interval | None
    confidence: float = CONFIDENCE


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of `values` [n]; nan for n = 0. Raises ValueError on a value that is not finite."""
    array = finite(values)
    return float(array.mean()) if array.size else float("nan")


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95% interval for the mean of `values` [n], one per seed; None below two."""
    array = finite(values)
    return students(array).interval() if array.size >= 2 else None


def share_interval(values: Sequence[float]) -> Interval | None:
    """The same of shares, each in [0, 1]: cut off where no mean of shares can lie."""
    found = mean_interval(values)
    return found.within(0.0, 1.0) if found else None


def paired(a: Sequence[float], b: Sequence[float], *, flips: bool = True) -> Paired:
    """Compare A with B over their common seeds: `a` and `b` [n], in the same order of seeds.

    Equal differences leave no spread to test against. Then the interval has no width ("degenerate"), and `p_t` is
    the test's limit: 0 beside a difference, 1 without one. Without `flips` the permutation test, which takes longest, is
    left out: its p is nan. Raises ValueError where the lengths differ.
    """
    left, right = finite(a), finite(b)
    if left.shape != right.shape:
        raise ValueError(f"paired values need common seeds: {left.size} against {right.size}")
    differences = _without_rounding(left, right)
    listed = tuple(float(d) for d in differences)
    estimate = students(differences) if differences.size >= MINIMUM_SEEDS else None
    return Paired(listed, estimate, sign_flip_p(listed) if estimate and flips else float("nan"))


def paired_table(differences: np.ndarray, *, flips: bool = True) -> Paired:
    """Compare A with B over their common seeds and prompts: `differences` [n seeds, P prompts] of scores, A minus B.

    Against one base policy they are arm[s, p] − base[p]: how its responses were sampled is then an effect of the prompt that
    all seeds share. Not tested below `MINIMUM_SEEDS`, nor with a single prompt. Raises ValueError on another shape and on
    a value that is not finite.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected a table of seeds and prompts, got one of shape {table.shape}")
    table = _levelled(table, ROUNDING * max(1.0, float(np.abs(table).max())))
    listed = tuple(float(d) for d in table.mean(1))
    estimate = crossed_mean(table) if len(table) >= MINIMUM_SEEDS and table.shape[1] > 1 else None
    return Paired(listed, estimate, sign_flip_p(listed) if estimate and flips else float("nan"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979) of each of `p_values` [m], in their order.

    Rejecting where it is at most α keeps the probability of any false rejection in the family at or below α,
    whatever the tests' dependence. nan (not tested) stays nan and does not count towards m.
    """
    p = np.asarray(p_values, dtype=np.float64)
    return np.minimum(1.0, _holm_factors(p) * p).tolist()


def adjust(family: Sequence[Paired]) -> list[Adjusted]:
    """Each comparison's p and interval, with Holm's correction for the whole `family`, in its order.

    Holm's procedure multiplies p by some factor c, 1 <= c <= m. The interval has the level 1 − 0.05/c, so it leaves
    out 0 exactly where the adjusted p is below 0.05. It is never wider than Bonferroni's. What the family is
    promised is that a false claim of a difference is made with probability 5% at most; that all intervals hold
    their true differences at once is promised by Bonferroni's alone.
    """
    factors = _holm_factors(np.array([comparison.p_t for comparison in family], dtype=np.float64))
    adjusted = holm([comparison.p_t for comparison in family])
    levels = [1 - (1 - CONFIDENCE) / float(factor) for factor in factors]
    return [
        Adjusted(p, one.estimate.interval(level) if one.estimate else None, level)
        for one, p, level in zip(family, adjusted, levels, strict=True)
    ]


def seeds_to_settle(comparison: Paired, adjusted: Adjusted | None) -> int | None:
    """How many more seeds would settle a comparison, were mean and spread of its differences to stay as they are: the
    fewest with which the interval at the comparison's corrected level leaves out 0. They shrink the seeds' part alone.

    0 where it is settled. None where it was not tested, where the mean is 0, or where `MAX_FORESEEN_SEEDS` would not do:
    see `wants_prompts`.
    """
    found = comparison.estimate
    if adjusted is None or adjusted.interval is None or found is None or found.seeds is None or found.mean == 0:
        return None
    have = found.seeds.degrees + 1
    for seeds in range(have, MAX_FORESEEN_SEEDS + 1):
        foreseen = replace(found, seeds=Part(found.seeds.variance * have / seeds, seeds - 1))
        if foreseen.half_width(1 - adjusted.confidence) < abs(found.mean):
            return seeds - have
    return None


def wants_prompts(comparison: Paired, adjusted: Adjusted | None) -> bool:
    """True where no number of seeds would settle a comparison, were mean and spread to stay as they are, because the prompts'
    part of its interval alone holds 0: more held-out prompts are wanted."""
    prompts = comparison.estimate.prompts if comparison.estimate else None
    if adjusted is None or adjusted.interval is None or prompts is None or comparison.mean == 0:
        return False
    return prompts.half_width(1 - adjusted.confidence) >= abs(comparison.mean)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of `y` over `x`, both [n], over the points where both are finite.

    nan where fewer than two distinct x are left.
    """
    across, up = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    there = np.isfinite(across) & np.isfinite(up)
    across, up = across[there], up[there]
    if across.size == 0 or np.ptp(across) == 0:
        return float("nan")
    centred = across - across.mean()
    return float(centred @ (up - up.mean()) / (centred @ centred))


def _holm_factors(p: np.ndarray) -> np.ndarray:
    """By what Holm's step-down procedure multiplies each of `p` [m], before the cap at 1; nan where p is nan."""
    factors = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    running = 0.0
    for rank, index in enumerate(order):
        own = float(order.size - rank)
        # An adjusted p is never below that of a smaller p.
        running = max(running, own * p[index])
        factors[index] = running / p[index] if p[index] > 0 else own
    return factors


def _without_rounding(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left` − `right` [n], made exactly equal where they differ by no more than rounding: 0.7 − 0.5 is not 0.4 − 0.2
    in floating point, and a t test would find significance in that."""
    differences = left - right
    if differences.size == 0:
        return differences
    return _levelled(differences, ROUNDING * float(max(np.abs(left).max(), np.abs(right).max())))


def _levelled(differences: np.ndarray, rounding: float) -> np.ndarray:
    """`differences`, all equal to their median where they lie within `rounding` of each other, and 0 where that does."""
    if np.ptp(differences) > rounding:
        return differences
    middle = float(np.median(differences))
    return np.full(differences.shape, 0.0 if abs(middle) <= rounding else middle)
