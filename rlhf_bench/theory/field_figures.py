"""Draws gradient fields, one panel a method, with the reachable box and a run's trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.theory.field import FieldOf, Start, gradients
from rlhf_bench.theory.style import STYLE
from rlhf_bench.theory.trajectories import Trajectory

Space = Literal["linear", "log"]
ARROWS = 17
"""Arrows along each axis."""
LOG_RANGE = 4.0
"""Nats to each side of the start in the log figure, where no trajectory asks for more."""
SINGLES = 40
"""Single pairs drawn at most."""
NORMS = Normalize(-3, 2)
"""Colours: log10 of the gradient's norm, the same in every panel and figure."""
TRAJECTORY = PALETTE[1]


def draw_fields(
    fields: Sequence[FieldOf], start: Start, space: Space, trajectories: Mapping[str, Trajectory] | None = None
) -> Figure:
    """`linear`: axes x1, x2 with the descent direction in probability space, as in the paper. `log`: axes ln x1, ln x2
    with the descent direction in log-probability space."""
    trajectories = trajectories or {}
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    limits = _limits(start, space, list(trajectories.values()))
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(0.9 + 3.1 * columns, 1.5 + 3.05 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel in panels[len(fields) :]:
            panel.set_axis_off()
        for panel, field in zip(panels, fields, strict=False):
            _panel(panel, field, start, space, limits, trajectories.get(field.name))
        prefix = "" if space == "linear" else "ln "
        unit = "" if space == "linear" else " (nats)"
        for panel in panels[max(0, len(fields) - columns) : len(fields)]:
            panel.tick_params(labelbottom=True)
            panel.set_xlabel(f"{prefix}x1 = {prefix}π(a⁺)/π0(a⁺){unit}")
        figure.supylabel(f"{prefix}x2 = {prefix}π(a⁻)/π0(a⁻){unit}", fontsize=9)
        colours = mpl.cm.ScalarMappable(NORMS, "viridis")
        gradient = "(∂L/∂x1, ∂L/∂x2)" if space == "linear" else "(∂L/∂ln x1, ∂L/∂ln x2)"
        bar = figure.colorbar(colours, ax=list(panels), shrink=0.75, extend="both")
        bar.set_label(f"log10 of the norm of {gradient}")
        where = "probability space" if space == "linear" else "log-probability space"
        figure.suptitle(f"Descent direction in {where}. {_where(start)}", fontsize=9)
        figure.legend(handles=_legend(bool(trajectories)), loc="outside lower center", ncols=3)
    return figure


def _where(start: Start) -> str:
    def side(logprob: float) -> str:
        p = np.exp(logprob)
        return f"{p:.2g}" if p >= 0.01 else f"e^{logprob:.1f}"

    lengths = f"{start.chosen_tokens:.3g} and {start.rejected_tokens:.3g} tokens"
    return f"Start: π0(a⁺) = {side(start.chosen_logprob)}, π0(a⁻) = {side(start.rejected_logprob)}; {lengths}"


def _limits(start: Start, space: Space, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, float], ...]:
    """Ranges of both axes: the box where it is near, and all means and spreads of the trajectories."""
    ends = [np.concatenate([t.low, t.high]) for t in trajectories]
    reach = np.concatenate(ends) if ends else np.array([[-LOG_RANGE, -LOG_RANGE], [1.0, 1.0]])
    ranges = []
    for axis, edge in enumerate(start.box):
        low, high = float(reach[:, axis].min()), float(reach[:, axis].max())
        if space == "log":
            bottom, top = min(-1.0, 1.15 * low), max(1.0, 1.15 * high)
            ranges.append((bottom, 1.12 * edge if edge <= 3 * max(top, -bottom) else top))
        else:
            top = float(np.exp(max(high, np.log(3)) + 0.1)) if ends else np.inf
            ranges.append((0.0, min(top, 1.06 * float(np.exp(min(edge, np.log(20)))))))
    return tuple(ranges)


def _panel(
    panel: Axes, field: FieldOf, start: Start, space: Space, limits: tuple[tuple[float, float], ...],
    trajectory: Trajectory | None,
) -> None:  # fmt: skip
    panel.set_title(f"{field.name}\n{field.caption}" if field.loss else f"{field.name}\nno loss on pairs", fontsize=8)
    panel.set_xlim(*limits[0])
    panel.set_ylim(*limits[1])
    if field.loss is not None:
        _arrows(panel, field, start, space, limits)
    _reachable(panel, start, space, limits)
    if trajectory is not None:
        _way(panel, trajectory, space)
    panel.plot(*((1, 1) if space == "linear" else (0, 0)), marker="o", markersize=5, color="black", zorder=6)


