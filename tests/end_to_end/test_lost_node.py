"""A node of a cluster dies with all roles on it: they start again on another one, and the run ends as one left alone."""

import secrets
import subprocess
import sys
import time

import pytest

from tests.chaos.compare import differences
from tests.chaos.runs import ROOT, environment, finish, straight, write_recipe

pytestmark = pytest.mark.engine


def test_a_run_goes_on_when_the_node_of_its_actors_is_lost(tmp_path):
    recipe = write_recipe(tmp_path, updates=12)
    alone = straight(tmp_path, recipe)
    ready, log = tmp_path / "ready", tmp_path / "moved.log"
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.two_nodes", str(ready)], cwd=ROOT, stdin=subprocess.PIPE, text=True,
        env=environment(tmp_path) | closed,
    )  # fmt: skip
    try:
        address = _line(ready)
        command = [sys.executable, "-m", "rlhf_bench", "run", str(recipe), "--output", str(tmp_path / "moved" / "out")]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment(tmp_path) | closed | {"RAY_ADDRESS": address},
            )  # fmt: skip
        state = tmp_path / "moved" / "out" / "state" / "ppo-seed1"
        deadline = time.monotonic() + 200
        while not list(state.glob("round-*/manifest.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        print("lose", file=nodes.stdin, flush=True)
        moved = finish(process, tmp_path, "moved", 300)
    finally:
        nodes.stdin.close()
        nodes.wait(timeout=60)
    assert nodes.returncode == 0
    assert "started again" in log.read_text() and "going on from" in log.read_text()
    assert differences(moved, alone, ["ppo"]) == []


def _line(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return path.read_text().strip()
