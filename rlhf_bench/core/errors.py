"""Errors, by what the reader of the message has to do."""

from __future__ import annotations

import signal
from collections.abc import Mapping


class BadInput(Exception):
    """The recipe or the data is wrong. `problems` holds one line each: key, row or file, and the remedy. Exit code 2."""

    def __init__(self, *problems: str):
        self.problems = tuple(" ".join(p.splitlines()) for p in problems)  # a name in one may have line breaks
        super().__init__("\n".join(self.problems))


class ArmFailed(Exception):
    """One arm with one seed cannot continue, and the others can. One line with the cause; `spent` is the ledger's total
    at that moment."""

    spent: Mapping[str, float]


class RunFailed(Exception):
    """The run cannot continue: an engine, the cluster or a check failed. One line with the cause. Exit code 1."""


class StateLost(Exception):
    """A role has lost state that cannot be restored. The caller must start this piece of work again."""


class Stopped(BaseException):
    """A signal asked the run to end. It is not an Exception, so that no handler of errors catches it.

    `number` is the signal's; a shell expects 128 + number as the exit code."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
