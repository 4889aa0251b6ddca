"""A run that is killed, or asked to end, goes on from its last checkpoint and ends as one that was left alone."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.chaos.compare import differences

ROOT = Path(__file__).parents[2]
ARMS = ("ppo", "dpo-mixed", "adaptive-online", "ppo-ahead")
DIVERGES = "adaptive-online"
ROLLED_BACK = 3
"""So many updates at least that followed the last checkpoint are lost, and come a second time."""


def begin(recipe, directory, environment, log, checkpoint_seconds=0):
    """One of the arms learns at a rate at which nobody can."""
    command = [sys.executable, "-m", "rlhf_bench", "run", str(recipe), "tuning=null",
               f"reliability.checkpoint_seconds={checkpoint_seconds}", "reliability.checkpoints=3",
               f"arms.{DIVERGES}.learning_rate=1e30", "compute.skips_in_a_row=2",
               *(f"--arm={arm}" for arm in ARMS), "--output", str(directory)]  # fmt: skip
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


def resumed_at(log):
    """After which update each process went on."""
    return [int(update) for update in re.findall(r"resuming from \S+, after update (\d+)", log.read_text())]


def wait_for_update(process, directory, arm, update):
    """Until that update has been told to MLflow's journal, whether or not a checkpoint followed."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        written = (directory / "tracking.jsonl").read_text().splitlines(keepends=True)
        items = [json.loads(line) for line in written if line.endswith("\n")]
        steps = [i["step"] for i in items if i.get("kind") == "points" and i["run"][1] == arm]
        if max(steps, default=0) >= update:
            return
        time.sleep(0.01)
    raise AssertionError(f"update {update} of {arm} never came")


@pytest.fixture(scope="module")
def straight(tiny, folder, environment):
    directory, log = folder / "straight" / "out", folder / "straight.log"
    finish(begin(tiny, directory, environment, log), log)
    return directory


@pytest.fixture(scope="module")
def broken(straight, tiny, folder, environment):
    """Killed in its first arm, whose newest checkpoint is then damaged; killed there again, several updates after a checkpoint;
    killed in the last, which draws ahead; asked to end there. Returns directory and log."""
    directory, log = folder / "broken" / "out", folder / "broken.log"
    process = begin(tiny, directory, environment, log)
    wait_for(process, directory, "ppo", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max((directory / "state" / "ppo-seed1").glob("round-*/manifest.json")).parent
    weights = newest / "policy-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF  # it may be 0
    weights.write_bytes(content)
    process = begin(tiny, directory, environment, log, checkpoint_seconds=600)
    while not resumed_at(log):
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.02)
    wait_for_update(process, directory, "ppo", resumed_at(log)[0] + ROLLED_BACK)
    process.send_signal(signal.SIGKILL)
    process.wait()
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
    assert said.count("resuming from") == 4
    assert "policy-00001.safetensors is damaged; it is removed, and the one before it is used" in said
    assert "a checkpoint follows after this update" in said
    assert not list((directory / "state").glob("*-seed1")), "checkpoints of finished arms are of no use"


def test_updates_that_no_checkpoint_followed_come_a_second_time(broken):
    """That they came before, `broken` has seen."""
    first, second, *_ = re.findall(r"resuming from (\S+), after update", broken[1])
    assert first == second and "ppo-seed1" in first


def test_mlflow_has_every_step_of_every_metric_once_with_the_numbers_of_the_tables(broken, straight):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{broken[0].parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`rlhf_bench.arm` != ''")
    assert sorted(r.data.tags["rlhf_bench.arm"] for r in runs) == sorted(ARMS)
    metrics = pd.read_parquet(straight / "metrics.parquet").query("phase == 'train'")
    for run in runs:
        arm = run.data.tags["rlhf_bench.arm"]
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        for name, points in history.items():
            assert len({p.step for p in points}) == len(points), (arm, name)
        expected = metrics[metrics["arm"] == arm].set_index("update")["loss"].to_dict()
        assert {p.step: p.value for p in history["train/loss"]} == expected, arm
        assert run.data.tags["rlhf_bench.status"] == ("diverged" if arm == DIVERGES else "done")


@pytest.fixture(params=["straight", "broken"])
def ended(request, straight, broken):
    return {"straight": straight, "broken": broken[0]}[request.param]


def test_an_arm_that_diverges_is_a_result_beside_the_others(ended):
    """Which come before and after it; and the exit code, which `finish` has seen, is 0."""
    summary = json.loads((ended / "summary.json").read_text())["arms"]
    statuses = {arm: [seed["status"] for seed in summary[arm]["seeds"]] for arm in ARMS}
    assert statuses == {arm: ["diverged" if arm == DIVERGES else "done"] for arm in ARMS}
    assert summary[DIVERGES]["score"]["mean"] is None and summary["ppo"]["score"]["mean"] is not None
    page = (ended / "report.html").read_text()
    assert "0 of 1, 1 diverged" in page and f"{DIVERGES}: seed 1 (diverged) did not finish" in page
    skipped = pd.read_parquet(ended / "metrics.parquet").query("phase == 'train' and skipped == 1")
    assert list(skipped["arm"]) == [DIVERGES] * 2
    kept = {f"{DIVERGES}-seed1-update{update}.json" for update in skipped["update"]}
    assert {path.name for path in (ended / "trouble").iterdir()} == kept
