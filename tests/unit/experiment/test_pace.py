"""How long the runs that are left will take, and that no phase of a job is silent."""

import io
import time

import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.experiment import pace, progress
from rlhf_bench.experiment.pace import Pace, about
from rlhf_bench.experiment.progress import ProgressDisplay

RUNS = [("slow", 1), ("fast", 1), ("slow", 2), ("fast", 2)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: a list of one number, in seconds."""
    now = [0.0]
    monkeypatch.setattr(pace, "perf_counter", lambda: now[0])
    return now


def test_runs_that_are_left_take_as_long_as_those_of_their_arm_took(clock):
    found = Pace(list(RUNS), workers=1)
    found.begin(("slow", 1))
    assert found.left() is None  # nothing to judge by
    clock[0] = 20
    found.spent(("slow", 1), 0.2)
    assert found.left() == pytest.approx(80 + 3 * 100)  # by its own speed, and the others as long
    clock[0] = 100
    found.end(("slow", 1))
    found.begin(("fast", 1))
    clock[0] = 110
    found.end(("fast", 1))
    found.begin(("slow", 2))
    clock[0] = 150
    assert found.left() == pytest.approx(60 + 10)


def test_workers_share_the_runs(clock):
    found = Pace(list(RUNS), workers=2)
    found.begin(("fast", 1))
    clock[0] = 10
    found.end(("fast", 1))
    assert found.left() == pytest.approx(3 * 10 / 2)
    found.begin(("fast", 2)), found.begin(("slow", 1)), found.begin(("slow", 2))
    clock[0] = 16
    assert found.left() == pytest.approx(3 * 4 / 2)


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "10 s"), (44, "40 s"), (61, "1 min"), (600, "10 min"), (9000, "2.5 h")]
)
def test_a_time_is_told_roughly(seconds, said):
    assert about(seconds) == said


def test_a_silent_phase_says_what_the_engines_do(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
    shown, engines = io.StringIO(), EngineTime()
    display = ProgressDisplay(tmp_path, shown)
    display.doing = engines.now
    with engines.busy("evaluation"):
        time.sleep(0.3)
    display.close()
    assert "still at work: evaluation" in shown.getvalue() and engines.now() == ()


def test_a_run_that_begins_says_how_long_all_may_take(tmp_path):
    shown = io.StringIO()
    display = ProgressDisplay(tmp_path, shown)
    display.plan(RUNS[:2], 1)
    display.begin("slow", 1, 0, 2)
    display.end("slow", 1)
    display.begin("fast", 1, 1, 2)
    display.close()
    first, second = (line for line in shown.getvalue().splitlines() if "begins" in line)
    assert first.endswith("begins") and second.endswith("begins; about 10 s left for all runs")
