"""`python reaper.py FOLDER OWNER`: ends what a local Ray cluster leaves behind, once its owner has ended.

The owner has ended when the process with that number is gone, or when it closes this one's standard input. Then every
process with MARK=FOLDER in its environment is killed, and FOLDER is removed. Exit code 1, and a line for each process that
is still there, where the kernel does not end them in time.

Ray's processes cannot be trusted with this. Its raylet gets one second to end in good order (`ray.shutdown`) and is killed
then; its agents notice after two, and before they exit they report the loss to a head that is gone too, which takes a
minute. A process that is stopped notices nothing.

The owner names on standard input the processes that it cannot do without, a line each: "watch NUMBER NAME". When a raylet has
ended, Ray ends its owner at the next call, at once and without a word: then this process says what was lost. It does not after
a line "expected": the owner has said so itself, or is leaving.

This file imports nothing but the standard library, so that it starts in milliseconds and by its path alone.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "RLHF_BENCH_LOCAL_RAY"
"""The variable that the cluster's first processes get, and all others inherit from them. Its value is the cluster's folder."""
PATIENCE_SECONDS = 8.0
"""How long the kernel may take to end processes that were killed."""
PAUSE_SECONDS = 0.05
WATCH, EXPECTED = "watch", "expected"
"""What the owner says."""
LOST = "failed: Ray's process {} {}; the same command resumes from the last checkpoint"
"""Of a process, and how it has ended."""


def clear(folder: Path) -> list[str]:
    """End the cluster's processes and remove its folder. What could not be ended, one text each."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := _kill_marked(folder)) and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)  # and look again: one of them may have started another one meanwhile
    shutil.rmtree(folder, ignore_errors=bool(left))
    return left


def _kill_marked(folder: Path) -> list[str]:
    """Kill every process that has the mark; their numbers and names. Those that had ended are not among them."""
    setting, found = os.fsencode(f"{MARK}={folder}"), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or belongs to somebody else
            # Opened before the environment is read: a process that gets the same number later is never meant.
            process = os.pidfd_open(int(entry.name))
            try:
                if setting in (entry / "environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    found.append(f"{entry.name} ({name})")
            finally:
                os.close(process)
    return found


def _wait_for(number: int, owner: int) -> str | None:
    """Until the owner, by its number and its descriptor, ends or closes standard input. The process of Ray that ended before it,
    unless that was expected."""
    stdin, watched = sys.stdin.fileno(), dict[int, str]()
    lost, expected = None, False
    ends = select.poll()
    for one in (owner, stdin):
        ends.register(one, select.POLLIN)
    while True:
        ready = {one for one, _ in ends.poll()}
        said = os.read(stdin, 4096) if stdin in ready else None
        for one in ready & watched.keys():
            ends.unregister(one)
            lost = lost or (None if _killed(number) else watched[one])
        if owner in ready or said == b"":
            return None if expected else lost
        for word, *which in map(str.split, (said or b"").decode().splitlines()):
            if word == EXPECTED:
                expected = True
            else:
                with suppress(ProcessLookupError):
                    process = os.pidfd_open(int(which[0]))
                    watched[process] = which[1]
                    ends.register(process, select.POLLIN)


def _killed(number: int) -> bool:
    """Is a signal ending this process, or is it gone? Then Ray's processes, which die with the thread that made them, may be gone
    a moment before it."""
    try:
        stat = Path(f"/proc/{number}/stat").read_bytes()
    except OSError:
        return True
    return os.WIFSIGNALED(int(stat.split()[-1]))  # its exit status, as wait(2) gives it; 0 while it lives


def main() -> int:
    folder, owner = Path(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever reaches the owner too: it comes first
        signal.signal(number, signal.SIG_IGN)
    with suppress(ProcessLookupError):  # it has ended already
        process = os.pidfd_open(owner)
        if os.getppid() == owner and (lost := _wait_for(owner, process)):
            with suppress(OSError):  # nobody reads it
                os.write(2, f"{LOST.format(lost, 'has ended')}\n".encode())
    left = clear(folder)
    for one in left:
        print(f"of the Ray cluster in {folder}, process {one} cannot be ended", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
