"""The same through a real `ray job submit`, on a cluster that `cluster/local_job.py` starts and ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]


def submit(recipe: Path, directory: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "cluster" / "local_job.py"),
        str(recipe),
        *arguments,
        "--output",
        str(directory),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_a_comparison_runs_as_a_job(tiny, folder, environment):
    from mlflow.tracking import MlflowClient

    arms = ("dpo-offline", "dpo-mixed")
    directory = folder / "out" / "job"
    job = submit(
        tiny, directory, environment, "seeds=[3]", "tuning=null", *(word for arm in arms for word in ("--arm", arm))
    )
    assert job.returncode == 0, job.stdout + job.stderr
    summary = json.loads((directory / "summary.json").read_text())
    finished = {name: [(s["seed"], s["status"]) for s in arm["seeds"]] for name, arm in summary["arms"].items()}
    assert finished == {
        "ppo": [],
        "dpo-offline": [(3, "done")],
        "dpo-mixed": [(3, "done")],
        "adaptive-online": [],
        "ppo-ahead": [],
    }
    # The job's own output comes through, then where to look.
    assert "tiny: held-out score at equal compute" in job.stdout
    assert (
        f"Report:  file://{directory}/report.html" in job.stdout
        and f"sqlite:///{directory.parent}/mlflow.db" in job.stdout
    )

    store = MlflowClient(tracking_uri=f"sqlite:///{directory.parent / 'mlflow.db'}")
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert len(runs) == 3 and {r.info.status for r in runs} == {"FINISHED"}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    for found in runs:
        # Given by Ray to the driver of a job alone; and the commit, though a job's copy of the tree has no history.
        assert found.data.tags["ray_submission_id"].startswith("rlhf-bench-") and found.data.tags["commit"] == commit


def test_the_exit_code_is_the_drivers_own(tiny, folder, environment):
    """`ray job submit` makes every failure a 1; a wrong recipe is 2, as Ray's record of the job has it."""
    job = submit(tiny, folder / "out" / "wrong", environment, "compute.limit=1")
    assert job.returncode == 2, job.stdout + job.stderr
    assert "error: compute.limit: 1 flops is less than arm ppo needs" in job.stdout + job.stderr
    assert not (folder / "out" / "wrong" / "recipe.yaml").exists()
