"""The Dockerfile, as far as it can be read without being built: it is not built here."""

import re
import shlex
import tomllib
from fnmatch import fnmatch

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import rlhf_bench
from cluster import kubernetes_files
from tests.support.kuberay import ROOT

TEXT = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages():
    """Stage -> its instructions, those of the stages it is made from first."""
    found = {}
    for line in TEXT.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            current = found[name] = [*found.get(source, [("FROM", source)])]
        else:
            current.append((word, rest.strip()))
    return found


TARGETS = {name: stages()[name] for name in ("cpu", "gpu")}


def every(target, word):
    return [rest for found, rest in TARGETS[target] if found == word]


def python():
    (base,) = every("cpu", "FROM")
    return re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", base)[1]


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_pinned_and_its_python_is_that_of_the_locks(target):
    assert every(target, "FROM") == every("cpu", "FROM")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python())
    minor = python().rpartition(".")[0]
    for name in (target, "cluster"):
        assert f"Python {minor}," in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()[0]
    assert all(f"python{minor}/" in line for line in every(target, "ENV") if "site-packages" in line)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_copied_exists_and_reaches_the_builder(target):
    sources = [source for line in every(target, "COPY") for source in shlex.split(line)[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    sent = [
        line[1:] for line in (ROOT / "cluster/Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    assert all(any(fnmatch(source, pattern) for pattern in sent) for source in sources)
    # All that the package is built from: what setuptools looks for, and what the project's table names.
    built = {pattern.rstrip("*") for pattern in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]}  # fmt: skip
    assert built | {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(sources)


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_those_of_the_locks_and_nothing_is_resolved(target):
    installs = [c for line in every(target, "RUN") for c in re.split(r"&&", line) if "pip install" in c]
    assert installs and all("--no-deps" in command for command in installs)
    copied = {s for line in every(target, "COPY") for s in shlex.split(line)[:-1] if s.startswith("requirements/")}
    apart = {"requirements/torch-cpu.txt"} if target == "cpu" else set()
    assert copied == {f"requirements/{target}.txt", "requirements/cluster.txt"} | apart
    assert all("--require-hashes" in c for c in installs if "/tmp/requirements" in c and "torch-cpu.txt" not in c)
    makefile = (ROOT / "Makefile").read_text()
    index = re.search(r"^TORCH_INDEX := (\S+)$", makefile, re.MULTILINE)[1]
    assert (index in " ".join(installs)) == (target == "cpu")


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root_and_the_user_is_the_manifests(target):
    last = [rest for word, rest in TARGETS[target] if word in ("USER", "RUN")][-1]
    assert last == "1000:1000"  # a number, which is what runAsNonRoot can check
    job = kubernetes_files.job("cpu", "rlhf-bench:x")
    context = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert last == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_rays_version_is_one_everywhere():
    spec = yaml.safe_load((ROOT / "cluster/kubernetes/base/job/rayjob.yaml").read_text())["spec"]
    pinned = f"ray=={spec['rayClusterSpec']['rayVersion']}"
    assert f"ray[default]=={spec['rayClusterSpec']['rayVersion']}" in PROJECT["dependencies"]
    for target in TARGETS:
        assert f"\n{pinned} " in (ROOT / "requirements" / f"{target}.txt").read_text()


def test_images_are_named_by_the_projects_version():
    version = rlhf_bench.__version__
    images = {image for _, image in [kubernetes_files.BASE, *kubernetes_files.OVERLAYS.values()]}
    assert images == {f"rlhf-bench:{version}-{target}" for target in TARGETS}
    assert all(f"--target {target} " in TEXT and f"rlhf-bench:{version}-{target} ." in TEXT for target in TARGETS)
