"""`kustomize build`, for as much of it as cluster/kubernetes uses: resources, images by tag, and JSON patches. Anything else is an
error, so that nothing is left out in silence. A test compares it with the real one where there is one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]


def build(folder: Path) -> list[Document]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= {"apiVersion", "kind", "resources", "images", "patches"}
    documents = [one for name in kustomization["resources"] for one in _resource(folder / name)]
    for patch in kustomization.get("patches", []):
        assert patch.keys() == {"path", "target"} and patch["target"].keys() == {"kind"}
        targets = [d for d in documents if d["kind"] == patch["target"]["kind"]]
        assert targets, f"{folder}: {patch} changes nothing"
        for document in targets:
            for operation in yaml.safe_load((folder / patch["path"]).read_text()):
                _apply(document, operation)
    for image in kustomization.get("images", []):
        assert image.keys() == {"name", "newTag"}
        for document in documents:
            _retag(document, image["name"], image["newTag"])
    return documents


def _resource(path: Path) -> list[Document]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _apply(document: Document, operation: dict[str, Any]) -> None:
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
    place: Any = document
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    key: Any = int(last) if isinstance(place, list) else last
    match operation["op"]:
        case "add":
            assert isinstance(place, dict), "add: to a list is not used here"
            place[key] = copy.deepcopy(operation["value"])
        case "replace":
            assert place[key] is not None
            place[key] = copy.deepcopy(operation["value"])
        case "remove":
            del place[key]
        case other:
            raise AssertionError(f"{other}: not used here")


def _retag(node: Any, name: str, tag: str) -> None:
    for inner in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
        _retag(inner, name, tag)
    if isinstance(node, dict) and isinstance(node.get("image"), str) and node["image"].partition(":")[0] == name:
        node["image"] = f"{name}:{tag}"
