"""A run that is killed, or asked to end, goes on from its last checkpoint and ends as one that was left alone."""

import re
import signal
from pathlib import Path

import pytest

from tests.chaos.compare import differences
from tests.chaos.runs import environment, write_recipe
from tests.support.attempts import Attempts, resumed_at
from tests.support.listening import allowed, listeners, on_loopback
from tests.support.running import Run, left_running, numbered_with, processes_with

ARMS = ("ppo", "dpo-offline", "dpo-mixed", "adaptive-online", "ppo-ahead")
ROLLED_BACK = 3
"""So many updates at least that followed the last checkpoint are lost, and come a second time."""
PROCESSES = ("gcs_server", "raylet", "LearnerRank", "RolloutActor")
"""Of a run, and some of those that must be gone after its end."""
EVERY_UPDATE, NEVER = "reliability.checkpoint_seconds=0", "reliability.checkpoint_seconds=600"
KEPT = "reliability.checkpoints=3"


@pytest.fixture(scope="module")
def attempts(compared, prepared, tmp_path_factory):
    """Killed in its first arm, whose newest checkpoint is then damaged; killed there again, several updates after a checkpoint;
    killed in the last, which draws ahead, after another command has been refused. Running once more."""
    tried = Attempts(compared.directory.parents[1] / "tiny.yaml", tmp_path_factory.mktemp("broken"), prepared)
    tried.start(EVERY_UPDATE, KEPT)
    tried.wait_for(lambda: tried.checkpoint("ppo", 2))
    tried.end_by(signal.SIGKILL)
    weights = tried.checkpoint("ppo", 2) / "policy-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF  # it may be 0
    weights.write_bytes(content)
    tried.start(NEVER, KEPT)
    (after,) = tried.wait_for(lambda: resumed_at(tried.said()))
    tried.wait_for(lambda: tried.updates_told("ppo") >= after + ROLLED_BACK)
    tried.end_by(signal.SIGKILL)
    tried.start(EVERY_UPDATE, KEPT)
    tried.another = tried.start_another()
    tried.wait_for(lambda: tried.checkpoint("ppo-ahead", 2))
    tried.end_by(signal.SIGKILL)
    tried.start(EVERY_UPDATE, KEPT)
    tried.wait_for(lambda: all(name in " ".join(processes_with(tried.mark)) for name in PROCESSES))
    tried.wait_for(lambda: tried.checkpoint("ppo-ahead", 3))
    tried.listeners = listeners(numbered_with(tried.mark))
    yield tried
    tried.process.kill()


def test_a_run_listens_on_loopback_alone(attempts):
    """In the middle of training, with all of its engines."""
    assert {"gcs_server", "raylet", "ray::LearnerRank", "ray::RolloutActor"} <= attempts.listeners.keys()
    assert attempts.listeners.keys() <= allowed(), "what else listens belongs into the table of docs/security.md"
    open_to_others = {name: found for name, found in attempts.listeners.items() if not all(map(on_loopback, found))}
    assert open_to_others == {}


@pytest.fixture(scope="module")
def stopped(attempts) -> Run:
    """Asked to end."""
    return attempts.end_by(signal.SIGTERM)


@pytest.fixture(scope="module")
def broken(attempts, stopped) -> Run:
    """And carried on to its end."""
    attempts.start(EVERY_UPDATE, KEPT)
    done = attempts.end()
    assert done.code == 0, done.errors[-2000:]
    return done


def test_sigterm_leaves_all_in_order(attempts, stopped):
    from mlflow.tracking import MlflowClient

    assert left_running(attempts.mark) == []
    assert stopped.code == 143, stopped.errors
    assert stopped.errors.strip().splitlines()[-1] == (
        "stopped by SIGTERM: the same command with the same --output resumes from the last checkpoint"
    )
    assert list((stopped.directory / "state" / "ppo-ahead-seed1").glob("round-*/manifest.json"))
    store = MlflowClient(tracking_uri=f"sqlite:///{stopped.directory.parent / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("tiny").experiment_id
    key = (stopped.directory / "run_key").read_text()
    assert "RUNNING" not in {r.info.status for r in store.search_runs([experiment], f"tags.run_key = '{key}'")}


def test_another_command_in_the_same_directory_is_refused_meanwhile(attempts):
    assert attempts.another.code == 2
    last = attempts.another.errors.strip().splitlines()[-1]
    assert last.startswith(f"error: --output {attempts.directory}: another command works in it, process ")
    assert " since 20" in last and last.endswith("; wait for its end, or choose another directory")


def test_a_run_that_was_killed_and_asked_to_end_ends_as_one_left_alone(compared, broken):
    """The same seed, on the same machine: the same updates, samples, scores and weights, bit for bit."""
    assert differences(broken.directory, compared.directory, list(ARMS)) == []
    for arm in ARMS:
        (one,), (other,) = (run.summary["arms"][arm]["seeds"] for run in (compared, broken))
        assert (one["score"], one["kl"], one["spent"]["flops"]) == (
            other["score"],
            other["kl"],
            other["spent"]["flops"],
        )


def test_it_says_from_where_it_goes_on_and_leaves_damaged_checkpoints_alone(attempts, broken):
    said = attempts.said()
    assert said.count("resuming from") == 4
    assert "policy-00001.safetensors is damaged; it is removed, and the one before it is used" in said
    assert "a checkpoint follows after this update" in said
    assert not list((broken.directory / "state").glob("*-seed1")), "checkpoints of finished arms are of no use"


def test_what_was_done_is_not_done_again(attempts, broken):
    assert "ppo · seed 1: already done, kept" in broken.errors
    _, *later = (Path(f"{log}.err").read_text() for log in attempts.logs)
    assert all("fine-tuning" not in said and "trial 1 of" not in said for said in later)


def test_updates_that_no_checkpoint_followed_come_a_second_time(attempts, broken):
    """That they came before, `attempts` has seen."""
    first, second, *_ = re.findall(r"resuming from (\S+), after update", attempts.said())
    assert first == second and "ppo-seed1" in first


def test_mlflow_has_every_step_of_every_metric_once_with_the_numbers_of_the_tables(broken, compared):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{broken.directory.parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`rlhf_bench.arm` != ''")
    assert sorted(r.data.tags["rlhf_bench.arm"] for r in runs) == sorted(ARMS)
    metrics = compared.table("metrics").query("phase == 'train'")
    for run in runs:
        arm = run.data.tags["rlhf_bench.arm"]
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        for name, points in history.items():
            assert len({p.step for p in points}) == len(points), (arm, name)
        expected = metrics[metrics["arm"] == arm].set_index("update")["loss"].to_dict()
        assert {p.step: p.value for p in history["train/loss"]} == expected, arm
        assert run.data.tags["rlhf_bench.status"] == "done"


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processors(tmp_path):
    """Two minutes with one of them. Sums may be taken in another order then: no promise of equal bits."""
    tried = Attempts(write_recipe(tmp_path, 12, evaluations=2), tmp_path / "run", environment(tmp_path))
    tried.start(EVERY_UPDATE)
    tried.wait_for(lambda: tried.checkpoint("ppo", 3))
    tried.end_by(signal.SIGKILL)
    tried.start(EVERY_UPDATE, within=["taskset", "--cpu-list", "0"])
    done = tried.end()
    assert done.code == 0 and resumed_at(done.said + done.errors)[-1] >= 3
    updates = done.table("metrics").query("phase == 'train'")["update"].tolist()
    assert updates == [*range(1, len(updates) + 1)]
