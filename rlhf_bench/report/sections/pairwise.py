"""Every arm against every other one, in final score: a matrix of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_bench.core.text import listed
from rlhf_bench.report.cells import difference_cell, p_cell
from rlhf_bench.report.format import ABSENT, decimal
from rlhf_bench.report.plots.style import plotted
from rlhf_bench.results.claims import SCORE, PairedComparison, compare
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary

MAX_ARMS = 12
"""Twelve arms are 66 comparisons: corrected for more, no difference that few seeds can show would be left."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Row's arm less column's: the difference with its interval, P(row's run beats column's), p; and which it is.

    `kind` is "more", "less" or "open"; for the diagonal everything is empty.
    """

    difference: str = ""
    improvement: str = ""
    p: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`cells[i][j]` compares `arms[i]` with `arms[j]`. `seen` says what is settled, `left_out` which arms take no part."""

    arms: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    seen: str
    left_out: str


def pairwise(recorded: RecordedComparison, summary: Summary) -> Matrix:
    """All pairs of finished arms, corrected by Holm as the verdict is; without the copies that a sweep made."""
    able = [arm.name for arm in plotted(recorded, summary).arms if arm.finished]
    arms = able[:MAX_ARMS]
    wanted = [(one, other, SCORE) for i, one in enumerate(arms) for other in arms[i + 1 :]]
    # As in the verdict: one family of all arms and the base policy, also of those that this table leaves out.
    found = [
        replace(c, adjusted=summary.standing.difference(c.more, c.less).adjusted) for c in compare(recorded, wanted)
    ]
    both = {(c.more, c.less): _cell(c, False) for c in found} | {(c.less, c.more): _cell(c, True) for c in found}
    cells = tuple(tuple(both.get((row, column), Cell()) for column in arms) for row in arms)
    out = []
    if swept := len(summary.arms) - len(plotted(recorded, summary).arms):
        out.append(f"the {swept} copies of arms that the sweep made")
    if len(able) > MAX_ARMS:
        out.append(f"{listed(able[MAX_ARMS:])} ({MAX_ARMS} arms at most)")
    if unfinished := [arm.name for arm in plotted(recorded, summary).arms if not arm.finished]:
        out.append(f"{listed(unfinished)} (no finished seed)")
    return Matrix(tuple(arms), cells, _seen(found, arms), f"Not in this table: {listed(out)}." if out else "")


def _seen(found: Sequence[PairedComparison], arms: Sequence[str]) -> str:
    if len(arms) < 2:
        return "Fewer than two arms finished a seed, so there is nothing to compare."
    settled = [one for one in found if one.verdict in ("yes", "no")]
    if not any(one.adjusted for one in found):
        return (
            f"No difference was tested: {found[0].why[0].lower()}{found[0].why[1:]}"
            if found[0].why
            else "No difference was tested."
        )
    if not settled:
        return f"None of the {len(found)} differences is settled at this budget and number of seeds."
    named = [
        f"{one.more} over {one.less}" if one.verdict == "yes" else f"{one.less} over {one.more}" for one in settled
    ]
    return f"{len(settled)} of {len(found)} differences are settled: {listed(named)}."


def _cell(one: PairedComparison, turned: bool) -> Cell:
    """The comparison as seen from either arm."""
    if one.paired is None:
        return Cell(ABSENT, kind="open")
    adjusted = one.adjusted.interval if one.adjusted else None
    probability = one.improvement.probability if one.improvement else float("nan")
    kind = {"yes": "more", "no": "less"}.get(one.verdict, "open")
    p = p_cell(one.adjusted.p) if one.adjusted else ""
    if not turned:
        return Cell(difference_cell(one), decimal(probability, 2), p, kind)
    difference = decimal(-one.difference, sign=True)
    ends = f" [{-adjusted.high:+.3f}, {-adjusted.low:+.3f}]" if adjusted else ""
    return Cell(difference + ends, decimal(1 - probability, 2), p, {"more": "less", "less": "more"}.get(kind, kind))
