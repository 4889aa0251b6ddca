"""Progress of a comparison: on a terminal a bar for every running arm, in a job's log plain lines.

No phase is silent: where nothing was written for a while, a line says what the engines are doing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rlhf_bench.core.text import one_line
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.experiment.pace import Pace, about

SHOWN = ("loss", "reward", "gold", "margin", "kl", "grad_norm")
"""The metrics of an update that are shown, where it has them."""

SECONDS_BETWEEN_LINES = 10.0
"""Of one arm, in a job's log."""
SILENT_SECONDS = 15.0
"""Before so much time has passed since the last line, another one says that the run is still at work."""


@dataclass
class _RunningArm:
    """An arm and seed, with its bar on a terminal."""

    heading: str  # of its lines
    last_line: float  # when that was written, in seconds of `perf_counter`
    task: TaskID | None = None
    undecided: bool = False  # whether a line has said that the judge left answers undecided


class ProgressDisplay:
    """Progress on standard error; every line also goes to DIR/events.log, with its time.

    `quiet` shows only warnings; the log has everything. Rich adds the colours, and leaves them out if NO_COLOR is set."""

    def __init__(self, directory: Path, stream: TextIO | None = None, quiet: bool = False):
        self.quiet = quiet
        self.log = (directory / "events.log").open("a", encoding="utf-8")
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.bar = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"), console=self.console, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.starting = self.bar.add_task("starting", total=1.0, numbers="")
        self.running: dict[tuple[str, int], _RunningArm] = {}  # by arm and seed
        self.pace = Pace([], 1)  # of the runs that are left
        self.doing: Callable[[], Sequence[str]] = tuple  # what engines do at this moment
        self._writing = threading.Lock()  # workers, supervisors and MLflow's thread write lines at the same time
        self._last_line = perf_counter()
        self._closed = threading.Event()
        self._breaker = threading.Thread(target=self._break_silence, name="still at work", daemon=True)
        self._breaker.start()

    def plan(self, runs: Sequence[tuple[str, int]], workers: int) -> None:
        """These runs are left, so many of which run at a time: lines then say how long all of them may take."""
        with self._writing:
            self.pace = Pace(list(runs), workers)

    def say(self, line: str) -> None:
        self._line(line, shown=not self.quiet)

    def warn(self, line: str) -> None:
        """A line that is shown in spite of `quiet`."""
        self._line(line, shown=True)

    def _line(self, line: str, shown: bool) -> None:
        line = one_line(line)
        with self._writing:
            self._last_line, now = perf_counter(), datetime.now()
            self.log.write(f"{now.isoformat(timespec='seconds')} {line}\n")
            self.log.flush()
            if not shown:
                return
            self.console.print(f"[dim]{now:%H:%M:%S}[/dim] ", end="")
            self.console.print(line, markup=False, emoji=False)

    def begin(self, arm: str, seed: int, number: int, total: int) -> None:
        """Run `number` of `total`, counted from 0. Others may run at the same time."""
        running = self.running[arm, seed] = _RunningArm(f"[{number + 1}/{total}] {arm} · seed {seed}", perf_counter())
        with self._writing:
            self.pace.begin((arm, seed))
        if self.bar:
            self.bar.update(self.starting, visible=False)
            running.task = self.bar.add_task(running.heading.replace("[", r"\["), total=1.0, numbers="")
        else:
            self.say(f"{running.heading}: begins{self._left()}")

    def end(self, arm: str, seed: int) -> None:
        running = self.running.pop((arm, seed))
        with self._writing:
            self.pace.end((arm, seed))
        if self.bar and running.task is not None:
            self.bar.remove_task(running.task)

    def update(self, arm: str, seed: int, update: int, numbers: Mapping[str, float], fraction: float) -> None:
        shown = "  ".join(f"{k} {numbers[k]:.3g}" for k in SHOWN if k in numbers and numbers[k] == numbers[k])
        running = self.running[arm, seed]
        with self._writing:
            self.pace.spent((arm, seed), fraction)
        if (share := numbers.get("undecided", 0.0)) > 0 and not running.undecided:
            running.undecided = True
            self.warn(
                f"{running.heading}: update {update}: {share:.1%} of the sampled answers cost too much to compare: they count as wrong; "
                "of later updates, metrics.parquet has the share as `undecided`"
            )
        if self.bar and running.task is not None:
            numbers_shown = f"update {update}  {shown}{self._left()}"
            self.bar.update(running.task, completed=min(1.0, fraction), numbers=numbers_shown)
        elif perf_counter() - running.last_line > SECONDS_BETWEEN_LINES:
            running.last_line = perf_counter()
            self.say(f"{running.heading}: {fraction:.0%} of the budget, update {update}  {shown}")

    def evaluated(self, arm: str, seed: int, point: EvalPoint, evaluation: Evaluation) -> None:
        scores = ", ".join(
            f"{split} {r.score:.3f} (greedily {r.greedy_score:.3f})" for split, r in evaluation.splits.items()
        )
        for split, r in evaluation.splits.items():
            if (share := r.parts.get("undecided", 0.0)) > 0:
                self.warn(
                    f"{arm} · seed {seed}: {split}: {share:.1%} of the answers cost too much to compare: they count as wrong"
                )
        self.say(
            f"{arm} · seed {seed}: at {point.mark:.0%}: {scores}, KL {evaluation.numbers.get('kl', float('nan')):.3f}"
        )

    def _left(self) -> str:
        """The end of a line, where a time can be told."""
        with self._writing:
            seconds = self.pace.left()
        return "" if seconds is None else f"; about {about(seconds)} left for all runs"

    def _break_silence(self) -> None:
        """In a thread of its own: no phase of a job may look as if it hung."""
        pause = SILENT_SECONDS / 10
        while not self._closed.wait(pause):
            if self.bar is None and perf_counter() - self._last_line > SILENT_SECONDS - 2 * pause:
                doing = ", ".join(self.doing())
                self.say(f"still at work{f': {doing}' if doing else ''}{self._left()}")

    def close(self) -> None:
        self._closed.set()
        self._breaker.join()
        if self.bar:
            self.bar.stop()
        self.log.close()
