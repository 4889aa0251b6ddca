"""Which prompts go to which engine, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import ray

from actors.rollout.vllm_engine import Request
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Prompt, Sampling

CALLS_AHEAD = 2
"""Calls that an engine has at a time: while one's answers travel to the driver, the engine is at the next."""

RETURNS_PER_BATCH = 8
"""An engine that is decoding its full number of sequences hands back what has ended when an eighth of them has."""

_Answer = tuple[int, dict[str, Any]]
"""The version of the weights that drew it, and what the engine says of it."""


@dataclass
class EngineQueue:
    """What one engine has been handed and has not answered yet."""

    actor: Any
    number: int
    requests: int = 0
    tokens: int = 0  # of prompts, and of responses at their longest
    # Oldest first: the call, since when, until how many answers.
    calls: deque[tuple[ray.ObjectRef, float, int]] = field(default_factory=deque)
    # For another engine in its place: what this one was handed in every call, and which of it has been answered.
    history: list[tuple[dict[int, Request], int]] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)

    def advance(self, requests: dict[int, Request], sampling: Sampling, eos_id: int, until: int) -> None:
        ref = self.actor.advance.remote(requests, sampling, eos_id, until)
        self.calls.append((ref, perf_counter(), until))

    def do_again(self, actor: Any, sampling: Sampling, eos_id: int) -> None:
        """Have another engine do all that this one was asked for, call by call: it draws what the first one drew, since
        what an engine draws hangs, in the last bits, on what it draws beside it. What is known already is not taken twice."""
        self.actor = actor
        self.calls.clear()
        for requests, until in self.history:
            self.advance(requests, sampling, eos_id, until)

    @property
    def promised(self) -> int:
        """So many of its requests will have been answered with the calls that are under way."""
        return sum(until for _, _, until in self.calls)


@dataclass(frozen=True)
class _Probe:
    """A fixed response, and what the learner says of its log-probs under the weights of that version."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    expected: Sequence[float]
    tolerance: float
    version: int

    def gap(self, found: Sequence[float]) -> float:
        """The largest one, in nats. Raises RunFailed over the tolerance."""
        gap = max(abs(x - y) for x, y in zip(found, self.expected, strict=True))
        if not gap <= self.tolerance:  # nan fails too
            raise RunFailed(
                f"weight sync: after update {self.version} an engine's log-probs differ from the learner's by {gap:.2g} "
                f"nats, more than placement.sync_tolerance {self.tolerance:.2g}: the engines do not hold the learner's weights"
            )
        return gap


def _numbers(prompt: int, sampling: Sampling) -> range:
    """The numbers of a prompt's requests: one per sample."""
    return range(prompt * sampling.count, (prompt + 1) * sampling.count)


def _tokens(prompt: Prompt, sampling: Sampling) -> int:
    """Of one request, at its longest."""
    return len(prompt.token_ids) + sampling.max_tokens
