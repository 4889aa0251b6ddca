"""A node of a cluster dies with all roles on it, and MLflow's server with it: the roles start again on another node, the run ends as
one left alone, and the server that is there again gets every step once."""

import subprocess
import sys
import time

import pytest

from rlhf_bench.core.ray_folder import closed_cluster
from tests.chaos.compare import differences, table
from tests.chaos.runs import ROOT, environment, finish
from tests.support.mlflow_server import Server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "mlflow").mkdir()
    server = Server(tmp_path / "mlflow")
    yield server
    server.kill()


def test_a_run_goes_on_when_the_node_of_its_actors_is_lost(server, undisturbed, tmp_path):
    recipe, own = undisturbed.parents[1] / "chaos.yaml", environment(undisturbed.parents[1])
    ready, log, closed = tmp_path / "ready", tmp_path / "moved.log", closed_cluster()
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.two_nodes", str(ready)], cwd=ROOT, stdin=subprocess.PIPE, text=True,
        env=own | closed,
    )  # fmt: skip
    try:
        address = _line(ready)
        command = [sys.executable, "-m", "rlhf_bench", "run", str(recipe), "--output", str(tmp_path / "moved" / "out")]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                env=own | closed | {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": server.address},
            )  # fmt: skip
        state = tmp_path / "moved" / "out" / "state" / "ppo-seed1"
        deadline = time.monotonic() + 300
        while not list(state.glob("round-*/manifest.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        print("lose", file=nodes.stdin, flush=True)
        server.kill()
        while "resuming from" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        server.start()
        moved = finish(process, tmp_path, "moved", 300)
    finally:
        nodes.stdin.close()
        nodes.wait(timeout=60)
    assert nodes.returncode == 0
    assert "started again" in log.read_text() and "resuming from" in log.read_text()
    assert differences(moved, undisturbed, ["ppo"]) == []
    assert "not in MLflow" not in log.read_text()
    updates = table(moved, "metrics").query("arm == 'ppo' and phase == 'train'")["update"]
    assert _steps(server.address) == list(updates) and len(updates) > 3


def _steps(address):
    """Of the arm's loss, in the order in which MLflow has got them."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    (experiment,) = [e for e in client.search_experiments() if e.name == "chaos"]
    (run,) = client.search_runs([experiment.experiment_id], "tags.`rlhf_bench.arm` = 'ppo'")
    return [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]


def _line(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return path.read_text().strip()
