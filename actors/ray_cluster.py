"""Ray: joining a running cluster, or starting a local one."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import ray

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.experiment.shutdown import raise_on_signals

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
    # By default Ray puts its files into a folder that every user of the machine can write to.
    folder = None if address else tempfile.mkdtemp(prefix="rlhf-ray-")
    starter = ThreadPoolExecutor(1, thread_name_prefix="ray-start")
    started = starter.submit(_start_ray, address, folder)
    keep = False
    try:
        yield functools.partial(_wait_for_ray, started, address)
    except RunFailed:
        keep = True
        raise
    finally:
        wait([started])
        ray.shutdown()
        starter.shutdown()
        if folder and keep:
            print(f"Ray's own logs: {folder}/session_latest/logs", file=sys.stderr)
        elif folder:
            shutil.rmtree(folder, ignore_errors=True)  # a process of Ray's may still write a last line there


def _start_ray(address: str | None, folder: str | None) -> None:
    local = {"include_dashboard": False, "object_store_memory": 512 * 2**20, "_temp_dir": folder} if folder else {}
    environment = {"env_vars": QUIET}
    ray.init(address=address or "local", runtime_env=environment, log_to_driver=False, logging_level="error", **local)


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
