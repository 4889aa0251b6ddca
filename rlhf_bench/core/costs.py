"""What work costs: the columns of the ledger, and the phases that are charged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Column = Literal["flops", "generated_tokens", "trained_tokens", "scored_tokens", "judge_queries", "device_seconds"]

COLUMNS: tuple[Column, ...] = get_args(Column)

Phase = Literal[
    "reward_model", "rollout", "scoring", "judging", "measuring", "learning", "sync", "evaluation", "tuning", "shared"
]

UNCHARGED_PHASES: tuple[Phase, ...] = ("evaluation", "tuning", "shared")
"""Charged to no arm: evaluation is not part of training, and all arms start from the same base policy."""


@dataclass(frozen=True)
class Cost:
    """An amount of every column."""

    flops: float = 0.0
    generated_tokens: float = 0.0
    trained_tokens: float = 0.0
    scored_tokens: float = 0.0
    judge_queries: float = 0.0
    device_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in COLUMNS))

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in COLUMNS}
