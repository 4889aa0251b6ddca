"""How steadily an arm trained: pure functions on one seed's curve, or on one number per seed.

In curves nan means "not recorded" and is left out; infinity is a value like any other, and a large one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPIKE_FACTOR = 5.0
"""A gradient norm counts as a spike above this many running medians."""
SPIKE_WINDOW = 25
"""The running median looks back this many updates: norms drift as training settles, so older ones mislead."""
SPIKE_WARM_UP = 5
"""No update is judged before this many norms came before it."""


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


def _recorded(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per step, got an array of shape {array.shape}")
    return array[~np.isnan(array)]
