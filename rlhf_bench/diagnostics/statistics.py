"""Point estimates and 95% intervals over seeds. Deterministic: the bootstrap's generator is fixed.

The mean is what the tables rank by; the interquartile mean is the robust companion that Agarwal et al.
(2108.13264) recommend for few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9_999
BOOTSTRAP_SEED = 0

IntervalMethod = Literal["bca", "t", "degenerate"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided 95% interval for a mean, and how it was found."""

    low: float
    high: float
    method: IntervalMethod

    def overlaps(self, other: Interval) -> bool:
        """True where the two closed intervals share at least one point."""
        return self.low <= other.high and other.low <= self.high

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of `values` [n]; nan for n = 0. Raises ValueError on a value that is not finite."""
    array = _finite(values)
    return float(array.mean()) if array.size else float("nan")


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of `values` [n] without the lowest and the highest quarter; nan for n = 0.

    The quarter is rounded down to whole values, so below four values this is the plain mean.
    """
    array = _finite(values)
    return float(stats.trim_mean(array, 0.25)) if array.size else float("nan")


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
        low, high = stats.t.interval(CONFIDENCE, df=1, loc=array.mean(), scale=stats.sem(array))
        return Interval(float(low), float(high), "t")
    found = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval  # fmt: skip
    return Interval(float(found.low), float(found.high), "bca")


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per seed, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"every value must be finite, got {array.tolist()}")
    return array
