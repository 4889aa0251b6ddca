"""When a fleet was at work, and when the driver was."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from rlhf_bench.compute.engine_time import EngineTime


@dataclass
class Occupancy:
    """Time in which somebody counted on one fleet's engines: up to now, where it has not ended."""

    engine_time: EngineTime
    began: float
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return self._until - self.began

    @property
    def idle(self) -> float:
        return self.engine_time.idle(self.began, self._until)

    @property
    def _until(self) -> float:
        return perf_counter() if self.ended is None else self.ended
