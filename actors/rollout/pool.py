"""The rollout pool: N actors, each with a vLLM engine, fed so that none idles while another has work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.monitoring.ray_metrics import count_tokens, queue_depth
from actors.rollout.feeding import CALLS_AHEAD, RETURNS_PER_BATCH, EngineQueue, _Answer, _numbers, _Probe, _tokens
from actors.rollout.vllm_engine import Request
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.remote_call import gather
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Group, Prompt, Sample, Sampling
from rlhf_bench.models.flops import ModelShape, generation_flops
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.roles import RolloutChunk


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

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[RolloutChunk]:
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
    ) -> RolloutChunk:  # fmt: skip
        """Takes the part's answers out of `found`."""
        gather = [[found.pop(n) for n in _numbers(i, sampling)] for i in indices]
        groups = [
            Group(prompts[i], tuple(_sample(prompts[i], k, *answer) for k, answer in enumerate(own)))
            for i, own in zip(indices, gather, strict=True)
        ]
        counted = [
            (len(prompts[i].token_ids), out["cached"], len(out["ids"]))
            for i, own in zip(indices, gather, strict=True)
            for _, out in own
        ]
        flops, tokens = generation_flops(self.shape, counted), sum(n for _, _, n in counted)
        count_tokens("rollout", tokens)
        return RolloutChunk(indices, groups, Cost(flops=flops, generated_tokens=tokens, device_seconds=seconds))

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
        engines = [EngineQueue(actor, i) for i, actor in enumerate(self.actors)]
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
        self, engines: Sequence[EngineQueue], waiting: deque[tuple[int, range]], prompts: Sequence[Prompt], sampling: Sampling,
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

    def _answered(self, engines: Sequence[EngineQueue], sampling: Sampling) -> list[tuple[EngineQueue, Any]]:
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
            self.engine_time.record_background("rollout", f"rollout {engine.number}", began, seconds)
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
        found = self.engine_time.during("sync", gather, asked, again)
        gap = max(probe.gap(logprobs) for logprobs, _ in found)
        if others := {held for _, held in found} - {version}:
            raise RunFailed(f"weight sync: after update {version} an engine holds the weights of update {others.pop()}")
        self.probe = probe
        return gap


def _sample(prompt: Prompt, k: int, version: int, output: dict[str, Any]) -> Sample:
    return Sample(f"{prompt.id}#v{version}.{k}", output["ids"], output["logprobs"], output["finished"], version)
