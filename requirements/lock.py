"""Write the locks cpu.txt, gpu.txt, dev.txt and cluster.txt anew from pyproject.toml.

Usage: .venv/bin/python requirements/lock.py [cpu] [gpu] [dev] [cluster]      (all where none is named; a minute each)

Each lock is the whole closure that pip resolves, installed with `pip install --no-deps --require-hashes -r LOCK`. uv adds the
hashes of every file that PyPI has of a version, so a lock holds for every Python and processor. Run it with the oldest
supported Python. dev.txt and cluster.txt hold only what cpu.txt does not, and are resolved against it. dev.txt has
the packages of single kinds of task and of outside benchmarks besides, and cpu.txt and gpu.txt have versions that those take. torchvision,
torchaudio and torchcodec are left out: the project reads text only, and a build of theirs that does not match
torch's makes the import of transformers fail. The CPU build of torch comes from PyTorch's own index, which uv does not ask: it
is in torch-cpu.txt, without hashes, and written with cpu. To lock gpu, pip must see PyPI's build of torch, so unset any
setting that makes it prefer a CPU wheel.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("cpu", "gpu", "dev", "cluster")
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OF_TASKS = ("poem", "reasoning-gym", "benchmarks")
"""Extras that one kind of task or one command needs."""
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "pip"}
"""pip: an environment has its own."""


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def closure(requirements: list[str], *options: str) -> dict[str, str]:
    """Every package, by normalised name, and the version that `requirements` resolve to on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip("install", "--dry-run", "--ignore-installed", "--report", str(report), *options, *requirements)
        packages = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    found = {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in packages}
    return {name: found[name] for name in sorted(found.keys() - LEFT_OUT)}


def closure_fitting(more: list[str], requirements: list[str], *options: str) -> dict[str, str]:
    """The same, at versions that `more` on top of them takes too."""
    both = closure([*requirements, *more], *options)
    with tempfile.TemporaryDirectory() as folder:
        limits = Path(folder, "constraints.txt")
        limits.write_text(as_lines(both), encoding="utf-8")
        return closure(requirements, *options, "--constraint", str(limits))


def as_lines(packages: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in packages.items())


def pins(name: str) -> dict[str, str]:
    """A lock's packages and their versions, without the hashes."""
    found = re.findall(r"^(\S+)==(\S+)", (HERE / f"{name}.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def hashed(packages: dict[str, str]) -> str:
    """The same as a requirements file, with the SHA-256 of every file that the index has of these versions."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "pins.txt")
        asked.write_text(as_lines(packages), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes"]
        options = ["--no-header", "--no-annotate", "--no-config", "--python-version", platform.python_version()]
        done = subprocess.run(
            [*command, *options, str(asked)], check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
    return done.stdout


def write(name: str, packages: dict[str, str]) -> None:
    if name == "cpu":
        torch = {"torch": packages.pop("torch")}
        (HERE / "torch-cpu.txt").write_text(f"# Written with cpu.txt.\n{as_lines(torch)}", encoding="utf-8")
    head = (
        f"# Written by requirements/lock.py; install with --no-deps --require-hashes. Python {sys.version_info.major}."
        f"{sys.version_info.minor}, Linux.\n"
    )
    (HERE / f"{name}.txt").write_text(head + hashed(packages), encoding="utf-8")
    print(f"{name}.txt: {len(packages)} packages")


def lock(name: str, project: dict) -> None:
    """Resolve and write one lock."""
    base, extras = project["dependencies"], project["optional-dependencies"]
    of_tasks = [line for extra in OF_TASKS for line in extras[extra]]
    if name == "gpu":
        packages = closure_fitting(of_tasks, [*base, *extras["gpu"]])
        if packages["torch"].endswith("+cpu"):
            sys.exit("gpu: pip found a CPU build of torch (see pip config list); nothing written")
        return write("gpu", packages)
    with tempfile.TemporaryDirectory() as folder:
        torch = next(line for line in base if line.startswith("torch=="))
        pip("download", "--no-deps", "--dest", folder, f"{torch}+cpu", "--extra-index-url", CPU_TORCH_INDEX)
        if name == "cpu":
            return write("cpu", closure_fitting(of_tasks, [*base, *extras["cpu"]], "--find-links", folder))
        runtime = pins("cpu") | pins("torch-cpu")
        limits = Path(folder, "runtime.txt")
        limits.write_text(as_lines(runtime), encoding="utf-8")
        wanted = [*base, *extras[name], *(of_tasks if name == "dev" else [])]
        packages = closure(wanted, "--find-links", folder, "--constraint", str(limits))
        write(name, {key: version for key, version in packages.items() if runtime.get(key) != version})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES))
    names = parser.parse_args().names or list(NAMES)
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if unknown := set(names) - set(NAMES):
        parser.error(f"no lock named {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    for name in names:
        lock(name, project)


if __name__ == "__main__":
    main()
