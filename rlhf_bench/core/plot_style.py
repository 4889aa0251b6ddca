"""How all figures look: Okabe and Ito's palette, which colour-blind readers can tell apart, and Matplotlib's settings."""

from __future__ import annotations

from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-bench",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}
"""The same input gives the same SVG, with its text as text."""
