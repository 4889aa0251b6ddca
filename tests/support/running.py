"""A comparison as a user runs it: the command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """A command that has ended."""

    directory: Path
    code: int
    said: str
    errors: str
    seconds: float

    @property
    def summary(self) -> dict:
        return json.loads((self.directory / "summary.json").read_text())

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.directory / f"{name}.parquet")


def begin(
    recipe: Path, directory: Path, environment: dict[str, str], log: Path, *overrides: str, within: Sequence[str] = ()
) -> subprocess.Popen:
    """`within`: a command that gets this one as its arguments."""
    command = [
        *within,
        sys.executable,
        "-m",
        "rlhf_bench",
        "run",
        str(recipe),
        *overrides,
        "--output",
        str(directory),
        "--profile",
    ]
    with open(log, "w") as out, open(f"{log}.err", "w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=environment)


def end(process: subprocess.Popen, directory: Path, log: Path, began: float) -> Run:
    try:
        code = process.wait(timeout=600)
    finally:
        process.terminate()  # no effect where it has ended
    return Run(directory, code, log.read_text(), Path(f"{log}.err").read_text(), time.monotonic() - began)


def run(recipe: Path, directory: Path, environment: dict[str, str], log: Path, *overrides: str) -> Run:
    began = time.monotonic()
    return end(begin(recipe, directory, environment, log, *overrides), directory, log, began)


def processes_with(setting: str) -> list[str]:
    """Command lines of living processes that inherited an environment setting: "NAME=value"."""
    return list(numbered_with(setting).values())


def numbered_with(setting: str) -> dict[int, str]:
    """The same by the processes' numbers."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if setting.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def signal_all(setting: str, number: int) -> int:
    """To all of them. How many there were."""
    found = numbered_with(setting)
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, number)
    return len(found)


@contextmanager
def paused(setting: str) -> Iterator[None]:
    """None of them runs in this block, as on a suspended laptop."""
    signal_all(setting, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(setting, signal.SIGCONT)


def kill_all(setting: str) -> int:
    """As the kernel ends a container: none of them sees another one's end, since all are stopped first. How many there were."""
    found = signal_all(setting, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while signal_all(setting, signal.SIGKILL):
        assert time.monotonic() < deadline, processes_with(setting)
        time.sleep(0.05)
    return found


def contents(directory: Path) -> dict[str, bytes]:
    """Of its files by their paths within it; but for the lock, which every command holds."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "lock"}


def left_running(setting: str, seconds: float = 10) -> list[str]:
    """Those of them that are still there when their command has ended that long ago: what docs/reliability.md promises."""
    deadline = time.monotonic() + seconds
    while (left := processes_with(setting)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


SECRETS = {
    "HF_TOKEN": "hf_not-to-be-written-1",
    "AWS_SECRET_ACCESS_KEY": "not-to-be-written-2",
    "WANDB_API_KEY": "not-to-be-written-3",
}
"""As a user's shell has them: no file that a run writes may hold one."""


def with_cache(cache: Path) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "RLHF_BENCH_"))}
    return own | SECRETS | {"RLHF_BENCH_CACHE": str(cache), "COLUMNS": "200"}
