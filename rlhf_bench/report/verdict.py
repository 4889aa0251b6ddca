"""The comparison in words: one verdict, and the notes a careful reader needs beside the table."""

from __future__ import annotations

from rlhf_bench.report.summary import ArmResult, Summary
from rlhf_bench.report.text import listed, quantity

FEW_SEEDS = 5
UNDERSPENT = 0.9

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
    short = [arm for arm in finished if arm.spent(summary.unit) < UNDERSPENT * summary.limit]
    if short:
        spent = listed([f"{arm.name} {arm.spent(summary.unit) / summary.limit:.0%}" for arm in short])
        lines.append(f"Compute is not equal: the budget's share that was spent is {spent}.")
    return lines


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
    if len(finished) == 1:
        said = f"It did not beat {base}" if below else f"It beat {base}"
    elif len(below) == len(finished):
        said = f"No {arm} beat {base}"
    elif below:
        said = f"{listed(below)} did not beat {base}"
    else:
        said = f"Every {arm} beat {base}"
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
