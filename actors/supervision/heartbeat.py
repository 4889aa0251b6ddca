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
    """An actor that gives signs of life."""

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


class HeartbeatMonitor:
    """When each actor's last heartbeat came."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.heard: dict[str, tuple[float, Where]] = {}
        self.loads: dict[str, Load] = {}

    def beat(self, key: str, where: Where, host: str, load: Load) -> None:
        self.heard[key] = (time.monotonic(), where)
        if load:
            self.loads[host] = load

    def new_loads(self) -> dict[str, Load]:
        """Of every machine with an actor that has reported since the last call, by host name."""
        loads, self.loads = self.loads, {}
        return loads

    def silence(self) -> tuple[float, dict[str, float]]:
        """Seconds since this monitor began to listen; and since the last heartbeat of every actor that has sent one."""
        now = time.monotonic()
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
