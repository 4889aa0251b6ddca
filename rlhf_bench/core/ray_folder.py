"""The folder of a Ray cluster on this machine: closed to other users, and gone with its owner, like the cluster's processes."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rlhf_bench.core import reaper
from rlhf_bench.core.files import short_temporary_folder, short_temporary_places

OBJECT_STORE_BYTES = 2 * 2**30
"""Of shared memory, at most and only as it is used. Weights of 135M parameters are .5 GiB in float32, and a snapshot that waits
for its evaluation is there beside the next one: what does not fit goes by way of files."""
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}
"""For the environment of a cluster on this machine alone, before Ray is imported. By the first, Ray takes 127.0.0.1 for this
machine's address and listens there only, as it does on macOS; by the second, so do PyTorch's process groups on CPUs."""

PREFIX = "rlhf-ray-"
LOCK = "lock"
"""A file in the folder. It is locked as long as the cluster's owner, or its reaper, lives."""


def closed_cluster() -> dict[str, str]:
    """For the same environment: it listens on loopback alone, and answers nobody without a token that is made for it."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return ON_LOOPBACK | token | {"RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class RayFolder:
    path: Path
    reaper: int = -1
    """Where its reaper listens."""

    def watch(self, process: int, name: str) -> None:
        """A process without which its owner cannot go on. Where it ends unexpectedly and Ray ends the owner with it, the reaper
        says so."""
        self._say(f"{reaper.WATCH} {process} {name}")

    def expect_ends(self) -> None:
        """From here on the reaper has nothing to say."""
        self._say(reaper.EXPECTED)

    def _say(self, line: str) -> None:
        with suppress(OSError):  # the reaper was killed
            os.write(self.reaper, f"{line}\n".encode())

    @property
    def ray(self) -> Path:
        """For Ray's `temp_dir`. Ray lets every user write to that folder and to all in it; only the one above it, which Ray
        does not touch, keeps them out. Its name is short, since the paths of sockets have at most 107 bytes."""
        return self.path / "r"

    @property
    def logs(self) -> Path:
        return self.ray / "session_latest" / "logs"

    @property
    def mark(self) -> dict[str, str]:
        """For the environment of the cluster's first processes: see reaper.py. With SPT_NOENV Ray's agents, which change
        their titles, leave their environment readable: setproctitle writes over it otherwise."""
        return {reaper.MARK: str(self.path), "SPT_NOENV": "1"}

    def keep_logs(self) -> Path:
        """Copy Ray's logs to a place that stays, and that only this user can enter."""
        kept = Path(tempfile.mkdtemp(prefix="rlhf-bench-ray-")) / "logs"  # the copy gets the original's permissions
        if self.logs.is_dir():
            shutil.copytree(self.logs, kept, ignore_dangling_symlinks=True)
        else:
            kept.mkdir()  # Ray did not come so far
        return kept


@contextmanager
def ray_folder() -> Iterator[RayFolder]:
    """A new folder. All processes that inherit its mark are ended with this block, or with this process if that ends first,
    however it ends; then the folder is removed. Folders whose owner and reaper were both killed are removed first.

    Raises BadInput where no folder for temporary files has a path that is short enough."""
    _clear_stale()
    folder, lock = _locked_folder()
    watching = subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__, str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[lock],  # one lock for both: it ends with the second of them
        start_new_session=True,  # signals to the owner's group are not for it
    )
    assert watching.stdin is not None
    try:
        yield RayFolder(folder, watching.stdin.fileno())
    finally:
        watching.stdin.close()
        watching.wait()
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = short_temporary_folder(PREFIX)
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(BlockingIOError):  # another process has just taken it for a stale one, and removes it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / LOCK).exists():
                return folder, lock
        os.close(lock)


def _clear_stale() -> None:
    """End what is left of clusters of this user whose owner and reaper are gone, as after the kill of a whole container."""
    for place in short_temporary_places():
        for folder in place.glob(f"{PREFIX}*"):
            with suppress(OSError):  # it has gone meanwhile, or is held, or somebody else's
                if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                    continue
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    reaper.clear(folder)
                finally:
                    os.close(lock)
