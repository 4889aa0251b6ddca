"""Answers in \\boxed{}, compared by math-verify in a process of its own.

math-verify computes with what a response says, and a response may say 9^{9^{9^9}}: no time limit within a process ends
that, and its own work by signals, which only a main thread gets. So a helper process answers, the kernel ends it when one
answer has cost it too much time or memory, and the answer that did counts as wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import IO

from rlhf_bench.core.types import Judgement

_BOX = "\\boxed{"
MAX_CHARACTERS = 300
"""Maximum length of an answer. Right answers are short, and the time to parse LaTeX grows with the length."""
CPU_SECONDS = 3
"""Processor time that one answer may take; a few milliseconds are usual."""
MEMORY_BYTES = 2 * 2**30


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…}, braces counted; None where there is none, or it does not close."""
    start = text.rfind(_BOX)
    depth = 0
    for at in range(start + len(_BOX) - 1, len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOX) : at].strip()
    return None


def judge_boxed(response: str, reference: str) -> Judgement:
    """Score 1 where the last \\boxed{} of the response is worth what the reference's is: 1/2 is \\frac{1}{2} is 0.5. A
    reference without a box is the answer itself.

    Parts: `answer`, which is the score, and `format`: the response has a box that closes."""
    given, boxed = last_boxed(response), last_boxed(reference)
    right = reference.strip() if boxed is None else boxed
    score = float(given is not None and (given == right or _helper.equal(right, given)))
    return Judgement(score, {"answer": score, "format": float(given is not None)})


class _Helper:
    """The process, started when it is first asked and again when it was ended. One for each process that judges."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def equal(self, right: str, given: str) -> bool:
        """Whether math-verify finds both equal. False where it cannot decide within its limits."""
        if not given or max(len(right), len(given)) > MAX_CHARACTERS:
            return False
        with self.lock:
            return self._ask(right, given)

    def _ask(self, right: str, given: str) -> bool:
        asked, answers = self._pipes()
        try:
            print(json.dumps([right, given]), file=asked, flush=True)
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return bool(json.loads(answer))
        assert self.process is not None
        self.process.wait()
        self.process = None
        return False

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_bench.tasks.judges.boxed"],
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},  # and nothing secret
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which may have an update to finish
            )
            assert self.process.stdout is not None
            if self.process.stdout.readline() != "ready\n":
                raise RuntimeError("math-verify does not start; install what requirements/ lists")
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout


_helper = _Helper()


def _answer_until_the_end() -> None:
    """The helper's own part: a line in, a line out, until the other side closes."""
    import logging
    import resource
    import time

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # Of math-verify's ways to read an answer only this one: the other evaluates Python.
    latex = (LatexExtractionConfig(),)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, most))
    sys.setrecursionlimit(2000)
    print("ready", flush=True)
    for line in sys.stdin:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_SECONDS, most))
        try:
            # Its own limits are off: they would be signals, and the kernel's cannot be missed.
            right, given = (
                parse(f"\\boxed{{{one}}}", latex, parsing_timeout=None, fallback_mode="no_fallback")
                for one in json.loads(line)
            )
            equal = bool(right and given) and verify(right, given, timeout_seconds=None)
        except (Exception, RecursionError):  # a library's mistakes about a stranger's text: the answer is not right
            equal = False
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    _answer_until_the_end()
