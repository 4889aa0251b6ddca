"""Recorded numbers of the arms over seeds, and the sentences that say in which direction they moved.

A direction is given by Student's interval over the finished seeds, as all verdicts are. Below three seeds there is
none: the sentence is then about these seeds only, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.statistics import Interval
from rlhf_bench.report.format import ABSENT
from rlhf_bench.results.claims import metric_values
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.summary import Summary

Side = Literal["below", "above", "open", "same"]
ONLY_THESE = (
    f"Fewer than {statistics.MINIMUM_SEEDS} seeds finished, so there is no interval: this holds for these seeds only."
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of one arm: seed → value, of the finished seeds that recorded it, at least one."""

    arm: str
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.mean(list(self.values.values()))

    @property
    def interval(self) -> Interval | None:
        """Student's 95% interval for the mean; None below three seeds."""
        values = list(self.values.values())
        return statistics.paired(values, [0.0] * len(values)).interval

    @property
    def side(self) -> Side:
        """On which side of 0 the number lies, by its interval where there is one."""
        interval = self.interval
        low, high = (interval.low, interval.high) if interval else (self.mean, self.mean)
        if low == high == 0:
            return "same"
        return "below" if high < 0 else "above" if low > 0 else "open"

    def cell(self, sign: bool = False) -> str:
        """The mean to three digits, with its interval: "1.23 [1.1, 1.36]"."""
        mean, interval = short(self.mean, sign), self.interval
        return f"{mean} [{short(interval.low, sign)}, {short(interval.high, sign)}]" if interval else mean


def short(value: float, sign: bool = False) -> str:
    """Three digits, and a plain 0 for what is 0 up to rounding."""
    value = 0.0 if abs(value) < 1e-9 else value
    return ABSENT if math.isnan(value) else f"{value:{'+' if sign else ''}.3g}"


Of = Callable[[str], Mapping[int, float]]
"""Arm → (seed → value)."""


def measures(summary: Summary, of: Of) -> list[Measure]:
    """The arms that have the number, in the recipe's order."""
    found = [(arm.name, of(arm.name)) for arm in summary.arms if arm.finished]
    return [Measure(arm, values) for arm, values in found if values]


def metric(recorded: RecordedComparison, name: str) -> Of:
    """A metric as `rlhf_bench.results.claims.metric_values` defines it."""
    return lambda arm: metric_values(recorded, arm, name)


def change(recorded: RecordedComparison, column: str) -> Of:
    """The last evaluation's value less the first one's, which is the base policy's."""

    def of(arm: str) -> dict[int, float]:
        by_seed = recorded.evaluations_by_seed.get((arm, MAIN_SPLIT), {})
        seen = {seed: numbers(rows, column).dropna() for seed, rows in by_seed.items()}
        first = {seed: float(values.iloc[0]) for seed, values in seen.items() if len(values)}
        last = metric_values(recorded, arm, column)
        return {seed: value - first[seed] for seed, value in last.items() if math.isfinite(first.get(seed, math.nan))}

    return of


def was_recorded(recorded: RecordedComparison, *columns: str) -> bool:
    """True where any of the columns holds a number in any evaluation."""
    return any(numbers(recorded.evaluations, column).notna().any() for column in columns)


def directions(
    subject: str,
    found: Sequence[Measure],
    fell: str,
    rose: str,
    stayed: str = "did not change in",
    unsettled: str = "has no settled direction in",
) -> str:
    """A sentence on where `subject` fell and rose: "It fell in a and b (most in b: −1.2); has no settled direction in c." """
    by_side: dict[Side, list[Measure]] = {"below": [], "above": [], "open": [], "same": []}
    for one in found:
        by_side[one.side].append(one)
    parts = []
    for side, verb, strongest in (("below", fell, min), ("above", rose, max)):
        if group := by_side[side]:  # type: ignore[index]
            most = strongest(group, key=lambda one: one.mean)
            extreme = f"most in {most.arm}: " if len(group) > 1 else ""
            parts.append(f"{verb} {listed([one.arm for one in group])} ({extreme}{most.cell(sign=True)})")
    if group := by_side["open"]:
        parts.append(f"{unsettled} {listed([one.arm for one in group])}")
    if group := by_side["same"]:
        parts.append(f"{stayed} {listed([one.arm for one in group])}")
    return f"{subject} {'; '.join(parts)}."


def largest(found: Sequence[Measure]) -> str:
    """The arms of the largest mean, and the number: "a and b: 0.5"."""
    most = max(one.mean for one in found)
    first = [one for one in found if one.mean == most]
    return f"{listed([one.arm for one in first])}: {first[0].cell()}"


def few(*groups: Sequence[Measure]) -> list[str]:
    """The remark for numbers without an interval; empty where all have one."""
    alone = [one for group in groups for one in group if one.interval is None]
    return [ONLY_THESE] if alone else []


def rows_of(
    summary: Summary, columns: Mapping[str, Of], base: Mapping[str, float] | None = None
) -> list[dict[str, str]]:
    """A table: one row per arm, one column per heading, mean [95% interval]; `base` adds the base policy's row.

    No rows where no arm has any of the numbers; a column that no arm has is left out.
    """
    found = {heading: {one.arm: one for one in measures(summary, of)} for heading, of in columns.items()}
    found = {heading: cells for heading, cells in found.items() if cells}
    if not found:
        return []
    rows = [
        {"Arm": arm.name}
        | {heading: cells[arm.name].cell() if arm.name in cells else ABSENT for heading, cells in found.items()}
        for arm in summary.arms
    ]
    if base is not None:
        rows.append({"Arm": "base"} | {heading: short(base.get(heading, math.nan)) for heading in found})
    return rows
