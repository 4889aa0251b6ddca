"""The comparison in words: the verdicts, and the notes a careful reader needs beside the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.statistics import MINIMUM_SEEDS, Interval
from rlhf_bench.report.format import ABSENT, decimal, quantity
from rlhf_bench.results.claims import SCORE, SCORE_AT_EQUAL_KL, PairedComparison
from rlhf_bench.results.standing import Difference, Standing
from rlhf_bench.results.summary import ArmResult, Summary

FEW_SEEDS = 5
UNDERSPENT = 0.9
MAX_NAMED = 12  # arms in one sentence

_SCORES = (SCORE, SCORE_AT_EQUAL_KL, "best_score", "drawdown")
_AGAINST_BASELINE = {"yes": "better", "no": "worse"}

_INTERVALS = {
    "t": "Student's t over the seeds",
    "degenerate": "zero width, because all seeds scored the same",
    None: "one seed: no interval",
}


def verdict(summary: Summary) -> str:
    """Which arm leads at equal compute, over which arms that is settled, and which arms beat the base policy."""
    if summary.standing.leader is None:
        return "No arm finished a seed, so there is nothing to compare."
    sentences = [_leader(summary)]
    if summary.standing.compared:
        sentences += [*_lead(summary.standing), _against_base(summary)]
    else:
        sentences.append(f"No difference is settled: a test needs {MINIMUM_SEEDS} seeds that both sides finished.")
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
    if summary.standing.compared:
        lines.append(
            "A difference in score is settled where Student's interval of the seeds that both share, corrected by Holm for the "
            f"{summary.standing.compared} differences between arms and with the base policy, leaves out 0."
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


def _leader(summary: Summary) -> str:
    """Who has the highest mean score, and the base policy's beside it."""
    scores = {arm.name: arm.mean for arm in summary.arms if arm.finished}
    best, *rivals = summary.standing.ranking
    budget = f"{quantity(summary.limit, summary.unit)} per seed"
    base = f"the base policy has {summary.base_score:.3f}"
    if not rivals:
        return f"{best} is the only arm with a finished seed: it scored {scores[best]:.3f} within {budget}; {base}."
    tied = [best, *(arm for arm in rivals if scores[arm] == scores[best])]
    has = f"{best} has" if len(tied) == 1 else f"{listed(tied)} share"
    return f"At equal compute ({budget}), {has} the highest mean score, {scores[best]:.3f} on held-out prompts; {base}."


def _lead(standing: Standing) -> Iterator[str]:
    """Over whom the leader's lead is settled, and what would settle the rest."""
    settled = [one for one in standing.over if one.above]
    if standing.over and len(settled) == len(standing.over):
        yield f"That lead is settled over {'every other arm' if len(settled) > 1 else settled[0].against}."
        return
    if settled:
        yield f"That lead is settled over {_named([one.against for one in settled])}."
    if open_ones := [one for one in standing.over if not one.above]:
        yield f"{'It' if settled else 'That lead'} is not settled over {_named([f'{one.against} ({_outlook(one)})' for one in open_ones])}."


def _outlook(one: Difference) -> str:
    """What would settle a difference."""
    if one.adjusted is None:
        return f"{one.seeds} common seed{'s' * (one.seeds != 1)}, and a test needs {MINIMUM_SEEDS}"
    if one.more_seeds is None:
        return "no number of seeds in sight would settle it"
    return f"about {one.more_seeds} more seed{'s' * (one.more_seeds != 1)} would settle it"


def _against_base(summary: Summary) -> str:
    found, base = summary.standing.against_base, f"the base policy's {summary.base_score:.3f}"
    above, below, unsettled = (
        [one.arm for one in found if one.above],
        [one.arm for one in found if one.below],
        [one.arm for one in found if not one.settled],
    )
    everyone = "Every arm" if len(found) == len(summary.arms) else "Every ranked arm"
    if len(above) == len(found):
        return f"{everyone if len(found) > 1 else above[0]} beat {base}."
    parts = [f"{_named(above)} beat {base}" if above else f"No arm beat {base}"]
    if below:
        parts.append(f"{_named(below)} ended below it")
    if unsettled:
        every = "no arm" if len(unsettled) == len(found) > 1 else _named(unsettled)
        parts.append(f"the difference from it is {'' if every == 'no arm' else 'not '}settled for {every}")
    return f"{'; '.join(parts)}."


def _named(arms: list[str]) -> str:
    """As prose; of very many, the first ones and how many more there are."""
    if len(arms) <= MAX_NAMED:
        return listed(arms)
    return f"{', '.join(arms[:MAX_NAMED])} and {len(arms) - MAX_NAMED} more"


def _unfinished(arm: ArmResult) -> str:
    if not arm.seeds:
        return f"{arm.name}: no seed was run."
    lost = listed([f"seed {seed.seed} ({seed.status})" for seed in arm.seeds if not seed.done])
    rest = "no score can be given" if not arm.finished else "its score is over the seeds that finished"
    return f"{arm.name}: {lost} did not finish; {rest}."


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
