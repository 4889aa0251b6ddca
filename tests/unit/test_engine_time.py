"""What the driver's own work is: wall time in which no engine is at work."""

from time import perf_counter, sleep

import numpy as np
import pytest

from rlhf_bench.engine_time import EngineTime


def by_hand(spans: list[tuple[float, float]], began: float, ended: float, cells: int = 20_000) -> float:
    """The same by cutting the time into cells and counting those that no span covers."""
    middles = began + (np.arange(cells) + 0.5) * (ended - began) / cells
    covered = np.zeros(cells, dtype=bool)
    for start, stop in spans:
        covered |= (middles >= start) & (middles < stop)
    return float((~covered).mean() * (ended - began))


@pytest.mark.parametrize("seed", range(20))
def test_idle_time_is_what_no_span_covers_however_spans_overlap(seed):
    rng = np.random.default_rng(seed)
    time = EngineTime()
    time.spans = [(start, start + rng.uniform(0, 2)) for start in rng.uniform(-1, 11, size=int(rng.integers(0, 9)))]
    assert time.idle(0.0, 10.0) == pytest.approx(by_hand(time.spans, 0.0, 10.0), abs=0.02)


def test_work_aside_queues_behind_what_was_submitted_before():
    time = EngineTime()
    time.aside("evaluator", submitted=1.0, seconds=3.0)
    time.aside("learner", submitted=2.5, seconds=1.0)  # meanwhile
    time.aside("evaluator", submitted=2.0, seconds=3.0)  # begins at 4
    time.aside("evaluator", submitted=9.0, seconds=0.5)
    assert time.idle(0.0, 10.0) == pytest.approx(1.0 + 2.0 + 0.5)


def test_a_call_is_noted_also_when_it_fails():
    time = EngineTime()

    def fail():
        sleep(0.02)
        raise ValueError("engine")

    began = perf_counter()
    with pytest.raises(ValueError, match="engine"), time.at_work():
        fail()
    assert time.during(lambda a, b: a + b, 1, b=2) == 3
    ended = perf_counter()
    assert time.idle(began, ended) < ended - began - 0.02
