"""What a benchmark row is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Measured:
    """`ratios`: one per pair of runs made right after one another. `ours`, `theirs`: the same runs in `unit`. `bounds`: what
    else must hold, as (what, value, at most)."""

    ratios: Sequence[float]
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    unit: str = ""
    notes: str = ""
    bounds: Sequence[tuple[str, float, float]] = ()


@dataclass(frozen=True)
class Row:
    """One line of the table. `measure` runs in a process of its own."""

    name: str
    what: str
    against: str
    kind: Literal["at least", "at most"]
    target: float
    measure: Callable[[], Measured]

    def result(self, measured: Measured) -> dict[str, Any]:
        ratio = median(measured.ratios)
        met = ratio >= self.target if self.kind == "at least" else ratio <= self.target
        met = met and all(value <= most for _, value, most in measured.bounds)
        return {
            "name": self.name, "what": self.what, "against": self.against, "target": f"{self.kind} {self.target:g}",
            "ratio": ratio, "lowest": min(measured.ratios), "highest": max(measured.ratios), "met": met,
            **asdict(measured),
        }  # fmt: skip


def interleaved(pairs: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[list[float], list[float]]:
    """`pairs` runs of each, in turn, so that a machine that slows down slows both down; the order alternates."""
    mine, others = [], []
    for i in range(pairs):
        for call, found in ((ours, mine), (theirs, others))[:: 1 if i % 2 else -1]:
            found.append(call())
    return mine, others
