"""All actors of a fleet by name: who dies is started again, and who shows no sign of life is ended first.

    actor's thread ── a beat every few seconds ──> HeartbeatMonitor (an actor) <── ages? ── driver's thread ── ray.kill ──> the silent one

Whoever waits for an actor's answer then sees one kind of trouble, a dead actor, asks `Supervisor.replace` for another in its place,
brings that one to where the old one was, and hands it the same work. That is the business of the role's own handle
(rollout_pool.py, reward_scorer.py, evaluator.py); a learner that has lost a rank raises `StateLost` instead, since weights
are gone with it: the arm then goes on from its last checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.monitoring import ray_metrics as meters
from actors.supervision.heartbeat import HEARTBEATS_PER_TIMEOUT, HeartbeatMonitor, Load, end_process
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.recipe.sections import Reliability


@dataclass(frozen=True)
class Restart:
    names: tuple[str, ...]
    cause: str
    at: float  # `time.perf_counter`


class Supervisor:
    """Every actor under its name ("rollout 0"), and how it is started."""

    def __init__(self, settings: Reliability, group: PlacementGroup, room_seconds: float, say: Callable[[str], None]):
        self.settings, self.group, self.room_seconds, self.say = settings, group, room_seconds, say
        self.on_loads: Callable[[dict[str, Load]], None] = lambda loads: None  # called in the crew's thread
        self.actors: dict[str, Any] = {}
        self.restarts: list[Restart] = []
        self._make: dict[str, Callable[[], Any]] = {}
        self._keys: dict[str, tuple[str, float]] = {}  # of the living: its key at the watch, since when
        self._recent: dict[str, deque[float]] = {}
        self._changing = threading.Lock()  # which actor has which name
        self._started = 0
        self._looking = threading.Lock()  # whether there is room, and since when there is none
        self._no_room_since: float | None = None
        self._ending = threading.Event()
        self._watch = ray.remote(HeartbeatMonitor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        self._thread = threading.Thread(target=self._look_after, name="crew", daemon=True)
        self._thread.start()

    def start(self, name: str, make: Callable[[], Any]) -> Any:
        """Start an actor for the first time; `make` starts it and gives its handle. Raises RunFailed once the crew ends."""
        self._make[name] = make
        with self._changing:
            self._refuse_where_ending(name)
            actor = self.actors[name] = make()
            self._started += 1
            key = f"{name}, {self._started}"
            self._keys[name] = (key, time.monotonic())
        actor.be_watched.remote(self._watch, key, self.settings.hang_seconds / HEARTBEATS_PER_TIMEOUT)
        return actor

    def replace(self, cause: str, *names: str) -> list[Any]:
        """Other actors in the place of those, of which one is lost. Raises RunFailed where too many were lost of late, or
        where the cluster has no room for them in time."""
        now, who = time.perf_counter(), " and ".join(names)
        self._refuse_where_ending(who)
        recent = self._recent.setdefault(who, deque())  # of each by itself: a node takes many along when it is lost
        while recent and now - recent[0] > self.settings.window_seconds:
            recent.popleft()
        if len(recent) >= self.settings.restarts:
            raise RunFailed(
                f"{who}: {cause}; {self.settings.restarts} restarts (reliability.restarts) within "
                f"{self.settings.window_seconds:.0f} s were not enough; the same command goes on from the last checkpoint"
            )
        recent.append(now)
        self.say(f"{who}: {cause}; started again")
        self.restarts.append(Restart(names, cause, now))
        for name in names:
            meters.count_restart(name.split()[0])
        for name in names:
            self._end(name, self._keys.get(name, ("", 0.0))[0])
        self._wait_for_room(who)
        return [self.start(name, self._make[name]) for name in names]

    def stop(self) -> None:
        """For good: whoever waits for one of these actors sees it die, and gets no other in its place."""
        self._ending.set()
        self._thread.join()
        with self._changing:
            for actor in (*self.actors.values(), self._watch):
                ray.kill(actor)

    def _refuse_where_ending(self, who: str) -> None:
        if self._ending.is_set():
            raise RunFailed(f"{who}: not started again, since the run is ending")

    def _wait_for_room(self, name: str) -> None:
        """A placement group that has lost a node is placed anew by Ray, as soon as the cluster has room for it."""
        while (waited := self._without_room()) is not None:
            self._refuse_where_ending(name)
            if waited > self.room_seconds:
                raise RunFailed(
                    f"placement: a node was lost, and after {self.room_seconds:.0f} s (placement.timeout_seconds) the cluster "
                    f"still has no room for {name}; the same command goes on from the last checkpoint"
                )
            time.sleep(0.5)

    def _without_room(self) -> float | None:
        """For how many seconds the cluster has had no room for these roles; None where it has. Said when it begins."""
        with self._looking:
            state = placement_group_table(self.group)["state"]
            if state == "CREATED":
                self._no_room_since = None
                return None
            if self._no_room_since is None:
                self._no_room_since = time.monotonic()
                self.say(f"waiting for room: a node was lost (placement group {state.lower()})")
            return time.monotonic() - self._no_room_since

    def _look_after(self) -> None:
        """End every actor that has been silent for too long."""
        limit = self.settings.hang_seconds
        while not self._ending.wait(limit / HEARTBEATS_PER_TIMEOUT):
            try:
                asked = [self._watch.silence.remote(), self._watch.new_loads.remote()]
                (listening, silence), loads = ray.get(asked, timeout=limit)
                # An actor may die before Ray has noticed the loss of its node: the one in its place then waits for room.
                self._without_room()
            except (exceptions.GetTimeoutError, exceptions.RayActorError):
                continue  # the watch itself is being started again, by Ray
            except Exception as error:
                # Of no kind that is known: an end to watching is worse than another try.
                self.say(f"the watch over actors failed and goes on: {type(error).__name__}: {error}")
                continue
            self.on_loads(loads)
            for name, (key, since) in list(self._keys.items()):
                if key in silence:
                    silent, patience = silence[key], limit
                else:  # still starting, for which there is more time; or the watch is new
                    silent, patience = min(time.monotonic() - since, listening), max(limit, self.room_seconds)
                if silent > patience:
                    self.say(f"{name} has shown no sign of life for {silent:.0f} s: it is ended")
                    self._end(name, key)

    def _end(self, name: str, key: str) -> None:
        """End the actor of that key, and its process with it, whatever state that is in. Nothing where that has been done, or
        where another one has its place already."""
        with self._changing:
            if name not in self._keys or self._keys[name][0] != key:
                return
            del self._keys[name]
            ray.kill(self.actors[name])
        with suppress(exceptions.GetTimeoutError, exceptions.RayActorError):  # the watch is being started again
            where = ray.get(self._watch.forget.remote(key), timeout=self.settings.hang_seconds)
            if where is not None:
                node, pid = where
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                ray.remote(end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
