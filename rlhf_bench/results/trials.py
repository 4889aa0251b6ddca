"""Trials of a tuned arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One arm's run with one trial's settings: its score on the tuning prompts (nan where it diverged), what it spent."""

    settings: dict[str, float]
    score: float
    status: str
    spent: dict[str, float]


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial of the highest score, the first of equals; None where none finished."""
    finished = [t for t in trials if t.status == "done" and math.isfinite(t.score)]
    return max(finished, key=lambda t: t.score, default=None)
