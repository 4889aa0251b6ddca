"""500 updates hold no more at their end than after the first hundred; and of a run that ends with an error nothing is left."""

import json
import os
import signal
import time

import numpy as np
import pytest

from tests.chaos.runs import begin, mark, write_recipe
from tests.support.running import left_running

UPDATES, WARM = 500, 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def read(samples):
    return [json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else []


@pytest.fixture(scope="module")
def soaked(folder):
    """A run whose learner is killed after 500 updates, where none may be started again. Returns exit code and samples."""
    recipe, samples = write_recipe(folder, UPDATES + 60, evaluations=20), folder / "soak.jsonl"
    more = ["reliability.restarts=0", "reliability.checkpoint_seconds=5"]
    process = begin(folder, recipe, "soak", ["tests.chaos.watched", str(samples)], more)
    try:
        deadline = time.monotonic() + 1200
        while not (found := read(samples)) or found[-1]["update"] < UPDATES:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "soak.log").read_text()[-2000:]
            time.sleep(0.2)
        learner = next(pid for pid in found[-1]["processes"] if "LearnerRank" in open(f"/proc/{pid}/cmdline").read())
        os.kill(learner, signal.SIGKILL)
        code = process.wait(timeout=60)
    finally:
        process.kill()
    return code, found


def growth(updates, amounts):
    """Per 100 updates, as a share of what there is in the middle: the slope of a straight line."""
    return 100 * np.polyfit(updates, amounts, 1)[0] / max(np.median(amounts), 1e-9)


def test_memory_is_flat(soaked):
    late = [s for s in soaked[1] if s["update"] >= WARM]
    assert late[-1]["update"] >= UPDATES
    updates = [s["update"] for s in late]
    grown = {name: growth(updates, [s["resident"][name] for s in late]) for name in late[0]["resident"]}
    assert all(share <= 0.01 for share in grown.values()), grown


def test_the_object_store_and_open_files_are_flat(soaked):
    late = [s for s in soaked[1] if s["update"] >= WARM]
    first, last = late[: len(late) // 3], late[-len(late) // 3 :]
    assert np.median([s["store"] for s in last]) <= 1.01 * np.median([s["store"] for s in first]) + 2**16
    for name in late[0]["files"]:
        assert max(s["files"][name] for s in last) <= max(s["files"][name] for s in first) + 2, name
    assert max(len(s["processes"]) for s in last) <= max(len(s["processes"]) for s in first)


def test_nothing_is_left_after_an_error(soaked, folder):
    code, _ = soaked
    assert code == 1 and "restarts" in (folder / "soak.log").read_text().splitlines()[-1]
    assert left_running(mark(folder, "soak")) == []
