"""Estimates, intervals and tests over seeds. Deterministic: every generator is fixed.

The mean is what the tables rank by; the interquartile mean is the robust companion that Agarwal et al.
(2108.13264) recommend for few runs. Two arms are compared on the seeds they share. docs/statistics.md defines
every number and says how far to trust it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
RESAMPLES = 9_999
BOOTSTRAP_SEED = 0
MINIMUM_SEEDS = 3
"""Below this many common seeds two arms are not tested: with two, one number would have to stand for the spread."""
MAX_FORESEEN_SEEDS = 200
"""More seeds than that are no plan."""
EXACT_FLIPS = 13
"""Up to this many differences all sign flips are tried (2^13 sums); beyond, `RESAMPLES` random ones, which are more."""

IntervalMethod = Literal["bca", "t", "percentile", "exact", "degenerate"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval, 95% where nothing else is said, and how it was found."""

    low: float
    high: float
    method: IntervalMethod

    def overlaps(self, other: Interval) -> bool:
        """True where the two closed intervals share at least one point."""
        return self.low <= other.high and other.low <= self.high

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Paired:
    """Arm A minus arm B, one difference per common seed [n]. Below `MINIMUM_SEEDS` there is no interval, and p is nan.

    `interval` is Student's for the mean difference, `p_t` that test's two-sided p, `p_permutation` that of
    `sign_flip_p`.
    """

    differences: tuple[float, ...]
    interval: Interval | None
    p_t: float
    p_permutation: float

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def tested(self) -> bool:
        return self.interval is not None


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What is left of one comparison's certainty when its whole family is judged together: see `adjust`. `confidence` is
    the level of the interval."""

    p: float
    interval: Interval | None
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Improvement:
    """The probability that a run of A scores above a run of B, and its 95% interval (None below three runs each)."""

    probability: float
    interval: Interval | None


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of `values` [n]; nan for n = 0. Raises ValueError on a value that is not finite."""
    array = _finite(values)
    return float(array.mean()) if array.size else float("nan")


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of `values` [n] without the lowest and the highest quarter; nan for n = 0.

    The quarter is rounded down to whole values, so below four values this is the plain mean.
    """
    array = _finite(values)
    return float(_trimmed_mean(array)) if array.size else float("nan")


def confidence_interval(values: Sequence[float]) -> Interval | None:
    """A 95% interval for the mean of `values` [n], one value per seed.

    - n < 2: None. One run says nothing about the spread between runs.
    - all values equal: the zero-width interval at that value, method "degenerate".
    - n = 2: Student's t (wide: 12.7 standard errors). A bootstrap of two values could only return the two values.
    - n >= 3: bias-corrected and accelerated bootstrap, "bca" (Efron 1987). It cannot reach beyond the observed
      range, so with three or four values it is narrower than its nominal 95%.

    Raises ValueError on a value that is not finite.
    """
    array = _finite(values)
    if array.size < 2:
        return None
    if np.ptp(array) == 0:
        return Interval(float(array[0]), float(array[0]), "degenerate")
    if array.size == 2:
        return _t_interval(array, CONFIDENCE)
    return _bootstrap(array, np.mean)


def share_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95% interval for the mean of shares `values` [n], one per seed, each in [0, 1]: cut off where no mean of
    shares can lie. None below two values. A bootstrap of three, five or ten values holds the mean in .72, .83, .89 of
    cases; this one in .95, where values are about normal."""
    array = _finite(values)
    if array.size < 2:
        return None
    found = _t_interval(array, CONFIDENCE)
    return Interval(max(0.0, found.low), min(1.0, found.high), found.method)


def interquartile_interval(values: Sequence[float]) -> Interval | None:
    """A 95% interval for the interquartile mean of `values` [n], one value per seed.

    Below four values nothing is trimmed, and this is `confidence_interval`. From four on a BCa bootstrap; where
    leaving out any one value gives the same interquartile mean, BCa's acceleration is 0/0 and the plain percentile
    bootstrap stands instead, method "percentile".
    """
    array = _finite(values)
    if array.size < 4 or np.ptp(array) == 0:
        return confidence_interval(values)
    return _bootstrap(array, _trimmed_mean)


