"""A finished drawing and the numbers in it, read from the figure itself: picture and data cannot differ."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

_HIDDEN = "_of "  # matplotlib leaves labels that begin with _ out of its legends
_COLORBAR = "<colorbar>"


class Point(NamedTuple):
    """One number of a plot. `panel` and `seed` are empty where the plot has one panel, and for means over seeds.

    `low` and `high` end the interval of `y`, `x_low` and `x_high` that of `x`; arrows have a direction and the log10 of
    their strength. None where there is no such number. A bar has its row's name as `x`, its length as `y`; a group of points has the group's name."""

    panel: str
    series: str
    seed: str
    x: float | str
    y: float
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    dx: float | None = None
    dy: float | None = None
    log10_strength: float | None = None


@dataclass(frozen=True, slots=True)
class SvgFigure:
    """A plot as an SVG element, what its axes say, and its points. `name` is unique on a page."""

    name: str
    svg: str
    x_axis: str
    y_axis: str
    points: tuple[Point, ...]

    def to_csv(self) -> str:
        """A line per point; columns that no point has are left out."""
        out = io.StringIO()
        frame = pd.DataFrame(self.points, columns=Point._fields)
        frame.replace({"": None}).dropna(axis="columns", how="all").to_csv(out, index=False, lineterminator="\n")
        return out.getvalue()


def named(series: str, seed: int | None = None) -> str:
    """The label of an artist whose numbers belong to the plot's data, and which has no place in a legend."""
    return f"{_HIDDEN}{'' if seed is None else seed}/{series}"


def axis_titles(figure: Figure) -> tuple[str, str]:
    """What the axes say, across and up; one title may stand for all panels."""
    across, up = figure.get_supxlabel(), figure.get_supylabel()
    first = figure.axes[0]
    return across or first.get_xlabel(), up or first.get_ylabel()


def points_of(figure: Figure) -> tuple[Point, ...]:
    """Every number that the figure shows as a labelled line, band, bar, error bar or arrow, in the order drawn."""
    return tuple(point for axes in figure.axes if axes.get_label() != _COLORBAR for point in _in_panel(axes))


def _in_panel(axes: Axes) -> Iterator[Point]:
    panel, rows = axes.get_title(), [text.get_text() for text in axes.get_yticklabels()]
    bands = {found: _ends(c) for c in axes.collections if isinstance(c, PolyCollection) and (found := _series(c))}
    for line in axes.lines:
        if found := _series(line):
            ends = bands.get(found, {})
            for x, y in zip(_floats(line.get_xdata()), _floats(line.get_ydata()), strict=True):
                yield Point(panel, *found, x, y, *ends.get(x, (None, None)))
    for container in axes.containers:
        found = _series(container)
        if found and isinstance(container, ErrorbarContainer):
            yield from _with_errors(panel, found, container, _places(axes))
        elif found and isinstance(container, BarContainer):
            for row, bar in zip(rows, container.patches, strict=True):
                yield Point(panel, *found, row, float(bar.get_width()))
    for arrows in axes.collections:
        if isinstance(arrows, Quiver):
            numbers = (arrows.X, arrows.Y, arrows.U, arrows.V, arrows.get_array())
            for x, y, dx, dy, strength in zip(*map(_floats, numbers), strict=True):
                yield Point(panel, "descent", "", x, y, dx=dx, dy=dy, log10_strength=strength)


def _series(artist: Any) -> tuple[str, str] | None:
    """(series, seed) of what was labelled; None for whatever matplotlib labelled itself."""
    label = str(artist.get_label())
    if label.startswith(_HIDDEN):
        seed, _, series = label.removeprefix(_HIDDEN).partition("/")
        return series, seed
    return None if label.startswith("_") or not label else (label, "")


def _ends(band: PolyCollection) -> dict[float, tuple[float, float]]:
    """x → the band's lower and upper end there."""
    found: dict[float, list[float]] = {}
    for path in band.get_paths():
        for x, y in np.asarray(path.vertices):
            found.setdefault(float(x), []).append(float(y))
    return {x: (min(ys), max(ys)) for x, ys in found.items()}


def _places(axes: Axes) -> list[str]:
    """What stands at 0, 1, … across, where that is names; empty where it is numbers."""
    texts = [text.get_text() for text in axes.get_xticklabels()]
    return texts if any(text[:1].isalpha() for text in texts) else []


def _with_errors(
    panel: str, found: tuple[str, str], container: ErrorbarContainer, places: Sequence[str]
) -> Iterator[Point]:
    line, _, bars = container
    segments = [collection.get_segments() for collection in bars]  # across first, then up, where there are any
    across = segments[0] if container.has_xerr else None
    up = segments[-1] if container.has_yerr else None
    for number, (x, y) in enumerate(zip(_floats(line.get_xdata()), _floats(line.get_ydata()), strict=True)):
        low, high = _floats(up[number][:, 1]) if up else (None, None)
        x_low, x_high = _floats(across[number][:, 0]) if across else (None, None)
        yield Point(panel, *found, places[round(x)] if places else x, y, low, high, x_low, x_high)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in getattr(values, "flat", values)]
