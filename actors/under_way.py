"""A call to every actor of a role that the driver has made and not waited for yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, TypeVar

import ray

from rlhf_bench.engine_time import Activity, EngineTime

T = TypeVar("T")


@dataclass(frozen=True)
class UnderWay(Generic[T]):
    """`refs`: one per actor, each an answer and the seconds that the actor worked for it."""

    activity: Activity
    role: str
    refs: Sequence[ray.ObjectRef]
    finish: Callable[[list[Any], list[float]], T]  # answers and seconds of all actors -> what the caller wants of them
    engine_time: EngineTime
    began: float = field(default_factory=perf_counter)

    def result(self) -> T:
        """Wait for all of them."""
        found = self.engine_time.during(self.activity, ray.get, list(self.refs))
        answers, seconds = [answer for answer, _ in found], [spent for _, spent in found]
        for i, spent in enumerate(seconds):
            self.engine_time.aside(self.activity, f"{self.role} {i}", self.began, spent)
        return self.finish(answers, seconds)
