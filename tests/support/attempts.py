"""The same command, started again and again: after a kill, a signal, or its end."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.running import Run, begin, end, kill_all
from tests.support.running import run as run_command


class Attempts:
    """The same command, started again and again."""

    def __init__(self, recipe: Path, folder: Path, environment: dict[str, str]):
        self.mark = f"BROKEN_RUN={folder}"
        self.recipe, self.folder, self.environment = recipe, folder, environment | {"BROKEN_RUN": str(folder)}
        self.directory, self.logs = folder / "out", list[Path]()
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *overrides: str, within: Sequence[str] = ()) -> None:
        """`within`: a command that gets this one as its arguments."""
        self.logs.append(self.folder / f"{len(self.logs)}.log")
        self.began = time.monotonic()
        self.process = begin(self.recipe, self.directory, self.environment, self.logs[-1], *overrides, within=within)

    def start_and_reach(self, arm: str, more: int, *overrides: str) -> None:
        """Until the arm has checkpoints of so many rounds more."""
        before = self.round(arm)
        self.start(*overrides)
        self.wait_for(lambda: self.round(arm) >= before + more)

    def said(self) -> str:
        """On standard error, by all of them."""
        return "".join(Path(f"{log}.err").read_text() for log in self.logs)

    def last_line(self) -> str:
        """On standard error, by the last one."""
        return (Path(f"{self.logs[-1]}.err").read_text().strip().splitlines() or [""])[-1]

    def wait_for(self, found: Callable[[], Any], seconds: float = 300) -> Any:
        """What `found()` gives, once that is not nothing."""
        deadline = time.monotonic() + seconds
        while not (value := found()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()[-2000:]
            time.sleep(0.02)
        return value

    def checkpoint(self, arm: str, round_: int) -> Path | None:
        """The arm's newest, where it is of that round or a later one."""
        found = sorted((self.directory / "state" / f"{arm}-seed1").glob("round-*/manifest.json"))
        return found[-1].parent if found and _number(found[-1].parent) >= round_ else None

    def round(self, arm: str) -> int:
        """That of the arm's newest checkpoint; 0 where there is none."""
        newest = self.checkpoint(arm, 0)
        return _number(newest) if newest else 0

    def updates_told(self, arm: str) -> int:
        """How many updates the journal of MLflow has, whether or not a checkpoint followed."""
        written = (self.directory / "tracking.jsonl").read_text().splitlines(keepends=True)
        items = [json.loads(line) for line in written if line.endswith("\n")]
        return max((i["step"] for i in items if i.get("kind") == "points" and i["run"][1] == arm), default=0)

    def start_another(self) -> Run:
        """The same command once more, while this one works."""
        owner = f'"process": {self.process.pid},'
        self.wait_for(lambda: owner in (self.directory / "lock").read_text())
        return run_command(self.recipe, self.directory, self.environment, self.folder / "another.log")

    def end_by(self, number: int) -> Run:
        self.process.send_signal(number)
        return self.end()

    def lives_for(self, seconds: float) -> bool:
        """After so many seconds of its own: has it not ended?"""
        try:
            self.process.wait(timeout=max(0.0, self.began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            return True
        return False

    def end_by_group_kill(self) -> int:
        """All of its processes at once, as with a container. How many there were."""
        killed = kill_all(self.mark)
        self.process.wait(timeout=60)
        return killed

    def end(self) -> Run:
        return end(self.process, self.directory, self.logs[-1], self.began)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("round-"))


def resumed_at(said: str) -> list[int]:
    """After which update each process resumed."""
    return [int(update) for update in re.findall(r"resuming from \S+, after update (\d+)", said)]
