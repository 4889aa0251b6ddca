"""Faults of the output directory: a second command in it, an owner that was killed, files that are empty, cut short, changed or
gone. Each must be told by the next command, which refuses at once and touches nothing, or goes on to the same results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.runs import ROOT, environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts
from tests.support.running import contents

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


def with_damaged_files(told: Told, folder: Path, recipe: Path, whole: Path) -> None:
    """All of these faults, on a run of the recipe and on copies of `whole`, an undisturbed run."""
    directory = folder / "damaged" / "out"
    _second_command(told, folder, recipe, whole)
    for fault in REFUSED:
        _copy_damaged(whole, directory, [fault])
        before = contents(directory)
        code, said = _command(folder, "run", recipe, "--output", directory)
        fine = code == 2 and fault.told in said and contents(directory) == before
        told.tell(str(fault), "refused", fine, f"{code}: {said}")
    _made_again(told, folder, recipe, whole, directory)


def _second_command(told: Told, folder: Path, recipe: Path, whole: Path) -> None:
    """A command in a directory in which another one works; then that one is killed, and the same command goes on."""
    tried = Attempts(recipe, folder / "owned", environment(folder))
    tried.start_and_reach("ppo", 1)
    code, said = _command(folder, "run", recipe, "--output", tried.directory)
    owner = f"another command works in it, process {tried.process.pid} on "
    told.tell("second command", "refused", code == 2 and owner in said, f"{code}: {said}")
    tried.end_by(signal.SIGKILL)
    tried.start()
    done = tried.end()
    told.tell("killed owner", "resumed", done.code == 0, f"{done.code}: {done.errors}")
    told.compare("killed owner", tried.directory, whole)


def _made_again(told: Told, folder: Path, recipe: Path, whole: Path, directory: Path) -> None:
    """What a run makes again or warns of, all of it at once; then what it says to do for the policy."""
    _copy_damaged(whole, directory, MADE_AGAIN)
    code, said = _command(folder, "run", recipe, "--output", directory)
    for fault in MADE_AGAIN:
        told.tell(
            str(fault), "told, and made again where it can be", code == 0 and fault.told in said, f"{code}: {said}"
        )
    code, said = _command(folder, "verify", directory, "--files")
    if code != 1 or f"DAMAGED: {POLICY}/model.safetensors" not in said:
        told.wrong.append(f"verify of damaged files: {code}: {said[-500:]}")
    shutil.rmtree(directory / PART)
    _command(folder, "run", recipe, "--output", directory)
    told.compare("made again", directory, whole)
    code, said = _command(folder, "verify", directory, "--files")
    if code:
        told.wrong.append(f"verify of files that were made again: {code}: {said[-500:]}")


def _copy_damaged(whole: Path, directory: Path, faults: Sequence[FileFault]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole, directory)
    for fault in faults:
        for file in fault.files:
            fault.damage(directory / file)


def _command(folder: Path, *arguments: object) -> tuple[int, str]:
    """Exit code of a command, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_bench", *map(str, arguments)],
        cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout
