"""What language models said of the arms' last responses beside an opponent's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_bench.core.text import listed
from rlhf_bench.report.cells import estimate_cell
from rlhf_bench.report.format import decimal, quantity
from rlhf_bench.report.sections.base import Section, Table, tables_of
from rlhf_bench.report.tables import Row
from rlhf_bench.results.judged import ArmJudged, Judging
from rlhf_bench.results.schema import BASE
from rlhf_bench.results.summary import Summary

ABOUT = (
    "A language model compares an arm's response with an opponent's, in both orders. Win rate: the mean over pairs, where a tie, or "
    "another winner in each order, counts half. At equal length: the win rate had both responses been equally long, by logistic "
    "regression on their difference in length (arXiv 2404.04475). A judge that names the response shown first much more "
    "often than the other one, or seldom agrees with itself in both orders, says little."
)
RARELY_CONSISTENT = 0.5


def judged_sections(summary: Summary) -> tuple[Section, ...]:
    """One section; none where no judge was asked."""
    if not summary.judgings:
        return ()
    found = summary.judgings
    seen = tuple(line for one in found for line in judging_lines(one))
    tables = tables_of(*(Table(f"{_name(one.about)}, against {_opponent(one)}.", _rows(one)) for one in found))
    return (Section("judged", "Judged by a language model", ABOUT, seen, tables=tables),)


def judging_lines(one: Judging) -> Iterable[str]:
    """What one judging says, in sentences; the terminal shows the same."""
    judge, opponent = _name(one.about), _opponent(one)
    for arm in one.arms:
        yield f"{judge}: {_sentence(arm, opponent)}"
    if not one.complete:
        yield f"{judge}, against {opponent}: INCOMPLETE: {_lacks(one)}. The same `rlhf-bench judge` asks for the rest."
    if weak := [arm.arm for arm in one.arms if arm.order.consistent < RARELY_CONSISTENT]:
        yield (
            f"{judge} gives the same verdict in both orders for less than half of the pairs of {listed(weak)}: its win rates say "
            "more about the order than about the responses."
        )
    if agreement := one.about.get("agreement"):
        yield agreement_line(judge, agreement)
    else:
        yield f"{judge}: its agreement with people was not measured; `rlhf-bench judge --agreement FILE` does."
    yield f"{judge}, against {opponent}: {cost_words(one.about['costs'])}."


def agreement_line(judge: str, found: Mapping[str, Any]) -> str:
    """`found`: as in the judging's file."""
    missing = f"; {found['missing']} lack a verdict" if found["missing"] else ""
    if not found["pairs"]:
        return f"{judge} has judged none of {found['with']}{missing}."
    chance = "" if _apart(found["ci95"], 0.5) else " That is not told apart from chance."
    return (
        f"{judge} agrees with people on {_share(found['share'])}{_ends(found['ci95'])} of {found['pairs']} pairs ({found['with']}"
        f"{missing}), where chance gives 50%; Cohen's kappa {decimal(found['kappa'], 2)}{_ends(found['kappa_ci95'], False)}. Over both "
        f"orders {found['same']} pairs have people's outcome, {found['opposite']} the opposite one, {found['undecided']} none. The "
        f"same outcome in both orders: {_share(found['consistent'])}; the response shown first is named in "
        f"{_share(_or_nan(found['first']))} of the verdicts that are no tie.{chance}"
    )


def cost_words(costs: Mapping[str, Any]) -> str:
    money = "" if costs["money"] is None else f", {costs['money']:.4g} in money"
    tokens = (
        f"{quantity(costs['prompt_tokens'])} tokens of prompts and {quantity(costs['completion_tokens'])} of replies"
    )
    return f"{costs['queries']} queries, {costs['answers']} of them answered by a verdict, {tokens}{money}"


def _sentence(arm: ArmJudged, opponent: str) -> str:
    if not arm.prompts:
        return f"{arm.arm} against {opponent}: no prompt has verdicts for every seed."
    if arm.adjusted is None:
        settled = (
            f" {len(arm.seeds)} seeds are too few to test it." if len(arm.seeds) > 1 else " One seed is not tested."
        )
    elif arm.settled:
        settled = f" It {'wins' if arm.win_rate > 0.5 else 'loses'} more often, and that is settled."
    else:
        settled = " That it differs from one half is not settled."
    rate, controlled = _share(arm.win_rate), _share(arm.at_equal_length.win_rate)
    return f"{arm.arm} has a win rate of {rate} against {opponent}, {controlled} at equal length.{settled}"


def _rows(one: Judging) -> list[Row]:
    return [
        {
            "Arm": arm.arm,
            "Win rate [95% interval]": estimate_cell(arm.win_rate, arm.interval),
            "At equal length": estimate_cell(arm.at_equal_length.win_rate, arm.at_equal_length.interval),
            "Wins / ties / losses": f"{_share(arm.wins)} / {_share(arm.ties)} / {_share(arm.losses)}",
            "Same in both orders": _share(arm.order.consistent),
            "First shown is named": _share(arm.order.first),
            "Longer by": f"{arm.extra_length:+.0f} characters" if arm.prompts else "–",
            "Seeds × prompts": f"{len(arm.seeds)} × {arm.prompts}",
        }
        for arm in one.arms
    ]


def _lacks(one: Judging) -> str:
    parts = []
    if one.missing:
        failures = one.about["failures"]
        named = ", ".join(f"{count} {cause}" for cause, count in sorted(failures.items()))
        parts.append(
            f"{one.missing} of {one.contests} pairs lack a verdict" + (f" (questions: {named})" if named else "")
        )
    if one.later:
        parts.append(f"not judged yet: {listed([f'{arm} seed {seed}' for arm, seed in one.later])}")
    if one.about["stopped"]:
        parts.append(str(one.about["stopped"]))
    return "; ".join(parts)


def _name(about: Mapping[str, Any]) -> str:
    return str(about["model"])


def _opponent(one: Judging) -> str:
    return {BASE: "the base policy", "reference": "the reference answers"}.get(one.against, one.against)


def _share(value: float) -> str:
    return decimal(value) if math.isnan(value) else f"{value:.1%}"


def _ends(ends: Any, percent: bool = True) -> str:
    if not ends:
        return ""
    return f" [{ends[0]:.1%}, {ends[1]:.1%}]" if percent else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def _apart(ends: Any, value: float) -> bool:
    return bool(ends) and not ends[0] <= value <= ends[1]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
