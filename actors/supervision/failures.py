"""What an actor's error says about its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import exceptions

from rlhf_bench.core.errors import StateLost

Replace = Callable[[int, Exception], Any]
"""The number of an actor among those of its role and what a call to it raised -> another actor in its place. Whatever is no
loss of the actor is raised again."""

PORT_TAKEN = ("EADDRINUSE", "Address already in use", "address already in use")
"""What an engine says that chose a free port, which another process took before the engine came to use it."""


def no_replacement(number: int, error: Exception) -> Any:
    """Of actors that nobody keeps."""
    raise error


def failure_reason(error: Exception) -> str:
    """What has happened to the actor that a call to it raised this. Any other error is raised as it is; `StateLost` where
    it is not the actor that is lost, but data that it was handed."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return "was ended by Ray for want of memory"
    if any(word in str(error) for word in PORT_TAKEN):
        return "found its port taken by another process"
    if getattr(error, "actor_init_failed", False) and not _out_of_memory(error):
        raise error  # it would fail again
    if isinstance(error, (exceptions.ActorDiedError, exceptions.WorkerCrashedError, exceptions.ActorUnavailableError)):
        return "has died, or did not answer and was ended"
    cause = getattr(error, "cause", error)
    if isinstance(cause, (exceptions.ObjectLostError, exceptions.RaySystemError)):
        raise StateLost("data was on a node that is lost") from error
    if isinstance(error, exceptions.RayTaskError) and _out_of_memory(cause):
        return "is out of memory"
    raise error


def _out_of_memory(cause: Any) -> bool:
    text = str(cause)
    return isinstance(cause, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower()
