"""One rollout engine as a Ray actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import ray

from actors.monitoring.trace import Profiled, noted
from actors.rollout.vllm_engine import Request, VLLMEngine
from actors.supervision.heartbeat import Heartbeat
from rlhf_bench.core.types import Sampling
from rlhf_bench.recipe import RolloutPlacement


class RolloutActor(Profiled, Heartbeat):
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
