"""Numbers as cells and as parts of sentences: a difference, a p value, an estimate, each with its interval."""

from __future__ import annotations

import math

from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.report.format import ABSENT, decimal
from rlhf_bench.results.claims import SCORE, SCORE_AT_EQUAL_KL, PairedComparison

_SCORES = (SCORE, SCORE_AT_EQUAL_KL, "best_score", "drawdown")


def difference_cell(comparison: PairedComparison) -> str:
    """The difference with the interval that is corrected for the family, where there is one."""
    interval = comparison.adjusted.interval if comparison.adjusted else None
    middle = _signed(comparison.difference, comparison.metric)
    if interval is None:
        return middle
    return f"{middle} [{_signed(interval.low, comparison.metric)}, {_signed(interval.high, comparison.metric)}]"


def p_cell(p: float) -> str:
    """A p value to three decimals, never as a plain 0."""
    if math.isnan(p):
        return ABSENT
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def seeds_cell(comparison: PairedComparison) -> str:
    """How many common seeds there are, and which seeds of either arm are not among them."""
    without = [str(seed) for seed in comparison.left_out]
    return f"{len(comparison.seeds)}{f', without {listed(without)}' if without else ''}"


def estimate_cell(value: float, interval: Interval | None, digits: int = 3) -> str:
    """A number with its interval, where it has one."""
    ends = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else ""
    return f"{decimal(value, digits)}{ends}"


def kl_cell(kl: float, error: float) -> str:
    """With its standard error, where that was recorded."""
    return decimal(kl, 2) if math.isnan(error) else f"{decimal(kl, 2)} ± {error:.2f}"


def _signed(value: float, metric: str) -> str:
    """With its sign: scores to three decimals, numbers of any other scale to three digits."""
    if metric in _SCORES or metric.startswith(f"{SCORE}/"):
        return decimal(round(value, 3) + 0.0, sign=True)  # no "-0.000"
    return ABSENT if math.isnan(value) else f"{value:+.3g}"
