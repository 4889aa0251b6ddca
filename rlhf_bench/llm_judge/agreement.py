"""How far a judge agrees with people, as numbers for a record."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rlhf_bench.diagnostics.preferences import agreement, order_effect
from rlhf_bench.llm_judge.answers import Costs
from rlhf_bench.llm_judge.budget import Prices
from rlhf_bench.llm_judge.labels import Labelled
from rlhf_bench.llm_judge.session import Judge


def measured_agreement(judge: Judge, labelled: Labelled, prices: Prices | None) -> dict[str, Any]:
    """Of the labelled pairs that the judge has judged in both orders; the keys are those of a judging's file."""
    found = [judge.judged(contest) for contest in labelled.contests]
    both = [
        (one.preference, label) for one, label in zip(found, labelled.labels, strict=True) if _complete(one.preference)
    ]
    about = {
        "with": labelled.note,
        "pairs": len(both),
        "missing": len(found) - len(both),
        "costs": cost_record(judge.costs(labelled.contests), prices),
    }
    if not both:
        return about
    measured, order = agreement(*zip(*both, strict=True)), order_effect(found)
    numbers = {key: value for key, value in asdict(measured).items() if not key.endswith("interval")}
    return about | numbers | {
        "ci95": [measured.interval.low, measured.interval.high] if measured.interval else None,
        "kappa_ci95": [measured.kappa_interval.low, measured.kappa_interval.high] if measured.kappa_interval else None,
        "consistent": order.consistent,
        "first": None if math.isnan(order.first) else order.first,
    }  # fmt: skip


def cost_record(costs: Costs, prices: Prices | None) -> dict[str, Any]:
    return asdict(costs) | {"money": None if prices is None else prices.total(costs)}


def _complete(preference: float) -> bool:
    return not math.isnan(preference)
