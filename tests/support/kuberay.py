"""What a Kubernetes API server and KubeRay's operator say of a manifest, as far as that can be known without them.

The API server checks a document against its CRD's schema, and drops fields that the schema has not, in silence: here
they are refused. The operator then refuses more, which no schema says.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
VARIABLE = "RLHF_BENCH_KUBERAY_CRDS"
OPEN = "x-kubernetes-preserve-unknown-fields"


def crds() -> Path:
    """The folder with ray.io_rayjobs.yaml and ray.io_rayclusters.yaml; skips the test where there is none."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    beside = ROOT.parent / "shared" / "kuberay-crds"
    if not beside.is_dir():
        pytest.skip(f"KubeRay's CRDs are neither at {beside} nor named by {VARIABLE}: see docs/kubernetes.md")
    return beside


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """Of ray.io/v1 KIND, closed."""
    text = (crds() / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    (found,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    # The API server's own part of every object, which a CRD leaves open.
    found["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "labels": {"additionalProperties": {"type": "string"}}},
    }
    return closed(found)


def closed(node: Any) -> Any:
    """The same schema with `additionalProperties: false` wherever properties are listed."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {key: closed(value) for key, value in node.items()}
    listed = isinstance(out.get("properties"), dict) and out.get("type", "object") == "object"
    if listed and not out.get(OPEN) and "additionalProperties" not in out:
        out["additionalProperties"] = False
    return out


def pod_template() -> dict[str, Any]:
    """What the CRD says of a pod, which is Kubernetes' own schema: also for Deployments and StatefulSets."""
    cluster = schema("RayJob")["properties"]["spec"]["properties"]["rayClusterSpec"]
    template = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    return template


def violations(document: Any, of: dict[str, Any]) -> list[str]:
    return [
        f"{error.json_path}: {error.message[:200]}" for error in jsonschema.Draft7Validator(of).iter_errors(document)
    ]


def problems(document: dict[str, Any]) -> list[str]:
    """All that API server and operator have against a RayJob or a RayCluster."""
    found = violations(document, schema(document["kind"]))
    name, spec = document["metadata"]["name"], document["spec"]
    longest = {"RayJob": 47, "RayCluster": 63}[document["kind"]]
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"name: {name} is too long or no DNS-1035 label")
    if document["kind"] == "RayCluster":
        return found + list(_cluster_problems(spec))
    selector, mode = spec.get("clusterSelector"), spec.get("submissionMode", "K8sJobMode")
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        found.append("suspend: needs shutdownAfterJobFinishes, and a cluster of the job's own")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished: needs shutdownAfterJobFinishes")
    if spec.get("backoffLimit") and (selector or mode == "InteractiveMode"):
        found.append("backoffLimit: not with InteractiveMode or a clusterSelector")
    if mode == "SidecarMode" and (spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
        found.append("submitterPodTemplate: not in SidecarMode")
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules")
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        found.append("deletionStrategy.deletionRules: not with shutdownAfterJobFinishes or a TTL")
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        found.append("runtimeEnvYAML: no mapping")
    if not selector and "rayClusterSpec" not in spec:
        found.append("rayClusterSpec: neither that nor a clusterSelector")
    return found + list(_cluster_problems(spec.get("rayClusterSpec", {})))


def _cluster_problems(spec: dict[str, Any]):
    if not spec:
        return
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names):
        yield "workerGroupSpecs: two groups of one name"
    for name, group in [("head", head), *zip(names, workers, strict=True)]:
        start = group.get("rayStartParams", {})
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start.keys():
            yield f"{name}: resources both as such and in rayStartParams"
        if "labels" in start:
            yield f"{name}: labels in rayStartParams"
        if not group["template"]["spec"]["containers"]:
            yield f"{name}: no container"
    for group in workers:
        if not group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas outside of minReplicas and maxReplicas"
    if (spec.get("authOptions") or {}).get("mode") == "token":
        version = [int(part) for part in spec.get("rayVersion", "0").split(".")]
        if version < [2, 52]:
            yield "authOptions: a token needs rayVersion 2.52 or later"
