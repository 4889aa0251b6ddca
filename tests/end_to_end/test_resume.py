"""A run that is killed, or asked to end, goes on from its last checkpoint and ends as one that was left alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.chaos.compare import differences

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
ARMS = ("ppo", "dpo-mixed", "ppo-ahead")


def begin(recipe, directory, environment, log):
    command = [sys.executable, "-m", "rlhf_bench", "run", str(recipe), "tuning=null", "reliability.checkpoint_seconds=0",
               "reliability.checkpoints=3", *(f"--arm={arm}" for arm in ARMS), "--output", str(directory)]  # fmt: skip
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)


def finish(process, log):
    try:
        assert process.wait(timeout=400) == 0, log.read_text()[-2000:]
    finally:
        process.kill()


def wait_for(process, directory, arm, round_):
    """Until the arm has a checkpoint of that round or a later one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = sorted((directory / "state" / f"{arm}-seed1").glob("round-*/manifest.json"))
        if found and int(found[-1].parent.name.removeprefix("round-")) >= round_:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of {arm} came")


@pytest.fixture(scope="module")
def straight(tiny, folder, environment):
    directory, log = folder / "straight" / "out", folder / "straight.log"
    finish(begin(tiny, directory, environment, log), log)
    return directory


@pytest.fixture(scope="module")
def broken(straight, tiny, folder, environment):
    """Killed in its first arm, whose newest checkpoint is then damaged; killed in the third, which draws ahead; asked to end
    there. Returns directory and log."""
    directory, log = folder / "broken" / "out", folder / "broken.log"
    process = begin(tiny, directory, environment, log)
    wait_for(process, directory, "ppo", 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max((directory / "state" / "ppo-seed1").glob("round-*/manifest.json")).parent
    weights = newest / "policy-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF  # it may be 0
    weights.write_bytes(content)
    process = begin(tiny, directory, environment, log)
    wait_for(process, directory, "ppo-ahead", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = begin(tiny, directory, environment, log)
    wait_for(process, directory, "ppo-ahead", 3)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert code == 128 + signal.SIGTERM, log.read_text()[-2000:]
    assert list((directory / "state" / "ppo-ahead-seed1").glob("round-*/manifest.json"))
    finish(begin(tiny, directory, environment, log), log)
    return directory, log.read_text()


def test_a_run_that_was_killed_and_asked_to_end_ends_as_one_left_alone(straight, broken):
    assert differences(broken[0], straight, list(ARMS)) == []


def test_it_says_from_where_it_goes_on_and_leaves_damaged_checkpoints_alone(broken):
    directory, said = broken
    assert said.count("going on from") == 3
    assert "policy-00001.safetensors is damaged; it is removed, and the one before it is used" in said
    assert "a checkpoint follows after this update" in said
    assert not list((directory / "state").glob("*-seed1")), "checkpoints of finished arms are of no use"


def test_mlflow_has_every_step_once(broken, straight):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{broken[0].parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`rlhf_bench.arm` != ''")
    assert sorted(r.data.tags["rlhf_bench.arm"] for r in runs) == sorted(ARMS)
    metrics = pd.read_parquet(straight / "metrics.parquet")
    for run in runs:
        arm = run.data.tags["rlhf_bench.arm"]
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
        expected = metrics[(metrics["arm"] == arm) & (metrics["phase"] == "train")]["update"]
        assert sorted(steps) == sorted(expected), arm
        assert run.data.tags["rlhf_bench.status"] == "done"


def test_results_say_that_all_arms_are_done(broken):
    arms = json.loads((broken[0] / "results.json").read_text())["arms"]
    assert [arms[arm]["seeds"][0]["status"] for arm in ARMS] == ["done"] * len(ARMS)
