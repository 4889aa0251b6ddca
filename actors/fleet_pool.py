"""The fleets of one run: the first one is waited for, others come up beside it and join in once they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from actors.fleet import Fleet, NoRoom
from rlhf_bench.core.errors import RunFailed

Start = Callable[[int, threading.Event], Fleet]
"""A fleet's number, counted from 1, and what is set once the run is ending -> that fleet, whose actors are starting."""


class FleetPool:
    """Handles on all fleets that there are. Whatever happens, `stop` ends them all."""

    def __init__(self, start: Start, say: Callable[[str], None]):
        self.start, self.say = start, say
        self.fleets: dict[int, Fleet] = {}
        self._changing = threading.Lock()
        self._ending = threading.Event()
        self._starters: list[ThreadPoolExecutor] = []

    def first(self) -> Fleet:
        return self._up(1)

    def others(self, count: int) -> list[Future[Fleet | None]]:
        """Begin to start so many more, which delays nobody. None for each that finds no room in time, which is said."""
        if count < 1:
            return []
        starter = ThreadPoolExecutor(count, "fleet")
        self._starters.append(starter)
        return [starter.submit(self._up_if_there_is_room, number) for number in range(2, 2 + count)]

    def stop(self) -> None:
        """For good: whoever waits for an engine, or for a fleet, is woken by an error."""
        self._ending.set()
        with self._changing:
            fleets, self.fleets = list(self.fleets.values()), {}
        for fleet in fleets:
            fleet.stop()
        for starter in self._starters:
            starter.shutdown()

    def _up_if_there_is_room(self, number: int) -> Fleet | None:
        try:
            return self._up(number)
        except NoRoom as none:
            if not self._ending.is_set():
                self.say(f"fleet {number}: {none}; the run goes on with the fleets that are there")
            return None

    def _up(self, number: int) -> Fleet:
        fleet = self.start(number, self._ending)
        with self._changing:
            ending = self._ending.is_set()
            if not ending:
                self.fleets[number] = fleet
        if ending:
            fleet.stop()
            raise RunFailed(f"fleet {number}: not started, since the run is ending")
        fleet.join()
        return fleet
