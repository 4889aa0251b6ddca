"""`rlhf-bench manifest`: a recipe as a RayJob whose worker groups fit its placement."""

import math
import subprocess
import sys

import pytest
import yaml

from rlhf_bench.compute.kubernetes import (
    CHECKPOINTS,
    MODELS,
    RECIPE,
    TRACKING,
    WorkerGroup,
    as_yaml,
    job_name,
    rayjob,
    worker_groups,
)
from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import Placement, load_series, parse_recipe, recipe_data
from tests.support.kuberay import ROOT, problems

RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))
APART = {"colocated": False, "pinned": True}


def render(path, *overrides, image="registry/image:1", **options):
    return rayjob(recipe_data(path, overrides), [v.recipe for v in load_series(path, overrides)], image, **options)


def groups_of(job):
    return {g["groupName"]: g for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_recipe_becomes_a_job_that_kuberay_takes(path):
    """As it stands, but for data that lie on this machine. Roles that have groups of their own are pinned to them."""
    overrides = ["task.folder=/shared/gsm8k"] if path.stem == "gsm8k" else []
    job = render(path, *overrides)
    assert problems(job) == []
    colocated = load_series(path, overrides)[0].recipe.placement.colocated
    assert len(groups_of(job)) == (1 if colocated else 4)
    carried = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"][RECIPE]
    pinned = parse_recipe(
        {k: v for k, v in yaml.safe_load(carried).items() if k not in ("vary", "fast")}
    ).placement.pinned
    assert pinned != colocated


@pytest.mark.parametrize(
    ("role", "per_node", "expected"),
    [
        ({"actors": 3, "cpus": 2}, 8, (3, 1, 2, 0)),  # without GPUs a pod each
        ({"actors": 4, "cpus": 2, "gpus": 1}, 8, (1, 4, 8, 4)),
        ({"actors": 12, "cpus": 1, "gpus": 1}, 8, (2, 6, 6, 6)),  # evenly, not 8 and 4
        ({"actors": 3, "cpus": 1, "gpus": 3}, 8, (2, 2, 2, 6)),
        ({"actors": 2, "cpus": 1, "gpus": 4}, 4, (2, 1, 1, 4)),
    ],
)
def test_a_roles_pods(role, per_node, expected):
    placement = Placement.model_validate({**APART, "learner": {**role, "memory_gib": 3}})
    group = next(g for g in worker_groups(placement, True, per_node) if g.role == "learner")
    assert (group.pods, group.actors, group.cpus, group.gpus) == expected
    assert group.memory_gib == 3 * group.actors
    assert group.pods * group.actors >= role["actors"]


def test_colocated_roles_share_one_group_with_the_fleets_bundles():
    settings = {"learner": {"actors": 2, "cpus": 3, "gpus": 1}, "rollout": {"actors": 4, "cpus": 2, "gpus": 1}}
    assert worker_groups(Placement.model_validate(settings), True, 8) == [WorkerGroup("", 1, 4, 12, 4, 4 * 32)]


def test_the_job_has_room_for_the_fleets_that_the_recipe_names():
    path = ROOT / "recipes/scale/cpu.yaml"
    pods = {name: group["replicas"] for name, group in groups_of(render(path)).items()}
    assert {n: g["replicas"] for n, g in groups_of(render(path, "placement.fleets=2")).items()} == {
        name: 2 * count for name, count in pods.items()
    }
    assert groups_of(render(path, "placement.fleets=1")) == groups_of(render(path))
    arms = len(load_series(path)[0].recipe.arms)  # never more fleets than arms and seeds
    several = groups_of(render(path, "placement.fleets=1000", "seeds=[1]"))
    assert {n: g["replicas"] for n, g in several.items()} == {name: arms * count for name, count in pods.items()}


def test_a_group_holds_every_bundle_of_its_role():
    """What Ray will be asked for fits into what the pods offer, role by role."""
    from actors.fleet import bundles

    for name in ("cpu", "cpu_smoke", "one_node", "several_nodes"):
        job, placement = (
            render(ROOT / f"recipes/scale/{name}.yaml"),
            load_series(ROOT / f"recipes/scale/{name}.yaml")[0].recipe.placement,
        )
        asked, where = bundles(placement, scorer=True)
        assert groups_of(job).keys() == where.keys()
        for role, group in groups_of(job).items():
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            offers = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
            offers |= {key: float(amount) for key, amount in group["resources"].items()}
            one = asked[where[role][0]]
            per_pod = math.floor(min(offers[key] / amount for key, amount in one.items()))
            assert per_pod * group["replicas"] >= len(where[role]) > per_pod * (group["replicas"] - 1)


def test_a_role_that_no_arm_needs_has_no_group():
    path = ROOT / "recipes/scale/cpu.yaml"
    assert "scorer" in groups_of(render(path))
    assert "scorer" not in groups_of(render(path, "arms={a: {method: dpo, data: offline, pairs_per_update: 8}}"))


def test_the_job_carries_its_recipe_and_goes_on_when_it_is_tried_again():
    path = ROOT / "recipes/scale/cpu.yaml"
    job = render(path, "reliability.grace_seconds=100", "seeds=[7]")
    spec, head = job["spec"], job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    carried = yaml.safe_load(head["metadata"]["annotations"][RECIPE])
    assert parse_recipe(carried) == load_series(path, ["reliability.grace_seconds=100", "seeds=[7]"])[0].recipe
    (container,) = head["spec"]["containers"]
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    words = spec["entrypoint"].split()
    assert words[:4] == ["python", "-m", "rlhf_bench", "run"] and words[4] == f"{mounted['recipe']}/recipe.yaml"
    (volume,) = (v for v in head["spec"]["volumes"] if v["name"] == "recipe")
    (item,) = volume["downwardAPI"]["items"]
    assert item == {"path": "recipe.yaml", "fieldRef": {"fieldPath": f"metadata.annotations['{RECIPE}']"}}
    assert words[5] == "--output" and words[6] == f"{mounted['shared']}/outputs/scale-cpu"
    assert spec["backoffLimit"] >= 1 and "clusterSelector" not in spec
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment["RLHF_BENCH_CACHE"].startswith(f"{mounted['shared']}/")
    # The volume is one claim that every pod mounts, and a pod may take longer to end than the driver's last checkpoint.
    assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 100
    for group in [job["spec"]["rayClusterSpec"]["headGroupSpec"], *groups_of(job).values()]:
        pod = group["template"]["spec"]
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "rlhf-bench"}} in pod["volumes"]
        assert pod["terminationGracePeriodSeconds"] > 100
    workers = [g["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] for g in groups_of(job).values()]
    assert all(hook == {"exec": {"command": ["sleep", "100"]}} for hook in workers)


def secrets(group):
    (container,) = group["template"]["spec"]["containers"]
    assert {"secretRef": {"name": MODELS, "optional": True}} in container["envFrom"]
    return {source["secretRef"]["name"] for source in container["envFrom"]} - {MODELS}


def test_a_pod_has_the_secrets_that_it_needs():
    """Only the driver writes to MLflow, and only it and the learner write checkpoints; every role loads models."""
    job = render(ROOT / "recipes/scale/cpu.yaml")
    assert secrets(job["spec"]["rayClusterSpec"]["headGroupSpec"]) == {TRACKING, CHECKPOINTS}
    assert {role: secrets(group) for role, group in groups_of(job).items()} == {
        "learner": {CHECKPOINTS}, "rollout": set(), "evaluator": set(), "scorer": set(),
    }  # fmt: skip
    (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert "envFrom" not in submitter
    together = render(ROOT / "recipes/quickstart.yaml", "placement.colocated=true")
    assert {role: secrets(group) for role, group in groups_of(together).items()} == {"colocated": {CHECKPOINTS}}


def test_a_series_is_one_job():
    series = ROOT / "recipes/experiments/sft_quality.yaml"
    assert len(load_series(series)) > 1
    carried = render(series)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["annotations"][RECIPE]
    assert "vary" in yaml.safe_load(carried)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["placement.colocated=true"], "set colocated: false"),
        (["name=3d"], "name: 3d cannot name a RayJob"),
        (["name=" + "a" * 48], "at most 47 characters"),
        (["placement.rollout.gpus=16", "placement.rollout.actors=1"], "placement.rollout.gpus: 16 GPUs for one actor"),
        (
            ["reliability.checkpoint_place=/home/me/checkpoints"],
            "reliability.checkpoint_place: /home/me/checkpoints is a path",
        ),
        (["model.name_or_path=/home/me/model"], "model.name_or_path: /home/me/model is a path of this machine"),
        (["model.name_or_path=~/model"], "model.name_or_path: ~/model is a path of this machine"),
        (
            ["model.tokenizer={kind: pretrained, name_or_path: ./model}"],
            "model.tokenizer.name_or_path: ./model is a path",
        ),
        (["model.name_or_path=model.gguf"], "model.name_or_path: model.gguf is a path of this machine"),
        (["tracking.uri=sqlite:////home/me/mlflow.db"], "tracking.uri: sqlite:////home/me/mlflow.db is a path"),
        (["tracking.uri=sqlite:///mlflow.db"], "tracking.uri: sqlite:///mlflow.db is a path of this machine"),
        (["reliability.checkpoint_place=file:///home/me"], "reliability.checkpoint_place: file:///home/me is a path"),
        (["tracking.uri=http://127.0.0.1:5000"], "tracking.uri: http://127.0.0.1:5000 is an address of this machine"),
        (["tracking.uri=http://localhost"], "tracking.uri: http://localhost is an address of this machine"),
        (["tracking.uri=http://[::1]:5000/x"], "and pods have [::1] to themselves; give one they can reach"),
        (["vary={key: placement.rollout.actors, values: [1, 2]}"], "this series varies the placement"),
        (["description=" + "x" * 250_000], "a manifest carries"),
    ],
)
def test_what_cannot_run_there_is_refused(overrides, line):
    with pytest.raises(BadInput) as refused:
        render(ROOT / "recipes/scale/cpu.yaml", *overrides)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("override", [
    "description=/data is ours", "description=http://localhost is not asked", "tracking.uri=sqlite:////shared/mlflow.db",
    "tracking.uri=http://mlflow:5000", "tracking.uri=http://localhost.example.org", "reliability.checkpoint_place=s3://bucket/folder",
    "model.name_or_path=OWNER/NAME", "model.name_or_path=/shared/model",
])  # fmt: skip
def test_what_pods_can_reach_is_taken(override):
    """And so is what merely looks like a path, in a text."""
    assert override.partition("=")[2] in as_yaml(render(ROOT / "recipes/scale/cpu.yaml", override))


