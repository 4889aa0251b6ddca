"""A recipe as a Kubernetes manifest: one RayJob of KubeRay whose worker groups fit the recipe's placement.

    recipe ── worker_groups ──> pods of a size ──> rayjob ──> YAML (`rlhf-bench manifest`)

The recipe is part of the job: an annotation of the head's pod, which the driver sees as a file (downward API). So one
document is the whole comparison: deleting it leaves nothing behind, and no job can read the recipe of another one, as
could happen with ConfigMaps of the same name.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import Placement, Recipe

Document = dict[str, Any]

NAME = "rlhf-bench"
"""Of the volume claim and of Kueue's queue that a job refers to; cluster/kubernetes/base/platform has the claim."""
MODELS, TRACKING, CHECKPOINTS = "rlhf-bench-models", "rlhf-bench-tracking", "rlhf-bench-checkpoints"
"""Secrets whose values are in the environment: of every Ray pod, to load gated models; of the head, where the driver writes to
MLflow; of the head and the learner, which write checkpoints. None is NAME: under a cluster's own name the operator keeps its
token."""
ROLE = "rlhf-bench/role"
"""The pods' label: head, worker or submitter. The network policies of cluster/kubernetes/base/platform select by it."""
WRITABLE = {"tmp": "/tmp", "home": "/home/ray"}
"""What a container may write to, besides the shared volume: its image's own files are read-only."""
LABELS = {"app.kubernetes.io/name": NAME, "kueue.x-k8s.io/queue-name": NAME}
RECIPE = "rlhf-bench/recipe"
"""The annotation that holds the recipe."""
MAX_NAME_LENGTH = 47  # of a RayJob: the operator makes names of pods and services out of it
MAX_RECIPE_BYTES = 200 * 1024  # all annotations of an object together: 256 KiB
RETRIES = 3
FINISHED_SECONDS = 600  # how long the pods of an ended job stay, so that their logs can be read
DRIVER_SECONDS = 40  # beyond reliability.grace_seconds: actors end, MLflow gets its last lines
HEAD = {"cpu": "2", "memory": "8Gi"}
SUBMITTER = {"cpu": "500m", "memory": "1Gi"}
PLACES = frozenset(
    "name_or_path uri checkpoint_place folder source prompts held_out out_of_distribution unseen pairs".split()
)
"""Keys whose texts name places: models, data, MLflow's store, checkpoints."""
_SUFFIXES = (".gguf", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".db")
_PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_IMAGE = re.compile(rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::[\w.-]+)?(?:@sha256:[0-9a-f]{{64}})?")


@dataclass(frozen=True)
class Paths:
    """Where pods find the recipe, and the volume that all of them share."""

    recipe: str = "/etc/rlhf-bench"
    shared: str = "/shared"


@dataclass(frozen=True)
class WorkerGroup:
    """Equal pods, each with room for `actors` actors. `role` is "" where all roles share the group."""

    role: str
    pods: int
    actors: int
    cpus: int
    gpus: int
    memory_gib: float

    @property
    def name(self) -> str:
        return self.role or "colocated"


def worker_groups(placement: Placement, scorer: bool, gpus_per_node: int, fleets: int = 1) -> list[WorkerGroup]:
    """A group for every role, or one for all roles that are colocated, for so many fleets.

    Actors with GPUs share as few pods as nodes of `gpus_per_node` allow, evenly: within a pod NCCL goes from GPU to GPU.
    Actors without have a pod each, which fits in anywhere.
    """
    roles = placement.roles(scorer)
    if placement.colocated:  # as rlhf_bench.compute.resources has it
        count = fleets * max(r.actors for r in roles.values())
        cpus, gpus = max(r.cpus for r in roles.values()), max(r.gpus for r in roles.values())
        return [_group("", count, cpus, gpus, sum(r.memory_gib for r in roles.values()), gpus_per_node)]
    return [_group(name, fleets * r.actors, r.cpus, r.gpus, r.memory_gib, gpus_per_node) for name, r in roles.items()]


