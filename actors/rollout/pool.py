"""The rollout pool: N actors, each with a vLLM engine, fed so that none idles while another has work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import ray

from actors.monitoring.ray_metrics import count_tokens, queue_depth
from actors.monitoring.trace import Profiled, noted
from actors.rollout.vllm_engine import Request, VLLMEngine
from actors.supervision.remote_call import answers
from actors.supervision.supervisor import Replace, Watched, no_replacement
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.compute.ledger import Cost
from rlhf_bench.core.types import Group, Prompt, RunFailed, Sample, Sampling
from rlhf_bench.models.flops import ModelShape, generation_flops
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.roles import Part

CALLS_AHEAD = 2
"""Calls that an engine has at a time: while one's answers travel to the driver, the engine is at the next."""
RETURNS_PER_BATCH = 8
"""An engine that is decoding its full number of sequences hands back what has ended when an eighth of them has."""


class RolloutActor(Profiled, Watched):
    """One engine in one process."""

    @noted
    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str, sync_backend: str):
        self.engine = VLLMEngine(path, placement, max_length, dtype, sync_backend)

    @noted
    def advance(
        self, requests: Mapping[int, Request], sampling: Sampling, eos_id: int, until: int
    ) -> tuple[dict[int, dict[str, Any]], int, float]:
        """Take on requests and decode until so many, of these or earlier ones, have ended: what has ended by number, the
        weights' version, and the seconds it took."""
        began = perf_counter()
        self.engine.take_on(requests, sampling.max_tokens, sampling.temperature, eos_id)
        found = self.engine.work(until)
        return found, self.engine.version, perf_counter() - began

    def abandon(self) -> None:
        self.engine.abandon()

    @noted
    def logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> tuple[list[float], int]:
        """With the version of the weights that they are of."""
        return self.engine.logprobs(prompt_ids, response_ids), self.engine.version

    @noted
    def load_weights(self, weights: list[ray.ObjectRef], version: int) -> None:
        self.engine.load(ray.get(weights[0]), version)

    def call_worker(self, method: str, **kwargs: Any) -> None:
        self.engine.call_worker(method, **kwargs)

    def finish_sync(self, version: int) -> None:
        self.engine.finish_sync(version)


_Answer = tuple[int, dict[str, Any]]
"""The version of the weights that drew it, and what the engine says of it."""


@dataclass
class _Engine:
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


