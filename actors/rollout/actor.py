"""One rollout engine as a Ray actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import ray

from actors.monitoring.trace import Traced, traced
from actors.rollout.vllm_engine import Completion, Request, VLLMEngine
from actors.supervision.heartbeat import Heartbeat
from rlhf_bench.core.types import Sampling
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.sync_check import Held


@dataclass(frozen=True)
class Advance:
    """What one call to `RolloutActor.advance` gives."""

    completions: dict[int, Completion]  # by the request's number
    version: int  # of the weights that drew them
    seconds: float  # that the engine worked


class RolloutActor(Traced, Heartbeat):
    """One engine in one process."""

    @traced
    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str, sync_backend: str):
        self.engine = VLLMEngine(path, placement, max_length, dtype, sync_backend)

    @traced
    def advance(
        self, requests: Mapping[int, Request], sampling: Sampling, end_ids: frozenset[int], until: int
    ) -> Advance:
        """Queue requests, and decode until so many, of these or earlier ones, have ended."""
        began = perf_counter()
        self.engine.queue(requests, sampling.max_tokens, sampling.temperature, end_ids)
        found = self.engine.decode(until)
        return Advance(found, self.engine.version, perf_counter() - began)

    def abandon(self) -> None:
        self.engine.abandon()

    @traced
    def probe(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Held:
        """See `sync_check`."""
        return self.engine.probe(prompt_ids, response_ids)

    @traced
    def load_weights(self, weights: list[ray.ObjectRef], version: int) -> None:
        self.engine.load(ray.get(weights[0]), version)

    def call_worker(self, method: str, **kwargs: Any) -> None:
        self.engine.call_worker(method, **kwargs)

    def finish_sync(self, version: int) -> None:
        self.engine.finish_sync(version)
