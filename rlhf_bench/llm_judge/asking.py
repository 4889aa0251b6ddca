"""Asks a judge many questions side by side, each within bounds, and gives up in time where it cannot answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx

from rlhf_bench.llm_judge.answers import AnswerBook
from rlhf_bench.llm_judge.budget import Budget
from rlhf_bench.llm_judge.endpoint import FATAL, PASSING, Attempt, Endpoint

GIVE_UP_AFTER = 16
"""Questions in a row that failed by what may pass: then the others are not asked either."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often one question is asked in one command: `attempts` where the server failed, `replies` where the model refused or
    gave no verdict. The first pause, doubled after every failure; a server that asks to wait longer than `longest_pause` is
    not waited for."""

    attempts: int = 4
    replies: int = 2
    first_pause: float = 1.0
    longest_pause: float = 60.0


@dataclass
class Outcome:
    """What was asked now: questions that found an answer, and what the others lack, by name, with the last words of each kind.
    `stopped`: why the rest was not asked, if it was not."""

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    stopped: str = ""


class Asker:
    """`questions`: their messages by key, without those that the book answers. `say` gets a line of progress now and then."""

    def __init__(
        self,
        endpoint: Endpoint,
        book: AnswerBook,
        budget: Budget,
        concurrent: int,
        say: Callable[[str], None],
        patience: Patience = Patience(),  # noqa: B008
    ):
        self.endpoint, self.book, self.budget = endpoint, book, budget
        self.concurrent, self.say, self.patience = concurrent, say, patience
        self.outcome = Outcome()
        self._in_a_row = 0

    async def ask(self, questions: Mapping[str, str]) -> Outcome:
        """All of them, `concurrent` at a time."""
        waiting, total = iter(questions.items()), len(questions)

        async def worker(client: httpx.AsyncClient) -> None:
            for key, message in waiting:
                if self.outcome.stopped:
                    self.outcome.failures["not asked"] += 1
                    continue
                await self._question(client, key, message)
                done = self.outcome.answered + self.outcome.failures.total()
                if done % max(1, total // 10) == 0:
                    self.say(f"judge: {done} of {total} questions, {self.outcome.failures.total()} without a verdict")

        async with self.endpoint.client(self.concurrent) as client:
            workers = [asyncio.create_task(worker(client)) for _ in range(min(self.concurrent, total))]
            try:
                await asyncio.gather(*workers)
            finally:
                for one in workers:
                    one.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.outcome

    async def _question(self, client: httpx.AsyncClient, key: str, message: str) -> None:
        """Ask until there is a verdict, or patience or budget is at its end."""
        tried: Counter[bool] = Counter()  # by whether the server failed, or the model
        pause = self.patience.first_pause
        while True:
            attempt = await self._attempt(client, key, message)
            if attempt is None:
                self._fail("not asked", "")
                self.outcome.stopped = self.outcome.stopped or "the budget is spent"
                return
            if attempt.failure is None:
                self.outcome.answered += 1
                self._in_a_row = 0
                return
            passing = attempt.failure in PASSING
            tried[passing] += 1
            limit = self.patience.attempts if passing else self.patience.replies
            wait = attempt.wait_seconds if attempt.wait_seconds is not None else pause * random.uniform(0.5, 1.0)
            pause *= 2
            ended = attempt.failure in (*FATAL, "rejected") or tried[passing] >= limit
            if ended or wait > self.patience.longest_pause or self.outcome.stopped:
                self._fail(attempt.failure, attempt.said)
                return
            if passing:
                await asyncio.sleep(wait)

    async def _attempt(self, client: httpx.AsyncClient, key: str, message: str) -> Attempt | None:
        """One request, paid for and written down. None where the budget has no room for it."""
        bounds = self.endpoint.most_tokens(message)
        if not await self.budget.reserve(bounds):
            return None
        query = None
        try:
            attempt = await self.endpoint.ask(client, message)
            query = self.book.add(key, attempt, bounds)
            return attempt
        finally:
            await self.budget.settle(bounds, query)

    def _fail(self, failure: str, said: str) -> None:
        self.outcome.failures[failure] += 1
        if said:
            self.outcome.said[failure] = said
        self._in_a_row = self._in_a_row + 1 if failure in (*PASSING, "rejected") else 0
        if failure in FATAL:
            self.outcome.stopped = f"{failure}: {said}"
        elif self._in_a_row >= GIVE_UP_AFTER:
            self.outcome.stopped = f"{GIVE_UP_AFTER} questions in a row failed, the last one: {failure}: {said}"
