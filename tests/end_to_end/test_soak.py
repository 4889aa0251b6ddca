"""500 updates hold no more at their end than after the first hundred, and whatever way a run ends, nothing of it is left."""

import json
import os
import signal
import time

import numpy as np
import pytest

from tests.chaos.runs import begin, mark, write_recipe
from tests.support.running import processes_with

UPDATES, WARM = 500, 150
AWAY_SECONDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def watched(folder, name, updates, *overrides):
    recipe = write_recipe(folder, updates, evaluations=20)
    recipe.write_text(recipe.read_text().replace("checkpoint_seconds: 0", "checkpoint_seconds: 5"))
    samples = folder / f"{name}.jsonl"
    return begin(folder, recipe, name, ["tests.chaos.watched", str(samples)], overrides), samples


def read(samples):
    return [json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else []


def wait_for(process, samples, count):
    while len(read(samples)) < count:
        assert process.poll() is None, "the run has ended too soon"
        time.sleep(0.2)
    return read(samples)


def left(folder, name):
    """The run's processes, whoever has started them, that are still there when they have had time to go."""
    deadline = time.monotonic() + AWAY_SECONDS
    while (there := processes_with(mark(folder, name))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return there


@pytest.fixture(scope="module")
def soaked(folder):
    process, samples = watched(folder, "soak", UPDATES + 20)
    try:
        code = process.wait(timeout=1200)
    finally:
        process.kill()
    assert code == 0, (folder / "soak.log").read_text()[-2000:]
    return read(samples)


def growth(updates, amounts):
    """Per 100 updates, as a share of what there is in the middle: the slope of a straight line."""
    return 100 * np.polyfit(updates, amounts, 1)[0] / max(np.median(amounts), 1e-9)


def test_memory_is_flat(soaked):
    late = [s for s in soaked if s["update"] >= WARM]
    assert late[-1]["update"] >= UPDATES
    updates = [s["update"] for s in late]
    grown = {name: growth(updates, [s["resident"][name] for s in late]) for name in late[0]["resident"]}
    assert all(share <= 0.01 for share in grown.values()), grown


def test_the_object_store_and_open_files_are_flat(soaked):
    late = [s for s in soaked if s["update"] >= WARM]
    first, last = late[: len(late) // 3], late[-len(late) // 3 :]
    assert np.median([s["store"] for s in last]) <= 1.01 * np.median([s["store"] for s in first]) + 2**16
    for name in late[0]["files"]:
        assert max(s["files"][name] for s in last) <= max(s["files"][name] for s in first) + 2, name
    assert max(len(s["processes"]) for s in last) <= max(len(s["processes"]) for s in first)


def test_nothing_is_left_after_a_normal_end(soaked, folder):
    assert left(folder, "soak") == []


def test_nothing_is_left_after_sigterm(soaked, folder):
    process, samples = watched(folder, "stopped", 200)
    wait_for(process, samples, 2)
    seen = " ".join(processes_with(mark(folder, "stopped")))  # or it would say nothing that none of them is left
    assert all(name in seen for name in ("gcs_server", "raylet", "LearnerRank", "RolloutActor")), seen
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert left(folder, "stopped") == []


def test_nothing_is_left_after_an_error(soaked, folder):
    process, samples = watched(folder, "failed", 200, "reliability.restarts=0")
    pids = wait_for(process, samples, 2)[-1]["processes"]
    learner = next(pid for pid in pids if "LearnerRank" in open(f"/proc/{pid}/cmdline").read())
    os.kill(learner, signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert "restarts" in (folder / "failed.log").read_text().splitlines()[-1]
    assert left(folder, "failed") == []
