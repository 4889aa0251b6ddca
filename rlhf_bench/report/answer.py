"""The answer in six facts, which stand first in the report: who leads, how sure that is, what was gained, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_bench.core.text import listed
from rlhf_bench.report.cells import estimate_cell, kl_cell
from rlhf_bench.report.format import decimal, quantity
from rlhf_bench.results.standing import Difference, Standing
from rlhf_bench.results.summary import ArmResult, Summary

MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: str
    about: str


def answer(summary: Summary) -> list[Fact]:
    """Empty where no arm has finished a seed."""
    return list(_facts(summary)) if summary.standing.leader is not None else []


def _facts(summary: Summary) -> Iterator[Fact]:
    leader = next(arm for arm in summary.arms if arm.name == summary.standing.leader)
    yield Fact("Highest mean score", leader.name, f"{estimate_cell(leader.mean, leader.interval)} on held-out prompts")
    yield _settled(summary.standing)
    base = f"the base policy has {summary.base.score:.3f}"
    yield _gain("Gain over the base policy", leader.mean - summary.base.score, summary.standing, base)
    greedy = f"the base policy has {decimal(summary.base.greedy)}"
    yield _gain(
        "The same, most likely tokens", leader.greedy - summary.base.greedy, summary.greedy_standing, greedy, leader
    )
    kl = f"{kl_cell(leader.kl, leader.kl_error)} nats" if math.isfinite(leader.kl) else decimal(leader.kl)
    yield Fact("KL to the base policy", kl, "a response, with its standard error: how far the leader moved")
    yield Fact("Budget per seed", quantity(summary.limit, summary.unit), _spent(summary))


def _settled(standing: Standing) -> Fact:
    settled = [one.against for one in standing.over if one.above]
    if not standing.over:
        return Fact("Lead settled over", "nobody", "it is the only arm")
    if len(settled) == len(standing.over):
        return Fact(
            "Lead settled over", "every other arm" if len(settled) > 1 else settled[0], "paired, corrected by Holm"
        )
    value = "nobody yet" if not settled else _names(settled)
    return Fact("Lead settled over", value, _outlook([one for one in standing.over if not one.above]))


def _outlook(still_open: list[Difference]) -> str:
    """What would settle all that is open."""
    if any(one.adjusted is None for one in still_open):
        return "a test needs more seeds that both sides finished"
    needed = [one.more_seeds for one in still_open if one.more_seeds]
    if len(needed) < len(still_open):
        hopeless = [one.against for one in still_open if not one.more_seeds]
        return f"no number of seeds in sight would settle it over {_names(hopeless)}"
    return f"about {max(needed)} more seed{'s' * (max(needed) != 1)} would settle it over all others"


def _gain(name: str, gain: float, standing: Standing, base: str, leader: ArmResult | None = None) -> Fact:
    """Of the leader in sampled score. `leader` where `standing` has another one, perhaps."""
    arm = standing.leader if leader is None else leader.name
    found = next((one for one in standing.against_base if one.arm == arm), None)
    if found is None or found.adjusted is None:
        return Fact(name, decimal(gain, sign=True), f"{base}; not tested")
    return Fact(name, decimal(gain, sign=True), f"{base}; {'settled' if found.settled else 'not settled'}")


def _spent(summary: Summary) -> str:
    shares = [arm.spent(summary.unit) / summary.limit for arm in summary.arms if arm.finished]
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return f"arms spent {low} of it" if low == high else f"arms spent {low} to {high} of it"


def _names(arms: list[str]) -> str:
    return listed(arms) if len(arms) <= MOST_NAMED else f"{len(arms)} of the other arms"
