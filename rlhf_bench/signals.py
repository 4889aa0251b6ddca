"""SIGINT and SIGTERM end a run in good order: both raise `Stopped` in the main thread, wherever it is."""

from __future__ import annotations

import signal


class Stopped(BaseException):
    """A signal asked the run to end. Not an Exception: nothing on the way may take it for an error of its own.

    `number` is the signal's; a shell expects 128 + number as the exit code."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def raise_on_signals() -> None:
    """Set the handlers. To be called again after anything that sets handlers of its own, as Ray does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def _raise(number: int, frame: object) -> None:
    raise Stopped(number)
