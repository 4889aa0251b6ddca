"""The comparison in words: which arm leads, what is settled, and the verdicts on the baseline and the claims."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics.statistics import MINIMUM_SEEDS
from rlhf_bench.report.cells import difference_cell, p_cell, seeds_cell
from rlhf_bench.report.format import quantity
from rlhf_bench.results.claims import PairedComparison
from rlhf_bench.results.standing import Difference, Standing
from rlhf_bench.results.summary import Summary

MAX_NAMED = 12  # arms in one sentence


_AGAINST_BASELINE = {"yes": "better", "no": "worse"}


def verdict(summary: Summary) -> str:
    """Which arm leads at equal compute, over which arms that is settled, and which arms beat the base policy."""
    if summary.standing.leader is None:
        return "No arm finished a seed, so there is nothing to compare."
    sentences = [_leader(summary)]
    if summary.standing.compared:
        sentences += [*_lead(summary.standing), _against_base(summary), *_greedily(summary)]
    else:
        sentences.append(f"No difference is settled: a test needs {MINIMUM_SEEDS} seeds that both sides finished.")
    sentences += _sharper(summary)
    if missing := [arm.name for arm in summary.arms if not arm.finished]:
        sentences.append(f"{listed(missing)} finished no seed and {_is(missing)} not ranked.")
    return " ".join(sentences)


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


def _leader(summary: Summary) -> str:
    """Who has the highest mean score, and the base policy's beside it."""
    scores = {arm.name: arm.mean for arm in summary.arms if arm.finished}
    best, *rivals = summary.standing.ranking
    budget = f"{quantity(summary.limit, summary.unit)} per seed"
    base = f"the base policy has {summary.base.score:.3f}"
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
    if one.mean == 0:
        return "which has the same mean"
    if one.wants_prompts:
        return "more seeds would not settle it; more held-out prompts might"
    if one.more_seeds is None:
        return "no number of seeds in sight would settle it"
    return f"about {one.more_seeds} more seed{'s' * (one.more_seeds != 1)} would settle it"


def _against_base(summary: Summary) -> str:
    found, base = summary.standing.against_base, f"the base policy's {summary.base.score:.3f}"
    above, below, unsettled = (
        [one.arm for one in found if one.above],
        [one.arm for one in found if one.below],
        [one.arm for one in found if not one.settled],
    )
    everyone = "Every arm" if len(found) == len(summary.arms) else "Every ranked arm"
    if len(above) == len(found):
        return f"{everyone if len(found) > 1 else above[0]} beat {base}."
    if len(unsettled) == len(found) > 1:
        return f"No arm's difference from {base} is settled."
    parts = [f"{_named(above)} beat {base}"] if above else []
    if below:
        parts.append(f"{_named(below)} ended below {'it' if parts else base}")
    if unsettled:
        parts.append(f"the difference from {'it' if parts else base} is not settled for {_named(unsettled)}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper() if not (above or below) else sentence[0]}{sentence[1:]}."


def _greedily(summary: Summary) -> Iterator[str]:
    """Whose gain over the base policy is not seen in the most likely tokens: then sharpness, and not skill, may be all of it."""
    gained = [one.arm for one in summary.standing.against_base if one.above]
    greedy = {one.arm: one for one in summary.greedy_standing.against_base}
    scores = {arm.name: arm.greedy for arm in summary.arms}
    fell = [f"{arm} ({scores[arm]:.3f})" for arm in gained if arm in greedy and greedy[arm].below]
    vanished = [f"{arm} ({scores[arm]:.3f})" for arm in gained if arm in greedy and not greedy[arm].settled]
    base = f"the base policy's {summary.base.greedy:.3f}"
    if vanished:
        yield f"Scored greedily, the gain of {_named(vanished)} vanishes: the difference from {base} is not settled."
    if fell:
        yield f"Scored greedily, {_named(fell)} ended below {base}."


def _sharper(summary: Summary) -> Iterator[str]:
    """Whether the base policy, sampled at a lower temperature and not trained, scores as high as the arms."""
    if not summary.base_at or summary.standing.leader is None:
        return
    best = max(summary.base_at, key=lambda base: base.score)
    means = {arm.name: arm.mean for arm in summary.arms if arm.finished}
    above = [arm for arm in summary.standing.ranking if means[arm] > best.score]
    if len(above) < len(means):
        over = f"only the mean{'s' * (len(above) > 1)} of {_named(above)}" if above else "no arm's mean"
        higher = "are" if len(above) > 1 else "is"
        yield (
            f"Without any training, the base policy at temperature {best.temperature:g} scores {best.score:.3f}: {over} {higher} "
            "higher, and no test compares them with it."
        )


def _named(arms: list[str]) -> str:
    """As prose; of very many, the first ones and how many more there are."""
    if len(arms) <= MAX_NAMED:
        return listed(arms)
    return f"{', '.join(arms[:MAX_NAMED])} and {len(arms) - MAX_NAMED} more"


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
