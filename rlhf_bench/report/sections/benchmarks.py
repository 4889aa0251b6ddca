"""Outside benchmarks: what lm-eval measured of the arms' policies and of the base policy."""

from __future__ import annotations

from rlhf_bench.report.cells import estimate_cell
from rlhf_bench.report.format import ABSENT
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.tables import Row
from rlhf_bench.results.benchmark_results import Measured
from rlhf_bench.results.summary import Summary

_BETTER = {True: "higher", False: "lower", None: ABSENT}


def benchmarks(summary: Summary) -> tuple[Section, ...]:
    """The section, where anything was measured."""
    if not summary.benchmarks:
        return ()
    versions = sorted({one.of.lm_eval for one in summary.benchmarks})
    seen = [
        f"Measured by lm-eval {', '.join(versions)} with `rlhf-bench evaluate`.",
        *_partial(summary),
    ]
    return (
        Section(
            "benchmarks",
            "Outside benchmarks",
            "Tasks of the field, beside the comparison's own: was a gain there paid for elsewhere? "
            "Whether two arms differ is not read from two intervals: their policies answered the same prompts.",
            tuple(seen),
            tables=tables_of(
                Table(
                    "Mean over seeds, with its 95% interval over seeds and prompts; the base policy's is over prompts alone.",
                    benchmark_rows(summary),
                )
            ),
        ),
    )


def _partial(summary: Summary) -> list[str]:
    """A sentence where arms lack seeds that have finished."""
    lacking = {
        f"{arm.name} ({len(found.seeds)} of {len(arm.finished)} seeds)": None
        for one in summary.benchmarks
        for arm in summary.arms
        if (found := one.arms.get(arm.name)) and len(found.seeds) < len(arm.finished)
    }
    return [f"Not all finished seeds were measured: {', '.join(lacking)}."] if lacking else []


def benchmark_rows(summary: Summary) -> list[Row]:
    """A row for every number, a column for the base policy and for every arm that was measured."""
    arms = [arm.name for arm in summary.arms if any(arm.name in one.arms for one in summary.benchmarks)]
    return [
        {
            "Task": one.of.task,
            "Metric": one.name,
            "Better": _BETTER[one.of.higher_is_better],
            "Prompts": str(one.of.prompts),
            "Shots": ABSENT if one.of.shots is None else str(one.of.shots),
            "base": _cell(one.base),
            **{arm: _cell(one.arms.get(arm)) for arm in arms},
        }
        for one in summary.benchmarks
    ]


def _cell(found: Measured | None) -> str:
    return estimate_cell(found.mean, found.interval) if found else ABSENT
