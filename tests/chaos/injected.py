"""`python -m tests.chaos.injected FAULTS OUTCOMES run RECIPE ...`: the command line, with faults.

FAULTS is a JSON file with a list of [kind, role, phase]. They come one after another, each once the run has made progress
since the one before. OUTCOMES is a JSON lines file with the outcome of each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.faults import PHASES, Fault

DELAY = 0.02
"""Seconds from the beginning of the phase: the call has reached the actor."""
UNNOTICED_STEPS, UNNOTICED_SECONDS = 6, 3.0
"""The run makes progress so many times, and for so many seconds, before a loss of memory counts as not noticed."""
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "exhaust": signal.SIGUSR1}


class Chaos:
    def __init__(self, faults: list[Fault], outcomes: Path):
        self.left, self.outcomes = faults, outcomes
        self.fleet: Any = None
        self.now: Fault | None = None
        self.at = 0.0
        self.progress = self.restarts = 0
        self.pids: dict[str, tuple[Any, int]] = {}  # by role: the actor, and its process
        self.lock = threading.Lock()

    def phase(self, activity: str) -> None:
        """The driver begins to wait for this activity."""
        with self.lock:
            ready = self.fleet is not None and self.now is None and self.left and self.progress > 0
            if not ready or PHASES[self.left[0].phase] != activity:
                return
            self.now, self.progress = self.left.pop(0), 0
            self.restarts = len(self.fleet.supervisor.restarts)
        pid = self.pids[self.now.role][1]
        self.at = time.monotonic()
        threading.Timer(DELAY, self.strike, (self.now, pid)).start()

    def strike(self, fault: Fault, pid: int) -> None:
        os.kill(pid, SIGNALS[fault.kind])

    def made_progress(self) -> None:
        """An update or an evaluation is done. New actors of the fleet are prepared for their own faults."""
        with self.lock:
            self.progress += 1
            noticed = self.now is not None and len(self.fleet.supervisor.restarts) > self.restarts
            seconds = time.monotonic() - self.at
            over = self.now is not None and self.now.kind == "exhaust" and self.progress >= UNNOTICED_STEPS
            if self.now is not None and (noticed or (over and seconds >= UNNOTICED_SECONDS)):
                with self.outcomes.open("a") as file:
                    file.write(json.dumps([self.now.kind, self.now.role, self.now.phase, noticed, seconds]) + "\n")
                print(
                    f"{self.now}: {'replaced' if noticed else 'not noticed'}, {seconds:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                self.now, self.progress = None, 0
            if self.now is None:
                self._prepare_actors()

    def _prepare_actors(self) -> None:
        import ray

        for role in {f.role for f in self.left}:
            actor = self.fleet.supervisor.actors[f"{role} 0"]
            if self.pids.get(role, (None, 0))[0] is not actor:
                pid = ray.get(actor.__ray_call__.remote(be_exhausted))
                self.pids[role] = (actor, pid)


def be_exhausted(actor: Any) -> int:
    """In an actor: use up this process's memory when SIGUSR1 comes. Returns the process's number.

    The handler runs in the main thread, like the actor's own work: it also uses up that thread's part of the allocator."""
    import ctypes
    import resource
    from pathlib import Path

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def use_up(*_: Any) -> None:
        size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024, resource.RLIM_INFINITY))
        step = 2**20
        while step >= 64:
            while libc.malloc(step):
                pass
            step //= 2

    signal.signal(signal.SIGUSR1, use_up)
    return os.getpid()


def main() -> None:
    faults, outcomes = sys.argv[1:3]
    sys.argv[1:3] = []
    chaos = Chaos([Fault(*f) for f in json.loads(Path(faults).read_text())], Path(outcomes))

    from actors import driver, fleet_pool
    from rlhf_bench.cli import main as cli

    plain_time, plain_display, plain_start = fleet_pool.EngineTime, driver.ProgressDisplay, fleet_pool.start_fleet

    class Time(plain_time):
        @contextmanager
        def busy(self, activity: Any) -> Iterator[None]:
            chaos.phase(activity)
            with super().busy(activity):
                yield

    class ProgressDisplay(plain_display):
        def update(self, *args: Any) -> None:
            super().update(*args)
            chaos.made_progress()

        def evaluated(self, *args: Any) -> None:
            super().evaluated(*args)
            chaos.made_progress()

    def start(*args: Any, **kwargs: Any) -> Any:
        chaos.fleet = plain_start(*args, **kwargs)
        return chaos.fleet

    fleet_pool.EngineTime, driver.ProgressDisplay, fleet_pool.start_fleet = Time, ProgressDisplay, start  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    # Before Ray is imported, as in `rlhf_bench.cli.main`.
    from rlhf_bench.cli.run import guard_local_cluster

    guard_local_cluster()
    main()
