"""How long the runs that are left will take, from those that have ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from time import perf_counter

SURE_ENOUGH = 0.1
"""Share of its budget that a run must have spent before its own speed says anything."""

Run = tuple[str, int]
"""Arm and seed."""


@dataclass
class Pace:
    """`waiting`: the runs that have not begun, so many at a time as there are `workers`. Not safe for several threads."""

    waiting: list[Run]
    workers: int
    _seconds: dict[str, list[float]] = field(default_factory=dict)  # of ended runs, by arm
    _running: dict[Run, tuple[float, float]] = field(default_factory=dict)  # began, share of the budget

    def begin(self, run: Run) -> None:
        if run in self.waiting:
            self.waiting.remove(run)
        self._running[run] = perf_counter(), 0.0

    def spent(self, run: Run, fraction: float) -> None:
        """`fraction` of its budget, so far."""
        if run in self._running:
            self._running[run] = self._running[run][0], fraction

    def end(self, run: Run) -> None:
        began, _ = self._running.pop(run)
        self._seconds.setdefault(run[0], []).append(perf_counter() - began)

    def left(self) -> float | None:
        """Seconds until all runs have ended; None while there is nothing to judge by."""
        now = perf_counter()
        known = {arm: fmean(seconds) for arm, seconds in self._seconds.items()}
        for (arm, _), (began, fraction) in self._running.items():
            if arm not in known and fraction >= SURE_ENOUGH:
                known[arm] = (now - began) / fraction
        if not known:
            return None
        usual = fmean(known.values())
        rest = [max(0.0, known.get(arm, usual) - (now - began)) for (arm, _), (began, _) in self._running.items()]
        work = sum(rest) + sum(known.get(arm, usual) for arm, _ in self.waiting)
        return work / max(1, min(self.workers, len(rest) + len(self.waiting)))


def about(seconds: float) -> str:
    """A rough time: "40 s", "12 min", "3.5 h"."""
    if seconds < 60:
        return f"{max(10, 10 * round(seconds / 10))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
