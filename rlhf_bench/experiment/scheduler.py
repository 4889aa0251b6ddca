"""ArmRunner side by side: every team, which has a fleet of engines to itself, takes the next piece of work when it is free.

    todo ── take ──> a thread per team ── work(team, piece) ──┐
                                                              └──> the main thread, which waits: done, or the first error

Signals reach the main thread alone. Within `signals.grace` the first one is noted there: no team takes another piece, and
those at work end at their next checkpoint.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_bench.core.errors import StateLost, Stopped
from rlhf_bench.experiment.shutdown import Grace
from rlhf_bench.training.roles import Roles

if TYPE_CHECKING:
    from rlhf_bench.training.inputs import StartingPoint

T = TypeVar("T")

ENDING_SECONDS = 30.0
"""So long a team's thread may take to end after its engines have."""


@dataclass(frozen=True)
class Worker:
    """The roles that work on one arm and seed at a time, and what else is asked of whoever runs them."""

    roles: Roles
    begin_evaluation: Callable[[StartingPoint, bool], Sequence[str]]  # the second: for tuning trials; returns notes
    begin_arm: Callable[[str, int], None]  # whose work the engines' meters count from now on, in this thread
    recover: Callable[[StateLost], None]  # bring the roles back to where a piece of work may begin anew

    def with_recovery(self, work: Callable[..., T], *arguments: Any, patience: Grace | None = None) -> T:
        """A piece of work that may begin anew wherever it was cut short: it keeps what it has got on disk. Not where the
        run has been asked to end meanwhile."""
        while True:
            try:
                return work(*arguments)
            except StateLost as lost:
                if patience is not None:
                    patience.raise_if_stopped()
                self.recover(lost)


def run_jobs(
    todo: Sequence[T],
    workers: Sequence[Callable[[], Worker | None]],
    work: Callable[[Worker, T], None],
    patience: Grace,
    end_workers: Callable[[], None],
) -> None:
    """Have all of `todo` worked on, in its order, by whichever team is free. `workers` wait for a team to be ready; None where
    there will be none, but never of the first.

    Returns when all is done, or when nobody is at work any more after a signal, which `patience` has noted. The first
    error of any team, and a signal that waits no longer, end all teams and are raised: `end_workers` must wake, by an error,
    whoever waits for an engine.
    """
    waiting, busy, lock = deque(todo), set[int](), threading.Lock()
    told: SimpleQueue[BaseException | None] = SimpleQueue()  # which a signal's exception leaves whole

    def take(number: int) -> T | None:
        with lock:
            busy.discard(number)
            if not waiting or patience.number is not None:
                return None
            busy.add(number)
            return waiting.popleft()

    def shift(number: int, ready: Callable[[], Worker | None]) -> None:
        error: BaseException | None = None
        try:
            worker = ready()
            while worker is not None and (piece := take(number)) is not None:
                work(worker, piece)
        except Stopped:
            pass  # `patience` knows; the other teams still write their checkpoints
        except BaseException as raised:
            error = raised
        with lock:
            busy.discard(number)
        told.put(error)

    # Daemons, so that a thread that does not end cannot keep the process from ending.
    threads = [
        threading.Thread(target=shift, args=(number, ready), name=f"team {number}", daemon=True)
        for number, ready in enumerate(workers, 1)
    ]
    try:
        for thread in threads:
            thread.start()
        over = not todo
        while not over:
            error = told.get()
            if error is not None:
                raise error
            with lock:
                over = not busy and (not waiting or patience.number is not None)
    except BaseException:
        with lock:
            waiting.clear()
        end_workers()
        for thread in threads:
            if thread.ident is not None:
                thread.join(ENDING_SECONDS)
        raise
