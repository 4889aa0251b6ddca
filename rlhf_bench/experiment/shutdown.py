"""SIGINT, SIGTERM and SIGHUP, which a closed terminal sends, end a run in good order: they raise `Stopped` in the main thread.

Within `grace_period` the first signal is only noted, so that the run can write a checkpoint first. `Stopped` is raised
when that time is over, or when a second signal comes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rlhf_bench.core.errors import Stopped


class Grace:
    """Time to end in good order, counted from the first signal."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.number: int | None = None  # of the signal that came

    def raise_if_stopped(self) -> None:
        """Raise `Stopped` if there was a signal."""
        if self.number is not None:
            raise Stopped(self.number)


_grace: Grace | None = None
_asked: Stopped | None = None


def asked_to_stop() -> Stopped | None:
    """What the last signal has raised, or will raise once the run has had its time."""
    return _asked


def raise_on_signals() -> None:
    """Set the handlers. Call it again after anything that sets handlers of its own, as Ray does. Under `nohup`, which has
    SIGHUP ignored, it stays so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


@contextmanager
def grace_period(seconds: float) -> Iterator[Grace]:
    """In here the first signal waits for at most `seconds`. The code in here must call `raise_if_stopped` once it can stop."""
    global _grace
    _grace = mine = Grace(seconds)
    try:
        yield mine
    except Exception:
        mine.raise_if_stopped()  # a caller might survive the error, and the signal would be forgotten
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _grace = None
    mine.raise_if_stopped()


def _stop(number: int, frame: object) -> None:
    global _asked
    _asked = Stopped(number)
    if _grace is None or _grace.number is not None:
        raise _asked
    _grace.number = number
    # Not print: the signal may have come in the middle of one.
    text = f"{signal.Signals(number).name}: a checkpoint follows after this update; a second signal stops at once\n"
    with suppress(OSError):  # the terminal is closed
        os.write(2, text.encode())
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, _grace.seconds)


def _too_late(number: int, frame: object) -> None:
    if _grace is not None:
        _grace.raise_if_stopped()
