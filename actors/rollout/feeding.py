"""Which prompts go to which engine, and when: no engine is idle while another has work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import ray

from actors.monitoring.ray_metrics import queue_depth
from actors.rollout.actor import Advance
from actors.rollout.vllm_engine import Completion, Request
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Prompt, Sampling

CALLS_AHEAD = 2
"""Calls that an engine has at a time: while one's answers travel to the driver, the engine works on the next."""

RETURNS_PER_BATCH = 8
"""An engine that is decoding its full number of sequences returns what has ended when an eighth of them has."""


@dataclass(frozen=True)
class Answer:
    """What an engine has drawn for one request, and the version of the weights that drew it."""

    completion: Completion
    version: int


@dataclass(frozen=True)
class PendingCall:
    """A call to `RolloutActor.advance` that is not answered yet."""

    ref: ray.ObjectRef
    began: float  # `perf_counter`
    until: int  # so many answers it will give


@dataclass
class EngineQueue:
    """What one engine has been handed and has not answered yet."""

    actor: Any
    number: int
    sampling: Sampling
    end_ids: frozenset[int]
    requests: int = 0
    tokens: int = 0  # of prompts, and of responses at their longest
    calls: deque[PendingCall] = field(default_factory=deque)  # oldest first
    # For another engine in its place: requests and `until` of every call, and the requests that have been answered.
    history: list[tuple[dict[int, Request], int]] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)

    def advance(self, requests: dict[int, Request], until: int) -> None:
        self.history.append((requests, until))
        self._call(requests, until)

    def replay(self, actor: Any) -> None:
        """Make every call again, to another engine. It draws what the first one drew only if it draws the same requests side
        by side: the last bits of a number depend on what is in the batch. What is known already is not taken twice."""
        self.actor = actor
        self.calls.clear()
        for requests, until in self.history:
            self._call(requests, until)

    def _call(self, requests: dict[int, Request], until: int) -> None:
        ref = self.actor.advance.remote(requests, self.sampling, self.end_ids, until)
        self.calls.append(PendingCall(ref, perf_counter(), until))

    @property
    def wants_call(self) -> bool:
        """Whether the pending calls leave requests unanswered, and another one may be made."""
        return sum(call.until for call in self.calls) < self.requests and len(self.calls) < CALLS_AHEAD


class Feeder:
    """Draws `sampling.count` samples for each prompt, in the order of `chunks` (lists of prompt indices)."""

    def __init__(
        self,
        actors: Sequence[Any],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        chunks: Sequence[Sequence[int]],
        *,
        end_ids: frozenset[int],
        concurrent_requests: int,
        engine_time: EngineTime,
        bring_up: Callable[[int, Exception], Any],
    ):
        """`bring_up` gives another engine in a lost one's place, by its number and the error."""
        self.prompts, self.sampling = prompts, sampling
        self.engine_time, self.bring_up = engine_time, bring_up
        self.engines = [EngineQueue(actor, i, sampling, end_ids) for i, actor in enumerate(actors)]
        self.waiting = deque(self._portions(chunks))
        self.few = max(1, concurrent_requests // RETURNS_PER_BATCH)
        self.max_requests = concurrent_requests + self.few  # of an engine
        self.max_in_chunk = max(map(len, chunks), default=0) * sampling.count

    def _portions(self, chunks: Sequence[Sequence[int]]) -> Iterator[tuple[Prompt, range]]:
        """A prompt, and numbers of requests for it that go to one engine."""
        # All samples of a prompt to one engine, which computes the prompt once; unless there are more engines than that.
        count = self.sampling.count
        share = min(count, max(1, len(self.prompts) * count // len(self.engines)))
        for i in (i for chunk in chunks for i in chunk):
            for at in range(0, count, share):
                yield self.prompts[i], request_numbers(i, self.sampling)[at : at + share]

    def answers(self) -> Iterator[tuple[dict[int, Answer], float]]:
        """Answers by request number as they come, and the seconds that an engine has worked on them."""
        try:
            self._hand_out()
            while any(e.requests for e in self.engines):
                answered = self._collect()
                for engine, found in answered:
                    engine.requests -= len(found.completions)
                    engine.tokens -= sum(self._tokens(n) for n in found.completions)
                queue_depth("rollout", sum(len(numbers) for _, numbers in self.waiting) + self._handed_out)
                self._hand_out()  # before the answers are used, so that no engine waits for that
                for _, found in answered:
                    yield {n: Answer(c, found.version) for n, c in found.completions.items()}, found.seconds
        finally:
            for engine in self.engines:
                if engine.requests:  # the caller has stopped early
                    engine.actor.abandon.remote()

    @property
    def _handed_out(self) -> int:
        return sum(engine.requests for engine in self.engines)

    def _tokens(self, number: int) -> int:
        """Of one request, at its longest."""
        return len(self.prompts[number // self.sampling.count].token_ids) + self.sampling.max_tokens

    def _hand_out(self) -> None:
        """Give requests of one prompt at a time to the engine with the fewest tokens left; call every engine with work."""
        new: dict[int, dict[int, Request]] = {engine.number: {} for engine in self.engines}
        while self.waiting and (free := [e for e in self.engines if e.requests < self.max_requests]):
            engine = min(free, key=lambda e: (e.tokens, e.number))
            prompt, numbers = self.waiting.popleft()
            new[engine.number] |= {n: (prompt.token_ids, self.sampling.seed * 1_000_003 + n) for n in numbers}
            engine.requests += len(numbers)
            engine.tokens += sum(self._tokens(n) for n in numbers)
        until = self.few if self.waiting else self.max_in_chunk
        for engine in self.engines:
            if new[engine.number]:
                engine.advance(new[engine.number], until)
            while engine.wants_call:
                engine.advance({}, until)

    def _collect(self) -> list[tuple[EngineQueue, Advance]]:
        """What every engine gave whose oldest call is done; waits for one. A lost engine is replaced."""
        asked = {engine.calls[0].ref: engine for engine in self.engines if engine.calls}
        self.engine_time.during("rollout", ray.wait, list(asked))
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        found = []
        for engine in (asked[ref] for ref in ready):
            try:
                given: Advance = self.engine_time.during("rollout", ray.get, engine.calls[0].ref)
            except Exception as error:
                engine.replay(self.bring_up(engine.number, error))
                continue
            call = engine.calls.popleft()
            self.engine_time.record_background("rollout", f"rollout {engine.number}", call.began, given.seconds)
            new = {n: c for n, c in given.completions.items() if n not in engine.answered}
            engine.answered |= new.keys()
            if new:  # otherwise it was done before the replay, and is charged already
                found.append((engine, Advance(new, given.version, given.seconds)))
        return found


def cut_into_chunks(prompts: Sequence[Prompt], sampling: Sampling, max_tokens: int) -> list[list[int]]:
    """Indices of prompts, longest first, cut where a chunk would pass `max_tokens`: prompts, and samples at their longest."""
    tokens = [len(p.token_ids) + sampling.count * sampling.max_tokens for p in prompts]
    chunks: list[list[int]] = []
    room = 0
    for i in sorted(range(len(prompts)), key=lambda i: (-tokens[i], i)):
        if not chunks or tokens[i] > room:
            chunks.append([])
            room = max_tokens
        chunks[-1].append(i)
        room -= tokens[i]
    return chunks


def request_numbers(prompt: int, sampling: Sampling) -> range:
    """Of the requests for a prompt, by its index: one per sample."""
    return range(prompt * sampling.count, (prompt + 1) * sampling.count)
