"""Joining Ray: an address without a cluster is an error at once. Starting it: nothing stays of a cluster whose driver is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from time import perf_counter

import pytest

from actors.ray_cluster import cluster
from rlhf_bench.core.errors import RunFailed
from tests.support.listening import allowed, listeners, on_loopback
from tests.support.running import left_running, numbered_with, processes_with, signal_all, with_cache


def test_an_address_where_nothing_answers_is_named_within_seconds(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = perf_counter()
    with (
        pytest.raises(RunFailed, match=f"RAY_ADDRESS={address}: no cluster answers there .* unset RAY_ADDRESS"),
        cluster(),
    ):
        pytest.fail("there was no cluster to join")
    assert perf_counter() - began < 30


DRIVER = """
import sys
from rlhf_bench.cli.main import exit_code
from rlhf_bench.cli.run import guard_local_cluster
guard_local_cluster()
from actors.ray_cluster import cluster
from rlhf_bench.experiment.shutdown import grace_period
def run():
    with cluster() as ready, grace_period(60):
        ready()
        print("up", flush=True)
        input()
        import ray
        while True:
            ray.put(bytes(10**6))
sys.exit(exit_code(run))
"""


@pytest.fixture
def driver():
    """With a cluster of its own; and the mark that all of its processes have."""
    mark = f"KILLED_DRIVER={os.getpid()}"
    own = with_cache(Path("unused")) | dict([mark.split("=")])
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=own,
    )  # fmt: skip
    assert started.stdout.readline() == "up\n"
    yield started, mark
    started.kill()
    started.wait()


def test_a_local_cluster_listens_on_loopback_alone(driver):
    _, mark = driver
    found = listeners(numbered_with(mark))
    assert {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "rlhf-bench"} <= found.keys()
    assert found.keys() <= allowed(), "what else listens belongs into the table of docs/security.md"
    assert all(on_loopback(address) for addresses in found.values() for address in addresses), found


def test_agents_of_a_raylet_that_is_killed_do_not_stay(driver):
    """Left alone, they report the loss to a head that is gone too: for a minute."""
    process, mark = driver
    assert any("RuntimeEnvAgent" in command for command in processes_with(mark))
    process.kill()
    process.wait()
    assert left_running(mark) == []
    assert process.stderr.read() == "", "nothing but the driver itself was lost"


@pytest.mark.parametrize(("name", "busy"), [("gcs_server", False), ("raylet", False), ("raylet", True)])
def test_a_run_whose_ray_was_killed_ends_at_once_with_one_line(driver, name, busy):
    """Left alone, the driver waits for a minute, and Ray ends it with lines of its own; or at once without one, where the driver
    is busy with Ray."""
    process, mark = driver
    if busy:
        process.stdin.write("begin\n")
        process.stdin.flush()
        time.sleep(1)
    (of_ray,) = (n for n, command in numbered_with(mark).items() if command.split(" ")[0].endswith(f"/{name}"))
    began = perf_counter()
    os.kill(of_ray, signal.SIGKILL)
    assert process.wait(timeout=60) == 1 and perf_counter() - began < 20
    *_, line = said = process.stderr.read().strip().splitlines()
    how = "(has ended|was killed by SIGKILL)" if busy else "was killed by SIGKILL"
    assert re.fullmatch(
        f"failed: Ray's process {name} {how}; the same command resumes from the last checkpoint", line
    ), said
    assert sum("failed: " in one for one in said) == 1, said
    assert left_running(mark) == []


def test_a_signal_that_ends_ray_as_well_is_what_the_last_line_names(driver):
    """As a service manager sends it, to all processes of a run: nothing has failed."""
    process, mark = driver
    signal_all(mark, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert process.stderr.read().strip().splitlines()[-1] == (
        "stopped by SIGTERM: the same command with the same --output resumes from the last checkpoint"
    )
    assert left_running(mark) == []
