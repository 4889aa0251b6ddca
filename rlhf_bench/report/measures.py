"""Recorded numbers of the arms over seeds, and the sentences that say in which direction they moved.

A direction is given by Student's interval over the finished seeds, corrected by Holm over all numbers that a section judges:
`judged`. Below three seeds there is none: the sentence is then about these seeds only, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.intervals import CONFIDENCE, Interval
from rlhf_bench.diagnostics.statistics import Paired
from rlhf_bench.report.format import ABSENT
from rlhf_bench.results.claims import metric_values
from rlhf_bench.results.metrics import EVALUATION, described
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.summary import Summary

Side = Literal["below", "above", "open", "same"]
ONLY_THESE = (
    f"Fewer than {statistics.MINIMUM_SEEDS} seeds finished, so there is no interval: this holds for these seeds only."
)

CORRECTED = (
    "The intervals of these sentences, which decide what is settled, are corrected by Holm over the {count} numbers that this "
    "section judges; those of the tables are not."
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of one arm: seed → value, of the finished seeds that recorded it, at least one.

    `origin` is what it is compared with. `confidence` is the level of its interval: see `judged`. That of a `share` stays
    within 0 and 1.
    """

    arm: str
    values: Mapping[int, float]
    origin: float = 0.0
    confidence: float = CONFIDENCE
    share: bool = False

    @property
    def mean(self) -> float:
        return statistics.mean(list(self.values.values()))

    @property
    def paired(self) -> Paired:
        """Less what it is compared with."""
        values = list(self.values.values())
        return statistics.paired(values, [self.origin] * len(values), flips=False)

    @property
    def interval(self) -> Interval | None:
        """Student's for the mean; None below three seeds."""
        if (found := self.paired.estimate) is None:
            return None
        interval = found.interval(self.confidence).moved(self.origin)
        return interval.within(0.0, 1.0) if self.share else interval

    @property
    def side(self) -> Side:
        """On which side of its origin the number lies, by its interval where there is one."""
        interval = self.interval
        low, high = (interval.low, interval.high) if interval else (self.mean, self.mean)
        if low == high == self.origin:
            return "same"
        return "below" if high < self.origin else "above" if low > self.origin else "open"

    def cell(self, sign: bool = False) -> str:
        """The mean to three digits, with its interval: "1.23 [1.1, 1.36]"."""
        mean, interval = short(self.mean, sign), self.interval
        return f"{mean} [{short(interval.low, sign)}, {short(interval.high, sign)}]" if interval else mean


def judged(*groups: Sequence[Measure]) -> tuple[list[Measure], ...]:
    """The same groups, each number with the level of interval that Holm's correction over all of them leaves it."""
    family = [one.paired for group in groups for one in group]
    tested = iter(statistics.adjust([one for one in family if one.tested]))
    levels = iter([next(tested).confidence if one.tested else CONFIDENCE for one in family])
    return tuple([replace(one, confidence=next(levels)) for one in group] for group in groups)


def short(value: float, sign: bool = False) -> str:
    """Three digits, and a plain 0 for what is 0 up to rounding."""
    value = 0.0 if abs(value) < 1e-9 else value
    return ABSENT if math.isnan(value) else f"{value:{'+' if sign else ''}.3g}"


Of = Callable[[str], Mapping[int, float]]
"""Arm → (seed → value)."""


def measures(summary: Summary, of: Of, origin: float = 0.0) -> list[Measure]:
    """The arms that have the number, in the recipe's order; to be compared with `origin`."""
    found = [(arm.name, of(arm.name)) for arm in summary.arms if arm.finished]
    share = isinstance(of, Metric) and of.share
    return [Measure(arm, values, origin, share=share) for arm, values in found if values]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A metric as `rlhf_bench.results.claims.metric_values` defines it, by arm."""

    recorded: RecordedComparison
    name: str

    def __call__(self, arm: str) -> Mapping[int, float]:
        return metric_values(self.recorded, arm, self.name)

    @property
    def share(self) -> bool:
        """Whether it lies within 0 and 1."""
        found = described(self.name, EVALUATION)
        return found is not None and found.unit in ("share", "0 to 1")


def metric(recorded: RecordedComparison, name: str) -> Of:
    return Metric(recorded, name)


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
    extremes: tuple[str, str] = ("most in", "most in"),
) -> str:
    """A sentence on where `subject` fell and rose: "It fell in a and b (most in b: −1.2), and has no settled direction in c." """
    by_side: dict[Side, list[Measure]] = {"below": [], "above": [], "open": [], "same": []}
    for one in found:
        by_side[one.side].append(one)
    parts = []
    for side, verb, strongest, how in (("below", fell, min, extremes[0]), ("above", rose, max, extremes[1])):
        if group := by_side[side]:  # type: ignore[index]
            most = strongest(group, key=lambda one: one.mean)
            extreme = f"{how} {most.arm}: " if len(group) > 1 else ""
            parts.append(f"{verb} {listed([one.arm for one in group])} ({extreme}{most.cell(sign=not most.origin)})")
    if group := by_side["open"]:
        parts.append(f"{unsettled} {listed([one.arm for one in group])}")
    if group := by_side["same"]:
        parts.append(f"{stayed} {listed([one.arm for one in group])}")
    return f"{subject} {clauses(parts)}."


def clauses(parts: Sequence[str]) -> str:
    """Predicates of one subject: "fell in a, rose in b, and has no settled direction in c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def largest(found: Sequence[Measure]) -> str:
    """The arms of the largest mean, and the number: "a and b: 0.5". A description, so without an interval."""
    most = max(one.mean for one in found)
    first = [one for one in found if one.mean == most]
    return f"{listed([one.arm for one in first])}: {short(most)}"


def remarks(*groups: Sequence[Measure]) -> list[str]:
    """How far to trust the directions of `judged` groups: what they were corrected for, and that some have no interval."""
    found = [one for group in groups for one in group]
    tested = sum(one.interval is not None for one in found)
    told = [CORRECTED.format(count=tested)] if tested > 1 else []
    return told + ([ONLY_THESE] if tested < len(found) else [])


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
