"""What the driver's own work is: wall time in which no engine is at work."""

import tracemalloc
from time import perf_counter, sleep

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import ACTIVITIES, EngineTime, Span


def by_hand(spans: list[Span], began: float, ended: float, cells: int = 20_000) -> float:
    """The same by cutting the time into cells and counting those that no span covers."""
    middles = began + (np.arange(cells) + 0.5) * (ended - began) / cells
    covered = np.zeros(cells, dtype=bool)
    for span in spans:
        covered |= (middles >= span.began) & (middles < span.ended)
    return float((~covered).mean() * (ended - began))


def shared_by_hand(spans: list[Span], activity: str, began: float, ended: float, cells: int = 20_000) -> float:
    """Each cell is divided equally among the activities that cover it."""
    middles = began + (np.arange(cells) + 0.5) * (ended - began) / cells
    at = {a: np.zeros(cells, dtype=bool) for a in ACTIVITIES}
    for span in spans:
        at[span.activity] |= (middles >= span.began) & (middles < span.ended)
    several = np.maximum(sum(here.astype(int) for here in at.values()), 1)
    return float((at[activity] / several).mean() * (ended - began))


@pytest.mark.parametrize("seed", range(20))
def test_idle_time_is_what_no_span_covers_however_spans_overlap(seed):
    rng = np.random.default_rng(seed)
    time = EngineTime()
    starts = rng.uniform(-1, 11, size=int(rng.integers(0, 9)))
    spans = [Span(s, s + rng.uniform(0, 2), ACTIVITIES[int(rng.integers(3))]) for s in starts]
    for span in spans:
        time.add(span)
    assert list(time.spans()) == spans
    assert time.idle(0.0, 10.0) == pytest.approx(by_hand(spans, 0.0, 10.0), abs=0.02)
    for activity, seconds in time.by_activity(0.0, 10.0).items():
        assert seconds == pytest.approx(shared_by_hand(spans, activity, 0.0, 10.0), abs=0.02)


def test_a_driver_that_hands_out_a_million_prompts_keeps_little_of_them():
    time = EngineTime()
    tracemalloc.start()
    for i in range(10_000):
        time.add(Span(i, i + 0.5, "rollout"))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 40 * 10_000


def test_work_aside_queues_behind_what_was_submitted_before():
    time = EngineTime()
    time.record_background("evaluation", "evaluator", submitted=1.0, seconds=3.0)
    time.record_background("learning", "learner", submitted=2.5, seconds=1.0)  # meanwhile
    time.record_background("evaluation", "evaluator", submitted=2.0, seconds=3.0)  # begins at 4
    time.record_background("evaluation", "evaluator", submitted=9.0, seconds=0.5)
    assert time.idle(0.0, 10.0) == pytest.approx(1.0 + 2.0 + 0.5)
    assert time.by_activity(0.0, 10.0) == pytest.approx({"evaluation": 6.0, "learning": 0.5})  # a second was shared


def test_a_call_is_noted_also_when_it_fails():
    time = EngineTime()

    def fail():
        sleep(0.02)
        raise ValueError("engine")

    began = perf_counter()
    with pytest.raises(ValueError, match="engine"), time.busy("rollout"):
        fail()
    assert time.during("rollout", lambda a, b: a + b, 1, b=2) == 3
    ended = perf_counter()
    assert time.idle(began, ended) < ended - began - 0.02
