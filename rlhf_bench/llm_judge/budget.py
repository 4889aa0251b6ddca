"""What a judge may cost: a limit of queries and one of money. No request is sent that could exceed either."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from rlhf_bench.llm_judge.answers import Costs, Query

PER = 1e6
"""Prices are per million tokens."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per million tokens of prompts and of replies, in whatever currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / PER

    def total(self, costs: Costs) -> float:
        return self.of(costs.prompt_tokens, costs.completion_tokens)


class Budget:
    """`queries` and `money` may be spent in all, `spent` was before. A request reserves the most that it can cost and settles
    what it did cost."""

    def __init__(self, prices: Prices, spent: Costs, queries: float = math.inf, money: float = math.inf):
        self.prices, self.spent, self.queries, self.money = prices, spent, queries, money
        self._pending = 0
        self._reserved = 0.0
        self._settled = asyncio.Condition()

    async def reserve(self, bounds: tuple[int, int]) -> bool:
        """Whether there is room for one request of at most so many tokens. Waits while pending requests may leave some."""
        most = self.prices.of(*bounds)
        async with self._settled:
            while not self._fits(most):
                if not self._pending:
                    return False
                await self._settled.wait()
            self._pending += 1
            self._reserved += most
            return True

    async def settle(self, bounds: tuple[int, int], query: Query | None) -> None:
        """`query`: what was sent; None where nothing was."""
        async with self._settled:
            self._pending -= 1
            self._reserved -= self.prices.of(*bounds)
            if query is not None:
                self.spent = self.spent.plus(query)
            self._settled.notify_all()

    def _fits(self, most: float) -> bool:
        queries = self.spent.queries + self._pending + 1
        return queries <= self.queries and self.prices.total(self.spent) + self._reserved + most <= self.money
