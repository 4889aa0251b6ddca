"""Are two answers in LaTeX worth the same? By math-verify, in processes that the kernel ends.

math-verify computes with what a response says, and a response may say 9^{9^{9^9}}: no time limit within a process ends
that. So a helper process loads math-verify once, and forks a worker on every processor for each batch:

    this process ── pairs of answers, a JSON line ──> helper ── fork ──> workers: every n-th pair each
                <── true, false or null for each ───         <── a byte for each, until one costs too much

The kernel ends a worker whose answer takes too much processor time or memory, and a new one goes on behind that answer,
which stays undecided. After a few of these a worker has little time for each answer, so that a batch of them is bounded too."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import IO, NoReturn

CPU_SECONDS = 2.0
"""Processor time that an answer may take; a few milliseconds are usual."""
PATIENCE = 2
"""So many undecided answers a worker has in a batch before the next ones get SHORT_SECONDS."""
SHORT_SECONDS = 0.2
MEMORY_BYTES = 2 * 2**30
MAX_KNOWN = 100_000
"""How many comparisons are remembered: a policy says the same again and again."""

Pair = tuple[str, str]
"""The right answer, and the one that is given."""


class Comparer:
    """Asks the helper, which starts with the first question. One for each process that judges; any thread may ask."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self._known: dict[Pair, bool | None] = {}

    def settle(self, pairs: Iterable[Pair]) -> None:
        """Compare many at once, in parallel; `equal` remembers them."""
        with self.lock:
            self._settle(pairs)

    def equal(self, right: str, given: str) -> bool | None:
        """Whether both are worth the same. None where that stays undecided."""
        with self.lock:
            if (right, given) not in self._known:
                self._settle([(right, given)])
            return self._known[right, given]

    def _settle(self, pairs: Iterable[Pair]) -> None:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if not new:
            return
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known.update(zip(new, self._ask(new), strict=True))

    def _ask(self, pairs: Sequence[Pair]) -> list[bool | None]:
        asked, answers = self._pipes()
        print(json.dumps(pairs), file=asked, flush=True)
        answer = answers.readline()
        if not answer:
            self.process = None
            raise RuntimeError("the process that compares answers has ended; was it killed for lack of memory?")
        return list(json.loads(answer))

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_bench.tasks.judges.worth"],
                env={  # and nothing secret
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "PYTHONUTF8": "1",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the driver, which may have an update to finish
            )
            assert self.process.stdout is not None
            if self.process.stdout.readline() != "ready\n":
                raise RuntimeError("math-verify does not start; install what requirements/ lists")
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout


# Below: the helper's own part.


def compare_all(pairs: Sequence[Pair], equal: Callable[[str, str], bool], workers: int) -> list[bool | None]:
    """In so many processes. None where one was ended. This process exits if its standard input ends meanwhile: nobody waits for
    the answers then."""
    found: list[bool | None] = [None] * len(pairs)
    left = {k: list(range(k, len(pairs), workers)) for k in range(min(workers, len(pairs)))}
    ended = dict.fromkeys(left, 0)
    running: dict[int, tuple[int, int]] = {}  # a pipe -> the worker's number and process
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)

    def start(worker: int) -> None:
        seconds = CPU_SECONDS if ended[worker] < PATIENCE else SHORT_SECONDS
        pipe, process = _fork([pairs[i] for i in left[worker]], equal, seconds)
        running[pipe] = worker, process
        poll.register(pipe, select.POLLIN)

    for worker in left:
        start(worker)
    while running:
        for pipe, _ in poll.poll():
            if pipe == sys.stdin.fileno():
                for _, process in running.values():
                    os.kill(process, signal.SIGKILL)
                os._exit(0)
            worker, process = running[pipe]
            said = os.read(pipe, 1 << 16)
            for byte in said:
                found[left[worker].pop(0)] = byte == 1
            if said:
                continue
            poll.unregister(pipe)
            os.close(pipe)
            os.waitpid(process, 0)
            del running[pipe]
            if left[worker]:
                left[worker].pop(0)  # it ended at this one, which stays undecided
                ended[worker] += 1
            if left[worker]:
                start(worker)
    return found


def _fork(pairs: Sequence[Pair], equal: Callable[[str, str], bool], seconds: float) -> tuple[int, int]:
    """A process that compares them one after another; where its answers come from, a byte each, and its number."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return reader, process
    _work(writer, pairs, equal, seconds)


def _work(writer: int, pairs: Sequence[Pair], equal: Callable[[str, str], bool], seconds: float) -> NoReturn:
    for right, given in pairs:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process: nothing here handles it
        os.write(writer, bytes([equal(right, given)]))
    os._exit(0)


def _worth_the_same() -> Callable[[str, str], bool]:
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # Of math-verify's ways to read an answer only this one: the other evaluates Python.
    latex = (LatexExtractionConfig(),)

    def equal(right: str, given: str) -> bool:
        try:
            # Its own limits are off: they would be signals of Python's, which wait for the end of an operation.
            sides = [
                parse(f"\\boxed{{{one}}}", latex, parsing_timeout=None, fallback_mode="no_fallback")
                for one in (right, given)
            ]
            return bool(all(sides) and verify(*sides, timeout_seconds=None))
        except Exception:  # a library's mistake about a stranger's text: the answer is not right
            return False

    return equal


def main() -> None:
    """A line in, a line out, until the other side closes."""
    import resource

    equal = _worth_the_same()
    equal("1", "\\frac{2}{2}")  # builds the parser, which all workers inherit
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, most))
    sys.setrecursionlimit(2000)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        print(json.dumps(compare_all(json.loads(line), equal, len(os.sched_getaffinity(0)))), flush=True)


if __name__ == "__main__":
    main()
