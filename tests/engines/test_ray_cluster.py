"""Joining Ray: an address without a cluster is an error at once. Starting it: nothing stays of a cluster whose driver is killed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from actors.ray_cluster import cluster
from rlhf_bench.core.errors import RunFailed
from tests.support.listening import allowed, listeners, on_loopback
from tests.support.running import left_running, numbered_with, processes_with, with_cache


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
from rlhf_bench.cli.run import guard_local_cluster
guard_local_cluster()
from actors.ray_cluster import cluster
with cluster() as ready:
    ready()
    print("up", flush=True)
    input()
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


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_run_whose_ray_was_killed_ends_at_once_with_one_line(driver, name):
    """Left alone, the driver waits for a minute, and Ray ends it with lines of its own."""
    process, mark = driver
    (of_ray,) = (n for n, command in numbered_with(mark).items() if command.split(" ")[0].endswith(f"/{name}"))
    began = perf_counter()
    os.kill(of_ray, signal.SIGKILL)
    assert process.wait(timeout=60) == 1 and perf_counter() - began < 20
    assert process.stderr.read().strip().splitlines()[-1] == (
        f"failed: Ray's process {name} was killed by SIGKILL; the same command resumes from the last checkpoint"
    )
    assert left_running(mark) == []
