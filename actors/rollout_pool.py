"""The rollout pool: N actors, each with a vLLM engine, fed so that none idles while another has work."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import ray

from actors.vllm_engine import VLLMEngine
from rlhf_bench.engine_time import EngineTime
from rlhf_bench.flops import ModelShape, generation_flops
from rlhf_bench.ledger import Cost
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.types import Group, Prompt, RunFailed, Sample, Sampling


class RolloutActor:
    """One engine in one process."""

    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str, sync_backend: str):
        self.engine = VLLMEngine(path, placement, max_length, dtype, sync_backend)

    def ready(self) -> None:
        """Returns once the engine has started."""

    def generate(
        self, requests: Sequence[tuple[tuple[int, ...], int]], sampling: Sampling, eos_id: int
    ) -> tuple[int, list[dict[str, Any]]]:
        return self.engine.version, self.engine.generate(requests, sampling.max_tokens, sampling.temperature, eos_id)

    def logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        return self.engine.logprobs(prompt_ids, response_ids)

    def load_weights(self, weights: list[ray.ObjectRef], version: int) -> None:
        load_from_object_store(self.engine, weights[0], version)

    def call_worker(self, method: str, **kwargs: Any) -> None:
        self.engine.call_worker(method, **kwargs)

    def finish_sync(self, version: int) -> None:
        self.engine.finish_sync(version)


def load_from_object_store(engine: VLLMEngine, weights: ray.ObjectRef, version: int) -> None:
    """One whole update of vLLM's weight-transfer protocol from an object in Ray's store."""
    engine.call_worker("start_weight_update")
    engine.call_worker("update_weights", update_info={"arrays": ray.get(weights)})
    engine.call_worker("finish_weight_update")
    engine.finish_sync(version)


class RolloutPool:
    """The driver's handle: prompts in, groups of samples out."""

    def __init__(
        self,
        actors: Sequence[Any],
        placement: RolloutPlacement,
        shape: ModelShape,
        eos_id: int,
        engine_time: EngineTime,
    ):
        self.engine_time = engine_time
        self.actors = list(actors)
        self.devices_each = placement.gpus or placement.cpus
        self.batch = placement.concurrent_requests
        self.shape, self.eos_id = shape, eos_id

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[list[Group], Cost]:
        """`sampling.count` samples per prompt. Seeds hang on prompt and sample, not on which engine draws it."""
        requests = [
            (p.token_ids, sampling.seed * 1_000_003 + i * sampling.count + k)
            for i, p in enumerate(prompts)
            for k in range(sampling.count)
        ]
        found: list[Any] = [None] * len(requests)  # (version, output) of each
        busy = 0.0
        for part, (version, outputs), seconds in self._spread(requests, sampling):
            busy += seconds
            for i, output in zip(part, outputs, strict=True):
                found[i] = (version, output)
        groups = [
            Group(p, tuple(_sample(p, k, *found[i * sampling.count + k]) for k in range(sampling.count)))
            for i, p in enumerate(prompts)
        ]
        counted = [
            (len(ids), out["cached"], len(out["ids"])) for (ids, _), (_, out) in zip(requests, found, strict=True)
        ]
        flops = generation_flops(self.shape, counted)
        return groups, Cost(
            flops=flops, generated_tokens=sum(c[2] for c in counted), device_seconds=busy * self.devices_each
        )

    def _spread(self, requests: list[Any], sampling: Sampling) -> Any:
        """Hand out parts, longest prompts first, a new one to whichever engine is free; yield results with their seconds."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][0]))
        size = min(self.batch, -(-len(order) // len(self.actors)))
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        idle = list(self.actors)
        running: dict[Any, Any] = {}
        while parts or running:
            while parts and idle:
                part, actor = parts.pop(0), idle.pop()
                with self.engine_time.at_work():
                    ref = actor.generate.remote([requests[i] for i in part], sampling, self.eos_id)
                running[ref] = (part, actor, perf_counter())
            (ref,), _ = self.engine_time.during(ray.wait, list(running))
            part, actor, began = running.pop(ref)
            idle.append(actor)
            yield part, self.engine_time.during(ray.get, ref), perf_counter() - began

    def check(
        self,
        prompt_ids: Sequence[int],
        response_ids: Sequence[int],
        expected: Sequence[float],
        tolerance: float,
        version: int,
    ) -> float:
        """Compare every engine's log-probs of a fixed response with the learner's; the largest gap. Raises RunFailed over the tolerance."""
        asked = [a.logprobs.remote(tuple(prompt_ids), tuple(response_ids)) for a in self.actors]
        answers = self.engine_time.during(ray.get, asked)
        gap = max(abs(x - y) for answer in answers for x, y in zip(answer, expected, strict=True))
        if not gap <= tolerance:  # nan fails too
            raise RunFailed(
                f"weight sync: after update {version} an engine's log-probs differ from the learner's by {gap:.2g} nats, "
                f"more than placement.sync_tolerance {tolerance:.2g}: the engines do not hold the learner's weights"
            )
        return gap


def _sample(prompt: Prompt, k: int, version: int, output: dict[str, Any]) -> Sample:
    return Sample(f"{prompt.id}#v{version}.{k}", output["ids"], output["logprobs"], output["finished"], version)
