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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rlhf_bench.core.errors import StateLost, Stopped
from rlhf_bench.experiment.shutdown import Grace
from rlhf_bench.training.roles import Roles

if TYPE_CHECKING:
    from rlhf_bench.training.inputs import StartingPoint

T = TypeVar("T")

ENDING_SECONDS = 30.0
"""How long a worker's thread may take to end after its engines have ended."""

MAX_WAIT_SECONDS = 1.0
"""How long the main thread waits at a time: Python handles signals only there, and a signal does not always end a wait."""


@dataclass
class At:
    """What a worker's scorer and evaluator were told last: see `starts.score_by` and `evaluate_against`."""

    reward_model: Path | None = None
    evaluates: tuple[Path, bool] | None = None  # against which base policy; on the prompts of tuning trials?
    notes: Sequence[str] = ()  # what the evaluator had to leave out


@dataclass(frozen=True)
class Worker:
    """A fleet as the scheduler sees it: the roles, which work on one arm and seed at a time, and how to prepare them."""

    roles: Roles
    begin_evaluation: Callable[[StartingPoint, bool, bool], Sequence[str]]  # for tuning trials? charged? Returns notes
    begin_arm: Callable[[str, int], None]  # the metrics of this thread's engines are this arm and seed's from now on
    recover: Callable[[StateLost], None]  # replace what was lost, so that work can be repeated
    at: At = field(default_factory=At)

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
    queue = _JobQueue(jobs, grace)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()  # stays intact if a signal's exception interrupts `get`

    def serve(number: int, ready: Callable[[], Worker | None]) -> None:
        try:
            _serve(number, ready, queue, run)
        except BaseException as error:
            ended.put(error)  # before the worker leaves: once the queue is done, all errors are there
        queue.leave(number)
        ended.put(None)

    # Daemons, so that a thread that does not end cannot keep the process alive.
    threads = [
        threading.Thread(target=serve, args=(number, ready), name=f"worker {number}", daemon=True)
        for number, ready in enumerate(workers, 1)
    ]
    try:
        for thread in threads:
            thread.start()
        _wait(queue, ended)
    except BaseException:
        queue.clear()
        end_workers()
        for thread in threads:
            if thread.ident is not None:
                thread.join(ENDING_SECONDS)
        raise


def _serve(
    number: int, ready: Callable[[], Worker | None], queue: _JobQueue[T], run: Callable[[Worker, T], None]
) -> None:
    """Run jobs on one worker until none is left for it."""
    with suppress(Stopped):  # the queue's grace has noted the signal; the other workers still write their checkpoints
        worker = ready()
        while worker is not None and (job := queue.next(number)) is not None:
            run(worker, job)


def _wait(queue: _JobQueue[T], ended: SimpleQueue[BaseException | None]) -> None:
    """Until the queue is done. Raises the first error."""
    while not queue.done or not ended.empty():
        try:
            error = ended.get(timeout=MAX_WAIT_SECONDS)
        except Empty:
            continue
        if error is not None:
            raise error


class _JobQueue(Generic[T]):
    """The waiting jobs, and the numbers of the workers that run one. Methods may be called from any thread."""

    def __init__(self, jobs: Sequence[T], grace: Grace):
        self.waiting, self.busy, self.grace, self.lock = deque(jobs), set[int](), grace, threading.Lock()

    def next(self, worker: int) -> T | None:
        """A job for a worker that is free now; None if none waits, or after a signal."""
        with self.lock:
            self.busy.discard(worker)
            if not self.waiting or self.grace.number is not None:
                return None
            self.busy.add(worker)
            return self.waiting.popleft()

    def leave(self, worker: int) -> None:
        with self.lock:
            self.busy.discard(worker)

    def clear(self) -> None:
        with self.lock:
            self.waiting.clear()

    @property
    def done(self) -> bool:
        """No job is running, and none will be."""
        with self.lock:
            return not self.busy and (not self.waiting or self.grace.number is not None)
