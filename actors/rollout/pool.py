"""The rollout pool: the driver's handle on N actors, each with a vLLM engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.monitoring.ray_metrics import count_tokens
from actors.rollout.feeding import Answer, Feeder, cut_into_chunks, request_numbers
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.remote_call import gather
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Group, Prompt, Sample, Sampling
from rlhf_bench.models.flops import ModelShape, generation_flops
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.roles import RolloutChunk
from rlhf_bench.training.sync_check import Probe


class RolloutPool:
    """Prompts in, groups of samples out."""

    def __init__(
        self,
        actors: list[Any],
        placement: RolloutPlacement,
        shape: ModelShape,
        end_ids: frozenset[int],
        tokens_per_chunk: int,
        engine_time: EngineTime,
        replace: Replace = no_replacement,
    ):
        """`actors` is shared with the weight sync. `replace` gives an engine that holds the weights which a lost one held."""
        self.engine_time, self.replace = engine_time, replace
        self.actors = actors
        self.devices_each = placement.gpus or placement.cpus
        self.concurrent_requests = placement.concurrent_requests
        self.shape, self.end_ids, self.tokens_per_chunk = shape, end_ids, tokens_per_chunk
        self.probe: Probe | None = None  # the last one that all engines have passed

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[list[Group], Cost]:
        """`sampling.count` samples for each prompt, in the prompts' order."""
        found: dict[int, Group] = {}
        total = Cost()
        for chunk in self.stream(prompts, sampling):
            found |= zip(chunk.indices, chunk.groups, strict=True)
            total += chunk.cost
        return [found[i] for i in range(len(prompts))], total

    def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[RolloutChunk]:
        """The same chunk by chunk: the caller works on one while the engines draw the next.

        A chunk is as many prompts as one micro-batch of the learner holds, longest prompts first. Seeds depend on prompt and
        sample, and chunks on the prompts and the number of engines: not on which engine draws a sample, or when.
        """
        chunks = self.chunks(prompts, sampling)
        feeder = Feeder(
            self.actors, prompts, sampling, chunks, end_ids=self.end_ids, concurrent_requests=self.concurrent_requests,
            engine_time=self.engine_time, bring_up=self._bring_up,
        )  # fmt: skip
        left, found, seconds = deque(chunks), dict[int, Answer](), 0.0
        for some, spent in feeder.answers():
            found |= some
            seconds += spent
            while left and all(n in found for i in left[0] for n in request_numbers(i, sampling)):
                indices = left.popleft()
                answers = [[found.pop(n) for n in request_numbers(i, sampling)] for i in indices]
                yield self._chunk(indices, [prompts[i] for i in indices], answers, seconds * self.devices_each)
                seconds = 0.0

    def chunks(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        """Indices of the prompts of each chunk: none has more tokens than `tokens_per_chunk` and than an engine's fair
        share."""
        total = sum(len(p.token_ids) + sampling.count * sampling.max_tokens for p in prompts)
        return cut_into_chunks(prompts, sampling, min(self.tokens_per_chunk, -(-total // len(self.actors))))

    def _chunk(
        self, indices: list[int], prompts: list[Prompt], answers: list[list[Answer]], device_seconds: float
    ) -> RolloutChunk:
        """`answers`: of each prompt."""
        groups = [
            Group(prompt, tuple(_sample(prompt, k, answer) for k, answer in enumerate(own)))
            for prompt, own in zip(prompts, answers, strict=True)
        ]
        counted = [
            (len(prompt.token_ids), answer.completion.cached, len(answer.completion.ids))
            for prompt, own in zip(prompts, answers, strict=True)
            for answer in own
        ]
        flops, tokens = generation_flops(self.shape, counted), sum(n for _, _, n in counted)
        count_tokens("rollout", tokens)
        return RolloutChunk(indices, groups, Cost(flops=flops, generated_tokens=tokens, device_seconds=device_seconds))

    def _bring_up(self, number: int, error: Exception) -> Any:
        """An engine in the place of a lost one, and compared with the learner before it draws anything."""
        while True:
            actor = self.replace(number, error)
            try:
                self._probe(actor)
            except ray.exceptions.RayError as again:
                error = again
            else:
                self.actors[number] = actor
                return actor

    def _probe(self, actor: Any) -> None:
        """RunFailed where this engine does not pass the last probe."""
        if self.probe is None:
            return
        held = self.engine_time.during("sync", ray.get, self._asked(actor, self.probe))
        if held.version == self.probe.version:  # otherwise other weights were sent since, which are not checked yet
            self.probe.gap(held)

    def check(self, probe: Probe) -> float:
        """Compare every engine's weights with the learner's, and its log-probs of a fixed response: the largest gap. Raises
        RunFailed where they are not the learner's, see `Probe.gap`."""

        def retry(i: int, error: Exception) -> ray.ObjectRef:
            self.actors[i] = self.replace(i, error)
            return self._asked(self.actors[i], probe)

        found = self.engine_time.during("sync", gather, [self._asked(a, probe) for a in self.actors], retry)
        gap = max(probe.gap(held) for held in found)
        self.probe = probe
        return gap

    def _asked(self, actor: Any, probe: Probe) -> ray.ObjectRef:
        return actor.probe.remote(probe.prompt_ids, probe.response_ids)


def _sample(prompt: Prompt, k: int, answer: Answer) -> Sample:
    drawn, version = answer.completion, answer.version
    return Sample(f"{prompt.id}#v{version}.{k}", drawn.ids, drawn.logprobs, drawn.finished, version)
