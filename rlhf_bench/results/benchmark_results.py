"""What the numbers of `benchmarks.json` say of each arm: means over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_bench.core.files import number_or_nan
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.crossed import mean_with_errors
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.results.benchmarks import Measurement
from rlhf_bench.results.schema import BASE


@dataclass(frozen=True)
class Measured:
    """A number of an arm, or of the base policy."""

    seeds: Mapping[int, float]
    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class BenchmarkResult:
    """One number, on the same prompts for all: `of` the first of its measurements, which says what it is."""

    of: Measurement
    base: Measured | None
    arms: Mapping[str, Measured]

    @property
    def name(self) -> str:
        """Of its metric, with the filter where that says something."""
        return self.of.metric if self.of.filter == "none" else f"{self.of.metric} ({self.of.filter})"


def benchmark_results(rows: Sequence[Measurement], arms: Sequence[str], own_bases: bool) -> tuple[BenchmarkResult, ...]:
    """Of every number, in the order of measuring, arms in the given order. `own_bases`: each seed has a base policy of its own."""
    by_number: dict[tuple[str, ...], list[Measurement]] = {}
    for row in rows:
        by_number.setdefault(row.number, []).append(row)
    found = []
    for own in by_number.values():
        base = [row for row in own if row.arm == BASE]
        by_arm = {arm: [row for row in own if row.arm == arm] for arm in arms}
        found.append(
            BenchmarkResult(
                own[0],
                _measured(base, one_policy=not own_bases) if base else None,
                {arm: _measured(of_arm, one_policy=False) for arm, of_arm in by_arm.items() if of_arm},
            )
        )
    return tuple(found)


def _measured(rows: Sequence[Measurement], one_policy: bool) -> Measured:
    """`one_policy`: other trainings are not asked about, as for the base policy that all arms begin with."""
    values = [row.value for row in rows]
    errors = [number_or_nan(row.standard_error) for row in rows]
    estimate = mean_with_errors(values, errors, rows[0].prompts) if one_policy or len(rows) > 1 else None
    return Measured(
        {row.seed: row.value for row in rows}, statistics.mean(values), estimate.interval() if estimate else None
    )
