"""A comparison as text: what the end of a run, `report` and `show` print."""

from __future__ import annotations

import math

from rlhf_bench.report.notes import notes
from rlhf_bench.report.tables import render_text_table
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.summary import Summary

WIDTH = 60
"""Characters of the axis of a plot."""
BASE_LINE, MEAN, LEFT, RIGHT, BETWEEN = "┆", "●", "├", "┤", "─"


def closing_text(summary: Summary) -> str:
    """The table, the verdict, and what a careful reader needs beside them."""
    return "\n".join([render_text_table(summary), "", verdict(summary), *notes(summary)])


def score_plot(summary: Summary) -> list[str]:
    """Final scores with their intervals on one axis, best mean first, and the base policy's score as a line through all. Empty where
    no arm has finished, or where all is at one place."""
    arms = sorted((arm for arm in summary.arms if arm.finished), key=lambda arm: -arm.mean)
    ends = [summary.base.score]
    for arm in arms:
        ends += [arm.mean] if arm.interval is None else [arm.interval.low, arm.mean, arm.interval.high]
    low, high = min(ends), max(ends)
    if not arms or not math.isfinite(high - low) or high == low:
        return []

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (WIDTH - 1))

    names = max(len(arm.name) for arm in arms)
    lines = [f"Score on held-out prompts with 95% intervals; {BASE_LINE} is the base policy, {summary.base.score:.3f}"]
    for arm in arms:
        row = [" "] * WIDTH
        if arm.interval is not None:
            left, right = place(arm.interval.low), place(arm.interval.high)
            row[left : right + 1] = [BETWEEN] * (right - left + 1)
            row[left], row[right] = LEFT, RIGHT
        if row[place(summary.base.score)] in (" ", BETWEEN):
            row[place(summary.base.score)] = BASE_LINE
        row[place(arm.mean)] = MEAN
        lines.append(f"{arm.name:<{names}}  {''.join(row)}  {arm.mean:.3f}")
    first, last = f"{low:.3f}", f"{high:.3f}"
    return [*lines, f"{'':<{names}}  {first}{last:>{WIDTH - len(first)}}"]
