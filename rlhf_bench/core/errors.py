"""Errors, by what the reader of the message has to do."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class BadInput(Exception):
    """The recipe or the data is wrong. `problems` holds one line each: key, row or file, and the remedy. Exit code 2."""

    def __init__(self, *problems: str):
        self.problems = tuple(" ".join(p.splitlines()) for p in problems)  # a name in one may have line breaks
        super().__init__("\n".join(self.problems))


class Conflicts(ValueError):
    """What a settings model raises where several of its values do not go together: `problems`, each a line."""

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("; ".join(problems))


def check_agreement(conflicts: Iterable[str]) -> None:
    """Conflicts with all of them, where there are any."""
    if found := tuple(conflicts):
        raise Conflicts(*found)


class Problems:
    """What is wrong, over several steps that do not need each other: the first to fail hides no other."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *problems: str) -> None:
        self.found += [problem for problem in dict.fromkeys(problems) if problem not in self.found]

    @contextmanager
    def step(self) -> Iterator[None]:
        """BadInput in this block is added, and the code behind the block goes on."""
        try:
            yield
        except BadInput as error:
            self.add(*error.problems)

    def refuse(self) -> None:
        """BadInput with all of them, where there are any."""
        if self.found:
            raise BadInput(*self.found)


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

    `number` is the signal's; a shell expects 128 + number as the exit code. `next_time`: what the same command does then."""

    def __init__(self, number: int, next_time: str = "with the same --output resumes from the last checkpoint"):
        super().__init__(signal.Signals(number).name)
        self.number, self.next_time = number, next_time

    @property
    def last_line(self) -> str:
        return f"stopped by {self}: the same command {self.next_time}"


def stop_behind(error: BaseException) -> Stopped | None:
    """The signal that an error was made of: itself, or its cause. Ray's compiled code may turn an exception that a handler raises
    inside it into a SystemError. An error that merely follows a signal, while files are closed, is an error of its own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, Stopped):
        seen = seen.__cause__
    return seen
