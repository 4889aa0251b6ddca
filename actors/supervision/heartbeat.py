"""Signs of life: an actor gives them from a thread of its own, and the supervisor listens."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from actors.monitoring import node_load

Where = tuple[str, int]
"""A node's id, and the number of a process on it."""

Load = dict[str, float]
"""How busy a machine is: see node_load.py."""

HEARTBEATS_PER_TIMEOUT = 5
"""How many an actor sends in the time after which silence counts as a hang."""


class Heartbeat:
    """An actor that gives signs of life, and says with how many threads it computes."""

    def threads(self) -> str:
        """Of PyTorch's operations, and of OpenMP where that was told another number: sums depend on it in their last bits."""
        import torch

        own, openmp = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "unset")
        return str(own) if openmp == str(own) else f"{own} (OMP_NUM_THREADS {openmp})"

    def send_heartbeats(self, monitor: Any, key: str, every: float) -> None:
        """From now on, every so many seconds, also while the actor is busy: from a thread, which stops when the process is
        stopped, and ends with it."""

        where = (ray.get_runtime_context().get_node_id(), os.getpid())
        _crash_at_once()

        def beat() -> None:
            node_load.begin()
            load: Load = {}
            while True:
                monitor.beat.remote(key, where, socket.gethostname(), load)
                time.sleep(every)
                load = node_load.node_load()

        threading.Thread(target=beat, name="beat", daemon=True).start()


def _crash_at_once() -> None:
    """Use Python's handler for crashes, which needs no memory. Ray's allocates some: in a process that has none left it crashes
    too, again and again, until its stack is full. For minutes the other threads would give signs of life."""
    faulthandler.disable()
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable(all_threads=False)


class AwakeClock:
    """Seconds in which this process ran. Those in which it was stopped, with its group or its machine, do not count: heartbeats
    could not be heard then, and the actors may have been stopped too."""

    TICK_SECONDS = 0.5

    def __init__(self) -> None:
        self._awake, self._last = 0.0, time.monotonic()
        self._reading = threading.Lock()
        threading.Thread(target=self._tick, name="awake", daemon=True).start()

    def now(self) -> float:
        with self._reading:
            now = time.monotonic()
            self._awake += min(now - self._last, 2 * self.TICK_SECONDS)
            self._last = now
            return self._awake

    def _tick(self) -> None:
        while True:
            time.sleep(self.TICK_SECONDS)
            self.now()


class HeartbeatMonitor:
    """When each actor's last heartbeat came, by the monitor's own clock: after a pause of all processes it waits for the next
    heartbeat of each as long as ever."""

    def __init__(self) -> None:
        self.clock = AwakeClock()
        self.began = self.clock.now()
        self.heard: dict[str, tuple[float, Where]] = {}
        self.loads: dict[str, Load] = {}

    def beat(self, key: str, where: Where, host: str, load: Load) -> None:
        self.heard[key] = (self.clock.now(), where)
        if load:
            self.loads[host] = load

    def new_loads(self) -> dict[str, Load]:
        """Of every machine with an actor that has reported since the last call, by host name."""
        loads, self.loads = self.loads, {}
        return loads

    def silence(self) -> tuple[float, dict[str, float]]:
        """Seconds since this monitor began to listen; and since the last heartbeat of every actor that has sent one."""
        now = self.clock.now()
        return now - self.began, {key: now - at for key, (at, _) in self.heard.items()}

    def forget(self, key: str) -> Where | None:
        """Where it is, or was, by its last heartbeat."""
        _, where = self.heard.pop(key, (0.0, None))
        return where


def end_process(pid: int) -> None:
    """Kill a process of Ray's on this node: one that is out of memory, for example, does not end when Ray asks it to. Another
    process that has got its number is left alone."""
    name = Path(f"/proc/{pid}/cmdline")
    with suppress(OSError):  # it is gone
        if name.read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
