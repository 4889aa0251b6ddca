"""Arms in parallel: each worker has a fleet of engines to itself, and takes the next job when it is free.

    jobs ── next_job ──> a thread per worker ── run(worker, job) ──┐
                                                                   └──> the main thread waits: all done, or the first error

Signals reach only the main thread. Within `shutdown.grace_period` the first one is noted there: then no worker takes
another job, and the running jobs end at their next checkpoint.
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
"""How long a worker's thread may take to end after its engines have ended."""


@dataclass(frozen=True)
class Worker:
    """A fleet as the scheduler sees it: the roles, which work on one arm and seed at a time, and how to prepare them."""

    roles: Roles
    begin_evaluation: Callable[[StartingPoint, bool], Sequence[str]]  # second: for tuning trials? Returns notes
    begin_arm: Callable[[str, int], None]  # the metrics of this thread's engines are this arm and seed's from now on
    recover: Callable[[StateLost], None]  # replace what was lost, so that work can be repeated

    def with_recovery(self, work: Callable[..., T], *arguments: Any, grace: Grace | None = None) -> T:
        """Call `work` until no engine's state is lost in it. It must resume from what it has written to disk. Not repeated
        once a signal has come."""
        while True:
            try:
                return work(*arguments)
            except StateLost as lost:
                if grace is not None:
                    grace.raise_if_stopped()
                self.recover(lost)


def run_jobs(
    jobs: Sequence[T],
    *,
    workers: Sequence[Callable[[], Worker | None]],
    run: Callable[[Worker, T], None],
    grace: Grace,
    end_workers: Callable[[], None],
) -> None:
    """Run all jobs, in their order, each on the first worker that is free. `workers` wait until a worker is ready; they
    return None where there will be none, but the first one always returns a worker.

    Returns when all jobs are done, or when no job is running after a signal, which `grace` has noted. The first error of
    any worker, and a signal that waits no longer, end all workers and are raised: `end_workers` must make every wait for
    an engine raise an error.
    """
    waiting, busy, lock = deque(jobs), set[int](), threading.Lock()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()  # stays intact if a signal's exception interrupts `get`

    def next_job(number: int) -> T | None:
        with lock:
            busy.discard(number)
            if not waiting or grace.number is not None:
                return None
            busy.add(number)
            return waiting.popleft()

    def serve(number: int, ready: Callable[[], Worker | None]) -> None:
        error: BaseException | None = None
        try:
            worker = ready()
            while worker is not None and (job := next_job(number)) is not None:
                run(worker, job)
        except Stopped:
            pass  # `grace` has noted the signal; the other workers still write their checkpoints
        except BaseException as raised:
            error = raised
        with lock:
            busy.discard(number)
        ended.put(error)

    # Daemons, so that a thread that does not end cannot keep the process alive.
    threads = [
        threading.Thread(target=serve, args=(number, ready), name=f"worker {number}", daemon=True)
        for number, ready in enumerate(workers, 1)
    ]
    try:
        for thread in threads:
            thread.start()
        done = not jobs
        while not done:
            error = ended.get()
            if error is not None:
                raise error
            with lock:
                done = not busy and (not waiting or grace.number is not None)
    except BaseException:
        with lock:
            waiting.clear()
        end_workers()
        for thread in threads:
            if thread.ident is not None:
                thread.join(ENDING_SECONDS)
        raise
