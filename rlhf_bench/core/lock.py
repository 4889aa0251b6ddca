"""One command at a time in an output directory: a lock of the kernel on DIR/lock, which ends with its process, however that ends.

The file also says who holds the lock. What a killed owner left in it is of no effect: the lock alone counts.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import make_private

LOCK = "lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
"""What file systems answer that have no locks, as some of networks and object stores."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that holds a directory. `since`: ISO 8601, with the offset from UTC."""

    process: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Owner:
        return cls(os.getpid(), platform.node(), datetime.now().astimezone().isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextmanager
def held(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold DIR, which is made if need be, for this process. BadInput where another process holds it, or where it cannot be made or
    written. `say` gets a line where the lock cannot tell of a process on another host."""
    path = directory / LOCK
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        make_private(directory)
        lock.acquire()
        _claim(path, say)
    except Timeout:
        owner = _owner(path) or "which has just begun"
        raise BadInput(
            f"--output {directory}: another command works in it, {owner}; wait for its end, or choose another directory"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise BadInput(
                f"--output {directory}: cannot be used ({error.strerror}); choose another directory"
            ) from None
        say(f"{directory}: its file system has no locks ({error.strerror}): see that no other command works in it")
    try:
        yield
    finally:
        with suppress(OSError):  # what it says is of no effect from now on
            path.write_text("", encoding="utf-8")
        lock.release()


def owner_at_work(directory: Path) -> Owner | None:
    """Who holds DIR, as far as can be told without touching its lock: the one who last took it, if that process is still there.
    One on another host is believed."""
    owner = _owner(directory / LOCK)
    if owner is None or owner.host != platform.node():
        return owner
    try:
        began = psutil.Process(owner.process).create_time()
        return (
            owner if began <= datetime.fromisoformat(owner.since).timestamp() + 1 else None
        )  # or another took its number
    except (psutil.Error, ValueError):
        return None


def _claim(path: Path, say: Callable[[str], None]) -> None:
    """Write down who holds the lock."""
    before, now = _owner(path), Owner.here()
    if before is not None and before.host != now.host:
        say(f"{path.parent}: {before} did not end in good order; see that it is gone: a lock may not reach other hosts")
    path.write_text(json.dumps(asdict(now)) + "\n", encoding="utf-8")


def _owner(path: Path) -> Owner | None:
    """As the file says; None where it says nothing, as after an end in good order."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
