"""What a person sees while it runs: one line that moves on a terminal, plain flushed lines in a job's log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rlhf_bench.loop import Look
from rlhf_bench.terminal import one_line
from rlhf_bench.types import Evaluation

SHOWN = ("loss", "reward", "gold", "margin", "kl", "grad_norm")
SECONDS_BETWEEN_LINES = 10.0


class Display:
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
            self.task = self.bar.add_task("starting", total=1.0, numbers="")
        self.last_line = 0.0
        self.heading = ""

    def say(self, line: str) -> None:
        self._line(line, shown=not self.quiet)

    def warn(self, line: str) -> None:
        """What whoever asked for quiet wants to know all the same."""
        self._line(line, shown=True)

    def _line(self, line: str, shown: bool) -> None:
        line = one_line(line)
        now = datetime.now()
        self.log.write(f"{now.isoformat(timespec='seconds')} {line}\n")
        self.log.flush()
        if not shown:
            return
        self.console.print(f"[dim]{now:%H:%M:%S}[/dim] ", end="")
        self.console.print(line, markup=False, emoji=False)

    def begin(self, arm: str, seed: int, done: int, total: int) -> None:
        self.heading = f"[{done + 1}/{total}] {arm} · seed {seed}"
        self.last_line = perf_counter()
        if self.bar:
            self.bar.reset(self.task, description=self.heading.replace("[", r"\["), total=1.0, numbers="")
        else:
            self.say(f"{self.heading}: begins")

    def update(self, arm: str, seed: int, update: int, numbers: Mapping[str, float], fraction: float) -> None:
        shown = "  ".join(f"{k} {numbers[k]:.3g}" for k in SHOWN if k in numbers and numbers[k] == numbers[k])
        if self.bar:
            self.bar.update(self.task, completed=min(1.0, fraction), numbers=f"update {update}  {shown}")
        elif perf_counter() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = perf_counter()
            self.say(f"{self.heading}: {fraction:.0%} of the budget, update {update}  {shown}")

    def looked(self, arm: str, seed: int, look: Look, evaluation: Evaluation) -> None:
        scores = ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items())
        self.say(
            f"{arm} · seed {seed}: at {look.mark:.0%}: {scores}, KL {evaluation.numbers.get('kl', float('nan')):.3f}"
        )

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        self.log.close()