def _arrows(panel: Axes, field: FieldOf, start: Start, space: Space, limits: tuple[tuple[float, float], ...]) -> None:
    """Arrows of one length in the direction of descent, coloured by the gradient's norm."""
    assert field.loss is not None
    x1, x2 = np.meshgrid(*(low + (np.arange(ARROWS) + 0.5) / ARROWS * (high - low) for low, high in limits))
    logs = (x1, x2) if space == "log" else (np.log(x1), np.log(x2))
    found = gradients(field.loss, field.settings, start, *logs)
    u, v = (found.chosen, found.rejected) if space == "linear" else (found.log_chosen, found.log_rejected)
    norm = np.hypot(u, v)
    flat = norm == 0
    there = np.where(flat, np.nan, norm)
    panel.quiver(
        x1, x2, -u / there, -v / there, np.log10(there),
            norm=NORMS, cmap="viridis", pivot="mid", scale=ARROWS * 1.15, scale_units="width", width=0.006,
        )  # fmt: skip
    if flat.any():
        panel.plot(x1[flat], x2[flat], linestyle="none", marker=".", markersize=2, color="0.55")


def _reachable(panel: Axes, start: Start, space: Space, limits: tuple[tuple[float, float], ...]) -> None:
    """The box 1/π0 and, inside it, the line π(a⁺) + π(a⁻) = 1; what lies beyond the box is greyed."""
    (low1, high1), (low2, high2) = limits
    edge1, edge2 = start.box if space == "log" else np.exp(np.minimum(start.box, 700.0))
    for corner, width, height in (
        ((edge1, low2), high1 - edge1, high2 - low2),
        ((low1, edge2), min(edge1, high1) - low1, high2 - edge2),
    ):
        if width > 0 and height > 0:
            panel.add_patch(Rectangle(corner, width, height, facecolor="0.5", alpha=0.25, linewidth=0, zorder=3))
    panel.plot(
        [low1, edge1, edge1], [edge2, edge2, low2], color="black", linewidth=1.4, zorder=4, scalex=False, scaley=False
    )
    share = np.linspace(1e-6, 1 - 1e-6, 4001)
    sum_to_one = np.log(share) - start.chosen_logprob, np.log1p(-share) - start.rejected_logprob
    line = sum_to_one if space == "log" else tuple(np.exp(np.minimum(s, 700.0)) for s in sum_to_one)
    panel.plot(*line, color="black", linewidth=1, linestyle=":", zorder=4, scalex=False, scaley=False)
    far = [f"{name} = e^{e:.0f}" for name, e, high in zip(("x1", "x2"), start.box, (high1, high2), strict=True)
           if (e if space == "log" else np.exp(min(e, 700.0))) > high]  # fmt: skip
    if far:
        panel.text(0.98, 0.97, f"box beyond: {', '.join(far)}", transform=panel.transAxes, ha="right", va="top",
                   fontsize=7, zorder=7, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})  # fmt: skip


def _way(panel: Axes, trajectory: Trajectory, space: Space) -> None:
    place = (lambda logs: logs) if space == "log" else np.exp
    singles = place(trajectory.singles)
    for index in range(min(SINGLES, singles.shape[1])):
        panel.plot(singles[:, index, 0], singles[:, index, 1], color=TRAJECTORY, linewidth=0.5, alpha=0.25, zorder=4,
                   scalex=False, scaley=False)  # fmt: skip
    mean, low, high = place(trajectory.mean), place(trajectory.low), place(trajectory.high)
    spread = [np.stack([mean[:, i] - low[:, i], high[:, i] - mean[:, i]]).clip(min=0) for i in (0, 1)]
    panel.errorbar(mean[:, 0], mean[:, 1], xerr=spread[0], yerr=spread[1], color=TRAJECTORY, marker="s", markersize=3.5,
                   linewidth=1.8, elinewidth=0.8, zorder=5)  # fmt: skip


def _legend(trajectories: bool) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color="black", marker="o", linestyle="none", label="start (the reference)"),
        Line2D([], [], color="black", linewidth=1.4, label="box: π ≤ 1, so x ≤ 1/π0"),
        Line2D([], [], color="black", linewidth=1, linestyle=":", label="π(a⁺) + π(a⁻) = 1"),
    ]
    if trajectories:
        handles.append(Line2D([], [], color=TRAJECTORY, marker="s", label="measured mean, 16th to 84th percentile"))
        handles.append(Line2D([], [], color=TRAJECTORY, linewidth=0.5, alpha=0.6, label="single pairs of one seed"))
    return handles
