"""The plots of the comparison itself: score against compute and KL, likelihoods, training, and where compute went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_bench.compute.engine_time import ACTIVITIES
from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.report.plots.style import (
    CHOSEN,
    INK,
    REJECTED,
    Plot,
    absent,
    arm_handles,
    budget_label,
    curve,
    drawn,
    label,
    legend,
    new_figure,
    own_rows,
    panel_grid,
    plotted,
    styled,
)
from rlhf_bench.report.plots.svg import named
from rlhf_bench.report.tables import is_charged, phase_means
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import BASE
from rlhf_bench.results.summary import Summary

TIMES = (*ACTIVITIES, "driver")
"""What wall time is divided into, in the order in which it is drawn."""
_PARTS = (
    "rollout", "scoring", "measuring", "learning", "sync", "evaluation", "judging", "reward_model", "starting", "loading",
    "driver", "tuning", "saving",
)  # fmt: skip
"""A phase of the ledger and an engine's activity of one name have one colour in both plots."""
TRAINING_BINS = 20
"""Updates of different arms and seeds cost differently; their means are taken per twentieth of the budget."""
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


@dataclass(frozen=True, slots=True)
class Plots:
    """The comparison's plots, in the page's order."""

    comparison: tuple[Plot, ...]
    training: tuple[Plot, ...]
    compute: Plot
    time: Plot


def draw(recorded: RecordedComparison, summary: Summary) -> Plots:
    """Draw every plot of the comparison, within `style()`; a sweep's copies of an arm are left out."""
    summary = plotted(recorded, summary)
    return Plots(
        comparison=(
            score_against_compute(recorded, summary),
            score_against_kl(recorded, summary),
            likelihoods(recorded, summary),
            changes(recorded, summary),
        ),
        training=(
            training_curve(
                recorded, summary, "reward", "Reward against compute",
                "What the method was told about its own samples; scales differ between methods, so compare "
                "shapes and not heights.",
            ),
            training_curve(
                recorded, summary, "gold", "Judge's score against compute",
                "The judge's score of the same training samples: a reward that rises while this falls "
                "is being gamed.",
            ),
        ),
        compute=compute_by_phase(recorded, summary),
        time=time_by_activity(recorded, summary),
    )  # fmt: skip


