"""The plots, as inline SVG. Axes and text take the page's own colour, so they read on light and on dark.

Lines use Okabe and Ito's palette, which colour-blind readers can tell apart, and a marker per arm besides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_bench.diagnostics import statistics
from rlhf_bench.report.recorded import BASE, MAIN_SPLIT, Recorded, numbers
from rlhf_bench.report.summary import ArmResult, Summary
from rlhf_bench.report.tables import is_charged, phase_means
from rlhf_bench.report.text import listed, quantity

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#010203"
"""Stands for the page's text colour until the SVG is finished; no palette colour may equal it."""
CHOSEN, REJECTED = PALETTE[0], PALETTE[1]
TRAINING_BINS = 20
"""Updates of different arms and seeds cost differently; their means are taken per twentieth of the budget."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-bench",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color",
         "grid.color"),
        INK,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plot:
    """A finished plot. `svg` is empty where nothing was recorded; `absent` then, or for single arms, says so."""

    title: str
    how_to_read: str
    svg: str
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Plots:
    """All plots of the page, in its order."""

    comparison: tuple[Plot, ...]
    training: tuple[Plot, ...]
    compute: Plot


def draw(recorded: Recorded, summary: Summary) -> Plots:
    """Draw every plot of the report."""
    with mpl.rc_context(_STYLE):
        return Plots(
            comparison=(
                score_against_compute(recorded, summary),
                score_against_kl(recorded, summary),
                likelihoods(recorded, summary),
            ),
            training=(
                training_curve(
                    recorded, summary, "reward", "Reward against compute",
                    "What the method was told about its own samples; scales differ between methods, so compare "
                    "shapes and not heights.",
                ),
                training_curve(
                    recorded, summary, "gold", "Gold score against compute",
                    "What the judge says about the same training samples: a reward that rises while this falls "
                    "is being gamed.",
                ),
            ),
            compute=compute_by_phase(recorded, summary),
        )  # fmt: skip


def score_against_compute(recorded: Recorded, summary: Summary) -> Plot:
    """Held-out score at each fixed fraction of the budget."""
    figure, axes = _figure()
    rows = _main_split(recorded)
    recorded_arms = [_curve(axes, arm, style, rows, "score") for arm, style in _styled(summary)]
    axes.axhline(summary.base_score, color=INK, linestyle="--", linewidth=1.2)
    _label(axes, _budget_label(summary), "held-out score")
    _legend(figure, summary, base=True)
    return Plot(
        "Score against compute",
        "Higher and further left is better: the line is the mean over finished seeds, the band its 95% interval, "
        "thin lines are single seeds, and the dashed line is the base model.",
        _svg(figure, "score-compute"),
        _absent(summary, recorded_arms, "held-out score"),
    )


def score_against_kl(recorded: Recorded, summary: Summary) -> Plot:
    """Held-out score against the KL to the reference, one point per evaluation."""
    figure, axes = _figure()
    recorded_arms = []
    for arm, style in _styled(summary):
        rows = _own(_main_split(recorded), arm).dropna(subset=["score"])
        rows = rows.assign(kl=numbers(rows, "kl")).dropna(subset=["kl"])
        recorded_arms.append(not rows.empty)
        for _, seed in rows.groupby("seed"):
            axes.plot(seed["kl"], seed["score"], color=style["color"], linewidth=0.6, alpha=0.5)
            axes.plot(seed["kl"], seed["score"], linestyle="none", alpha=0.85, **style)
    axes.axhline(summary.base_score, color=INK, linestyle="--", linewidth=1.2)
    _label(axes, "KL to the base model (nats per response)", "held-out score")
    _legend(figure, summary, base=True)
    return Plot(
        "Score against KL",
        "Higher and further left is better: each point is one evaluation of one seed, and an arm whose score "
        "falls as KL grows is over-optimising.",
        _svg(figure, "score-kl") if any(recorded_arms) else "",
        _absent(summary, recorded_arms, "KL at the evaluations"),
    )


def likelihoods(recorded: Recorded, summary: Summary) -> Plot:
    """Log-probabilities of held-out chosen and rejected responses, one panel per arm."""
    rows, count = _main_split(recorded), max(len(summary.arms), 1)
    figure = Figure(figsize=(4.6, 0.7 + 1.75 * -(-count // 2)), layout="constrained")
    panels = figure.subplots(-(-count // 2), min(count, 2), sharex=True, sharey=True, squeeze=False).flatten()
    for panel in panels[len(summary.arms) :]:
        panel.set_axis_off()
    recorded_arms = []
    for panel, arm in zip(panels, summary.arms, strict=False):
        chosen = _curve(panel, arm, {"color": CHOSEN, "marker": "o"}, rows, "chosen_logprob")
        rejected = _curve(panel, arm, {"color": REJECTED, "marker": "s", "linestyle": "--"}, rows, "rejected_logprob")
        recorded_arms.append(chosen or rejected)
        panel.set_title(arm.name, fontsize=9)
        if not recorded_arms[-1]:
            panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", va="center")
        panel.xaxis.set_major_formatter("{x:.0f}%")
    figure.supxlabel(_budget_label(summary), color=INK, fontsize=9)
    figure.supylabel("log-probability (nats)", color=INK, fontsize=9)
    handles = [
        Line2D([], [], color=CHOSEN, marker="o", label="chosen"),
        Line2D([], [], color=REJECTED, marker="s", linestyle="--", label="rejected"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return Plot(
        "Chosen and rejected log-probabilities",
        "On held-out pairs, a gap that opens means the arm tells good answers from bad ones; a chosen line that "
        "falls means that good answers lose probability too, to responses outside the pair.",
        _svg(figure, "likelihoods") if any(recorded_arms) else "",
        _absent(summary, recorded_arms, "chosen and rejected log-probabilities"),
    )


def training_curve(recorded: Recorded, summary: Summary, column: str, title: str, how_to_read: str) -> Plot:
    """A number of the training updates, such as the reward, averaged per twentieth of the budget."""
    figure, axes = _figure()
    updates = recorded.updates
    bins = (np.ceil(numbers(updates, "fraction") * TRAINING_BINS).clip(1) - 0.5) / TRAINING_BINS
    binned = updates.assign(mark=bins, value=numbers(updates, column)).groupby(["arm", "seed", "mark"], sort=False)
    rows = binned["value"].mean().reset_index()
    recorded_arms = [_curve(axes, arm, style, rows, "value") for arm, style in _styled(summary)]
    _label(axes, _budget_label(summary), column)
    _legend(figure, summary)
    return Plot(
        title,
        how_to_read,
        _svg(figure, f"training-{column}") if any(recorded_arms) else "",
        _absent(summary, recorded_arms, column),
    )


def compute_by_phase(recorded: Recorded, summary: Summary) -> Plot:
    """Where each arm's budget went: one stacked bar per arm, in the budget's unit, charged phases only."""
    means = phase_means(recorded)
    charged = means[[is_charged(arm, phase) for arm, phase in zip(means["arm"], means["phase"], strict=True)]]
    shares = charged.pivot_table(index="arm", columns="phase", values=summary.unit, sort=False) / summary.limit
    shares = shares.reindex([arm.name for arm in summary.arms]).fillna(0.0)
    names = list(shares.index)
    figure, axes = _figure(height=1.4 + 0.35 * len(names))
    left = np.zeros(len(names))
    for index, phase in enumerate(shares.columns):
        widths = 100 * shares[phase].to_numpy()
        # A hatch as well as a colour, so that more phases than colours stay apart.
        hatch = "" if index < len(PALETTE) else "///"
        axes.barh(names, widths, left=left, label=phase, color=PALETTE[index % len(PALETTE)], hatch=hatch)
        left += widths
    axes.axvline(100, color=INK, linestyle="--", linewidth=1.2)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _label(axes, _budget_label(summary), "")
    if names and len(shares.columns):
        figure.legend(loc="outside lower center", ncols=3)
    return Plot(
        "Where the compute went",
        "Each bar is one arm's mean spending per seed, by phase; the dashed line is the limit, and no arm may pass it.",
        _svg(figure, "compute") if len(shares.columns) else "",
        "" if len(shares.columns) else "The ledger charged no phase to any arm.",
    )


def _figure(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def _styled(summary: Summary) -> Iterable[tuple[ArmResult, dict]]:
    for index, arm in enumerate(summary.arms):
        yield arm, {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def _main_split(recorded: Recorded) -> pd.DataFrame:
    evaluations = recorded.evaluations
    return evaluations[evaluations["split"] == MAIN_SPLIT]


def _own(rows: pd.DataFrame, arm: ArmResult) -> pd.DataFrame:
    return rows[rows["arm"] == arm.name]


def _curve(axes: Axes, arm: ArmResult, style: dict, rows: pd.DataFrame, column: str) -> bool:
    """Draw `column` of one arm against the budget; False where nothing was recorded.

    Thin lines are single seeds. The mean and its interval are over the finished seeds, as in the table.
    """
    own = _own(rows, arm)
    table = own.assign(value=numbers(own, column)).pivot_table(index="mark", columns="seed", values="value")
    for seed in table.columns:
        line = table[seed].dropna()
        axes.plot(100 * line.index, line, color=style["color"], linewidth=0.7, alpha=0.45)
    finished = table[[seed.seed for seed in arm.finished if seed.seed in table.columns]].dropna(how="all")
    if not finished.empty:
        marks = 100 * finished.index.to_numpy(dtype=float)
        axes.plot(marks, finished.mean(axis=1), **style)
        intervals = [statistics.confidence_interval(values.dropna()) for _, values in finished.iterrows()]
        low, high = ([getattr(i, end) if i else np.nan for i in intervals] for end in ("low", "high"))
        # The lines set the plot's range: an interval from two seeds can be far wider than all curves together.
        limits = axes.dataLim.frozen()
        axes.fill_between(marks, low, high, color=style["color"], alpha=0.16, linewidth=0)
        axes.dataLim.set(limits)
    return not table.empty


def _label(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    if "budget" in horizontal:
        axes.xaxis.set_major_formatter("{x:.0f}%")


def _budget_label(summary: Summary) -> str:
    return f"share of the budget ({quantity(summary.limit, summary.unit)})"


def _legend(figure: Figure, summary: Summary, base: bool = False) -> None:
    handles = [
        Line2D([], [], label=arm.name if arm.finished else f"{arm.name} (no finished seed)", **style)
        for arm, style in _styled(summary)
    ]
    if base:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2, label=BASE))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _absent(summary: Summary, recorded_arms: list[bool], what: str) -> str:
    missing = [arm.name for arm, there in zip(summary.arms, recorded_arms, strict=True) if not there]
    return f"Not recorded: {what} of {listed(missing)}." if missing else ""


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to stand inside a page: same input, same text; ids are unique to `name`."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").strip()
