"""Plots of log-probabilities: chosen, rejected and unseen responses, one panel per arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.report.plots.style import CHOSEN, INK, REJECTED, Plot, absent, budget_label, curve, drawn, panel_grid
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary

PROBES: Mapping[str, str] = {
    "probe/base_samples": "base's own samples",
    "probe/other_prompts": "answers to other prompts",
    "probe/permuted": "chosen, tokens permuted",
    "probe/format_breaking": "random tokens",
}
"""Column of a probe set's mean log-probability → what the set is."""
_PROBE_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": marker, "linestyle": ":", "linewidth": 1.3, "markersize": 3.5}
    for colour, marker in zip(PALETTE[2:], ("^", "D", "v", "P"), strict=True)
)
_CHOSEN_STYLE: dict[str, Any] = {"color": CHOSEN, "marker": "o"}
_REJECTED_STYLE: dict[str, Any] = {"color": REJECTED, "marker": "s", "linestyle": "--"}


@dataclass(frozen=True, slots=True)
class Kind:
    """Which columns a likelihood plot shows: `side` ends the columns of both sides, `probe` those of the probe sets."""

    side: str
    probe: str
    axis: str
    what: str


LEVELS = Kind("logprob", "", "log-probability (nats)", "log-probabilities")
CHANGES = Kind("logratio", "_logratio", "change of log-probability (nats)", "log-ratios")


def likelihoods(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Log-probabilities of held-out chosen, rejected and unseen responses on one axis, one panel per arm."""
    return _plot(
        recorded, summary, LEVELS, "Chosen, rejected and unseen responses",
        "On held-out pairs, a gap between chosen and rejected that opens means the arm tells good answers from bad "
        "ones. Dotted lines are responses that stand in no pair.",
    )  # fmt: skip


def changes(recorded: RecordedComparison, summary: Summary) -> Plot:
    """The same as differences from the base policy: small moves of large numbers can be seen."""
    return _plot(
        recorded, summary, CHANGES, "The same, as change since the base policy",
        "Where chosen and rejected both fall, probability goes elsewhere: a dotted line that rises is where it went.",
    )  # fmt: skip


def _plot(recorded: RecordedComparison, summary: Summary, kind: Kind, title: str, how_to_read: str) -> Plot:
    figure, panels = panel_grid(len(summary.arms), sharey=True)
    recorded_arms, probes = fill_panels(panels, recorded, summary, kind)
    figure.supxlabel(budget_label(summary), color=INK, fontsize=9)
    figure.supylabel(kind.axis, color=INK, fontsize=9)
    figure.legend(handles=handles(probes), loc="outside upper center", ncols=2)
    missing = absent(summary, recorded_arms, f"chosen and rejected {kind.what}")
    lacking = [name for column, name in PROBES.items() if column not in probes]
    if lacking and any(recorded_arms):
        missing += f"{' ' if missing else ''}Not recorded, of the unseen responses: {', '.join(lacking)}."
    drawing = drawn(figure, f"likelihoods{kind.probe}".replace("_", "-")) if any(recorded_arms) else None
    return Plot(title, how_to_read, drawing, missing)


def fill_panels(
    panels: Sequence[Axes], recorded: RecordedComparison, summary: Summary, kind: Kind
) -> tuple[list[bool], list[str]]:
    """Fill one panel per arm; which arms recorded likelihoods, and which probe sets any of them recorded."""
    rows, recorded_arms, probes = recorded.main_split, [], []
    for panel, arm in zip(panels, summary.arms, strict=False):
        probes += [
            column
            for column, look in zip(PROBES, _PROBE_STYLES, strict=True)
            if curve(panel, arm, look, rows, column + kind.probe, details=False, series=PROBES[column])
        ]
        sides = [
            curve(panel, arm, look, rows, f"{side}_{kind.side}", series=side)
            for side, look in (("chosen", _CHOSEN_STYLE), ("rejected", _REJECTED_STYLE))
        ]
        recorded_arms.append(any(sides))
        if kind is CHANGES:
            panel.axhline(0, color=INK, linewidth=0.8, alpha=0.6)
        panel.set_title(arm.name, fontsize=9)
        if not recorded_arms[-1]:
            nothing(panel, "not recorded")
        panel.xaxis.set_major_formatter("{x:.0f}%")
    return recorded_arms, [column for column in PROBES if column in probes]


def handles(probes: Sequence[str]) -> list[Line2D]:
    looks = {"chosen": _CHOSEN_STYLE, "rejected": _REJECTED_STYLE}
    looks |= {PROBES[c]: look for c, look in zip(PROBES, _PROBE_STYLES, strict=True) if c in probes}
    return [Line2D([], [], label=name, **look) for name, look in looks.items()]


def nothing(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
