"""What a run in MLflow is known by: its key, commit, job and machine as tags, and the recipe's settings as params."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from actors.ray_cluster import machine
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.store import MAY_DIFFER


def tags(recipe: Recipe, directory: Path) -> dict[str, str]:
    """On every run of this comparison."""
    return {
        "run_key": run_key(directory),
        "commit": commit(),
        "ray_submission_id": submission_id(),
        "recipe": recipe.name,
        "machine": machine(),
    }


def params(recipe: Recipe) -> dict[str, str]:
    """Settings as section/key -> YAML. MLflow's params never change, so what may differ when a comparison is resumed is not
    among them."""
    flat = dict(_flat(recipe.resolved()))
    return {key: _as_yaml(value) for key, value in flat.items() if key.split("/")[0] not in MAY_DIFFER}


def run_key(directory: Path) -> str:
    """One per directory, so that a resumed run is the same run in MLflow."""
    path = directory / "run_key"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()


def commit() -> str:
    """The checkout's commit, or "". The launcher gives it where the job runs in a copy without its history."""
    if "RLHF_BENCH_COMMIT" in os.environ:
        return os.environ["RLHF_BENCH_COMMIT"]
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    except FileNotFoundError:  # no git on this machine
        return ""
    return found.stdout.strip()


def submission_id() -> str:
    """The id of the Ray job that runs this process, or "": Ray hands the job's config to the driver by environment."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id", "")


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
