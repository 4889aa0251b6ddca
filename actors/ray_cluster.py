"""Ray: joining a running cluster, or starting a local one."""

from __future__ import annotations

import functools
import os
import platform
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.ray_folder import OBJECT_STORE_BYTES, RayFolder, ray_folder
from rlhf_bench.core.reaper import LOST
from rlhf_bench.core.text import one_line
from rlhf_bench.experiment.shutdown import asked_to_stop, raise_on_signals

WATCHED = ("gcs_server", "raylet")
"""Ray's processes without which no run goes on."""
WATCH_SECONDS = 1.0
"""Until the watch sees that the cluster is being left."""
STARTS = 3
"""Of a local cluster, at most: on a busy machine Ray's agents may take longer than the 15 s that its raylet waits for them."""
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


def machine() -> str:
    """The cluster and the driver's processor, in a few words: times in seconds mean nothing without them."""
    has = ray.cluster_resources()
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    gpus = sorted(kind.removeprefix("accelerator_type:") for kind in has if kind.startswith("accelerator_type:"))
    parts = [
        f"{has.get('CPU', 0):g} CPU ({model or platform.machine()})",
        f"{has.get('memory', 0) / 2**30:.0f} GiB for Ray",
    ]
    parts.append(f"{has['GPU']:g} GPU ({', '.join(gpus) or 'kind unknown'})" if has.get("GPU") else "no GPU")
    return f"{len(ray.nodes())} node{'s' if len(ray.nodes()) > 1 else ''}: " + ", ".join(parts)


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


@contextmanager
def cluster() -> Iterator[Callable[[], None]]:
    """Join the cluster that RAY_ADDRESS names (as in a submitted job), or start a local one; leave or end it after.

    Gives a function that waits until the cluster is up: that takes seconds, in which there is other work. Raises RunFailed
    where there is none to join, or none starts.

    Ray starts its processes by forking. A signal whose handler raises inside one of Python's fork hooks is swallowed,
    and leaves the hook's lock (logging's, for example) held for ever. Handlers run in the main thread only, so Ray forks in
    another one, which must outlive the cluster, since Ray's processes die with the thread that made them.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    with ExitStack() as stack:
        folder = None if address else stack.enter_context(ray_folder())
        starter = ThreadPoolExecutor(1, thread_name_prefix="ray-start")
        leaving = Event()
        started = starter.submit(_start_ray, address, folder, leaving)
        try:
            yield functools.partial(_wait_for_ray, started, address)
        except RunFailed:
            if folder:
                print(f"Ray's own logs: {folder.keep_logs()}", file=sys.stderr)
            raise
        finally:
            wait([started])
            leaving.set()
            if folder:
                folder.expect_ends()
            ray.shutdown()
            starter.shutdown()


def _start_ray(address: str | None, folder: RayFolder | None, leaving: Event) -> None:
    # A closed terminal sends SIGHUP to all of the driver's group. Ray's processes, which inherit this thread's mask, stay: the
    # driver needs them for its checkpoint.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    if folder:
        os.environ |= folder.mark  # what this process starts from here on ends with the cluster, at the latest
    local: dict[str, Any] = (
        {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": str(folder.ray)}
        if folder
        else {}
    )
    init = functools.partial(
        ray.init, address=address or "local", runtime_env={"env_vars": QUIET}, log_to_driver=False, logging_level="error",
        **local,
    )  # fmt: skip
    for _ in range(STARTS - 1 if folder else 0):
        try:
            init()
            break
        except Exception as error:  # Ray has no class of its own for this
            print(f"Ray did not start ({one_line(str(error))}); it is started again", file=sys.stderr)
            ray.shutdown()
    else:
        init()
    if folder:
        node = ray._private.worker._global_node
        Thread(target=_watch, args=(node, folder, leaving), name="ray-watch", daemon=True).start()


def _watch(node: Any, folder: RayFolder, leaving: Event) -> None:
    """End this process as soon as one that its cluster needs has ended: calls to its head would wait for a minute, and Ray would
    then end this process with lines of its own; without its raylet, the next call may end this process at once, and the reaper
    says why. Files are whole at every moment, and the folder's reaper ends what is left.

    A signal for all processes of a run, such as the SIGTERM of a service manager, ends Ray too: the last line names the signal."""
    ended = select.poll()
    for name in WATCHED:
        for info in node.all_processes[name]:
            folder.watch(info.process.pid, name)
            ended.register(os.pidfd_open(info.process.pid), select.POLLIN)
    while not leaving.is_set():
        ended.poll(1000 * WATCH_SECONDS)
        for name, process in node.dead_processes():
            if name in WATCHED and not leaving.is_set():
                folder.expect_ends()
                if stop := asked_to_stop():
                    print(stop.last_line, file=sys.stderr, flush=True)
                    os._exit(128 + stop.number)
                code = process.returncode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                print(LOST.format(name, how), file=sys.stderr, flush=True)
                os._exit(1)


def _wait_for_ray(started: Future[None], address: str | None) -> None:
    try:
        started.result()
    except Exception as error:  # Ray has no class of its own for this
        what = f"the cluster at {address} cannot be joined" if address else "the local cluster did not start"
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(f"Ray: {what} ({reason}); the same command tries again") from error
    raise_on_signals()  # again: Ray's core has set a handler of its own


def _check_answers(address: str) -> None:
    """Raise RunFailed where nothing listens at host:port: Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray finds it or says so at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunFailed(
            f"RAY_ADDRESS={address}: no cluster answers there ({error.strerror or error}); start it, or unset RAY_ADDRESS "
            "for a local one"
        ) from error
