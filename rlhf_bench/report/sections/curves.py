"""Lines that several sections draw."""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D

from rlhf_bench.core.types import OWN
from rlhf_bench.report.measures import was_recorded
from rlhf_bench.report.plots.style import (
    INK,
    Plot,
    absent,
    budget_label,
    curve,
    drawn,
    label,
    legend,
    new_figure,
    plotted,
    styled,
)
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary

MEANS = "Mean over finished seeds, with Student's 95% interval from three seeds on."

NO_PAIRS = "no held-out pair was evaluated, or the run was made before these numbers were recorded."


def lines(
    recorded: RecordedComparison, summary: Summary, column: str, title: str, how_to_read: str, vertical: str,
    across: str = "mark", zero: bool = False,
) -> Plot:  # fmt: skip
    """One curve per arm of one column of the evaluations; without a picture where no arm recorded it."""
    summary = plotted(recorded, summary)
    if not was_recorded(recorded, column):
        return Plot(title, how_to_read, None, f"Not recorded: {vertical}.")
    figure, axes = new_figure()
    there = [curve(axes, arm, look, recorded.main_split, column, across) for arm, look in styled(summary)]
    if zero:
        axes.axhline(0, color=INK, linestyle="--", linewidth=1)
    margin = "margin Δ⁺ − Δ⁻ (nats)"
    horizontal = {"mark": budget_label(summary), "update": "updates", "margin": margin, f"{OWN}margin": margin}[across]
    label(axes, horizontal, vertical)
    legend(figure, summary)
    name = f"{column}-{across}".replace("/", "-").replace("_", "-")
    return Plot(title, how_to_read, drawn(figure, name), absent(summary, there, vertical))


def two_lines(
    recorded: RecordedComparison, summary: Summary, solid: str, dashed: str, names: tuple[str, str], title: str, how: str,
    vertical: str, what: str,
) -> Plot:  # fmt: skip
    """Two columns of every arm in one colour, the second one dashed and hollow."""
    summary = plotted(recorded, summary)
    if not was_recorded(recorded, solid, dashed):
        return Plot(title, how, None, f"Not recorded: {what}.")
    figure, axes = new_figure()
    rows, there = recorded.main_split, []
    for arm, look in styled(summary):
        there.append(curve(axes, arm, look | {"linestyle": "-"}, rows, solid, series=f"{arm.name}, {names[0]}"))
        curve(axes, arm, look | _HOLLOW, rows, dashed, details=False, series=f"{arm.name}, {names[1]}")
    label(axes, budget_label(summary), vertical)
    kinds = [Line2D([], [], color=INK, label=names[0]), Line2D([], [], color=INK, label=names[1], **_HOLLOW)]
    legend(figure, summary, more=kinds)
    return Plot(title, how, drawn(figure, solid.replace("/", "-").replace("_", "-")), absent(summary, there, what))


_HOLLOW: dict[str, Any] = {"linestyle": (0, (4, 2)), "markerfacecolor": "none", "linewidth": 1.3}