@pytest.mark.parametrize(
    "image", ["", " ", "Registry/Image", "image:", "a b", "-x", "image@sha256:12", "http://r/image"]
)
def test_an_image_must_be_one(image):
    with pytest.raises(BadInput, match=r"^--image .*: is not the name of an image; give one as "):
        render(ROOT / "recipes/scale/cpu.yaml", image=image)


@pytest.mark.parametrize(
    "image", ["i:1", "registry.example.org:5000/a/b-c:0.1.0-gpu", f"r/i@sha256:{'0' * 64}", "localhost/i"]
)
def test_names_of_images(image):
    assert image in as_yaml(render(ROOT / "recipes/scale/cpu.yaml", image=image))


def test_names_of_recipes_become_names_of_jobs():
    assert job_name("Data_Scenarios-2") == "data-scenarios-2"


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "rlhf_bench", "manifest", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_prints_one_document_or_writes_it(tmp_path):
    printed = command("recipes/scale/cpu.yaml", "seeds=[3]", "--image", "registry.example.org/rlhf-bench:1")
    assert printed.returncode == 0, printed.stderr
    (job,) = yaml.safe_load_all(printed.stdout)
    assert problems(job) == [] and job["kind"] == "RayJob"
    assert "registry.example.org/rlhf-bench:1" in printed.stdout
    written = command(
        "recipes/scale/cpu.yaml",
        "seeds=[3]",
        "--image",
        "registry.example.org/rlhf-bench:1",
        "--output",
        tmp_path / "job.yaml",
    )
    assert written.returncode == 0 and written.stdout == ""
    assert (tmp_path / "job.yaml").read_text() == printed.stdout


def test_the_command_ends_with_2_and_one_line_for_bad_input(tmp_path):
    for words in (["name=3d"], ["--output", tmp_path / "none" / "job.yaml"]):
        done = command("recipes/scale/cpu.yaml", "--image", "i:1", *words)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
