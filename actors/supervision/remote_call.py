"""A pending call to every actor of a role: the driver has made it and not waited for it yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Generic, TypeVar

import ray

from rlhf_bench.compute.engine_time import Activity, EngineTime

T = TypeVar("T")

Retry = Callable[[int, Exception], ray.ObjectRef]
"""An actor's number and what its call raised -> the same call, made to another actor in its place. Raises an error that it
cannot mend."""


@dataclass(frozen=True)
class RemoteCall(Generic[T]):
    """`refs`: one per actor, each an answer and the seconds that the actor worked for it."""

    activity: Activity
    role: str
    refs: Sequence[ray.ObjectRef]
    finish: Callable[[list[Any], list[float]], T]  # answers and seconds of all actors -> the result
    engine_time: EngineTime
    retry: Retry
    began: float = field(default_factory=perf_counter)

    def result(self) -> T:
        """Wait for all actors. The result is computed once: a checkpoint may ask for it before the update that needs it."""
        return self._result

    @cached_property
    def _result(self) -> T:
        found = self.engine_time.during(self.activity, gather, self.refs, self.retry)
        seconds = [spent for _, spent in found]
        for i, spent in enumerate(seconds):
            self.engine_time.record_background(self.activity, f"{self.role} {i}", self.began, spent)
        return self.finish([answer for answer, _ in found], seconds)


def gather(refs: Sequence[ray.ObjectRef], retry: Retry) -> list[Any]:
    """The answers of all actors. A failed call is retried at once: the other actors may be waiting for this one."""
    waiting = {ref: i for i, ref in enumerate(refs)}
    found: dict[int, Any] = {}
    while waiting:
        (ref,), _ = ray.wait(list(waiting), num_returns=1)
        i = waiting.pop(ref)
        try:
            found[i] = ray.get(ref)
        except Exception as error:
            waiting[retry(i, error)] = i
    return [found[i] for i in range(len(refs))]
