"""What a person sees while it runs: a line that moves for every arm under way on a terminal, plain flushed lines in a job's log."""

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
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class _UnderWay:
    """An arm and seed: what its lines begin with, when the last one came, and its bar on a terminal."""

    heading: str
    last_line: float
    task: TaskID | None = None


class ProgressDisplay:
    """Progress on standard error; every line also goes to DIR/events.log, with its time.

    `quiet` shows warnings only; the log has everything. Colours are rich's affair, which leaves them out for NO_COLOR."""

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
        self.under_way: dict[tuple[str, int], _UnderWay] = {}  # by arm and seed
        self._writing = threading.Lock()  # arms beside each other, the crews and MLflow's thread all have lines

    def say(self, line: str) -> None:
        self._line(line, shown=not self.quiet)

    def warn(self, line: str) -> None:
        """What whoever asked for quiet wants to know all the same."""
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
        """Of `total` arms and seeds, this one, counted from 0: others may be under way beside it."""
        one = self.under_way[arm, seed] = _UnderWay(f"[{number + 1}/{total}] {arm} · seed {seed}", perf_counter())
        if self.bar:
            self.bar.update(self.starting, visible=False)
            one.task = self.bar.add_task(one.heading.replace("[", r"\["), total=1.0, numbers="")
        else:
            self.say(f"{one.heading}: begins")

    def end(self, arm: str, seed: int) -> None:
        """It is under way no more."""
        one = self.under_way.pop((arm, seed))
        if self.bar and one.task is not None:
            self.bar.remove_task(one.task)

    def update(self, arm: str, seed: int, update: int, numbers: Mapping[str, float], fraction: float) -> None:
        shown = "  ".join(f"{k} {numbers[k]:.3g}" for k in SHOWN if k in numbers and numbers[k] == numbers[k])
        one = self.under_way[arm, seed]
        if self.bar and one.task is not None:
            self.bar.update(one.task, completed=min(1.0, fraction), numbers=f"update {update}  {shown}")
        elif perf_counter() - one.last_line > SECONDS_BETWEEN_LINES:
            one.last_line = perf_counter()
            self.say(f"{one.heading}: {fraction:.0%} of the budget, update {update}  {shown}")

    def evaluated(self, arm: str, seed: int, look: EvalPoint, evaluation: Evaluation) -> None:
        scores = ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items())
        self.say(
            f"{arm} · seed {seed}: at {look.mark:.0%}: {scores}, KL {evaluation.numbers.get('kl', float('nan')):.3f}"
        )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        self.log.close()
