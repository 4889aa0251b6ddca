"""The same through a real `ray job submit`, on a cluster that `cluster/local_job.py` starts and ends."""

import json
import subprocess
import sys
from pathlib import Path

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


def test_a_comparison_runs_as_a_job(tiny, folder, prepared):
    from mlflow.tracking import MlflowClient

    arms = ("dpo-offline", "dpo-mixed")
    directory = folder / "out" / "job"
    job = submit(
        tiny, directory, prepared, "seeds=[3]", "tuning=null", *(word for arm in arms for word in ("--arm", arm))
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


CLIENT = """
import json, os, subprocess, sys, time, urllib.request
from pathlib import Path

root, recipe, directory = sys.argv[1:]
sys.path.insert(0, root)
from cluster.local_job import RAY, local_cluster

os.environ["RAY_metrics_report_interval_ms"] = "1000"  # 10 s otherwise
environment = {"RLHF_BENCH_CACHE": os.environ["RLHF_BENCH_CACHE"], "RAY_JOB_STOP_WAIT_TIME_S": "60"}
command = ["python", "-m", "rlhf_bench", "run", recipe, "seeds=[4]", "tuning=null", "compute.limit=3.0e+9",
           "reliability.checkpoint_seconds=0", "--arm", "ppo-ahead", "--output", directory]


def wait_for(found, seconds=240):
    ends = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < ends, client.get_job_logs(first)
        time.sleep(0.2)
    return value


def ray_job(*words, **environment):
    return subprocess.run([RAY, "job", *words], env={**os.environ, **environment}, capture_output=True, text=True)


with local_cluster() as (address, folder, _head):
    from ray.job_submission import JobStatus, JobSubmissionClient

    refused = ray_job("list", "--address", address, RAY_AUTH_TOKEN="0" * 64)
    client = JobSubmissionClient(address)
    first = client.submit_job(
        entrypoint=" ".join(command), runtime_env={"working_dir": root, "env_vars": environment}, metadata={"of": "a test"}
    )
    wrong = client.submit_job(
        entrypoint=" ".join(["python", "-m", "rlhf_bench", "run", recipe, "compute.limit=1", "--output", directory + "-wrong"]),
        runtime_env={"working_dir": root, "env_vars": environment},
    )
    state = Path(directory, "state", "ppo-ahead-seed4")
    wait_for(lambda: list(state.glob("round-*/manifest.json")) or client.get_job_status(first).is_terminal())
    # As Prometheus finds them: Ray lists every node's address in this file.
    (targets,) = json.loads((folder.ray / "session_latest" / "prom_metrics_service_discovery.json").read_text())
    def metrics():
        served = "".join(urllib.request.urlopen(f"http://{t}/metrics").read().decode() for t in targets["targets"])
        lines = [line for line in served.splitlines() if line.startswith("ray_rlhf_bench")]
        wanted = [(name, "") for name in ("queue_depth", "tokens_total", "sync_seconds_count")]
        wanted += [("tokens_total", f'role="{role}"') for role in ("rollout", "learner")]  # served once a second
        there = all(any(w in line and role in line and 'ppo-ahead' in line for line in lines) for w, role in wanted)
        return lines if there else []
    lines = wait_for(metrics, 60)
    stopped_by_cli = ray_job("stop", first, "--address", address)
    stopped, logs = client.get_job_status(first), client.get_job_logs(first)
    wait_for(lambda: client.get_job_status(wrong).is_terminal(), 120)
    key = Path(directory, "run_key").read_text()
    again = ray_job("submit", "--address", address, "--submission-id", "again", "--working-dir", root,
                    "--runtime-env-json", json.dumps({"env_vars": environment}), "--", *command)
    print(json.dumps({
        "refused": [refused.returncode, refused.stdout + refused.stderr], "metrics": lines, "metadata": client.get_job_info(first).metadata,
        "stopped": [stopped_by_cli.returncode, str(stopped), logs], "again": [again.returncode, again.stdout + again.stderr],
        "logs": ray_job("logs", "again", "--address", address).stdout, "status": str(client.get_job_status("again")),
        "wrong": [client.get_job_info(wrong).driver_exit_code, client.get_job_logs(wrong)],
        "keys": [key, Path(directory, "run_key").read_text()],
    }))
"""


def test_jobs_by_the_sdk_show_their_metrics_are_stopped_resumed_and_refused(tiny, folder, prepared):
    from mlflow.tracking import MlflowClient

    directory = folder / "out" / "again"
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, str(ROOT), str(tiny), str(directory)],
        env=prepared, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert client.returncode == 0, client.stdout + client.stderr
    told = json.loads(client.stdout.splitlines()[-1])

    assert (
        told["refused"][0] != 0 and "token" in told["refused"][1].lower()
    )  # whoever has another one gets to see no job
    assert told["metadata"] == {"of": "a test"}
    for line in ("ray_rlhf_bench_tokens_total{", "ray_rlhf_bench_queue_depth{", "ray_rlhf_bench_sync_seconds_bucket{"):
        found = [
            one for one in told["metrics"] if one.startswith(line) and 'arm="ppo-ahead"' in one and 'seed="4"' in one
        ]
        assert found, told["metrics"]
    # The evaluator may not have looked at this arm yet.
    assert all(any(f'role="{role}"' in one for one in told["metrics"]) for role in ("rollout", "learner"))

    code, status, logs = told["stopped"]
    assert (code, status) == (0, "STOPPED"), told["stopped"]
    assert "stopped by SIGTERM: the same command with the same --output resumes from the last checkpoint" in logs
    assert told["again"][0] == 0 and told["status"] == "SUCCEEDED", told["again"]
    assert "ppo-ahead · seed 4: done" in told["logs"] and "tiny: held-out score at equal compute" in told["again"][1]
    assert "resuming from" in (directory / "events.log").read_text()
    assert told["keys"][0] == told["keys"][1]
    store = MlflowClient(tracking_uri=f"sqlite:///{directory.parent / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("tiny").experiment_id
    runs = store.search_runs([experiment], f"tags.run_key = '{told['keys'][0]}'")
    assert sorted(run.info.run_name for run in runs) == ["comparison", "ppo-ahead · seed 4"]  # not one of them twice
    assert {run.info.status for run in runs} == {"FINISHED"}
    updates = store.get_metric_history(next(r for r in runs if "ppo" in r.info.run_name).info.run_id, "train/loss")
    assert [point.step for point in updates] == list(range(1, len(updates) + 1))

    # `ray job submit` makes every failure a 1; Ray's record of the job has the driver's own code, which cluster/local_job.py passes on.
    code, logs = told["wrong"]
    assert code == 2 and "error: compute.limit: 1 flops is less than arm ppo needs" in logs, logs
    assert not Path(f"{directory}-wrong", "recipe.yaml").exists()
