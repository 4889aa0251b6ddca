"""Trials of a tuned arm: their scores, the best of them, and whether that one lies at an edge of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_bench.core.costs import COLUMNS

Settings = Mapping[str, float]
"""What a trial sets, by key of its arm."""


@dataclass(frozen=True)
class TrialRun:
    """A trial with one seed: its score on the tuning prompts (nan where it has none), and what it spent."""

    seed: int
    score: float
    status: str
    spent: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One arm's runs with one trial's settings. `score`: mean over the seeds, nan where one has none. `status`: done where all
    runs are. `spent`: by all of them. `runs`: none in what older versions recorded."""

    settings: dict[str, float]
    score: float
    status: str
    spent: dict[str, float]
    runs: tuple[TrialRun, ...] = ()

    @classmethod
    def of(cls, settings: Settings, runs: Sequence[TrialRun]) -> Trial:
        statuses = [run.status for run in runs]
        status = next((s for s in ("failed", "diverged") if s in statuses), "done")
        spent: dict[str, float] = {c: sum((run.spent.get(c, 0.0) for run in runs), 0.0) for c in COLUMNS}
        return cls(dict(settings), sum(run.score for run in runs) / len(runs), status, spent, tuple(runs))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        return cls(**{**data, "runs": tuple(TrialRun(**run) for run in data.get("runs", ()))})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial of the highest score, the first of equals; None where none finished."""
    finished = [t for t in trials if t.status == "done" and math.isfinite(t.score)]
    return max(finished, key=lambda t: t.score, default=None)


@dataclass(frozen=True)
class Edge:
    """The best trial's value of `key` is the smallest or the largest that was tried, so a better one may lie beyond."""

    key: str
    value: float
    neighbour: float  # the value next to it

    @property
    def side(self) -> str:
        return "smallest" if self.value < self.neighbour else "largest"

    @property
    def beyond(self) -> float | None:
        """The next value of the geometric series; None where zero or a sign allows none."""
        if min(self.value, self.neighbour) <= 0:
            return None
        return float(f"{self.value**2 / self.neighbour:.6g}")  # without the last digits' rounding


def edge_of(trials: Sequence[Trial]) -> Edge | None:
    """Where the best trial lies at an end of the values tried, also of those that diverged. None for trials that do not all
    set the same single key, whose grid has no order."""
    best, keys = best_trial(trials), {key for t in trials for key in t.settings}
    if best is None or len(keys) != 1 or any(len(t.settings) != 1 for t in trials):
        return None
    (key,) = keys
    values = sorted({t.settings[key] for t in trials})
    if len(values) < 2 or best.settings[key] not in (values[0], values[-1]):
        return None
    return Edge(key, best.settings[key], values[1] if best.settings[key] == values[0] else values[-2])


def next_trial(
    grid: Sequence[Settings], trials: Sequence[Trial], extend: int, allowed: Callable[[Settings], bool]
) -> Settings | None:
    """What to try after `trials`: the rest of the grid; then up to `extend` values beyond the edge at which the best one lies,
    as long as the arm's method allows them. None where there is nothing more to try."""
    if len(trials) < len(grid):
        return grid[len(trials)]
    if len(trials) >= len(grid) + extend:
        return None
    edge = edge_of(trials)
    if edge is None or edge.beyond is None:
        return None
    beyond = {edge.key: edge.beyond}
    return beyond if allowed(beyond) else None
