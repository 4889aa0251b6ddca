"""Comparisons as text: what the end of a run, `report`, `show` and `compare` print."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlhf_bench.diagnostics.statistics import MINIMUM_SEEDS
from rlhf_bench.report.cells import p_cell
from rlhf_bench.report.format import decimal, each, quantity
from rlhf_bench.report.notes import notes
from rlhf_bench.report.tables import Row, arm_row, render_text_table, text_table, without_empty
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.across import Together
from rlhf_bench.results.standing import Difference
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


def together_text(found: Together) -> str:
    """All arms of several comparisons, best mean score first; every difference between arms of two of them; and what limits it."""
    rows = [
        (arm.mean, {"Directory": name, **arm_row(arm, summary)})
        for name, summary in found.summaries.items()
        for arm in summary.arms
        if arm.finished
    ]
    if not rows:
        return "No arm finished a seed, so there is nothing to compare."
    shown = without_empty([row for _, row in sorted(rows, key=lambda one: -one[0])])
    base = next(iter(found.summaries.values())).base
    lines = text_table(
        shown, f"Held-out score; the base policy has {base.score:.3f}", ("Directory", "Arm", "Method", "Data")
    )
    if found.across:
        differences = [_difference_row(one) for one in found.across]
        lines += [
            "",
            *text_table(
                differences, "Arms of different directories, paired by seed and prompt", ("Arm", "Against", "Settled")
            ),
        ]
    lines += ["", *_limits(found)]
    return "\n".join(lines)


def _difference_row(one: Difference) -> Row:
    interval = one.adjusted.interval if one.adjusted is not None else None
    ends = f" [{decimal(interval.low, sign=True)}, {decimal(interval.high, sign=True)}]" if interval is not None else ""
    return {
        "Arm": one.arm,
        "Against": one.against,
        "Difference [95% interval]": f"{decimal(one.mean, sign=True)}{ends}",
        "p (Holm)": p_cell(one.adjusted.p if one.adjusted is not None else math.nan),
        "Common seeds": str(one.seeds),
        "Settled": "yes" if one.settled else "no",
    }


def _limits(found: Together) -> Iterator[str]:
    tested = found.standing.compared
    if tested:
        yield (
            f"A difference is settled where its interval, paired by seed and prompt and corrected by Holm for the {tested} differences "
            "between all of these arms and with the base policy, leaves out 0."
        )
    else:
        yield f"No difference is settled: a test needs {MINIMUM_SEEDS} seeds that both sides finished."
    limits = {name: quantity(one.limit, one.unit) for name, one in found.summaries.items()}
    if len(set(limits.values())) > 1:
        yield f"Budgets differ ({each(limits)} per seed), so differences are also those of compute."
    machines = {name: one.machine or "unknown" for name, one in found.summaries.items()}
    if len(set(machines.values())) > 1:
        yield f"Machines differ ({each(machines)}), so equal runs may differ in their last digits."
