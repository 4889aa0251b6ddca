"""The plots of the comparison itself: score against compute and KL, likelihoods, training, and where compute went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_bench.compute.engine_time import ACTIVITIES
from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.report.measures import was_recorded
from rlhf_bench.report.plots.likelihoods import CHANGES, changes, fill_panels, handles, likelihoods, nothing
from rlhf_bench.report.plots.style import (
    INK,
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
    plotted,
    styled,
)
from rlhf_bench.report.plots.svg import named
from rlhf_bench.report.tables import is_charged, phase_means
from rlhf_bench.results.metrics import GREEDY_SCORE
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


@dataclass(frozen=True, slots=True)
class Plots:
    """The comparison's plots, in the page's order."""

    final: Plot
    comparison: tuple[Plot, ...]
    training: tuple[Plot, ...]
    compute: Plot
    time: Plot


def draw(recorded: RecordedComparison, summary: Summary) -> Plots:
    """Draw every plot of the comparison, within `style()`; a sweep's copies of an arm are left out."""
    summary = plotted(recorded, summary)
    return Plots(
        final=final_scores(summary),
        comparison=(
            score_against_compute(recorded, summary),
            *([greedy_against_compute(recorded, summary)] if was_recorded(recorded, GREEDY_SCORE) else []),
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


def final_scores(summary: Summary) -> Plot:
    """Every arm's mean score at the end with its 95% interval, and every seed's, best mean first."""
    ranked = sorted(((a, look) for a, look in styled(summary) if a.finished), key=lambda one: -one[0].mean)
    figure, axes = new_figure(height=1.0 + 0.42 * len(ranked))
    for place, (arm, look) in enumerate(ranked):
        for seed in arm.finished:
            axes.plot(
                [seed.score],
                [place],
                "|",
                color=look["color"],
                markersize=9,
                alpha=0.6,
                label=named(arm.name, seed.seed),
            )
        mean, ends = arm.mean, arm.interval
        axes.errorbar(
            [mean], [place], xerr=None if ends is None else np.clip([[mean - ends.low], [ends.high - mean]], 0, None), fmt=look["marker"],
            color=look["color"], markersize=7, label=named(arm.name),
        )  # fmt: skip
    axes.axvline(summary.base.score, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
    axes.set_yticks(range(len(ranked)), [arm.name for arm, _ in ranked])
    axes.set_ylim(max(len(ranked), 1) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    label(axes, "held-out score at the end", "")
    return Plot(
        "Final scores",
        "Mean over seeds with its 95% interval; small strokes are single seeds, the dashed line is the base policy.",
        drawn(figure, "final-scores") if ranked else None,
        "" if ranked else "No arm has finished a seed.",
    )


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


def greedy_against_compute(recorded: RecordedComparison, summary: Summary) -> Plot:
    """Greedy held-out score at each fixed fraction of the budget."""
    figure, axes = new_figure()
    there = [curve(axes, arm, look, recorded.main_split, GREEDY_SCORE) for arm, look in styled(summary)]
    axes.axhline(summary.base.greedy, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
    label(axes, budget_label(summary), "held-out score, greedily")
    legend(figure, summary, base=True)
    return Plot(
        "Greedy score against compute",
        "The same of the most likely tokens. An arm that rises in samples and not here has become sharper, not abler.",
        drawn(figure, "greedy-compute"),
        absent(summary, there, "greedy score"),
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
        nothing(by_kl, "KL was not recorded")
    upper.legend(handles=arm_handles(summary, base=True), loc="outside lower center", ncols=4)
    panels = list(lower.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten())
    for panel in panels[len(summary.arms) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(summary.arms) - columns) : len(summary.arms)]:
        panel.tick_params(labelbottom=True)
    _, probes = fill_panels(panels, recorded, summary, CHANGES)
    lower.supxlabel(budget_label(summary), color=INK, fontsize=9)
    lower.supylabel(CHANGES.axis, color=INK, fontsize=9)
    lower.legend(handles=handles(probes), loc="outside upper center", ncols=3)
    return figure


def _score_curves(axes: Axes, recorded: RecordedComparison, summary: Summary) -> list[bool]:
    rows = recorded.main_split
    recorded_arms = [curve(axes, arm, look, rows, "score") for arm, look in styled(summary)]
    axes.axhline(summary.base.score, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
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
    axes.axhline(summary.base.score, color=INK, linestyle="--", linewidth=1.2, label=named(BASE))
    label(axes, "KL to the base model (nats per response)", "held-out score")
    return recorded_arms
