"""`python -m tests.chaos.injected FAULTS OUTCOMES run RECIPE ...`: the command line, with faults on the way.

FAULTS is a JSON file with a list of [kind, role, phase]; they come one after another, each once the run has gone ahead after
the one before. OUTCOMES, a JSON lines file, says how each went.
"""

from __future__ import annotations

import ctypes
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
"""Seconds into the phase: the call is on its way."""
UNNOTICED = 3
"""So many times the run goes ahead before a fault counts as one that nobody has noticed."""


class Chaos:
    def __init__(self, faults: list[Fault], outcomes: Path):
        self.left, self.outcomes = faults, outcomes
        self.fleet: Any = None
        self.now: Fault | None = None
        self.at = 0.0
        self.ahead = self.restarts = 0
        self.pids: dict[str, tuple[Any, int]] = {}  # by role: of which actor, and its process
        self.lock = threading.Lock()

    def phase(self, activity: str) -> None:
        """The driver begins to wait for this."""
        with self.lock:
            ready = self.fleet is not None and self.now is None and self.left and self.ahead > 0
            if not ready or PHASES[self.left[0].phase] != activity:
                return
            self.now, self.ahead = self.left.pop(0), 0
            self.restarts = len(self.fleet.crew.restarts)
        pid = self.pids[self.now.role][1]
        self.at = time.monotonic()
        threading.Timer(DELAY, self.strike, (self.now, pid)).start()

    def strike(self, fault: Fault, pid: int) -> None:
        if fault.kind == "exhaust":
            Path(f"{self.outcomes}.{pid}").touch()  # its own thread waits for that: see `be_exhausted`
        else:
            os.kill(pid, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)

    def went_ahead(self) -> None:
        """An update is done, or a look is there. Whoever is new in the fleet is made ready for its own fault meanwhile."""
        with self.lock:
            self.ahead += 1
            noticed = self.now is not None and len(self.fleet.crew.restarts) > self.restarts
            if self.now is not None and (noticed or self.ahead >= UNNOTICED):
                seconds = time.monotonic() - self.at
                with self.outcomes.open("a") as file:
                    file.write(json.dumps([self.now.kind, self.now.role, self.now.phase, noticed, seconds]) + "\n")
                print(
                    f"{self.now}: {'replaced' if noticed else 'not noticed'}, {seconds:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                self.now, self.ahead = None, 0
            if self.now is None:
                self._look_up()

    def _look_up(self) -> None:
        import ray

        for role in {f.role for f in self.left}:
            actor = self.fleet.crew.actors[f"{role} 0"]
            if self.pids.get(role, (None, 0))[0] is not actor:
                pid = ray.get(actor.__ray_call__.remote(be_exhausted, str(self.outcomes)))
                self.pids[role] = (actor, pid)


def be_exhausted(actor: Any, sign: str) -> int:
    """In an actor: a thread that uses up this process's memory once a file is there. Returns the process's number."""
    import os
    import resource
    import threading
    import time

    pid = os.getpid()

    def use_up() -> None:
        while not os.path.exists(f"{sign}.{pid}"):
            time.sleep(0.01)
        libc = ctypes.CDLL(None)
        size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        libc.malloc.restype = ctypes.c_void_p
        step = 2**20
        while step >= 64:  # what the allocator has put by, down to the small pieces
            while libc.malloc(step):
                pass
            step //= 2

    threading.Thread(target=use_up, daemon=True).start()
    return pid


def main() -> None:
    faults, outcomes = sys.argv[1:3]
    sys.argv[1:3] = []
    chaos = Chaos([Fault(*f) for f in json.loads(Path(faults).read_text())], Path(outcomes))

    from actors import driver
    from rlhf_bench import cli

    plain_time, plain_display, plain_start = driver.EngineTime, driver.Display, driver.start_fleet

    class Time(plain_time):
        @contextmanager
        def at_work(self, activity: Any) -> Iterator[None]:
            chaos.phase(activity)
            with super().at_work(activity):
                yield

    class Display(plain_display):
        def update(self, *args: Any) -> None:
            super().update(*args)
            chaos.went_ahead()

        def looked(self, *args: Any) -> None:
            super().looked(*args)
            chaos.went_ahead()

    def start(*args: Any, **kwargs: Any) -> Any:
        chaos.fleet = plain_start(*args, **kwargs)
        return chaos.fleet

    driver.EngineTime, driver.Display, driver.start_fleet = Time, Display, start  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    # Before Ray is imported, as in `rlhf_bench.cli`.
    from rlhf_bench.cli import _guard_local_cluster

    _guard_local_cluster()
    main()
