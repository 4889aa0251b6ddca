"""All actors of a fleet by name: one that dies is started again, and one that shows no sign of life is ended first.

    actor's thread ── heartbeats ──> HeartbeatMonitor (an actor) <── how old? ── driver's thread ── ray.kill ──> the silent actor

A caller who waits for an actor then sees only one kind of trouble, a dead actor. It asks `Supervisor.replace` for another one,
brings that to the state of the old one, and hands it the same work. The handle of each role does this (rollout/pool.py,
reward_scorer.py, evaluator.py). A learner that has lost a rank raises `StateLost` instead, since weights are lost with it: the
arm then resumes from its last checkpoint.
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

from actors.monitoring import ray_metrics
from actors.supervision.heartbeat import HEARTBEATS_PER_TIMEOUT, HeartbeatMonitor, Load, end_process
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.recipe.sections import Reliability

RESUMES = "the same command resumes from the last checkpoint"


@dataclass(frozen=True)
class Restart:
    names: tuple[str, ...]
    cause: str
    at: float  # `time.perf_counter`


@dataclass
class Supervised:
    """An actor, and how it is started."""

    make: Callable[[], Any]
    actor: Any
    key: str  # that its heartbeats carry: every start has another one
    since: float  # `time.monotonic`
    ended: bool = False


class Supervisor:
    """Starts actors under names such as "rollout 0", and watches over them."""

    def __init__(self, settings: Reliability, group: PlacementGroup, room_seconds: float, say: Callable[[str], None]):
        """`room_seconds`: how long the cluster may have no room for the actors in `group` before the run ends."""
        self.settings, self.group, self.room_seconds, self.say = settings, group, room_seconds, say
        self.on_loads: Callable[[dict[str, Load]], None] = lambda loads: None  # called in the supervisor's thread
        self.restarts: list[Restart] = []
        self._by_name: dict[str, Supervised] = {}
        self._recent: dict[str, deque[float]] = {}  # when each group of names was restarted
        self._changing = threading.Lock()  # held while an actor is started or ended
        self._started = 0
        self._checking_room = threading.Lock()
        self._no_room_since: float | None = None
        self._ending = threading.Event()
        self._monitor = ray.remote(HeartbeatMonitor).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    @property
    def actors(self) -> dict[str, Any]:
        return {name: supervised.actor for name, supervised in list(self._by_name.items())}

    def start(self, name: str, make: Callable[[], Any]) -> Any:
        """`make` starts the actor and gives its handle. Raises RunFailed once the run is ending."""
        with self._changing:
            self._refuse_if_ending(name)
            self._started += 1
            one = Supervised(make, make(), key=f"{name}, {self._started}", since=time.monotonic())
            self._by_name[name] = one
        one.actor.send_heartbeats.remote(self._monitor, one.key, self.settings.hang_seconds / HEARTBEATS_PER_TIMEOUT)
        return one.actor

    def replace(self, cause: str, *names: str) -> list[Any]:
        """Other actors in the place of those, of which one is lost. Raises RunFailed where too many were lost lately, or
        where the cluster has no room for them in time."""
        who = " and ".join(names)
        self._refuse_if_ending(who)
        self._count_restart(who, cause)
        self.say(f"{who}: {cause}; started again")
        self.restarts.append(Restart(names, cause, time.perf_counter()))
        for name in names:
            ray_metrics.count_restart(name.split()[0])
        lost = [self._by_name[name] for name in names]
        for one in lost:
            self._end(one)
        self._wait_for_room(who)
        return [self.start(name, one.make) for name, one in zip(names, lost, strict=True)]

    def _count_restart(self, who: str, cause: str) -> None:
        """Of each name by itself: the loss of a node takes many actors with it."""
        now = time.perf_counter()
        recent = self._recent.setdefault(who, deque())
        while recent and now - recent[0] > self.settings.window_seconds:
            recent.popleft()
        if len(recent) >= self.settings.restarts:
            raise RunFailed(
                f"{who}: {cause}; {self.settings.restarts} restarts (reliability.restarts) within "
                f"{self.settings.window_seconds:.0f} s were not enough; {RESUMES}"
            )
        recent.append(now)

    def stop(self) -> None:
        """For good: a caller who waits for one of these actors sees it die, and gets no other in its place."""
        self._ending.set()
        self._thread.join()
        with self._changing:
            for actor in (*self.actors.values(), self._monitor):
                ray.kill(actor)

    def _refuse_if_ending(self, who: str) -> None:
        if self._ending.is_set():
            raise RunFailed(f"{who}: not started again, since the run is ending")

    def _wait_for_room(self, name: str) -> None:
        """Ray places a placement group that has lost a node again, as soon as the cluster has room for it."""
        while (waited := self._without_room()) is not None:
            self._refuse_if_ending(name)
            if waited > self.room_seconds:
                raise RunFailed(
                    f"placement: a node was lost, and after {self.room_seconds:.0f} s (placement.timeout_seconds) the cluster "
                    f"still has no room for {name}; {RESUMES}"
                )
            time.sleep(0.5)

    def _without_room(self) -> float | None:
        """For how many seconds the cluster has had no room for these roles; None where it has. The first time is said."""
        with self._checking_room:
            state = placement_group_table(self.group)["state"]
            if state == "CREATED":
                self._no_room_since = None
                return None
            if self._no_room_since is None:
                self._no_room_since = time.monotonic()
                self.say(f"waiting for room: a node was lost (placement group {state.lower()})")
            return time.monotonic() - self._no_room_since

    def _watch(self) -> None:
        """End every actor that has been silent for too long."""
        limit = self.settings.hang_seconds
        while not self._ending.wait(limit / HEARTBEATS_PER_TIMEOUT):
            try:
                asked = [self._monitor.silence.remote(), self._monitor.new_loads.remote()]
                (listening, silence), loads = ray.get(asked, timeout=limit)
                # An actor may die before Ray has noticed the loss of its node: the one in its place then waits for room.
                self._without_room()
            except (exceptions.GetTimeoutError, exceptions.RayActorError):
                continue  # Ray is starting the monitor again
            except Exception as error:  # of an unknown kind: it is better to try again than to stop watching
                self.say(f"the watch over actors failed and is tried again: {type(error).__name__}: {error}")
                continue
            self.on_loads(loads)
            self._end_silent(listening, silence)

    def _end_silent(self, listening: float, silence: dict[str, float]) -> None:
        """Seconds that the monitor has listened, and since each actor's last heartbeat, by key."""
        limit = self.settings.hang_seconds
        for name, one in list(self._by_name.items()):
            if one.ended:
                continue
            if one.key in silence:
                silent, patience = silence[one.key], limit
            else:  # it is still starting, for which there is more time; or the monitor is new
                silent, patience = min(time.monotonic() - one.since, listening), max(limit, self.room_seconds)
            if silent > patience:
                self.say(f"{name} has shown no sign of life for {silent:.0f} s: it is ended")
                self._end(one)

    def _end(self, one: Supervised) -> None:
        """End the actor, and its process with it, whatever state that is in. No effect where it was ended before."""
        with self._changing:
            if one.ended:
                return
            one.ended = True
            ray.kill(one.actor)
        with suppress(exceptions.GetTimeoutError, exceptions.RayActorError):  # the monitor is being started again
            where = ray.get(self._monitor.forget.remote(one.key), timeout=self.settings.hang_seconds)
            if where is not None:
                node, pid = where
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                ray.remote(end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