def paired(a: Sequence[float], b: Sequence[float], *, flips: bool = True) -> Paired:
    """Compare A with B over their common seeds: `a` and `b` [n], in the same order of seeds.

    Equal differences leave no spread to test against. Then the interval has no width ("degenerate"), and `p_t` is
    the test's limit: 0 beside a difference, 1 without one. Without `flips` the permutation test, which takes longest, is
    left out: its p is nan. Raises ValueError where the lengths differ.
    """
    left, right = _finite(a), _finite(b)
    if left.shape != right.shape:
        raise ValueError(f"paired values need common seeds: {left.size} against {right.size}")
    differences = _without_rounding(left, right)
    listed = tuple(float(d) for d in differences)
    if differences.size < MINIMUM_SEEDS:
        return Paired(listed, None, float("nan"), float("nan"))
    interval = _t_interval(differences, CONFIDENCE)
    if interval.method == "degenerate":
        p_t = 0.0 if differences[0] else 1.0
    else:
        t = float(differences.mean()) / _standard_error(differences)
        p_t = 2 * float(special.stdtr(differences.size - 1, -abs(t)))
    return Paired(listed, interval, p_t, sign_flip_p(listed) if flips else float("nan"))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test of `differences` [n >= 1] (Fisher 1935).

    Without an effect every difference is as likely to have the other sign. p is the share of the 2^n ways to
    flip signs whose sum is at least as far from 0 as the one that was seen. It counts that sum and its mirror image,
    so it never falls below 2/2^n: 1/16 for five seeds, 1/32 for six. Beyond `EXACT_FLIPS` differences, a random
    sample of flips, the observed one counted in.
    """
    array = _finite(differences)
    if array.size == 0:
        raise ValueError("a permutation test needs at least one difference")
    if array.size <= EXACT_FLIPS:
        sums = np.zeros(1)
        for difference in array:
            sums = np.concatenate([sums + difference, sums - difference])
    else:
        signs = np.random.default_rng(BOOTSTRAP_SEED).choice([-1.0, 1.0], size=(RESAMPLES, array.size))
        sums = np.append(signs @ array, array.sum())
    # Sums of the same numbers in another order may differ by rounding, and must still count as ties.
    rounding = 1e-12 * np.abs(array).sum()
    return float(np.mean(np.abs(sums) >= abs(array.sum()) - rounding))


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
        Adjusted(p, _t_interval(np.array(one.differences), level) if one.tested else None, level)
        for one, p, level in zip(family, adjusted, levels, strict=True)
    ]


def seeds_to_settle(comparison: Paired, adjusted: Adjusted | None) -> int | None:
    """How many more seeds would settle a comparison, were mean and spread of its differences to stay as they are: the
    fewest with which Student's interval at the comparison's corrected level leaves out 0.

    0 where it is settled. None where it was not tested, where the mean is 0, or where `MAX_FORESEEN_SEEDS` would not do.
    """
    if adjusted is None or adjusted.interval is None or comparison.mean == 0:
        return None
    spread = float(np.std(comparison.differences, ddof=1))
    for seeds in range(len(comparison.differences), MAX_FORESEEN_SEEDS + 1):
        half = float(special.stdtrit(seeds - 1, (1 + adjusted.confidence) / 2)) * spread / np.sqrt(seeds)
        if half < abs(comparison.mean):
            return seeds - len(comparison.differences)
    return None


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> Improvement:
    """P(A > B) over all pairs of a run of `a` [n] and a run of `b` [m], a tie counting half (2108.13264, §4.3).

    nan without runs. The interval is a percentile bootstrap that redraws the runs of A and of B apart from each other.
    Where all pairs end alike that has nothing to redraw: with every pair won (or lost), "exact" is Clopper and
    Pearson's interval for min(n, m) wins in as many independent pairs; with all pairs tied, "degenerate".
    """
    left, right = _finite(a), _finite(b)
    if not (left.size and right.size):
        return Improvement(float("nan"), None)
    wins = (np.sign(left[:, None] - right[None, :]) + 1) / 2
    found = float(wins.mean())
    pairs = min(wins.shape)
    if pairs < MINIMUM_SEEDS:
        return Improvement(found, None)
    if found in (0.0, 1.0):
        limits = stats.binomtest(round(found * pairs), pairs).proportion_ci(CONFIDENCE, method="exact")
        return Improvement(found, Interval(float(limits.low), float(limits.high), "exact"))
    if np.ptp(wins) == 0:
        return Improvement(found, Interval(found, found, "degenerate"))
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    # Redrawing n runs is the same as drawing how often each of them comes up.
    rows, columns = (generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in wins.shape)
    redrawn = ((rows @ wins) * columns).sum(axis=1) / wins.size
    low, high = np.quantile(redrawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Improvement(found, Interval(float(low), float(high), "percentile"))


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


def _t_interval(array: np.ndarray, confidence: float) -> Interval:
    """Student's interval for the mean of `array` [n >= 2]."""
    if np.ptp(array) == 0:
        return Interval(float(array[0]), float(array[0]), "degenerate")
    half = float(special.stdtrit(array.size - 1, (1 + confidence) / 2)) * _standard_error(array)
    return Interval(float(array.mean()) - half, float(array.mean()) + half, "t")


def _standard_error(array: np.ndarray) -> float:
    return float(array.std(ddof=1) / np.sqrt(array.size))


def _bootstrap(array: np.ndarray, statistic: Callable[..., np.ndarray]) -> Interval:
    """The 95% bootstrap interval of `statistic` of `array` [n >= 3]: BCa wherever its acceleration is defined."""
    return _bootstrap_once(tuple(array.tolist()), statistic)


@functools.lru_cache(maxsize=4096)  # a report asks for the same numbers in its table, its sentences and its plots
def _bootstrap_once(values: tuple[float, ...], statistic: Callable[..., np.ndarray]) -> Interval:
    array = np.array(values)
    left_out_one = [float(statistic(np.delete(array, i))) for i in range(array.size)]
    bca = np.ptp(left_out_one) > 0
    found = stats.bootstrap(
        (array,),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa" if bca else "percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), "bca" if bca else "percentile")


def _trimmed_mean(array: np.ndarray, axis: int = -1) -> np.ndarray:
    return stats.trim_mean(array, 0.25, axis=axis)


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
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(left).max(), np.abs(right).max())
    if np.ptp(differences) > rounding:
        return differences
    middle = float(np.median(differences))
    return np.full(differences.shape, 0.0 if abs(middle) <= rounding else middle)


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per seed, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"every value must be finite, got {array.tolist()}")
    return array
