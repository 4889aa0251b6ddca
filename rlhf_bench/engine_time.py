"""When engines compute or data travels, and so what is left of the wall time: the driver's own work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any


class EngineTime:
    """Spans of wall time, in seconds of `perf_counter`, in which an engine was at work or data was on its way to one."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self.aside_until: dict[str, float] = {}  # by engine

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around handing work to engines and waiting for it."""
        began = perf_counter()
        try:
            yield
        finally:
            self.spans.append((began, perf_counter()))

    def during(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call that lasts as long as engines work for it."""
        with self.at_work():
            return call(*args, **kwargs)

    def aside(self, engine: str, submitted: float, seconds: float) -> None:
        """`engine` worked `seconds` on something submitted then, after what was submitted to it before, while the
        driver went on."""
        began = max(submitted, self.aside_until.get(engine, 0.0))
        self.aside_until[engine] = began + seconds
        self.spans.append((began, began + seconds))

    def idle(self, began: float, ended: float) -> float:
        """Seconds between `began` and `ended` in which no engine was at work."""
        idle, at = 0.0, began
        for start, stop in sorted(self.spans):
            if start > at:
                idle += min(start, ended) - at
            at = max(at, stop)
            if at >= ended:
                return idle
        return idle + ended - at
