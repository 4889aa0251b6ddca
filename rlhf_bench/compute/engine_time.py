"""When engines work or data is sent to them; the rest of the wall time is the driver's own work."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, get_args

Activity = Literal["starting", "loading", "rollout", "scoring", "measuring", "learning", "sync", "evaluation", "saving"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
"""What an engine may do; `costs.Phase` says what it is charged as."""


@dataclass(frozen=True)
class Span:
    """A stretch of wall time, in seconds of `perf_counter`, and what an engine did in it."""

    began: float
    ended: float
    activity: Activity


class EngineTime:
    """Spans in which an engine worked or data was sent to one."""

    def __init__(self) -> None:
        # Start, end and number of the activity, span after span: a run may have a million spans, and as records each would
        # take 300 bytes. All three are added in one call, since several threads may add spans.
        self._numbers = array("d")
        self.aside_until: dict[str, float] = {}  # by engine
        self._open: dict[object, Activity] = {}  # spans that have not ended; each change is one call, as above

    def now(self) -> tuple[Activity, ...]:
        """What engines are doing at this moment."""
        return tuple(dict.fromkeys(list(self._open.values())))

    def add(self, span: Span) -> None:
        self._numbers.extend((span.began, span.ended, ACTIVITIES.index(span.activity)))

    def spans(self) -> Iterator[Span]:
        """In the order in which they ended, except for background spans."""
        numbers = iter(self._numbers[:])
        for began, ended, activity in zip(numbers, numbers, numbers, strict=True):
            yield Span(began, ended, ACTIVITIES[int(activity)])

    @contextmanager
    def busy(self, activity: Activity) -> Iterator[None]:
        """Record the time in this block as a span in which engines work."""
        began, span = perf_counter(), object()
        self._open[span] = activity
        try:
            yield
        finally:
            del self._open[span]
            self.add(Span(began, perf_counter(), activity))

    def during(self, activity: Activity, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it, and record the time as a span in which engines work."""
        with self.busy(activity):
            return call(*args, **kwargs)

    def record_background(self, activity: Activity, engine: str, submitted: float, seconds: float) -> None:
        """`engine` worked `seconds` on something that was submitted at `submitted`, after its earlier work, while the driver
        continued."""
        began = max(submitted, self.aside_until.get(engine, 0.0))
        ended = min(began + seconds, perf_counter())
        self.aside_until[engine] = ended
        self.add(Span(began, ended, activity))

    def idle(self, began: float, ended: float) -> float:
        """Seconds between `began` and `ended` in which no engine worked."""
        return ended - began - sum(self.by_activity(began, ended).values())

    def breakdown(self, began: float, ended: float) -> dict[str, float]:
        """Seconds by activity; `driver` is the time in which no engine worked."""
        return {**self.by_activity(began, ended), "driver": self.idle(began, ended)}

    def by_activity(self, began: float, ended: float) -> dict[str, float]:
        """Seconds between `began` and `ended` by activity. Activities that run at the same time
        share the moment equally, so the sum is the time in which any engine worked."""
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
