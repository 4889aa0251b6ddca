"""Intervals, and means whose uncertainty has one or two sources. Deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, special

CONFIDENCE = 0.95
SMALLEST_P = 1e-100
"""A p below that is given as 0."""

IntervalMethod = Literal["bca", "t", "crossed", "percentile", "exact", "degenerate"]


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

    def negated(self) -> Interval:
        """Of minus the number."""
        return Interval(-self.high, -self.low, self.method)

    def moved(self, by: float) -> Interval:
        """Of the number plus `by`."""
        return Interval(self.low + by, self.high + by, self.method)

    def within(self, least: float, most: float) -> Interval:
        """Cut off where the number cannot lie."""
        return Interval(max(self.low, least), min(self.high, most), self.method)


@dataclass(frozen=True, slots=True)
class Part:
    """What one source adds to the variance of a mean, and the degrees of freedom with which that was estimated."""

    variance: float
    degrees: int

    def half_width(self, missed: float) -> float:
        """Of Student's interval, were this the only source. `missed`: the probability outside, 1 − confidence."""
        return -float(special.stdtrit(self.degrees, missed / 2)) * math.sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, with what the sample of seeds and that of prompts each add to its variance; None: not a source of it.

    With one source the interval is Student's. With two, their half widths add in squares, h² = h_seeds² + h_prompts², each
    Student's with the degrees of freedom of its own source (Howe 1974 for two samples of unequal variance). One common
    number of degrees, by Satterthwaite's formula, would have to be estimated from the same few seeds: with 3 of them that
    test rejects up to 8 times as often as it says at the levels which Holm's correction asks for; this one never does.
    """

    mean: float
    seeds: Part | None = None
    prompts: Part | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in (self.seeds, self.prompts) if part is not None)

    @property
    def standard_error(self) -> float:
        return math.sqrt(sum(part.variance for part in self.parts))

    @property
    def method(self) -> IntervalMethod:
        if self.standard_error == 0:
            return "degenerate"
        return "crossed" if self.seeds and self.prompts else "t"

    def half_width(self, missed: float) -> float:
        return math.hypot(*(part.half_width(missed) for part in self.parts))

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        half = self.half_width(1 - confidence)
        return Interval(self.mean - half, self.mean + half, self.method)

    @property
    def p(self) -> float:
        """Two-sided, that the mean is 0: one less the confidence at which the interval touches 0. Without any spread it is
        the test's limit: 0 beside a difference, 1 without one."""
        size = abs(self.mean)
        if size == 0 or self.method == "degenerate":
            return float(size == 0)
        if len(self.parts) == 1:
            return 2 * float(special.stdtr(self.parts[0].degrees, -size / self.standard_error))
        if self.half_width(SMALLEST_P) < size:
            return 0.0
        # In logarithms: p can be of any order of magnitude.
        found = optimize.brentq(lambda log_p: self.half_width(math.exp(log_p)) - size, math.log(SMALLEST_P), 0.0)
        return math.exp(float(found))

    def negated(self) -> Estimate:
        return Estimate(-self.mean, self.seeds, self.prompts)


def students(values: np.ndarray) -> Estimate:
    """The mean of `values` [n >= 2], one per seed."""
    if np.ptp(values) == 0:
        return Estimate(float(values[0]), seeds=Part(0.0, values.size - 1))
    return Estimate(float(values.mean()), seeds=part_of(values))


def part_of(values: np.ndarray) -> Part:
    """What a sample `values` [n >= 2] of means adds to the variance of their mean."""
    return Part(float(values.var(ddof=1)) / values.size, values.size - 1)


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """`values` [n] as an array. Raises ValueError on another shape and on a value that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per seed, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"every value must be finite, got {array.tolist()}")
    return array
