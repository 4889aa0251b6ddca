"""The notes that a careful reader needs beside the table: how intervals were found, and what limits the comparison."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_bench.core.text import listed
from rlhf_bench.core.types import MUCH_CUT_OFF
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.report.cells import estimate_cell
from rlhf_bench.results.claims import PairedComparison
from rlhf_bench.results.summary import ArmResult, Summary

FEW_SEEDS = 5


UNDERSPENT = 0.9

_INTERVALS = {
    "crossed": "over seeds and held-out prompts",
    "t": "Student's t over the seeds alone, since the run recorded no score of single prompts",
    "degenerate": "zero width, because all seeds scored the same",
    None: "one seed: no interval",
}


def notes(summary: Summary) -> list[str]:
    """How the intervals were found, and what limits the comparison; each a short sentence."""
    finished = [arm for arm in summary.arms if arm.finished]
    found = []
    for method, text in _INTERVALS.items():
        if names := [arm.name for arm in finished if (arm.interval.method if arm.interval else None) == method]:
            found.append(f"{'all arms' if len(names) == len(finished) else listed(names)}: {text}")
    lines = [f"95% intervals: {'; '.join(found)}."] if found else []
    if summary.standing.compared:
        lines.append(
            f"A difference in score is settled where its interval, {_paired_by(summary)} and corrected by Holm for the "
            f"{summary.standing.compared} differences between arms and with the base policy, leaves out 0."
        )
    lines += _below_base(summary)
    lines += [_unfinished(arm) for arm in summary.arms if len(arm.finished) < len(arm.seeds) or not arm.seeds]
    if skipping := [f"{arm.name} {arm.skipped_updates}" for arm in summary.arms if arm.skipped_updates]:
        lines.append(f"Updates skipped, since their numbers were not finite: {listed(skipping)}.")
    if cut_off := [f"{arm.name} {arm.cut_off:.0%}" for arm in finished if arm.cut_off >= MUCH_CUT_OFF]:
        lines.append(
            f"Responses that reached max_response_tokens, and score 0, at the last evaluation: {listed(cut_off)}; the comparison is "
            "then also one of lengths."
        )
    short = [arm for arm in finished if arm.spent(summary.unit) < UNDERSPENT * summary.limit]
    if short:
        spent = listed([f"{arm.name} {arm.spent(summary.unit) / summary.limit:.0%}" for arm in short])
        lines.append(f"Compute is not equal: the budget's share that was spent is {spent}.")
    return [*lines, *_equal_kl_notes(summary), *_paired_notes(summary)]


def _below_base(summary: Summary) -> list[str]:
    """By means alone: what is settled, the verdict says."""
    base, found = summary.base, list[str]()
    for arm in (arm for arm in summary.arms if arm.finished):
        below = [
            f"{how} ({mean:.3f} against {of_base:.3f})"
            for how, mean, of_base in (("sampled", arm.mean, base.score), ("greedy", arm.greedy, base.greedy))
            if mean < of_base  # never where one is not known, NaN
        ]
        if below:
            found.append(f"{arm.name} {' and '.join(below)}")
    return [f"Means below the base policy's: {'; '.join(found)}."] if found else []


def _unfinished(arm: ArmResult) -> str:
    if not arm.seeds:
        return f"{arm.name}: no seed was run."
    lost = listed([f"seed {seed.seed} ({seed.status})" for seed in arm.seeds if not seed.done])
    rest = "no score can be given" if not arm.finished else "its score is over the seeds that finished"
    return f"{arm.name}: {lost} did not finish; {rest}."


def _equal_kl_notes(summary: Summary) -> list[str]:
    at = summary.equal_kl
    if sum(bool(arm.finished) for arm in summary.arms) < 2:
        return []
    if at.why:
        return [f"No comparison at equal KL: {at.why}"]
    told = []
    for arm, scores in at.scores.items():
        values = list(scores.values())
        told.append(f"{arm} {estimate_cell(statistics.mean(values), statistics.share_interval(values))}")
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
        "Differences are paired, with 95% interval and p, corrected by Holm for the number of "
        f"comparisons: {' and, apart, '.join(families)}.",
    ]
    if fewest <= FEW_SEEDS:
        lines.append(f"The exact sign-flip test's p, with {fewest} seeds, cannot fall below 1/{2 ** (fewest - 1)}.")
    if flat := [f"{one.more} and {one.less}" for one in tested if one.adjusted and _is_flat(one.adjusted.interval)]:
        lines.append(f"Every seed shows the same difference between {'; '.join(dict.fromkeys(flat))}: zero width.")
    return lines


def _paired_by(summary: Summary) -> str:
    """Prompts were recorded of all arms, or of none."""
    by_prompt = any(one.paired.estimate and one.paired.estimate.prompts for one in summary.standing.against_base)
    return "paired by seed and prompt" if by_prompt else "paired by seed"


def _is_flat(interval: Interval | None) -> bool:
    return interval is not None and interval.method == "degenerate"


def _tested(family: Iterable[PairedComparison]) -> list[PairedComparison]:
    return [one for one in family if one.adjusted]
