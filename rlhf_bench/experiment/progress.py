"""Progress of a comparison: on a terminal a bar for every running arm, in a job's log plain lines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rlhf_bench.core.text import one_line
from rlhf_bench.core.types import EvalPoint, Evaluation

SHOWN = ("loss", "reward", "gold", "margin", "kl", "grad_norm")
"""The metrics of an update that are shown, where it has them."""

SECONDS_BETWEEN_LINES = 10.0
"""Of one arm, in a job's log."""


@dataclass
class _RunningArm:
    """An arm and seed, with its bar on a terminal."""

    heading: str  # of its lines
    last_line: float  # when that was written, in seconds of `perf_counter`
    task: TaskID | None = None


class ProgressDisplay:
    """Progress on standard error; every line also goes to DIR/events.log, with its time.

    `quiet` shows only warnings; the log has everything. Rich adds the colours, and leaves them out if NO_COLOR is set."""

    def __init__(self, directory: Path, stream: TextIO = sys.stderr, quiet: bool = False):
        self.quiet = quiet
        self.log = (directory / "events.log").open("a", encoding="utf-8")
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.bar = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"), console=self.console, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.starting = self.bar.add_task("starting", total=1.0, numbers="")
        self.running: dict[tuple[str, int], _RunningArm] = {}  # by arm and seed
        self._writing = threading.Lock()  # workers, supervisors and MLflow's thread write lines at the same time

    def say(self, line: str) -> None:
        self._line(line, shown=not self.quiet)

    def warn(self, line: str) -> None:
        """A line that is shown in spite of `quiet`."""
        self._line(line, shown=True)

    def _line(self, line: str, shown: bool) -> None:
        line = one_line(line)
        with self._writing:
            now = datetime.now()
            self.log.write(f"{now.isoformat(timespec='seconds')} {line}\n")
            self.log.flush()
            if not shown:
                return
            self.console.print(f"[dim]{now:%H:%M:%S}[/dim] ", end="")
            self.console.print(line, markup=False, emoji=False)

    def begin(self, arm: str, seed: int, number: int, total: int) -> None:
        """Run `number` of `total`, counted from 0. Others may run at the same time."""
        running = self.running[arm, seed] = _RunningArm(f"[{number + 1}/{total}] {arm} · seed {seed}", perf_counter())
        if self.bar:
            self.bar.update(self.starting, visible=False)
            running.task = self.bar.add_task(running.heading.replace("[", r"\["), total=1.0, numbers="")
        else:
            self.say(f"{running.heading}: begins")

    def end(self, arm: str, seed: int) -> None:
        running = self.running.pop((arm, seed))
        if self.bar and running.task is not None:
            self.bar.remove_task(running.task)

    def update(self, arm: str, seed: int, update: int, numbers: Mapping[str, float], fraction: float) -> None:
        shown = "  ".join(f"{k} {numbers[k]:.3g}" for k in SHOWN if k in numbers and numbers[k] == numbers[k])
        running = self.running[arm, seed]
        if self.bar and running.task is not None:
            self.bar.update(running.task, completed=min(1.0, fraction), numbers=f"update {update}  {shown}")
        elif perf_counter() - running.last_line > SECONDS_BETWEEN_LINES:
            running.last_line = perf_counter()
            self.say(f"{running.heading}: {fraction:.0%} of the budget, update {update}  {shown}")

    def evaluated(self, arm: str, seed: int, point: EvalPoint, evaluation: Evaluation) -> None:
        scores = ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items())
        self.say(
            f"{arm} · seed {seed}: at {point.mark:.0%}: {scores}, KL {evaluation.numbers.get('kl', float('nan')):.3f}"
        )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        self.log.close()
