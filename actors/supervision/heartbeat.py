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
"""In the time after which silence counts as a hang."""


class Heartbeat:
    """An actor that gives signs of life."""

    def be_watched(self, watch: Any, key: str, every: float) -> None:
        """From now on, whatever the actor is at. A thread: it stops when the process is stopped, and ends with it."""

        where = (ray.get_runtime_context().get_node_id(), os.getpid())
        _crash_at_once()

        def beat() -> None:
            node_load.begin()
            load: Load = {}
            while True:
                watch.beat.remote(key, where, socket.gethostname(), load)
                time.sleep(every)
                load = node_load.node_load()

        threading.Thread(target=beat, name="beat", daemon=True).start()


def _crash_at_once() -> None:
    """Ray's handler for crashes asks for memory. In a process that has none left it crashes too, and again, until its stack is
    full: minutes in which the other threads give signs of life. Python's own needs none."""
    faulthandler.disable()
    for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable(all_threads=False)


class HeartbeatMonitor:
    """When each actor was last heard of."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.heard: dict[str, tuple[float, Where]] = {}
        self.loads: dict[str, Load] = {}

    def beat(self, key: str, where: Where, host: str, load: Load) -> None:
        self.heard[key] = (time.monotonic(), where)
        if load:
            self.loads[host] = load

    def new_loads(self) -> dict[str, Load]:
        """Of every machine that an actor has told of since this was last asked, by host name."""
        loads, self.loads = self.loads, {}
        return loads

    def silence(self) -> tuple[float, dict[str, float]]:
        """Seconds since this watch began to listen, and since an actor was last heard of, for those that ever were."""
        now = time.monotonic()
        return now - self.began, {key: now - at for key, (at, _) in self.heard.items()}

    def forget(self, key: str) -> Where | None:
        """Its last word: where it is, or was."""
        _, where = self.heard.pop(key, (0.0, None))
        return where


def end_process(pid: int) -> None:
    """On its node: a process that is out of memory, say, does not end when Ray asks it to. Not if its number is another's."""
    name = Path(f"/proc/{pid}/cmdline")
    with suppress(OSError):  # it is gone
        if name.read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
