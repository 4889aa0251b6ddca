"""How the theory figures look, and how they are saved as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from rlhf_bench.core.plot_style import RC

LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
DOTS_PER_INCH = 110
STYLE = RC | {"lines.linewidth": 1.6}


def save(figure: Figure, directory: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg; the same input gives the same files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.png", directory / f"{name}.svg"]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], dpi=DOTS_PER_INCH)
        figure.savefig(paths[1], metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return paths
