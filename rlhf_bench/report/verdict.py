"""The comparison in words: the verdicts, and the notes a careful reader needs beside the table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.statistics import Interval
from rlhf_bench.report.format import ABSENT, decimal, quantity
from rlhf_bench.results.claims import SCORE, SCORE_AT_EQUAL_KL, PairedComparison
from rlhf_bench.results.summary import ArmResult, Summary

FEW_SEEDS = 5
UNDERSPENT = 0.9

_SCORES = (SCORE, SCORE_AT_EQUAL_KL, "best_score", "drawdown")
_AGAINST_BASELINE = {"yes": "better", "no": "worse"}

_INTERVALS = {
    "bca": "BCa bootstrap over the seeds",
    "t": "Student's t from two seeds, hence wide",
    "degenerate": "zero width, because all seeds scored the same",
    None: "one seed: no interval",
}


def verdict(summary: Summary) -> str:
    """Which arm did best at equal compute, whether that is settled, and which arms did not beat the base model."""
    finished = sorted((arm for arm in summary.arms if arm.finished), key=lambda arm: arm.mean, reverse=True)
    if not finished:
        return "No arm finished a seed, so there is nothing to compare."
    sentences = [_best(finished, summary), _against_base(finished, summary)]
    if missing := [arm.name for arm in summary.arms if not arm.finished]:
        sentences.append(f"{listed(missing)} finished no seed and {_is(missing)} not ranked.")
    return " ".join(sentences)


def notes(summary: Summary) -> list[str]:
    """How the intervals were found, and what limits the comparison; each a short sentence."""
    finished = [arm for arm in summary.arms if arm.finished]
    found = []
    for method, text in _INTERVALS.items():
        if names := [arm.name for arm in finished if (arm.interval.method if arm.interval else None) == method]:
            found.append(f"{'all arms' if len(names) == len(finished) else listed(names)}: {text}")
    lines = [f"95% intervals: {'; '.join(found)}."] if found else []
    bootstrapped = [len(arm.finished) for arm in finished if arm.interval and arm.interval.method == "bca"]
    if bootstrapped and min(bootstrapped) < FEW_SEEDS:
        lines.append(
            f"With fewer than {FEW_SEEDS} seeds a bootstrap cannot reach beyond the seeds it has seen: "
            "read these intervals as too narrow."
        )
    lines += [_unfinished(arm) for arm in summary.arms if len(arm.finished) < len(arm.seeds) or not arm.seeds]
    if skipping := [f"{arm.name} {arm.skipped_updates}" for arm in summary.arms if arm.skipped_updates]:
        lines.append(f"Updates skipped, since their numbers were not finite: {listed(skipping)}.")
    short = [arm for arm in finished if arm.spent(summary.unit) < UNDERSPENT * summary.limit]
    if short:
        spent = listed([f"{arm.name} {arm.spent(summary.unit) / summary.limit:.0%}" for arm in short])
        lines.append(f"Compute is not equal: the budget's share that was spent is {spent}.")
    return [*lines, *_equal_kl_notes(summary), *_paired_notes(summary)]


def baseline_lines(summary: Summary) -> list[str]:
    """Each arm against the baseline, one line per arm under one heading; empty where the recipe names no baseline."""
    if summary.baseline is None:
        return []
    if summary.baseline not in [arm.name for arm in summary.arms]:
        return [f"Baseline: no arm is called {summary.baseline}, so no arm is compared with it."]
    return [
        f"Against {summary.baseline}, paired by seed:",
        *(
            f"  {one.more}: {_AGAINST_BASELINE.get(one.verdict, one.verdict)} ({_numbers(one)})"
            for one in summary.comparisons
        ),
    ]


def claim_lines(summary: Summary) -> list[str]:
    """Each claim's verdict, one line per claim under one heading; empty where the recipe makes none."""
    lines = [
        f"  {claim.statement}: {claim.verdict} ({_about(claim.comparison)}{_numbers(claim.comparison)})"
        for claim in summary.claims
    ]
    return ["Claims:", *lines] if lines else []


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


def _about(comparison: PairedComparison) -> str:
    if comparison.paired is None:
        return ""
    return f"{comparison.metric} of {comparison.more} minus {comparison.less} "


def _numbers(comparison: PairedComparison) -> str:
    """Difference, interval, p and seeds; or why they are missing."""
    if comparison.paired is None:
        return comparison.why.removesuffix(".")
    if comparison.adjusted is None:
        return f"{difference_cell(comparison)}. {comparison.why.removesuffix('.')}"
    p = p_cell(comparison.adjusted.p)
    return f"{difference_cell(comparison)}, p {p.replace('<', '< ')}, seeds: {seeds_cell(comparison)}"


def _signed(value: float, metric: str) -> str:
    """With its sign: scores to three decimals, numbers of any other scale to three digits."""
    if metric in _SCORES or metric.startswith(f"{SCORE}/"):
        return decimal(round(value, 3) + 0.0, sign=True)  # no "-0.000"
    return ABSENT if math.isnan(value) else f"{value:+.3g}"


