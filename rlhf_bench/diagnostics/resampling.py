"""What redraws the seeds or flips signs: bootstrap intervals, the interquartile mean, permutation tests. Deterministic: every
generator is fixed.

A bootstrap of few seeds is narrower than it says (of three, five or ten: the mean in .72, .83, .89 of cases). It describes; no
verdict and no sentence follows from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rlhf_bench.diagnostics.intervals import CONFIDENCE, Interval, finite, students

RESAMPLES = 9_999
BOOTSTRAP_SEED = 0
EXACT_FLIPS = 13
"""Up to this many differences all sign flips are tried (2^13 sums); beyond, `RESAMPLES` random ones, which are more."""
MINIMUM_PAIRS = 3
"""Of a run each, below which a probability of improvement has no interval."""


@dataclass(frozen=True, slots=True)
class Improvement:
    """The probability that a run of A scores above a run of B, and its 95% interval (None below three runs each)."""

    probability: float
    interval: Interval | None


def confidence_interval(values: Sequence[float]) -> Interval | None:
    """A 95% interval that describes the mean of `values` [n], one value per seed; None below two.

    Student's below three values and where all are equal, else the bias-corrected and accelerated bootstrap (Efron 1987).
    Raises ValueError on a value that is not finite.
    """
    array = finite(values)
    if array.size < 2:
        return None
    return students(array).interval() if array.size == 2 or np.ptp(array) == 0 else bootstrap_interval(array, np.mean)


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of `values` [n] without the lowest and the highest quarter; nan for n = 0.

    The quarter is rounded down to whole values, so below four values this is the plain mean.
    """
    array = finite(values)
    return float(_trimmed_mean(array)) if array.size else float("nan")


def interquartile_interval(values: Sequence[float]) -> Interval | None:
    """A 95% interval for the interquartile mean of `values` [n], one value per seed; None below two.

    Below four values nothing is trimmed, and this is Student's for the mean. From four on it is the bias-corrected and
    accelerated bootstrap, "bca" (Efron 1987); where leaving out any one value gives the same interquartile mean, BCa's
    acceleration is 0/0 and the plain percentile bootstrap stands instead, "percentile". Neither can reach beyond the
    observed range. Raises ValueError on a value that is not finite.
    """
    array = finite(values)
    if array.size < 2:
        return None
    if array.size < 4 or np.ptp(array) == 0:
        return students(array).interval()
    return bootstrap_interval(array, _trimmed_mean)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test of `differences` [n >= 1] (Fisher 1935).

    Without an effect every difference is as likely to have the other sign. p is the share of the 2^n ways to
    flip signs whose sum is at least as far from 0 as the one that was seen. It counts that sum and its mirror image,
    so it never falls below 2/2^n: 1/16 for five seeds, 1/32 for six. Beyond `EXACT_FLIPS` differences, a random
    sample of flips, the observed one counted in.
    """
    array = finite(differences)
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


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> Improvement:
    """P(A > B) over all pairs of a run of `a` [n] and a run of `b` [m], a tie counting half (2108.13264, §4.3).

    nan without runs. The interval is a percentile bootstrap that redraws the runs of A and of B apart from each other.
    Where all pairs end alike that has nothing to redraw: with every pair won (or lost), "exact" is Clopper and
    Pearson's interval for min(n, m) wins in as many independent pairs; with all pairs tied, "degenerate".
    """
    left, right = finite(a), finite(b)
    if not (left.size and right.size):
        return Improvement(float("nan"), None)
    wins = (np.sign(left[:, None] - right[None, :]) + 1) / 2
    found = float(wins.mean())
    pairs = min(wins.shape)
    if pairs < MINIMUM_PAIRS:
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


def bootstrap_interval(values: Sequence[float] | np.ndarray, statistic: Callable[..., np.ndarray]) -> Interval:
    """The 95% bootstrap interval of `statistic` of `values` [n >= 3]: BCa wherever its acceleration is defined."""
    return _bootstrap_once(tuple(float(value) for value in values), statistic)


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