def score_against_compute(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Held-out score at each fixed fraction of the budget."""
    figure, axes = new_figure()
    recorded_arms = _score_curves(axes, recorded, summary)
    legend(figure, summary, base=True)
    return Plot(
        "Score against compute",
        "Higher and further left is better: the line is the mean over finished seeds, the band its 95% interval, "
        "thin lines are single seeds, and the dashed line is the base model.",
        drawn(figure, "score-compute"),
        absent(summary, recorded_arms, "held-out score"),
    )


def score_against_kl(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Held-out score against the KL to the reference, one point per evaluation."""
    figure, axes = new_figure()
    recorded_arms = _score_by_kl(axes, recorded, summary)
    legend(figure, summary, base=True)
    return Plot(
        "Score against KL",
        "Higher and further left is better: each point is one evaluation of one seed, and an arm whose score "
        "falls as KL grows is over-optimising.",
        drawn(figure, "score-kl") if any(recorded_arms) else None,
        absent(summary, recorded_arms, "KL at the evaluations"),
    )


def likelihoods(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Log-probabilities of held-out chosen, rejected and unseen responses on one axis, one panel per arm."""
    return _likelihood_plot(
        recorded, summary, LEVELS, "Chosen, rejected and unseen responses",
        "On held-out pairs, a gap between chosen and rejected that opens means the arm tells good answers from bad "
        "ones. Dotted lines are responses that stand in no pair.",
    )  # fmt: skip


def changes(recorded: RecordedComparison, summary: Summary) -> Plot:
    """The same as differences from the base policy: small moves of large numbers can be seen."""
    return _likelihood_plot(
        recorded, summary, CHANGES, "The same, as change since the base policy",
        "Where chosen and rejected both fall, probability goes elsewhere: a dotted line that rises is where it went.",
    )  # fmt: skip


def _likelihood_plot(recorded: RecordedComparison, summary: Summary, kind: Kind, title: str, how_to_read: str) -> Plot:
    figure, panels = panel_grid(len(summary.arms), sharey=True)
    recorded_arms, probes = _likelihood_panels(panels, recorded, summary, kind)
    figure.supxlabel(budget_label(summary), color=INK, fontsize=9)
    figure.supylabel(kind.axis, color=INK, fontsize=9)
    figure.legend(handles=_likelihood_handles(probes), loc="outside upper center", ncols=2)
    missing = absent(summary, recorded_arms, f"chosen and rejected {kind.what}")
    lacking = [name for column, name in PROBES.items() if column not in probes]
    if lacking and any(recorded_arms):
        missing += f"{' ' if missing else ''}Not recorded, of the unseen responses: {', '.join(lacking)}."
    drawing = drawn(figure, f"likelihoods{kind.probe}".replace("_", "-")) if any(recorded_arms) else None
    return Plot(title, how_to_read, drawing, missing)


def training_curve(recorded: RecordedComparison, summary: Summary, column: str, title: str, how_to_read: str) -> Plot:
    """A number of the training updates, such as the reward, averaged per twentieth of the budget."""
    figure, axes = new_figure()
    updates = recorded.updates
    bins = (np.ceil(numbers(updates, "fraction") * TRAINING_BINS).clip(1) - 0.5) / TRAINING_BINS
    binned = updates.assign(mark=bins, value=numbers(updates, column)).groupby(["arm", "seed", "mark"], sort=False)
    rows = binned["value"].mean().reset_index()
    recorded_arms = [curve(axes, arm, look, rows, "value") for arm, look in styled(summary)]
    label(axes, budget_label(summary), column)
    legend(figure, summary)
    return Plot(
        title,
        how_to_read,
        drawn(figure, f"training-{column}") if any(recorded_arms) else None,
        absent(summary, recorded_arms, column),
    )


def compute_by_phase(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Where each arm's budget went: one stacked bar per arm, in the budget's unit, charged phases only."""
    means = phase_means(recorded)
    charged = means[[is_charged(arm, phase) for arm, phase in zip(means["arm"], means["phase"], strict=True)]]
    shares = charged.pivot_table(index="arm", columns="phase", values=summary.unit, sort=False) / summary.limit
    shares = shares.reindex([arm.name for arm in summary.arms]).fillna(0.0)
    figure, axes = _stacked(100 * shares)
    axes.axvline(100, color=INK, linestyle="--", linewidth=1.2)
    label(axes, budget_label(summary), "")
    return Plot(
        "Where the compute went",
        "Each bar is one arm's mean spending per seed, by phase; the dashed line is the limit, and no arm may pass it.",
        drawn(figure, "compute") if len(shares.columns) else None,
        "" if len(shares.columns) else "The ledger charged no phase to any arm.",
    )


def time_by_activity(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Where wall time went: what comes before the arms, then each arm's mean per seed."""
    spent = {"before the arms": pd.Series(recorded.results.get("timing", {}).get("before_arms") or {}, dtype="float64")}
    for arm in summary.arms:
        seeds = recorded.results["arms"][arm.name]["seeds"]
        timed = [seed["seconds"] for seed in seeds if "seconds" in seed]
        spent[arm.name] = pd.DataFrame(timed, dtype="float64").fillna(0.0).mean()
    there = [name for name in TIMES if any(name in times for times in spent.values())]
    seconds = pd.DataFrame(spent).T.reindex(columns=there).fillna(0.0)
    figure, axes = _stacked(seconds)
    label(axes, "wall time (s)", "")
    return Plot(
        "Where the time went",
        "Each bar is one arm's mean wall time per seed, by what the engines did. Time in which they did several things "
        "is shared between these. Driver: no engine was busy.",
        drawn(figure, "time") if there else None,
        "" if there else "Not recorded: what the engines did.",
    )


def _stacked(values: pd.DataFrame) -> tuple[Figure, Axes]:
    """A bar per row, a part of it per column."""
    names = list(values.index)
    figure, axes = new_figure(height=1.4 + 0.35 * len(names))
    left = np.zeros(len(names))
    for part in values.columns:
        index = _PARTS.index(part)
        widths = values[part].to_numpy()
        # A hatch as well as a colour, so that more parts than colours stay apart.
        hatch = "" if index < len(PALETTE) else "///"
        axes.barh(names, widths, left=left, label=part, color=PALETTE[index % len(PALETTE)], hatch=hatch)
        left += widths
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if names and len(values.columns):
        figure.legend(loc="outside lower center", ncols=3)
    return figure, axes


def overview(recorded: RecordedComparison, summary: Summary) -> Figure:
    """The comparison as one figure for a docs page: score against compute and KL, and the change of every arm's likelihoods.

    To be called, and saved, within `style()`."""
    summary = plotted(recorded, summary)
    columns = 3
    rows = -(-max(len(summary.arms), 1) // columns)
    figure = Figure(figsize=(9.6, 4.2 + 0.9 + 2.0 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.2, 0.9 + 2.0 * rows)).flatten()
    by_compute, by_kl = upper.subplots(1, 2, sharey=True)
    _score_curves(by_compute, recorded, summary)
    if not any(_score_by_kl(by_kl, recorded, summary)):
        _nothing(by_kl, "KL was not recorded")
    upper.legend(handles=arm_handles(summary, base=True), loc="outside lower center", ncols=4)
    panels = list(lower.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten())
    for panel in panels[len(summary.arms) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(summary.arms) - columns) : len(summary.arms)]:
        panel.tick_params(labelbottom=True)
    _, probes = _likelihood_panels(panels, recorded, summary, CHANGES)
    lower.supxlabel(budget_label(summary), color=INK, fontsize=9)
    lower.supylabel(CHANGES.axis, color=INK, fontsize=9)
    lower.legend(handles=_likelihood_handles(probes), loc="outside upper center", ncols=3)
    return figure


def _score_curves(axes: Axes, recorded: RecordedComparison, summary: Summary) -> list[bool]:
    rows = recorded.main_split
    recorded_arms = [curve(axes, arm, look, rows, "score") for arm, look in styled(summary)]
    axes.axhline(summary.base_score, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
    label(axes, budget_label(summary), "held-out score")
    return recorded_arms


def _score_by_kl(axes: Axes, recorded: RecordedComparison, summary: Summary) -> list[bool]:
    recorded_arms = []
    for arm, look in styled(summary):
        rows = own_rows(recorded.main_split, arm).dropna(subset=["score"])
        rows = rows.assign(kl=numbers(rows, "kl")).dropna(subset=["kl"])
        recorded_arms.append(not rows.empty)
        for number, seed in rows.groupby("seed"):
            axes.plot(seed["kl"], seed["score"], color=look["color"], linewidth=0.6, alpha=0.5)
            axes.plot(seed["kl"], seed["score"], label=named(arm.name, number),
                      **look | {"linestyle": "none", "alpha": 0.85})  # fmt: skip
    axes.axhline(summary.base_score, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
    label(axes, "KL to the base model (nats per response)", "held-out score")
    return recorded_arms


def _likelihood_panels(
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
            _nothing(panel, "not recorded")
        panel.xaxis.set_major_formatter("{x:.0f}%")
    return recorded_arms, [column for column in PROBES if column in probes]


def _likelihood_handles(probes: Sequence[str]) -> list[Line2D]:
    looks = {"chosen": _CHOSEN_STYLE, "rejected": _REJECTED_STYLE}
    looks |= {PROBES[c]: look for c, look in zip(PROBES, _PROBE_STYLES, strict=True) if c in probes}
    return [Line2D([], [], label=name, **look) for name, look in looks.items()]


def _nothing(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