def _group(role: str, count: int, cpus: int, gpus: int, memory_gib: float, gpus_per_node: int) -> WorkerGroup:
    if gpus > gpus_per_node:
        key = f"placement.{role}.gpus" if role else "placement"
        raise BadInput(
            f"{key}: {gpus} GPUs for one actor, and a node has {gpus_per_node}; ask for fewer, or give --gpus-per-node"
        )
    pods = math.ceil(count / (gpus_per_node // gpus)) if gpus else count
    actors = math.ceil(count / pods)
    return WorkerGroup(role, pods, actors, actors * cpus, actors * gpus, actors * memory_gib)


def rayjob(
    data: Mapping[str, Any], recipes: Sequence[Recipe], image: str, gpus_per_node: int = 8, paths: Paths = Paths()
) -> Document:
    """The RayJob. `data`: the recipe as plain data, extended and overridden; `recipes`: the comparisons it asks for, more
    than one for a series. Roles that are not colocated are pinned, each to its group. Raises BadInput where it cannot run as one."""
    recipe = recipes[0]
    if not recipe.placement.colocated:
        data = {**data, "placement": {**(data.get("placement") or {}), "pinned": True}}
    if any(other.placement != recipe.placement for other in recipes):
        raise BadInput(
            "vary: a job has one cluster, and this series varies the placement; render one job for each value"
        )
    _check_image(image)
    _check_places(data, paths.shared)
    text = as_yaml(data)
    if len(text.encode()) > MAX_RECIPE_BYTES:
        raise BadInput(
            f"the recipe is {len(text.encode())} bytes long, and a manifest carries {MAX_RECIPE_BYTES} at most; shorten it"
        )
    scorer = any(one.reward_models for one in recipes)
    pieces = max(len(one.arms) * len(one.seeds) for one in recipes)
    groups = worker_groups(recipe.placement, scorer, gpus_per_node, min(recipe.placement.fleets or 1, pieces))
    grace = math.ceil(recipe.reliability.grace_seconds)
    cluster = ray_cluster(groups, image, grace, paths.shared)
    template = cluster["headGroupSpec"]["template"]
    template["metadata"]["annotations"] = {RECIPE: text}
    container = template["spec"]["containers"][0]
    container["volumeMounts"].append({"name": "recipe", "mountPath": paths.recipe, "readOnly": True})
    item = {"path": "recipe.yaml", "fieldRef": {"fieldPath": f"metadata.annotations['{RECIPE}']"}}
    template["spec"]["volumes"].append({"name": "recipe", "downwardAPI": {"items": [item]}})
    command = ["python", "-m", "rlhf_bench", "run", f"{paths.recipe}/recipe.yaml"]
    environment = {
        "RLHF_BENCH_CACHE": f"{paths.shared}/cache",
        "HF_HOME": f"{paths.shared}/huggingface",
        "RAY_JOB_STOP_WAIT_TIME_S": str(grace + DRIVER_SECONDS),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job_name(recipe.name), "labels": dict(LABELS)},
        "spec": {
            # A retry is a new cluster and the same command, with the same --output: it resumes from the last checkpoint.
            "backoffLimit": RETRIES,
            "entrypoint": shlex.join([*command, "--output", f"{paths.shared}/outputs/{recipe.name}"]),
            "runtimeEnvYAML": as_yaml({"env_vars": environment}),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": FINISHED_SECONDS,
            "submitterPodTemplate": {
                "metadata": {"labels": {ROLE: "submitter"}},
                "spec": _pod("submitter", image, SUBMITTER) | {"restartPolicy": "Never"},
            },
            "rayClusterSpec": cluster,
        },
    }


class _Dumper(yaml.SafeDumper):
    """Text of several lines stands as it is, and so can be read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def as_yaml(document: Mapping[str, Any]) -> str:
    """In ASCII, so that no terminal or editor on the way changes it."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=120)


def job_name(name: str) -> str:
    """A recipe's name as the name of a RayJob, or BadInput."""
    found = name.lower().replace("_", "-")
    if len(found) > MAX_NAME_LENGTH or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", found):
        raise BadInput(
            f"name: {name} cannot name a RayJob, which begins with a letter, ends with a letter or digit and has at most "
            f"{MAX_NAME_LENGTH} characters; choose another, for example name=my-comparison"
        )
    return found


def ray_cluster(groups: Sequence[WorkerGroup], image: str, grace_seconds: int, shared: str) -> Document:
    """The spec of a RayCluster: a head that takes no actors, and the groups, whose sizes never change."""
    head = _ray_pod("ray-head", image, HEAD, shared, [MODELS, TRACKING, CHECKPOINTS])
    head["terminationGracePeriodSeconds"] = grace_seconds + DRIVER_SECONDS
    head["containers"][0]["lifecycle"] = {
        "preStop": _command("python", "-m", "actors.stop_jobs", "http://127.0.0.1:8265")
    }
    head["containers"][0]["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
    ]
    return {
        "rayVersion": importlib.metadata.version("ray"),
        "enableInTreeAutoscaling": False,  # arms must not find different machines
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"metadata": {"labels": {ROLE: "head"}}, "spec": head},
        },
        "workerGroupSpecs": [_worker_group(g, image, grace_seconds, shared) for g in groups],
    }


