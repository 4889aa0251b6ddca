"""An event loop that a signal ends in good order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from rlhf_bench.core.errors import Stopped

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or Stopped where a signal came: `work` is cancelled where it waits. A handler that raises would not
    do: the loop logs an exception that is raised within a callback of its own, and goes on. Signals that are ignored stay so."""
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    came: list[int] = []

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            came.append(number)
            task.cancel()

        for number in before:
            loop.add_signal_handler(number, stop, number)
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if not came:
            raise
        raise Stopped(came[0], "asks what is missing") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
