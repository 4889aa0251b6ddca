"""What `rlhf-bench manifest` renders, run as KubeRay would run it: its entrypoint and runtime environment as a job, on a cluster
with a raylet for every pod and the same role resources, behind a token."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from rlhf_bench.compute.kubernetes import RECIPE, Paths, as_yaml, rayjob
from rlhf_bench.core.ray_folder import closed_cluster
from rlhf_bench.recipe import load_recipe, recipe_data

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PLACED = [
    "arms={ppo: {method: ppo, prompts_per_update: 8, samples_per_prompt: 2, epochs_per_update: 1}}",
    "tuning=null", "baseline=null", "claims=[]", "compute.limit=3e+9", "sft.steps=40", "reliability.checkpoint_seconds=0",
    "placement.colocated=false", "placement.pinned=true", "placement.learner.actors=2",
]  # fmt: skip
ROLE_OF = {
    "LearnerRank": "learner", "RolloutActor": "rollout", "EvaluatorActor": "evaluator", "ScorerActor": "scorer",
}  # fmt: skip


class Jobs:
    """The job server, as its clients on a cluster with a token reach it."""

    def __init__(self, address, environment):
        self.address, self.environment = address, environment
        self.token = environment["RAY_AUTH_TOKEN"]

    def get(self, path, token=None):
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"Bearer {token or self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def submit(self, name, spec):
        """With the words of KubeRay's submitter."""
        runtime = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
        command = f"{RAY} job submit --no-wait --address {self.address} --submission-id {name} --runtime-env-json '{runtime}' -- {spec['entrypoint']}"
        subprocess.run(command, shell=True, env=self.environment, check=True, capture_output=True, text=True)

    def wait(self, name, until):
        """Its record, once `until(record)`."""
        deadline = time.monotonic() + 400
        while not until(job := self.get(f"/api/jobs/{name}")):
            assert job["status"] in ("PENDING", "RUNNING") and time.monotonic() < deadline, self.log(name)
            time.sleep(0.2)
        return job

    def log(self, name):
        return self.get(f"/api/jobs/{name}/logs")["logs"]


def ended(job):
    return job["status"] in ("SUCCEEDED", "FAILED", "STOPPED")


def test_a_rendered_job_runs_on_its_roles_nodes_and_goes_on_when_it_is_tried_again(tiny, folder, environment):
    paths = Paths(recipe=str(folder / "etc"), shared=str(folder / "shared"))
    job = rayjob(recipe_data(tiny, PLACED), [load_recipe(tiny, PLACED)], "unused:1", paths=paths)
    spec, head = job["spec"], job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (folder / "etc").mkdir()  # what the kubelet does with the annotation
    (folder / "etc" / "recipe.yaml").write_text(head["metadata"]["annotations"][RECIPE])
    (folder / "shared").mkdir()
    manifest, ready = folder / "job.yaml", folder / "ready"
    manifest.write_text(as_yaml(job))
    own = environment | closed_cluster()
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    own.pop("RLHF_BENCH_CACHE")  # the runtime environment says where
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.support.local_nodes", str(manifest), str(ready)],
        cwd=ROOT, env=own, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert cluster.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        up = json.loads(ready.read_text())
        jobs = Jobs(up["dashboard"], own)
        with pytest.raises(urllib.error.HTTPError) as refused:
            jobs.get("/api/jobs/", token="a-guess")
        assert refused.value.code in (401, 403)

        output = folder / "shared" / "outputs" / "tiny"
        jobs.submit("first", spec)
        jobs.wait("first", lambda job: list(output.glob("state/ppo-seed1/round-*/manifest.json")))
        # The pod is to end: what its head does before. Ray is still whole then.
        hook = head["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        *words, address = hook
        assert address == "http://127.0.0.1:8265"
        subprocess.run([*words, up["dashboard"]], env=own, cwd=ROOT, check=True, timeout=60)
        first = jobs.wait("first", ended)
        # FAILED is what KubeRay tries again; STOPPED would be done.
        assert (first["status"], first["driver_exit_code"]) == ("FAILED", 143), jobs.log("first")

        jobs.submit("second", spec)
        second = jobs.wait("second", ended)
        assert second["status"] == "SUCCEEDED", jobs.log("second")
        assert "resuming from" in jobs.log("second")
        actors = jobs.get("/api/v0/actors?detail=1&limit=100")["data"]["result"]["result"]
    finally:
        cluster.stdin.close()
        cluster.wait(timeout=60)

    (seed,) = json.loads((output / "summary.json").read_text())["arms"]["ppo"]["seeds"]
    assert (seed["seed"], seed["status"]) == (1, "done")
    assert list((folder / "shared" / "cache").glob("base-*"))
    # Every actor of a role, in both jobs, on a node of the role's group; the learner's two ranks on two nodes.
    nodes = {role: {a["node_id"] for a in actors if ROLE_OF.get(a["class_name"]) == role} for role in ROLE_OF.values()}
    assert {role: {up["nodes"][n] for n in found} for role, found in nodes.items()} == {r: {r} for r in nodes}
    assert {role: len(found) for role, found in nodes.items()} == {
        "learner": 2, "rollout": 1, "evaluator": 1, "scorer": 1,
    }  # fmt: skip
