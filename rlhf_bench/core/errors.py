"""What goes wrong, by who must act on it."""

from __future__ import annotations

import signal
from collections.abc import Mapping


class BadInput(Exception):
    """The recipe or the data is wrong. `problems` holds one line each: key, row or file, and the remedy. Exit code 2."""

    def __init__(self, *problems: str):
        self.problems = tuple(" ".join(p.splitlines()) for p in problems)  # a name in one may have line breaks
        super().__init__("\n".join(self.problems))


class ArmFailed(Exception):
    """One arm cannot go on with one seed, for a reason of its own; the others can. One line with the cause; `spent` is the
    ledger's total by then."""

    spent: Mapping[str, float]


class RunFailed(Exception):
    """The run cannot go on: an engine, the cluster or a check failed. One line with the cause. Exit code 1."""


class StateLost(Exception):
    """A role has lost what cannot be handed to it again. Whoever knows how begins that piece of work anew."""


class Stopped(BaseException):
    """A signal asked the run to end. Not an Exception: nothing on the way may take it for an error of its own.

    `number` is the signal's; a shell expects 128 + number as the exit code."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
