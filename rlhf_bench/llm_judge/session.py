"""From contests to verdicts: both orders of each, asked once, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_bench.core.contests import Contest, Judged
from rlhf_bench.llm_judge.answers import AnswerBook, Costs, question_key
from rlhf_bench.llm_judge.asking import Asker, Outcome, Patience
from rlhf_bench.llm_judge.budget import Budget, Prices
from rlhf_bench.llm_judge.endpoint import Endpoint
from rlhf_bench.llm_judge.event_loop import run_until_stopped
from rlhf_bench.llm_judge.prompt import JudgePrompt

TIE = Judged("tie", "tie")


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent on a set of questions in all, by this command and earlier ones; and how many requests are in flight."""

    queries: float = math.inf
    money: float = math.inf
    prices: Prices = Prices()
    concurrent: int = 32


@dataclass(frozen=True, slots=True)
class Judge:
    """A model behind a server, with a prompt."""

    endpoint: Endpoint
    prompt: JudgePrompt
    book: AnswerBook

    def ask(
        self,
        contests: Sequence[Contest],
        limits: Limits,
        say: Callable[[str], None],
        patience: Patience = Patience(),  # noqa: B008
    ) -> Outcome:
        """Ask what the book does not answer, in the contests' order. What then is missing, the outcome names."""
        asked = {key: message for contest in contests for key, message in self._questions(contest)}
        left = {key: message for key, message in asked.items() if self.book.verdict(key) is None}
        budget = Budget(limits.prices, self.book.costs(asked), limits.queries, limits.money)
        say(f"judge: {len(asked)} questions, {len(asked) - len(left)} of them answered before")
        return run_until_stopped(Asker(self.endpoint, self.book, budget, limits.concurrent, say, patience).ask(left))

    def judged(self, contest: Contest) -> Judged:
        """What the book says. Two equal responses tie, and nobody is asked."""
        if contest.own == contest.other:
            return TIE
        return Judged(*(self.book.verdict(key) for key, _ in self._questions(contest)))

    def costs(self, contests: Sequence[Contest]) -> Costs:
        """Of all that was ever asked about these contests, as if nothing of it came from the cache."""
        return self.book.costs(key for contest in contests for key, _ in self._questions(contest))

    def _questions(self, contest: Contest) -> list[tuple[str, str]]:
        """Key and message of both orders; none where there is nothing to ask."""
        if contest.own == contest.other:
            return []
        messages = (self.prompt.message(contest, own_first) for own_first in (True, False))
        return [(question_key(self.endpoint.body(message)), message) for message in messages]
