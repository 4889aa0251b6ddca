"""Write the jobs and clusters in cluster/kubernetes from recipes/scale: the base, and each overlay's patch of it.

Usage, from the repository root: .venv/bin/python -m cluster.kubernetes_files

So base and overlays fit their recipes' placement, like the output of `rlhf-bench manifest`; a test checks that they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_bench.compute.kubernetes import LABELS, NAME, as_yaml, rayjob
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.recipe import load_recipe, recipe_data

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cluster" / "kubernetes"
WRITTEN = "# Written by cluster/kubernetes_files.py from {}.\n"
BASE = ("cpu", "rlhf-bench:0.1.0-cpu")
OVERLAYS = {
    "cpu-smoke": ("cpu_smoke", "rlhf-bench:0.1.0-cpu"),
    "one-node-8-gpus": ("one_node", "rlhf-bench:0.1.0-gpu"),
    "several-nodes": ("several_nodes", "rlhf-bench:0.1.0-gpu"),
}
"""Overlay -> the recipe in recipes/scale, and the image, which the overlay's kustomization.yaml sets."""

Document = dict[str, Any]


def job(recipe: str, image: str) -> Document:
    path = ROOT / "recipes" / "scale" / f"{recipe}.yaml"
    return rayjob(recipe_data(path), [load_recipe(path)], image)


def cluster(recipe: str, image: str) -> Document:
    """The same cluster without a job, for `ray job submit`."""
    spec = job(recipe, image)["spec"]["rayClusterSpec"]
    template = spec["headGroupSpec"]["template"]
    del template["metadata"]["annotations"]
    pod = template["spec"]
    pod["volumes"] = [v for v in pod["volumes"] if v["name"] != "recipe"]
    mounts = pod["containers"][0]["volumeMounts"]
    pod["containers"][0]["volumeMounts"] = [m for m in mounts if m["name"] != "recipe"]
    metadata = {"name": NAME, "labels": dict(LABELS)}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


def operations(old: Any, new: Any, path: str = "") -> Iterator[Document]:
    """A JSON patch (RFC 6902) that makes `new` of `old`, images aside."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            at = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in new:
                yield {"op": "remove", "path": at}
            elif key not in old:
                yield {"op": "add", "path": at, "value": new[key]}
            elif key != "image":
                yield from operations(old[key], new[key], at)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from operations(one, other, f"{path}/{i}")
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def files() -> dict[Path, str]:
    """Every file and its text."""
    found = {}
    for kind, make in (("job", job), ("cluster", cluster)):
        base = make(*BASE)
        found[FOLDER / "base" / kind / f"ray{kind}.yaml"] = _written(BASE[0]) + as_yaml(base)
        for overlay, (recipe, image) in OVERLAYS.items():
            patch = list(operations(base, make(recipe, image)))
            found[FOLDER / "overlays" / overlay / kind / "patch.yaml"] = _written(recipe) + _list_as_yaml(patch)
    return found


def _written(recipe: str) -> str:
    return WRITTEN.format(f"recipes/scale/{recipe}.yaml")


def _list_as_yaml(patch: list[Document]) -> str:
    return "".join("- " + as_yaml(one).replace("\n", "\n  ").rstrip(" ") for one in patch)


if __name__ == "__main__":
    for path, text in files().items():
        read_yaml(text)
        path.write_text(text, encoding="ascii")
        print(path.relative_to(ROOT))