def _worker_group(group: WorkerGroup, image: str, grace_seconds: int, shared: str) -> Document:
    size = {"cpu": str(group.cpus), "memory": f"{math.ceil(group.memory_gib)}Gi"}
    secrets = [MODELS, CHECKPOINTS] if group.role in ("", "learner") else [MODELS]
    size |= {"nvidia.com/gpu": str(group.gpus)} if group.gpus else {}
    pod = _ray_pod("ray-worker", image, size, shared, secrets)
    # All pods are asked to end at once, and the driver's last checkpoint needs the learner.
    pod["terminationGracePeriodSeconds"] = grace_seconds + DRIVER_SECONDS
    pod["containers"][0]["lifecycle"] = {"preStop": _command("sleep", str(grace_seconds))}
    return {
        "groupName": group.name,
        "replicas": group.pods,
        "minReplicas": group.pods,
        "maxReplicas": group.pods,
        "rayStartParams": {},
        **({"resources": {group.role: "1"}} if group.role else {}),
        "template": {"metadata": {"labels": {ROLE: "worker"}}, "spec": pod},
    }


def _ray_pod(name: str, image: str, size: Mapping[str, str], shared: str, secrets: Sequence[str]) -> Document:
    pod = _pod(name, image, size)
    container = pod["containers"][0]
    # MLflow's address is needed. Gated models and an object store are not everybody's.
    container["envFrom"] = [
        {"secretRef": {"name": secret} | ({} if secret == TRACKING else {"optional": True})} for secret in secrets
    ]
    container["volumeMounts"].append({"name": "shared", "mountPath": shared})
    pod["volumes"].append({"name": "shared", "persistentVolumeClaim": {"claimName": NAME}})
    return pod


def _pod(name: str, image: str, size: Mapping[str, str]) -> Document:
    """One container, not as root, on a read-only image, without a way to the Kubernetes API; requests are limits, so nothing is
    shared."""
    container = {
        "name": name,
        "image": image,
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in WRITABLE.items()],
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    return {
        "automountServiceAccountToken": False,
        "securityContext": user | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": volume, "emptyDir": {}} for volume in WRITABLE],
    }


def _command(*words: str) -> Document:
    return {"exec": {"command": list(words)}}


def _check_image(image: str) -> None:
    if not _IMAGE.fullmatch(image):
        raise BadInput(
            f"--image {image!r}: is not the name of an image; give one as registry.example.org/rlhf-bench:0.1.0-gpu, in small letters"
        )


def _check_places(data: Mapping[str, Any], shared: str) -> None:
    """BadInput where a key names a place that pods do not have: a path of this machine, or a server on it."""
    problems = []
    for key, place in _places(data, ()):
        address = re.match(r"https?://(?:[^@/]*@)?(localhost|127\.[\d.]+|0\.0\.0\.0|\[::1?\])(?=[:/]|$)", place)
        if address:
            problems.append(
                f"{key}: {place} is an address of this machine, and pods have {address[1]} to themselves; give one they can reach"
            )
        elif (path := _local_path(place)) is not None and not f"{path}/".startswith(f"{shared}/"):
            problems.append(
                f"{key}: {place} is a path of this machine, and pods see the volume at {shared}; copy it there and give "
                f"{shared}/…"
            )
    if problems:
        raise BadInput(*problems)


def _local_path(place: str) -> str | None:
    """The path that a place means; None where it is no path: an id, an object store, a server."""
    if found := re.match(r"sqlite:///(.*)|file:(?://)?(.*)", place):
        return found[1] if found[1] is not None else found[2]
    relative = place.startswith(("~", "./", "../")) or place in (".", "..") or place.endswith(_SUFFIXES)
    return place if place.startswith("/") or (relative and "://" not in place) else None


def _places(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every text of a recipe that names a place, and its key."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in items:
        yield from _places(inner, (*key, str(name)))
    if isinstance(value, str) and key and key[-1] in PLACES:
        yield ".".join(key), value
