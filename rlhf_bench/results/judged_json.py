"""The part of `summary.json` that says what language models have judged."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.results.judged import ArmJudged, Judging

Number = float | None
Ends = tuple[float, float] | None


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class JudgeCosts(Closed):
    queries: int = Field(description="requests that were ever sent for these pairs, failed ones too")
    answers: int = Field(description="those that a verdict came of")
    prompt_tokens: int = Field(description="tokens of their prompts")
    completion_tokens: int = Field(description="tokens of their replies")
    money: Number = Field(description="by the prices of the last call; null where it named none")


class JudgedArm(Closed):
    win_rate: Number = Field(description="mean preference for the arm's response, a tie counts half")
    ci95: Ends = Field(description="95% interval, over seeds and prompts")
    ci95_holm: Ends = Field(description="the same, corrected by Holm for the arms; null below three seeds")
    p_holm: Number = Field(description="p that the win rate is one half, corrected alike")
    settled: bool = Field(description="whether the corrected interval leaves out one half")
    length_controlled_win_rate: Number = Field(description="win rate at equal length (arXiv 2404.04475)")
    length_controlled_ci95: Ends = Field(description="95% interval of that, over seeds and prompts")
    length_coefficient: Number = Field(description="logits; above 0 where the judge prefers the longer response")
    wins: Number = Field(description="share of pairs that the arm wins, over both orders")
    ties: Number = Field(description="share that ties, or where each order has another winner")
    losses: Number = Field(description="share that the arm loses")
    order_consistency: Number = Field(description="share of pairs with the same outcome in both orders")
    first_shown: Number = Field(description="of the verdicts that are no tie, those for the response shown first")
    extra_length: Number = Field(description="by how many characters the arm's response is longer, mean")
    prompts: int = Field(description="prompts judged in both orders for every one of its seeds")
    seeds: tuple[int, ...] = Field(description="seeds whose responses were judged")


class JudgingEntry(Closed):
    model: str = Field(description="the judge's name at its server")
    endpoint: str = Field(description="the server's address")
    prompt_sha256: str = Field(description="SHA-256 of the judge's prompt")
    against: str = Field(description="the opponent: base, reference or an arm")
    complete: bool = Field(description="whether every pair of every finished seed has both verdicts")
    pairs: int = Field(description="pairs of responses that were to be judged")
    missing: int = Field(description="those without both verdicts; the same command asks again")
    failures: dict[str, int] = Field(description="of the last call: questions without a verdict, by cause")
    stopped: str = Field(description="why the last call did not ask the rest; empty where it did")
    costs: JudgeCosts
    arms: dict[str, JudgedArm]
    agreement: dict[str, Any] | None = Field(
        description="the judge's agreement with people, where the call named labelled pairs; its keys are those of the judging's "
        "own file"
    )


def judging_entry(found: Judging) -> JudgingEntry:
    about = found.about
    return JudgingEntry(
        model=about["model"],
        endpoint=about["endpoint"],
        prompt_sha256=about["prompt_sha256"],
        against=found.against,
        complete=found.complete,
        pairs=found.contests,
        missing=found.missing,
        failures=dict(about["failures"]),
        stopped=about["stopped"],
        costs=JudgeCosts(**about["costs"]),
        arms={one.arm: _arm(one) for one in found.arms},
        agreement=about.get("agreement"),
    )


def _arm(one: ArmJudged) -> JudgedArm:
    return JudgedArm(
        win_rate=one.win_rate,
        ci95=_ends(one.interval),
        ci95_holm=_ends(one.adjusted.interval if one.adjusted else None),
        p_holm=one.adjusted.p if one.adjusted else None,
        settled=one.settled,
        length_controlled_win_rate=one.at_equal_length.win_rate,
        length_controlled_ci95=_ends(one.at_equal_length.interval),
        length_coefficient=one.at_equal_length.length_coefficient,
        wins=one.wins,
        ties=one.ties,
        losses=one.losses,
        order_consistency=one.order.consistent,
        first_shown=one.order.first,
        extra_length=one.extra_length,
        prompts=one.prompts,
        seeds=one.seeds,
    )


def _ends(interval: Interval | None) -> Ends:
    return None if interval is None or math.isnan(interval.low) else (interval.low, interval.high)
