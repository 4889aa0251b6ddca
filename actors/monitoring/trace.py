"""`--profile`: what every process did, as a Chrome trace on one time axis (open it in Perfetto or chrome://tracing)."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.files import write_text

ENABLED = "RLHF_BENCH_PROFILE"
"""Set in the environment of the roles' processes where they are to record their calls."""

Call = tuple[str, float, float]
"""A call of an actor's method: its name, when it began (`time.time`, of its own node), and the seconds it took."""


class Traced:
    """A role's actor that records its calls of the methods marked by `traced`."""

    calls: list[Call]

    def profile(self) -> tuple[list[Call], float]:
        """All calls so far, and this node's clock now."""
        return getattr(self, "calls", []), time.time()


def traced(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method of an actor: a trace shows its calls."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if ENABLED not in os.environ:
            return method(self, *args, **kwargs)
        began = time.time()
        try:
            return method(self, *args, **kwargs)
        finally:
            if not hasattr(self, "calls"):
                self.calls = []
            self.calls.append((_named(method.__name__, args), began, time.time() - began))

    return call


def _named(method: str, args: Sequence[Any]) -> str:
    """The method, and the model that it is called for."""
    if method == "__init__":
        return "start"
    what = next((a for a in args if isinstance(a, str) and not set(a) & set("/.:")), "")  # no path, no address
    return f"{method} {what}".strip()


def write_trace(path: Path, fleets: Sequence[tuple[EngineTime, Mapping[str, Any]]]) -> None:
    """Ask every actor for its calls and write the trace. Of each fleet: when its engines worked, and its actors by name."""
    to_wall = time.time() - time.perf_counter()
    tracks: dict[str, list[Call]] = {}
    for number, (engine_time, actors) in enumerate(fleets, 1):
        which = f"fleet {number}, " if number > 1 else ""
        tracks[f"{which}driver: engines at work, as it saw them"] = [
            (span.activity, span.began + to_wall, span.ended - span.began) for span in engine_time.spans()
        ]
        for name, actor in actors.items():
            asked = time.time()
            try:
                calls, clock = ray.get(actor.profile.remote())
            except ray.exceptions.RayActorError:  # its calls are lost with it; the run is done all the same
                tracks[f"{which}{name}: lost before it was asked"] = []
                continue
            # The node's clock was read about half way between the question and the answer.
            behind = (asked + time.time()) / 2 - clock
            tracks[which + name] = [(what, began + behind, seconds) for what, began, seconds in calls]
    write_text(path, json.dumps({"traceEvents": trace_events(tracks), "displayTimeUnit": "ms"}))


def trace_events(tracks: Mapping[str, Sequence[Call]]) -> list[dict[str, Any]]:
    """One process of the trace for each track, with as many lines as calls overlap. Microseconds since the first call."""
    start = min((began for calls in tracks.values() for _, began, _ in calls), default=0.0)
    events: list[dict[str, Any]] = []
    for number, (track, calls) in enumerate(tracks.items()):
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": track}})
        ends: list[int] = []  # of the last call on every line
        for name, began, seconds in sorted(calls, key=lambda call: (call[1], -call[2])):
            at, lasts = round((began - start) * 1e6), round(seconds * 1e6)
            line = next((i for i, end in enumerate(ends) if end <= at), len(ends))
            ends[line : line + 1] = [at + lasts]
            events.append({"name": name, "ph": "X", "pid": number, "tid": line, "ts": at, "dur": lasts})
    return events
