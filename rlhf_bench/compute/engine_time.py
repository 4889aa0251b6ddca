"""When engines compute or data travels, and so what is left of the wall time: the driver's own work."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, get_args

Activity = Literal["starting", "loading", "rollout", "scoring", "measuring", "learning", "sync", "evaluation", "saving"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
"""What an engine may be at; `ledger.Phase` says who pays for it."""


@dataclass(frozen=True)
class Span:
    """A stretch of wall time, in seconds of `perf_counter`, and what an engine was at in it."""

    began: float
    ended: float
    activity: Activity


class EngineTime:
    """Spans in which an engine was at work or data was on its way to one."""

    def __init__(self) -> None:
        # Began, ended and number of the activity, one span behind the other: a run may have a million, and as records
        # they would take 300 bytes each. All three come in one call, since more than one thread may be at it.
        self._numbers = array("d")
        self.aside_until: dict[str, float] = {}  # by engine

    def add(self, span: Span) -> None:
        self._numbers.extend((span.began, span.ended, ACTIVITIES.index(span.activity)))

    def spans(self) -> Iterator[Span]:
        """In the order in which they ended, but for those aside."""
        numbers = iter(self._numbers[:])
        for began, ended, activity in zip(numbers, numbers, numbers, strict=True):
            yield Span(began, ended, ACTIVITIES[int(activity)])

    @contextmanager
    def busy(self, activity: Activity) -> Iterator[None]:
        """Around handing work to engines and waiting for it."""
        began = perf_counter()
        try:
            yield
        finally:
            self.add(Span(began, perf_counter(), activity))

    def during(self, activity: Activity, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call that lasts as long as engines work for it."""
        with self.busy(activity):
            return call(*args, **kwargs)

    def record_background(self, activity: Activity, engine: str, submitted: float, seconds: float) -> None:
        """`engine` worked `seconds` on something submitted then, after what was submitted to it before, while the
        driver went on."""
        began = max(submitted, self.aside_until.get(engine, 0.0))
        ended = min(began + seconds, perf_counter())
        self.aside_until[engine] = ended
        self.add(Span(began, ended, activity))

    def idle(self, began: float, ended: float) -> float:
        """Seconds between `began` and `ended` in which no engine was at work."""
        return ended - began - sum(self.by_activity(began, ended).values())

    def breakdown(self, began: float, ended: float) -> dict[str, float]:
        """The same by what engines were at; `driver` where they were at nothing."""
        return {**self.by_activity(began, ended), "driver": self.idle(began, ended)}

    def by_activity(self, began: float, ended: float) -> dict[str, float]:
        """Seconds between `began` and `ended` by what engines were at. Where they were at several things at a time,
        these share the moment equally: the sum is the time in which any engine was at work."""
        edges: list[tuple[float, int, Activity]] = []
        for span in self.spans():
            start, stop = max(span.began, began), min(span.ended, ended)
            if start < stop:
                edges += [(start, 1, span.activity), (stop, -1, span.activity)]
        return _shared(sorted(edges))


def _shared(edges: Sequence[tuple[float, int, Activity]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    running: dict[str, int] = {}
    at = 0.0
    for moment, change, activity in edges:
        for each in running:
            seconds[each] = seconds.get(each, 0.0) + (moment - at) / len(running)
        at = moment
        running[activity] = running.get(activity, 0) + change
        if not running[activity]:
            del running[activity]
    return seconds
