"""cluster/kubernetes: every document that base and overlays come to, against KubeRay's CRDs and its operator's rules."""

import re
import shutil
import subprocess

import pytest
import yaml

from cluster import kubernetes_files
from rlhf_bench.compute.kubernetes import CHECKPOINTS, MODELS, ROLE, TRACKING
from rlhf_bench.recipe import load_recipe
from tests.support.kuberay import ROOT, closed, pod_template, problems, schema, violations
from tests.support.kustomize import build

FOLDER = ROOT / "cluster" / "kubernetes"
FOLDERS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
JOBS = [folder for folder in FOLDERS if folder.name == "job"]
CLUSTERS = [folder for folder in FOLDERS if folder.name == "cluster"]
ROLES = {"learner", "rollout", "evaluator", "scorer"}
CLAIMED = {"data"}
"""Volumes that a StatefulSet makes by its claim templates."""


def name(folder):
    return str(folder.relative_to(FOLDER))


def pods(document):
    """Every pod template in a document."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for one in document:
            yield from pods(one)


def ray_spec(document):
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def test_base_and_overlays_are_all_there():
    assert {name(f) for f in FOLDERS} == {"base/platform", "base/job", "base/cluster"} | {
        f"overlays/{overlay}/{kind}" for overlay in kubernetes_files.OVERLAYS for kind in ("job", "cluster")
    }


def test_what_is_written_from_recipes_is_what_they_come_to_now():
    for path, text in kubernetes_files.files().items():
        assert path.read_text() == text, f"{path}: run .venv/bin/python -m cluster.kubernetes_files"


@pytest.mark.parametrize("overlay", kubernetes_files.OVERLAYS)
def test_an_overlay_comes_to_what_the_manifest_command_renders(overlay):
    recipe, image = kubernetes_files.OVERLAYS[overlay]
    assert build(FOLDER / "overlays" / overlay / "job") == [kubernetes_files.job(recipe, image)]
    assert build(FOLDER / "overlays" / overlay / "cluster") == [kubernetes_files.cluster(recipe, image)]


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_tests_build_is_that_of_kustomize_itself(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here, whose `kubectl kustomize` builds without a cluster")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    by_name = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    assert by_name == {(d["kind"], d["metadata"]["name"]): d for d in build(folder)}


@pytest.mark.parametrize("folder", JOBS + CLUSTERS, ids=name)
def test_the_crd_and_the_operator_have_nothing_against_it(folder):
    (document,) = build(folder)
    assert document["apiVersion"] == "ray.io/v1"
    assert problems(document) == []


@pytest.mark.parametrize("folder", JOBS + CLUSTERS, ids=name)
def test_every_role_has_a_group_of_a_fixed_size_and_asks_for_a_token(folder):
    (document,) = build(folder)
    spec = ray_spec(document)
    assert {g["groupName"] for g in spec["workerGroupSpecs"]} == ROLES
    for group in spec["workerGroupSpecs"]:
        assert group["resources"] == {group["groupName"]: "1"}
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert spec["enableInTreeAutoscaling"] is False and spec["authOptions"] == {"mode": "token"}
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "rlhf-bench"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # Under a cluster's own name the operator keeps its token.
    assert document["metadata"]["name"] not in (MODELS, TRACKING, CHECKPOINTS)


@pytest.mark.parametrize("overlay", ["one-node-8-gpus", "several-nodes"])
def test_an_overlays_gpus_fill_its_nodes(overlay):
    (document,) = build(FOLDER / "overlays" / overlay / "job")
    groups = ray_spec(document)["workerGroupSpecs"]
    each = [int(g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for g in groups]
    total = sum(g["replicas"] * n for g, n in zip(groups, each, strict=True))
    if overlay == "one-node-8-gpus":
        assert total == 8
    else:
        assert max(each) == 8 and total > 16
        placement = load_recipe(ROOT / "recipes/scale/several_nodes.yaml").placement
        assert total == sum(r.actors * r.gpus for r in placement.roles(True).values())


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_pods_are_not_root_and_secrets_are_references(folder):
    for document in build(folder):
        assert document["kind"] != "Secret"
        for pod in pods(document):
            spec = pod["spec"]
            assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
            assert spec["automountServiceAccountToken"] is False
            for container in spec["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
                made = {volume["name"] for volume in spec["volumes"]} | CLAIMED
                assert {mount["name"] for mount in container["volumeMounts"]} <= made
                assert container["image"].count(":") == 1 and not container["image"].endswith(":latest")
                for variable in container.get("env", []):
                    secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN", "KEY"))
                    assert secret == ("valueFrom" in variable), variable["name"]


NETWORK = {
    "rlhf-bench-ray": {"head <- head, worker: all", "worker <- head, worker: all"},
    "rlhf-bench-ray-dashboard": {"head <- submitter, kuberay-operator: 8265"},
    "rlhf-bench-submitter": {"submitter <- nobody"},
    "mlflow": {"mlflow <- head: 5000"},
    "mlflow-postgres": {"mlflow-postgres <- mlflow: 5432"},
}
"""Policy -> who may connect to whom."""


def selected(selector):
    """The roles or names that a selector of pods takes."""
    named = list(selector.get("matchLabels", {}).items())
    named += [(e["key"], value) for e in selector.get("matchExpressions", []) for value in e["values"]]
    assert {key for key, _ in named} <= {ROLE, "app.kubernetes.io/name"}
    return [value for _, value in named]


def connections(spec):
    assert spec["policyTypes"][0] == "Ingress"
    for pod in selected(spec["podSelector"]):
        for rule in spec.get("ingress", []):
            who = ", ".join(name for peer in rule["from"] for name in selected(peer["podSelector"]))
            yield f"{pod} <- {who}: {', '.join(str(p['port']) for p in rule.get('ports', [])) or 'all'}"
        if "ingress" not in spec:
            yield f"{pod} <- nobody"


def test_the_network_lets_through_what_is_needed():
    policies = {
        d["metadata"]["name"]: d["spec"] for d in build(FOLDER / "base" / "platform") if d["kind"] == "NetworkPolicy"
    }
    assert {name: set(connections(spec)) for name, spec in policies.items()} == NETWORK
    # KubeRay's CRD has Kubernetes' own schema of a rule.
    rules = schema("RayCluster")["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]
    for spec in policies.values():
        assert violations({"ingressRules": spec.get("ingress", [])}, rules) == []
    assert (
        policies["mlflow-postgres"]["policyTypes"] == ["Ingress", "Egress"]
        and "egress" not in policies["mlflow-postgres"]
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_every_pod_is_under_a_policy(folder):
    policies = [d["spec"] for d in build(FOLDER / "base" / "platform") if d["kind"] == "NetworkPolicy"]
    guarded = {name for spec in policies for name in selected(spec["podSelector"])}
    for document in build(folder):
        for pod in pods(document):
            labels = pod["metadata"]["labels"]
            assert {labels.get(ROLE), labels.get("app.kubernetes.io/name")} & guarded


def test_mlflow_asks_for_a_password_and_no_pod_has_anothers_secrets():
    documents = {(d["kind"], d["metadata"]["name"]): d for d in build(FOLDER / "base" / "platform")}
    server = documents["Deployment", "mlflow"]["spec"]["template"]["spec"]
    (container,) = server["containers"]
    assert container["command"][-2:] == ["--app-name", "basic-auth"]
    (config,) = (v["value"] for v in container["env"] if v["name"] == "MLFLOW_AUTH_CONFIG_PATH")
    mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in server["volumes"]}
    assert volumes[mounted[config.rpartition("/")[0]]] == {
        "name": "users", "secret": {"secretName": "rlhf-bench-mlflow-users"},
    }  # fmt: skip
    assert container["envFrom"] == [{"secretRef": {"name": "rlhf-bench-mlflow"}}]
    (database,) = documents["StatefulSet", "mlflow-postgres"]["spec"]["template"]["spec"]["containers"]
    assert "envFrom" not in database
    taken = [v["valueFrom"]["secretKeyRef"] for v in database["env"] if "valueFrom" in v]
    assert taken == [{"name": "rlhf-bench-postgres", "key": "POSTGRES_PASSWORD"}]


def test_the_document_names_every_secret_and_each_pods_variables():
    page = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    text = "".join(str(build(folder)) for folder in FOLDERS)
    named = set(re.findall(r"'(?:name|secretName)': '(rlhf-bench-[a-z-]+)'", text)) - {*NETWORK}
    assert {MODELS, TRACKING, CHECKPOINTS} <= named
    assert all(f"create secret generic {secret} " in page for secret in named), named


def test_pods_of_the_platform_are_pods_as_kubernetes_knows_them():
    documents = {(d["kind"], d["metadata"]["name"]): d for d in build(FOLDER / "base" / "platform")}
    assert documents.keys() == {
        ("PersistentVolumeClaim", "rlhf-bench"), ("Service", "mlflow-postgres"), ("StatefulSet", "mlflow-postgres"),
        ("Service", "mlflow"), ("Deployment", "mlflow"),
        *(("NetworkPolicy", name) for name in NETWORK),
    }  # fmt: skip
    for key in [("StatefulSet", "mlflow-postgres"), ("Deployment", "mlflow")]:
        spec = documents[key]["spec"]
        assert violations(spec["template"], pod_template()) == []
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert documents["Service", key[1]]["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert documents["PersistentVolumeClaim", "rlhf-bench"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_mlflow_server_knows_its_options():
    from mlflow.cli import server
    from mlflow.environment_variables import MLFLOW_AUTH_CONFIG_PATH

    documents = {(d["kind"], d["metadata"]["name"]): d for d in build(FOLDER / "base" / "platform")}
    (container,) = documents["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    known = {word for option in server.params for word in option.opts}
    assert container["command"][:2] == ["mlflow", "server"]
    assert {word for word in container["command"] if word.startswith("--")} <= known
    by_variable = {option.envvar for option in server.params}
    # What the secret of docs/kubernetes.md holds, and what the deployment sets.
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_SERVER_ALLOWED_HOSTS"} <= by_variable
    assert {v["name"] for v in container["env"]} <= by_variable | {MLFLOW_AUTH_CONFIG_PATH.name}


def test_a_field_that_the_schema_has_not_is_found():
    (document,) = build(FOLDER / "base" / "job")
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriod"] = 60
    assert any("terminationGracePeriod" in problem for problem in problems(document))
    assert closed({"type": "object", "properties": {"a": {}}})["additionalProperties"] is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["metadata"].update(name="x" * 48), "DNS-1035"),
        (lambda d: d["metadata"].update(name="3d"), "DNS-1035"),
        (lambda d: d["spec"].update(submissionMode="SidecarMode"), "SidecarMode"),
        (lambda d: d["spec"].update(submissionMode="InteractiveMode"), "backoffLimit"),
        (lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "x"}), "backoffLimit"),
        (lambda d: d["spec"].update(suspend=True, shutdownAfterJobFinishes=False), "suspend"),
        (lambda d: d["spec"].update(deletionStrategy={"deletionRules": [{}]}), "deletionRules"),
        (lambda d: ray_spec(d)["workerGroupSpecs"][0].update(minReplicas=2, maxReplicas=1), "replicas"),
        (lambda d: ray_spec(d)["workerGroupSpecs"][0]["rayStartParams"].update({"num-cpus": "1"}), "resources"),
        (lambda d: ray_spec(d).update(rayVersion="2.40.0"), "rayVersion"),
    ],
)
def test_what_the_operator_refuses_is_found(change, said):
    (document,) = build(FOLDER / "base" / "job")
    assert problems(document) == []
    change(document)
    assert any(said in problem for problem in problems(document))