def _equal_kl_notes(summary: Summary) -> list[str]:
    at = summary.equal_kl
    if sum(bool(arm.finished) for arm in summary.arms) < 2:
        return []
    if at.why:
        return [f"No comparison at equal KL: {at.why}"]
    told = []
    for arm, scores in at.scores.items():
        values = list(scores.values())
        told.append(f"{arm} {estimate_cell(statistics.mean(values), statistics.confidence_interval(values))}")
    lines = [f"At equal KL ({at.kl:.3g} nats, the most that every seed reached): {', '.join(told)}."]
    if at.left_out:
        lines.append(
            f"{listed(list(at.left_out))} {'has' if len(at.left_out) == 1 else 'have'} no score at equal KL: after the base "
            f"policy, no evaluation was at or below {at.kl:.3g} nats."
        )
    return lines


def _paired_notes(summary: Summary) -> list[str]:
    claimed = [claim.comparison for claim in summary.claims]
    families = [
        f"{len(tested)} {what}"
        for what, family in (("against the baseline", summary.comparisons), ("claimed", claimed))
        if (tested := _tested(family))
    ]
    tested = [*_tested(summary.comparisons), *_tested(claimed)]
    if not tested:
        return []
    fewest = min(len(one.seeds) for one in tested)
    lines = [
        "Differences are paired by seed, with Student's 95% interval and p, corrected by Holm for the number of "
        f"comparisons: {' and, apart, '.join(families)}.",
    ]
    if fewest <= FEW_SEEDS:
        lines.append(f"The exact sign-flip test's p, with {fewest} seeds, cannot fall below 1/{2 ** (fewest - 1)}.")
    if flat := [f"{one.more} and {one.less}" for one in tested if one.adjusted and _is_flat(one.adjusted.interval)]:
        lines.append(f"Every seed shows the same difference between {'; '.join(dict.fromkeys(flat))}: zero width.")
    return lines


def _is_flat(interval: Interval | None) -> bool:
    return interval is not None and interval.method == "degenerate"


def _tested(family: Iterable[PairedComparison]) -> list[PairedComparison]:
    return [one for one in family if one.adjusted]


def _best(finished: list[ArmResult], summary: Summary) -> str:
    best, rivals = finished[0], finished[1:]
    budget = f"{quantity(summary.limit, summary.unit)} per seed"
    if not rivals:
        return f"{best.name} is the only arm with a finished seed: it scored {best.mean:.3f} within {budget}."
    if tied := [arm.name for arm in rivals if arm.mean == best.mean]:
        return f"At equal compute ({budget}), {listed([best.name, *tied])} share the best score, {best.mean:.3f}."
    opening = f"At equal compute ({budget}), {best.name} scored best: {best.mean:.3f} on held-out prompts"
    if best.interval is None:
        return f"{opening}, but with one seed it has no interval, so its lead is not settled."
    close = [arm.name for arm in rivals if arm.interval and arm.interval.overlaps(best.interval)]
    bare = [arm.name for arm in rivals if arm.interval is None]
    doubts = [f"its 95% interval overlaps {_possessive(close)}"] if close else []
    doubts += [f"{listed(bare)} {'has' if len(bare) == 1 else 'have'} one seed and no interval"] if bare else []
    if doubts:
        return f"{opening}, but {' and '.join(doubts)}, so that lead is not settled."
    return f"{opening}, and its 95% interval lies above every other arm's."


def _against_base(finished: list[ArmResult], summary: Summary) -> str:
    base = f"the base model's {summary.base_score:.3f}"
    below = [arm.name for arm in finished if arm.mean <= summary.base_score]
    # A base score inside the interval of an arm above it: better on average, and not settled.
    unsettled = [
        arm.name
        for arm in finished
        if arm.mean > summary.base_score and arm.interval and arm.interval.contains(summary.base_score)
    ]
    arm = "arm" if len(finished) == len(summary.arms) else "ranked arm"
    if len(unsettled) == len(finished) > 1:
        return f"All lie above {base} on average, but every interval includes it, so no {arm} beat it for certain."
    if len(finished) == 1:
        said = f"It did not beat {base}" if below else f"It beat {base}"
    elif len(below) == len(finished):
        said = f"No {arm} beat {base}"
    elif below:
        said = f"{listed(below)} did not beat {base}"
    else:
        said = f"Every {arm} lies above {base}" if unsettled else f"Every {arm} beat {base}"
    if unsettled:
        includes = "the interval includes" if len(unsettled) == 1 else "the intervals include"
        said += f", and for {listed(unsettled)}, above it on average, {includes} it"
    return f"{said}."


def _unfinished(arm: ArmResult) -> str:
    if not arm.seeds:
        return f"{arm.name}: no seed was run."
    lost = listed([f"seed {seed.seed} ({seed.status})" for seed in arm.seeds if not seed.done])
    rest = "no score can be given" if not arm.finished else "its score is over the seeds that finished"
    return f"{arm.name}: {lost} did not finish; {rest}."


def _possessive(names: list[str]) -> str:
    return f"that of {listed(names)}" if len(names) == 1 else f"those of {listed(names)}"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