class RolloutPool:
    """The driver's handle: prompts in, groups of samples out."""

    def __init__(
        self,
        actors: list[Any],
        placement: RolloutPlacement,
        shape: ModelShape,
        eos_id: int,
        tokens_per_part: int,
        engine_time: EngineTime,
        replace: Replace = no_replacement,
    ):
        """`actors` is shared with the weight sync. `replace` gives an engine that holds the weights which a lost one held."""
        self.engine_time, self.replace = engine_time, replace
        self.actors = actors
        self.devices_each = placement.gpus or placement.cpus
        self.batch = placement.concurrent_requests
        self.shape, self.eos_id, self.tokens_per_part = shape, eos_id, tokens_per_part
        self.probe: _Probe | None = None  # that all engines have passed last

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[list[Group], Cost]:
        """`sampling.count` samples for each prompt, in the prompts' order."""
        found: dict[int, Group] = {}
        total = Cost()
        for part in self.stream(prompts, sampling):
            found |= zip(part.indices, part.groups, strict=True)
            total += part.cost
        return [found[i] for i in range(len(prompts))], total

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Part]:
        """The same part by part, as parts are done: whoever takes them works on one while the engines draw the next.

        A part is as many prompts as one micro-batch of the learner holds, longest prompts first. Seeds hang on prompt
        and sample, and what a part holds on the prompts alone: not on which engine draws it, or when.
        """
        parts = deque(self._parts(prompts, sampling))
        found: dict[int, _Answer] = {}
        seconds = 0.0
        for some, spent in self._answers(prompts, sampling, list(parts)):
            found |= some
            seconds += spent
            while parts and all(n in found for i in parts[0] for n in _numbers(i, sampling)):
                yield self._part(prompts, sampling, parts.popleft(), found, seconds * self.devices_each)
                seconds = 0.0

    def _part(
        self, prompts: Sequence[Prompt], sampling: Sampling, indices: list[int], found: dict[int, _Answer], seconds: float
    ) -> Part:  # fmt: skip
        """Takes the part's answers out of `found`."""
        answers = [[found.pop(n) for n in _numbers(i, sampling)] for i in indices]
        groups = [
            Group(prompts[i], tuple(_sample(prompts[i], k, *answer) for k, answer in enumerate(own)))
            for i, own in zip(indices, answers, strict=True)
        ]
        counted = [
            (len(prompts[i].token_ids), out["cached"], len(out["ids"]))
            for i, own in zip(indices, answers, strict=True)
            for _, out in own
        ]
        flops, tokens = generation_flops(self.shape, counted), sum(n for _, _, n in counted)
        count_tokens("rollout", tokens)
        return Part(indices, groups, Cost(flops=flops, generated_tokens=tokens, device_seconds=seconds))

    def _parts(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        """Indices of prompts, longest first, cut where a part would pass `tokens_per_part` or an engine's fair share."""
        tokens = [len(p.token_ids) + sampling.count * sampling.max_tokens for p in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-tokens[i], i))
        most = min(self.tokens_per_part, -(-sum(tokens) // len(self.actors)))
        parts: list[list[int]] = []
        room = 0
        for i in order:
            if not parts or tokens[i] > room:
                parts.append([])
                room = most
            parts[-1].append(i)
            room -= tokens[i]
        return parts

    def _answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, parts: list[list[int]]
    ) -> Iterator[tuple[dict[int, _Answer], float]]:
        """Keep every engine's queue filled, prompt by prompt in the parts' order, and yield answers as they come, with the
        seconds that an engine has worked on them."""
        # All samples of a prompt to one engine, which computes the prompt once; unless there are more engines than that.
        share = min(sampling.count, max(1, len(prompts) * sampling.count // len(self.actors)))
        waiting = deque(
            (i, _numbers(i, sampling)[at : at + share])
            for part in parts
            for i in part
            for at in range(0, sampling.count, share)
        )
        most_in_part = max(len(part) for part in parts) * sampling.count if parts else 0
        engines = [_Engine(actor, i) for i, actor in enumerate(self.actors)]
        try:
            self._hand_out(engines, waiting, prompts, sampling, most_in_part)
            while any(e.requests for e in engines):
                answered = self._answered(engines, sampling)
                for engine, (found, _, _) in answered:
                    engine.requests -= len(found)
                    engine.tokens -= sum(_tokens(prompts[n // sampling.count], sampling) for n in found)
                queue_depth("rollout", sum(len(numbers) for _, numbers in waiting) + sum(e.requests for e in engines))
                # Before the answers are looked at, so that no engine waits for that.
                self._hand_out(engines, waiting, prompts, sampling, most_in_part)
                for _, (found, version, seconds) in answered:
                    yield {n: (version, out) for n, out in found.items()}, seconds
        finally:
            for engine in engines:
                if engine.requests:  # whoever took the answers has stopped early
                    engine.actor.abandon.remote()

    def _hand_out(
        self, engines: Sequence[_Engine], waiting: deque[tuple[int, range]], prompts: Sequence[Prompt], sampling: Sampling,
        part: int,
    ) -> None:  # fmt: skip
        """Give requests of one prompt at a time to the engine with the fewest tokens to go; have every engine with work
        go on."""
        handed: dict[int, dict[int, Request]] = {}
        few = max(1, self.batch // RETURNS_PER_BATCH)
        while waiting:
            with_room = [e for e in engines if e.requests < self.batch + few]
            if not with_room:
                break
            engine, (i, numbers) = min(with_room, key=lambda e: (e.tokens, e.number)), waiting.popleft()
            handed.setdefault(engine.number, {}).update(
                {n: (prompts[i].token_ids, sampling.seed * 1_000_003 + n) for n in numbers}
            )
            engine.requests += len(numbers)
            engine.tokens += len(numbers) * _tokens(prompts[i], sampling)
        for engine in engines:
            new = handed.get(engine.number, {})
            while new or (engine.promised < engine.requests and len(engine.calls) < CALLS_AHEAD):
                until = few if waiting else part
                engine.history.append((new, until))
                engine.advance(new, sampling, self.eos_id, until)
                new = {}

    def _answered(self, engines: Sequence[_Engine], sampling: Sampling) -> list[tuple[_Engine, Any]]:
        """What `advance` gave, of every engine whose oldest call is done; waits for one. An engine that is lost is replaced."""
        asked = {engine.calls[0][0]: engine for engine in engines if engine.calls}
        self.engine_time.during("rollout", ray.wait, list(asked))
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        found = []
        for ref in ready:
            engine = asked[ref]
            try:
                out, version, seconds = self.engine_time.during("rollout", ray.get, ref)
            except Exception as error:
                self.actors[engine.number] = self._brought_up(engine.number, error)
                engine.do_again(self.actors[engine.number], sampling, self.eos_id)
                continue
            _, began, _ = engine.calls.popleft()
            self.engine_time.aside("rollout", f"rollout {engine.number}", began, seconds)
            new = {n: answer for n, answer in out.items() if n not in engine.answered}
            engine.answered |= new.keys()
            if new:  # else it was done before, and is charged already
                found.append((engine, (new, version, seconds)))
        return found

    def _brought_up(self, number: int, error: Exception) -> Any:
        """An engine in the place of a lost one, and compared with the learner before it draws anything."""
        while True:
            actor = self.replace(number, error)
            if self.probe is None:
                return actor
            try:
                asked = actor.logprobs.remote(self.probe.prompt_ids, self.probe.response_ids)
                found, version = self.engine_time.during("sync", ray.get, asked)
            except Exception as again:
                error = again
                continue
            if version == self.probe.version:  # else other weights were sent since, which no check has followed yet
                self.probe.gap(found)
            return actor

    def check(
        self,
        prompt_ids: Sequence[int],
        response_ids: Sequence[int],
        expected: Sequence[float],
        tolerance: float,
        version: int,
    ) -> float:
        """Compare every engine's log-probs of a fixed response with the learner's; the largest gap. Raises RunFailed over the
        tolerance, or where an engine holds weights of another version."""

        def again(i: int, error: Exception) -> ray.ObjectRef:
            self.actors[i] = self.replace(i, error)
            return self.actors[i].logprobs.remote(probe.prompt_ids, probe.response_ids)

        probe = _Probe(tuple(prompt_ids), tuple(response_ids), expected, tolerance, version)
        asked = [a.logprobs.remote(probe.prompt_ids, probe.response_ids) for a in self.actors]
        found = self.engine_time.during("sync", answers, asked, again)
        gap = max(probe.gap(logprobs) for logprobs, _ in found)
        if others := {held for _, held in found} - {version}:
            raise RunFailed(f"weight sync: after update {version} an engine holds the weights of update {others.pop()}")
        self.probe = probe
        return gap


def _numbers(prompt: int, sampling: Sampling) -> range:
    """The numbers of a prompt's requests: one per sample."""
    return range(prompt * sampling.count, (prompt + 1) * sampling.count)


def _tokens(prompt: Prompt, sampling: Sampling) -> int:
    """Of one request, at its longest."""
    return len(prompt.token_ids) + sampling.max_tokens


def _sample(prompt: Prompt, k: int, version: int, output: dict[str, Any]) -> Sample:
    return Sample(f"{prompt.id}#v{version}.{k}", output["ids"], output["logprobs"], output["finished"], version)
