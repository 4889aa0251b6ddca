"""What an actor's error says about its process, and how the errors that end a run are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import exceptions

from rlhf_bench.core.errors import RunFailed, StateLost, stop_behind

Replace = Callable[[int, Exception], Any]
"""An actor's number among those of its role, and what a call to it raised -> another actor in its place. An error that does
not mean the loss of the actor is raised again."""

PORT_TAKEN = ("EADDRINUSE", "Address already in use", "address already in use")
"""What an engine says whose free port another process took before the engine could use it."""


def no_replacement(number: int, error: Exception) -> Any:
    """Of actors without a supervisor."""
    raise error


def failure_reason(error: Exception) -> str:
    """How the actor was lost whose call raised this. Raises any other error as it is, and `StateLost` where not the actor is
    lost, but data that it was handed. A signal that came during the call is raised as such."""
    if stop := stop_behind(error):
        raise stop
    if isinstance(error, exceptions.OutOfMemoryError):
        return "was ended by Ray for lack of memory"
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


@contextmanager
def as_run_failed() -> Iterator[None]:
    """Raise RunFailed, in one line, for an engine's error or loss that nothing could mend, and for a file that failed."""
    try:
        yield
    except exceptions.RayActorError as error:
        raise RunFailed(f"an engine's process died: {_one_line(error)}") from error
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise RunFailed(f"an engine failed: {type(cause).__name__}: {_one_line(cause)}") from error
    except (StateLost, exceptions.RayError) as error:
        raise RunFailed(f"{type(error).__name__}: {_one_line(error)}") from error
    except OSError as error:
        raise RunFailed(
            f"{error.filename or 'a file'}: {error.strerror or error}; mend that, and the same command resumes from the last checkpoint"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _out_of_memory(cause: Any) -> bool:
    text = str(cause)
    return isinstance(cause, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower()
