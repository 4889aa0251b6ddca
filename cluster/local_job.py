"""Run a recipe through `ray job submit` on a Ray cluster of its own on this machine.

Usage: python cluster/local_job.py RECIPE [key=value ...] --output DIR

The cluster asks for a token made for this run, listens on loopback only and has its files in a folder that only you
can enter, takes free ports, and ends with this command; no other Ray cluster on the machine is touched. Ctrl-C, SIGTERM or a
closed terminal stops the job after a checkpoint: the same command resumes from there. The exit code is that of `rlhf-bench run`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_bench.core.ray_folder import RayFolder

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
START_WAIT_SECONDS = 120
STARTS = 3  # at most: on a busy machine Ray's agents may take longer than Ray waits for them
STOP_WAIT_SECONDS = 60  # for the driver to write its state; Ray's own default is 3
END_WAIT_SECONDS = 10
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
TOO_LARGE = "Maximum request body size"  # in what `ray job submit` says then


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP came; `number` says which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to `rlhf-bench run`")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options, passed_on = parser.parse_known_intermixed_args(arguments)
    # The job runs in a copy of the tree: paths to what stays outside the copy must be absolute.
    output = options.output.resolve()
    entrypoint = ["python", "-m", "rlhf_bench", "run", str(options.recipe.resolve()), *options.overrides, *passed_on]
    code = run_on_local_cluster([*entrypoint, "--output", str(output)], ROOT)
    print_where_to_look(output)
    return code


def run_on_local_cluster(entrypoint: Sequence[str], working_directory: Path) -> int:
    """Start a cluster, run `entrypoint` as a job in a copy of `working_directory`, show its log, end the cluster.

    Returns the entrypoint's exit code; 128 + the number of the signal that stopped it; 1 where Ray could not run it.
    """
    sys.path.insert(0, str(ROOT))
    from rlhf_bench.core.streams import outlive_readers

    outlive_readers()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        with local_cluster() as (address, folder, head):
            code = _submit_and_follow(address, head, entrypoint, working_directory)
            if code == 1:
                print(f"Ray's own logs: {folder.keep_logs()}", file=sys.stderr)
            return code
    except Interrupted as stop:
        return 128 + stop.number


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(number)


@contextmanager
def local_cluster() -> Iterator[tuple[str, RayFolder, subprocess.Popen]]:
    """A Ray cluster with its dashboard on loopback. Yields the dashboard's address, the cluster's folder, and the process that
    ends when any of Ray's own does. However this process ends, the cluster's processes end with it.

    `ray start`, and not `ray.init`: only it can choose the port of the dashboard's agent, and only it leaves the
    file by which a job finds its own cluster where several run on one machine. Raises RuntimeError where the
    cluster does not come up.
    """
    from rlhf_bench.core.ray_folder import closed_cluster, ray_folder

    # Every process of the cluster inherits these, and so does the client in this process.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= closed_cluster()
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with ray_folder() as folder:
        os.environ.update(folder.mark)
        for left in reversed(range(STARTS)):
            head, address = _start_head(folder)
            try:
                _wait_until_up(head, address, folder.path / "start.log")
                break
            except RuntimeError as error:
                _end(head)
                if not left:
                    raise
                print(f"{error}\nIt is started again.", file=sys.stderr)
        try:
            yield address, folder, head
        finally:
            _end(head)


def _start_head(folder: RayFolder) -> tuple[subprocess.Popen, str]:
    """The process of `ray start`, and where its dashboard will be."""
    from rlhf_bench.core.ray_folder import OBJECT_STORE_BYTES

    dashboard, client_server = _free_ports(2)
    command = [RAY, "start", "--head", "--block", "--port=0",
               f"--temp-dir={folder.ray}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
               "--dashboard-agent-listen-port=0", f"--ray-client-server-port={client_server}",
               f"--object-store-memory={OBJECT_STORE_BYTES}"]  # fmt: skip
    with open(folder.path / "start.log", "w", encoding="utf-8") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    return head, f"http://127.0.0.1:{dashboard}"


def _end(head: subprocess.Popen) -> None:
    """`ray start --block` ends its own processes, and the folder's reaper what that leaves."""
    head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(timeout=END_WAIT_SECONDS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_up(head: subprocess.Popen, address: str, said: Path) -> None:
    """`said` is the file with what `ray start` says."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + START_WAIT_SECONDS
    while head.poll() is None and time.monotonic() < deadline:
        try:
            JobSubmissionClient(address)  # asks for the version
            return
        except ConnectionError:  # not there yet
            time.sleep(0.1)
    why = said.read_text(encoding="utf-8").strip()
    raise RuntimeError(f"Ray did not start within {START_WAIT_SECONDS} s; `ray start` said:\n{why}")


def _submit_and_follow(address: str, head: subprocess.Popen, entrypoint: Sequence[str], working_directory: Path) -> int:
    from ray.job_submission import JobSubmissionClient

    submission = f"rlhf-bench-{secrets.token_hex(4)}"
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS), "RLHF_BENCH_COMMIT": _commit(working_directory)}
    command = [RAY, "job", "submit", "--no-wait", "--address", address, "--submission-id", submission,
               "--working-dir", str(working_directory), "--runtime-env-json", json.dumps({"env_vars": environment}),
               "--", *entrypoint]  # fmt: skip
    submitted = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    if submitted.returncode != 0:
        why = too_large(working_directory) if TOO_LARGE in submitted.stdout else ""
        print(why or f"`ray job submit` failed:\n{submitted.stdout}", file=sys.stderr)
        return 1
    client = JobSubmissionClient(address)
    # No warnings about its web socket in the middle of the job's log.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    # In a thread, so that the main one can receive a signal and stop the job while the last lines of the log still arrive.
    log_ended = threading.Event()  # and not Thread.join: a signal's exception in there marks the thread as ended
    threading.Thread(target=_print_log, args=(client, submission, log_ended), daemon=True).start()
    stopped_by = None
    while not log_ended.is_set():
        try:
            log_ended.wait(timeout=1)
            if head.poll() is not None:
                break
        except Interrupted as interrupted:
            if stopped_by is not None:  # the second signal: the end of the cluster ends the job
                raise
            stopped_by = interrupted.number
            print("Stopping the job; a second signal ends it at once.", file=sys.stderr, flush=True)
            client.stop_job(submission)
    try:
        code = _exit_code(client, submission)
    except (OSError, RuntimeError) as error:  # the client's, where nobody answers
        print(
            f"failed: Ray itself has ended ({error}); the same command resumes from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    return code if stopped_by is None else 128 + stopped_by


def _print_log(client, submission: str, ended: threading.Event) -> None:
    async def follow() -> None:
        async for lines in client.tail_job_logs(submission):
            print(lines, end="", flush=True)

    try:
        asyncio.run(follow())
    except Exception as error:  # of several libraries; the job's status, which is asked next, says what has happened
        print(f"no more of the job's log: {error}", file=sys.stderr)
    finally:
        ended.set()


def _exit_code(client, submission: str) -> int:
    """The driver's own exit code, once the job has ended; 1 where the driver never ran."""
    job = client.get_job_info(submission)
    while job.status not in ENDED:  # the log's end may come before the status
        time.sleep(0.1)
        job = client.get_job_info(submission)
    if job.status == "STOPPED":
        return 128 + signal.SIGTERM
    if job.driver_exit_code is None:
        print(f"The job did not run: {job.message}", file=sys.stderr)
        return 1
    # A shell runs the driver: an end by signal n is reported as 128 + n, or as -n where the driver has replaced the shell.
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code


def too_large(directory: Path) -> str:
    """Of a tree that Ray does not take for its size: which of its folders and files is largest, and what to do."""
    listed = _git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [directory / name for name in listed if name] or [path for path in directory.rglob("*") if path.is_file()]
    sizes = Counter[str]()
    for file in files:
        with suppress(OSError):  # listed, and gone meanwhile
            sizes[file.relative_to(directory).parts[0]] += file.lstat().st_size
    ((largest, size),) = sizes.most_common(1)
    return (
        f"failed: {directory} holds {sum(sizes.values()) / 2**20:.0f} MiB that git does not ignore, more than Ray copies into a "
        f"job; most of it is {largest} ({size / 2**20:.0f} MiB): move it elsewhere, or name it in .gitignore"
    )


def _commit(directory: Path) -> str:
    """The commit that is checked out in `directory`, or "" where that is no git repository."""
    return _git(directory, "rev-parse", "HEAD").strip()


def _git(directory: Path, *command: str) -> str:
    """What git says; "" where there is no git or no repository."""
    try:
        found = subprocess.run(
            ["git", *command], cwd=directory, capture_output=True, text=True, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return found.stdout if found.returncode == 0 else ""


def print_where_to_look(output: Path) -> None:
    """Where the report is, and how to open MLflow on the store that the run used."""
    from rlhf_bench.core.text import printable
    from rlhf_bench.core.yaml import read_yaml
    from rlhf_bench.experiment.tracking.tracker import how_to_open, tracking_uri

    report, recipe = output / "report.html", output / "recipe.yaml"
    if not recipe.is_file():
        return
    tracking = (read_yaml(recipe.read_text(encoding="utf-8")) or {}).get("tracking") or {}
    if report.is_file():
        print(f"\nReport:  {report.as_uri()}")
    print(f"MLflow:  {printable(how_to_open(tracking_uri(tracking.get('uri'), output)))}")


if __name__ == "__main__":
    sys.exit(main())
