"""How steadily an arm trained: pure functions on one seed's curve, or on one number per seed.

In curves nan means "not recorded" and is left out; infinity is a value like any other, and a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.intervals import Interval

SPIKE_FACTOR = 5.0
"""A gradient norm counts as a spike above this many running medians."""
SPIKE_WINDOW = 25
"""The running median covers this many updates: norms change as training settles, so older ones mislead."""
SPIKE_WARM_UP = 5
"""No update is judged before this many norms came before it."""


def best_score(scores: Sequence[float]) -> float:
    """The best score of a curve [evaluations]; nan where nothing was recorded.

    The largest of several noisy numbers, so it favours a noisy curve: do not rank by it alone.
    """
    recorded = _recorded(scores)
    return float(recorded.max()) if recorded.size else float("nan")


def drawdown(scores: Sequence[float]) -> float:
    """The largest fall from the best score so far, in the score's unit, >= 0; nan where nothing was recorded.

    `scores` [evaluations] in time order. 0 means that the score never fell below an earlier one.
    """
    recorded = _recorded(scores)
    if recorded.size == 0:
        return float("nan")
    return float(np.max(np.maximum.accumulate(recorded) - recorded))


def seed_spread(finals: Sequence[float]) -> float:
    """Sample standard deviation (n − 1) of the final scores [seeds]; nan below two seeds."""
    recorded = _recorded(finals)
    return float(np.std(recorded, ddof=1)) if recorded.size >= 2 else float("nan")


def gradient_norm_spikes(grad_norms: Sequence[float]) -> int | None:
    """How many updates have a gradient norm above `SPIKE_FACTOR` times the median of the `SPIKE_WINDOW` before them.

    `grad_norms` [updates] in time order, before clipping. None where nothing was recorded.
    """
    recorded = _recorded(grad_norms)
    if recorded.size == 0:
        return None
    spikes = 0
    for update in range(SPIKE_WARM_UP, recorded.size):
        before = recorded[max(0, update - SPIKE_WINDOW) : update]
        spikes += bool(recorded[update] > SPIKE_FACTOR * np.median(before))
    return spikes


def diverged_count(statuses: Sequence[str]) -> int:
    """How many seeds stopped because their numbers were no longer finite."""
    return sum(status == "diverged" for status in statuses)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much the final score depends on one setting, from a sweep over k >= 2 of its values.

    `means` [k], in the order of `settings`, are over the seeds that finished there (nan: none did). `score_range` is
    best mean minus worst mean; noise alone is expected to make it 1.1 times `standard_error`, that
    of one mean, for two settings and 2.3 times for five (nan without two seeds anywhere). `slope` is the mean over seeds
    of each seed's least-squares slope, in score per factor of ten of the setting, `slope_interval` Student's 95%
    interval for it, None below three seeds; nan and None where a setting is not positive.
    """

    settings: tuple[float, ...]
    means: tuple[float, ...]
    best_setting: float
    worst_setting: float
    score_range: float
    standard_error: float
    slope: float
    slope_interval: Interval | None


def sensitivity(settings: Sequence[float], scores: Sequence[Sequence[float]]) -> Sensitivity:
    """Reduce a sweep: `settings` [k], `scores` [k][seeds] the final score of each setting and seed, nan where lost.

    The same column is the same seed throughout. Only a seed with two settings or more has a slope. Raises ValueError
    where the shapes disagree, or where fewer than two settings have a score.
    """
    values, table = np.asarray(settings, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or values.shape != table.shape[:1]:
        raise ValueError(f"{values.size} settings need as many rows of scores, got an array of shape {table.shape}")
    rows = [row[~np.isnan(row)] for row in table]
    means = np.array([statistics.mean(row) for row in rows])
    if np.count_nonzero(~np.isnan(means)) < 2:
        raise ValueError("a sensitivity takes scores at two settings or more")
    best, worst = int(np.nanargmax(means)), int(np.nanargmin(means))
    spreads = [(np.var(row, ddof=1), row.size) for row in rows if row.size >= 2]
    error = np.sqrt(np.mean([variance / size for variance, size in spreads])) if spreads else np.nan
    slopes: list[float] = []
    if (values > 0).all():
        found = [statistics.slope(np.log10(values).tolist(), seed) for seed in table.T]
        slopes = [value for value in found if not np.isnan(value)]
    return Sensitivity(
        settings=tuple(values.tolist()),
        means=tuple(means.tolist()),
        best_setting=float(values[best]),
        worst_setting=float(values[worst]),
        score_range=float(means[best] - means[worst]),
        standard_error=float(error),
        slope=statistics.mean(slopes),
        slope_interval=statistics.paired(slopes, [0.0] * len(slopes)).interval,
    )


def _recorded(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per step, got an array of shape {array.shape}")
    return array[~np.isnan(array)]
