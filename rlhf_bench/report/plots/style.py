"""What all plots of the report share: style, an arm's curve with its interval, and the conversion to SVG.

Axes and text take the page's own colour, so they can be read on light and dark pages. Lines use Okabe and Ito's palette, which
colour-blind readers can tell apart, and a marker per arm besides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_bench.core.plot_style import PALETTE, RC
from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.report.format import quantity
from rlhf_bench.report.plots.svg import SvgFigure, axis_titles, named, points_of
from rlhf_bench.report.sweeps import swept
from rlhf_bench.results.metrics import SCORES
from rlhf_bench.results.reader import RecordedComparison, numbers
from rlhf_bench.results.schema import BASE
from rlhf_bench.results.summary import ArmResult, Summary

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#010203"
"""Stands for the page's text colour until the SVG is finished; no palette colour may equal it."""
CHOSEN, REJECTED = PALETTE[0], PALETTE[1]
WIDTH = 4.6
"""Inches of a plot: as wide as a phone shows it at its own size."""

_STYLE = RC | {
    "text.parse_math": False,
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
    """A finished plot. `drawing` is None where nothing was recorded; `absent` then, or for single arms, says so.

    `on_white`: it has dark colours of its own and needs a white background, on a dark page too.
    """

    title: str
    how_to_read: str
    drawing: SvgFigure | None
    absent: str = ""
    on_white: bool = False

    @property
    def svg(self) -> str:
        return self.drawing.svg if self.drawing else ""


@contextmanager
def style() -> Iterator[None]:
    """Everything that is drawn inside has the report's style."""
    with mpl.rc_context(_STYLE):
        yield


def plotted(recorded: RecordedComparison, summary: Summary) -> Summary:
    """The summary with the arms that are drawn: a sweep's copies are too many, and have plots of their own."""
    return replace(summary, arms=tuple(arm for arm in summary.arms if swept(arm.name, recorded.recipe) is None))


def new_figure(height: float = 3.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def panel_grid(count: int, columns: int = 2, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, row by row; what is left over of the last row stays empty."""
    rows, columns = -(-max(count, 1) // columns), min(max(count, 1), columns)
    figure = Figure(figsize=(WIDTH, 0.8 + 1.75 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flatten())
    for panel in panels[count:]:
        panel.set_axis_off()
    for panel in panels[max(0, count - columns) : count]:  # above an empty place there is no axis to share numbers with
        panel.tick_params(labelbottom=True)
    return figure, panels[:count]


def styled(summary: Summary) -> Iterable[tuple[ArmResult, dict[str, Any]]]:
    for index, arm in enumerate(summary.arms):
        yield (
            arm,
            {
                "color": PALETTE[index % len(PALETTE)],
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": "-" if index < len(PALETTE) else (0, (5, 1.5)),
            },
        )


def own_rows(rows: pd.DataFrame, arm: ArmResult) -> pd.DataFrame:
    return rows[rows["arm"] == arm.name]


def curve(
    axes: Axes, arm: ArmResult, look: dict[str, Any], rows: pd.DataFrame, column: str, across: str = "mark",
    details: bool = True, series: str = "",
) -> bool:  # fmt: skip
    """Draw `column` of one arm against the column `across`, one point per mark; False where nothing was recorded.

    In the plot's data it is called `series`, or like the arm.

    Thin lines are single seeds. The mean and its interval (`details`) are over the finished seeds, as in the table.
    Against another column than the mark, a point of the mean stands at the mean of that column.
    """
    # Few columns first: to take rows of a table with a hundred of them is what a page would spend its time on.
    own = own_rows(rows[[c for c in dict.fromkeys(("arm", "seed", "mark", column, across)) if c in rows]], arm)
    scale, called = 100 if across == "mark" else 1, series or arm.name
    own = own.assign(value=numbers(own, column), place=scale * numbers(own, across)).dropna(subset=["value", "place"])
    means = own.groupby(["mark", "seed"])[["value", "place"]].mean()
    table, places = (means[name].unstack("seed") for name in ("value", "place"))
    for seed in table.columns if details else ():
        line = table[seed].dropna()
        axes.plot(
            places[seed].dropna(), line, color=look["color"], linewidth=0.7, alpha=0.45, label=named(called, seed)
        )
    seeds = [seed.seed for seed in arm.finished if seed.seed in table.columns]
    finished = table[seeds].dropna(how="all")
    if not finished.empty:
        at = places[seeds].loc[finished.index].mean(axis=1).to_numpy()
        axes.plot(at, finished.mean(axis=1), label=named(called), **look)
        if details:
            interval = statistics.share_interval if column in SCORES else statistics.mean_interval
            _band(axes, at, [interval(v.dropna()) for _, v in finished.iterrows()], look["color"], named(called))
    return not table.empty


def _band(axes: Axes, at: np.ndarray, intervals: Sequence[Interval | None], colour: str, label: str) -> None:
    low, high = ([getattr(i, end) if i else np.nan for i in intervals] for end in ("low", "high"))
    # The lines set the plot's range: an interval from two seeds can be far wider than all curves together.
    limits = axes.dataLim.frozen()
    axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0, label=label)
    axes.dataLim.set(limits)


def budget_label(summary: Summary) -> str:
    return f"share of the budget ({quantity(summary.limit, summary.unit)})"


def label(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    if "budget" in horizontal:
        axes.xaxis.set_major_formatter("{x:.0f}%")


def arm_handles(summary: Summary, base: bool = False) -> list[Line2D]:
    handles = [
        Line2D([], [], label=arm.name if arm.finished else f"{arm.name} (no finished seed)", **look)
        for arm, look in styled(summary)
    ]
    if base:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2, label=BASE))
    return handles


def legend(figure: Figure, summary: Summary, base: bool = False, more: Sequence[Artist] = ()) -> None:
    handles: list[Artist] = [*arm_handles(summary, base), *more]
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if longest <= 18 else 2 if longest <= 28 else 1)


def absent(summary: Summary, recorded_arms: Sequence[bool], what: str) -> str:
    """The sentence for the arms that did not record `what`; empty where all did."""
    missing = [arm.name for arm, there in zip(summary.arms, recorded_arms, strict=True) if not there]
    if len(missing) > 1 and len(missing) == len(summary.arms):
        return f"Not recorded: {what} of any arm."
    return f"Not recorded: {what} of {listed(missing)}." if missing else ""


def drawn(figure: Figure, name: str) -> SvgFigure:
    """The figure as an SVG element to stand inside a page, and its data: same input, same text; ids are unique to `name`."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    if layout := figure.get_layout_engine():
        figure.set_dpi(72)
        FigureCanvasSVG(figure)  # text is measured as it will be saved
        layout.execute(figure)
        figure.set_layout_engine("none")  # or saving draws everything once more, to lay it out again
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # Hundredths of a point cannot be seen, and are a third of the text.
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), svg)
    svg = svg.replace(INK, "currentColor").strip()
    return SvgFigure(name, svg, *axis_titles(figure), points_of(figure))
