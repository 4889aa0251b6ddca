"""The loss of a node with an actor on it, in a cluster of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_bench.core.ray_folder import closed_cluster
from tests.chaos.without_room import SHORT_SECONDS, WAITS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.without_room"], cwd=ROOT, env=own | closed_cluster(), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_that_finds_no_room_in_time_ends_with_a_line_that_names_the_setting(found):
    assert found["failure"] == (
        f"placement: a node was lost, and after {SHORT_SECONDS:.0f} s (placement.timeout_seconds) the cluster still has no "
        "room for echo 0; the same command resumes from the last checkpoint"
    )
    # Until Ray has noticed the loss, and until another actor that waits for room has been silent for too long.
    assert SHORT_SECONDS <= found["waited"] < SHORT_SECONDS + 60


def test_it_says_once_that_it_waits_and_continues_when_there_is_a_node(found):
    waits = [line for line in found["said"] if line.startswith(WAITS)]
    assert len(waits) == 1, found["said"]
    assert found["after"] == "here"
