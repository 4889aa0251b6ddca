"""Where the time of a comparison went: how long its fleets were in use, and how long only the driver worked."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rlhf_bench.compute.engine_time import EngineTime


@dataclass
class Occupancy:
    """Time in which one fleet was in use: up to now, until `end` is called."""

    engine_time: EngineTime
    began: float = field(default_factory=perf_counter)
    ended: float | None = None

    def end(self) -> None:
        self.ended = perf_counter()

    @property
    def seconds(self) -> float:
        return self._until - self.began

    @property
    def idle(self) -> float:
        """Seconds in which none of the fleet's engines worked."""
        return self.engine_time.idle(self.began, self._until)

    @property
    def _until(self) -> float:
        return perf_counter() if self.ended is None else self.ended


@dataclass
class Timing:
    """Of one comparison. A fleet counts while it works on an arm; the first one also counts before and after the arms."""

    began: float  # when the program started, in seconds of `perf_counter`
    occupancies: list[Occupancy] = field(default_factory=list)
    before_arms: dict[str, float] = field(default_factory=dict)  # seconds, by what engines did
    first_updates: list[float] = field(
        default_factory=list
    )  # seconds from the program's start to each arm's first update

    def occupy(self, occupancy: Occupancy) -> Occupancy:
        self.occupancies.append(occupancy)
        return occupancy

    def first_update(self) -> None:
        """An arm has made its first update."""
        self.first_updates.append(self.wall_seconds)

    @property
    def wall_seconds(self) -> float:
        return perf_counter() - self.began

    @property
    def fleets(self) -> int:
        return len({id(occupancy.engine_time) for occupancy in self.occupancies})

    @property
    def driver_seconds(self) -> float:
        """In which engines waited for the driver, of all fleets together."""
        return sum(occupancy.idle for occupancy in self.occupancies)

    @property
    def driver_share(self) -> float:
        return self.driver_seconds / sum(occupancy.seconds for occupancy in self.occupancies)

    def as_dict(self) -> dict[str, Any]:
        """So far, as `results.json` has it."""
        return {
            "wall_seconds": self.wall_seconds,
            "driver_share": self.driver_share,
            "fleets": self.fleets,
            "first_update_seconds": min(self.first_updates, default=None),
            "before_arms": self.before_arms,
        }
