"""Faults of the output directory: a second command in it, an owner that was killed, files that are empty, cut short, changed or
gone. Each must be told by the next command, which refuses at once and touches nothing, or goes on to the same results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.compare import differences
from tests.chaos.runs import ROOT, begin, environment, finish

PART, POLICY = "parts/ppo-seed1", "checkpoints/ppo/seed-1"


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@dataclass(frozen=True)
class FileFault:
    """What is done to files of DIR, and what the next command must say of it."""

    damage: Callable[[Path], None]
    files: tuple[str, ...]
    told: str

    def __str__(self) -> str:
        what = self.damage.__name__.replace("unlink", "removed")
        return f"{what} {', '.join(self.files)}"


REFUSED = (
    FileFault(emptied, ("recipe.yaml",), "recipe.yaml is empty; "),
    FileFault(shortened, ("recipe.yaml",), "recipe.yaml has been cut short"),
    FileFault(os.unlink, ("recipe.yaml",), "recipe.yaml is missing; "),
    FileFault(emptied, ("data_digest",), "data_digest is empty; "),
    FileFault(emptied, ("run_key", "results.json"), "run_key is empty; "),
    FileFault(emptied, (f"{PART}/metrics.parquet",), f"{PART}/metrics.parquet is empty; "),
    FileFault(flipped, (f"{PART}/samples.parquet",), f"{PART}/samples.parquet does not hold what was written"),
    FileFault(os.unlink, (f"{PART}/result.json",), f"{PART}/result.json is missing; "),
    FileFault(shortened, (f"{PART}/checksums.json",), f"{PART}/checksums.json is damaged; "),
)
MADE_AGAIN = (
    FileFault(emptied, ("results.json",), "results.json is empty: it is made again"),
    FileFault(shortened, ("base.json",), "base.json is damaged: it is made again"),
    FileFault(emptied, ("metrics.parquet",), "metrics.parquet is empty: it is made again"),
    FileFault(flipped, (f"{POLICY}/model.safetensors",), f"{POLICY}/model.safetensors does not hold what was written"),
)
SECOND, KILLED = "second command", "killed owner"


def with_damaged_files(folder: Path, recipe: Path, whole: Path) -> tuple[list[str], list[str]]:
    """All of these faults, on a run of the recipe and on copies of `whole`, an undisturbed run. Returns what was survived, and a
    line for whatever went wrong."""
    survived, wrong = _second_command(folder, recipe, whole)
    directory = folder / "damaged" / "out"
    for fault in REFUSED:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory)
        for file in fault.files:
            fault.damage(directory / file)
        before = _contents(directory)
        code, said = _command(folder, "run", recipe, "--output", directory)
        fine = code == 2 and fault.told in said and _contents(directory) == before
        (survived if fine else wrong).append(str(fault) if fine else f"{fault}: exit code {code}: {said[-500:]}")
    made_again, differing = _made_again(folder, recipe, whole, directory)
    return survived + made_again, wrong + differing


def _second_command(folder: Path, recipe: Path, whole: Path) -> tuple[list[str], list[str]]:
    """A command in a directory in which another one works; then that one is killed, and the same command goes on."""
    process, directory = begin(folder, recipe, "owned", ["rlhf_bench"]), folder / "owned" / "out"
    try:
        while not list((directory / "state").glob("*/round-*/manifest.json")):
            if process.poll() is not None:
                return [], [f"{SECOND}: the first ended: {(folder / 'owned.log').read_text()[-500:]}"]
            time.sleep(0.05)
        code, said = _command(folder, "run", recipe, "--output", directory)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if code != 2 or f"another command works in it, process {process.pid} on " not in said:
        return [], [f"{SECOND}: exit code {code}: {said[-500:]}"]
    finish(begin(folder, recipe, "owned", ["rlhf_bench"]), folder, "owned", 600)
    return [SECOND, KILLED], [f"{KILLED}: {line}" for line in differences(directory, whole, ["ppo"])]


def _made_again(folder: Path, recipe: Path, whole: Path, directory: Path) -> tuple[list[str], list[str]]:
    """What a run makes again or warns of, all of it at once; then what it says to do for the policy."""
    shutil.rmtree(directory)
    shutil.copytree(whole, directory)
    for fault in MADE_AGAIN:
        for file in fault.files:
            fault.damage(directory / file)
    code, said = _command(folder, "run", recipe, "--output", directory)
    survived = [str(fault) for fault in MADE_AGAIN if code == 0 and fault.told in said]
    wrong = [f"{fault}: exit code {code}: {said[-500:]}" for fault in MADE_AGAIN if str(fault) not in survived]
    code, said = _command(folder, "verify", directory, "--files")
    wrong += [] if code == 1 and f"DAMAGED: {POLICY}/model.safetensors" in said else [f"verify: {code}: {said[-500:]}"]
    shutil.rmtree(directory / PART)
    _command(folder, "run", recipe, "--output", directory)
    wrong += [f"made again: {line}" for line in differences(directory, whole, ["ppo"])]
    code, said = _command(folder, "verify", directory, "--files")
    return survived, wrong + ([] if code == 0 else [f"verify: {code}: {said[-500:]}"])


def _command(folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code of a command, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_bench", *map(str, arguments)],
        cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout


def _contents(directory: Path) -> dict[str, bytes]:
    """But for the lock, which the command has held."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "lock"}
