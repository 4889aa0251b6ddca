"""What a local Ray cluster leaves behind, however its owner ends: no process, no folder; and nobody else can enter that."""

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rlhf_bench.core import ray_folder as module
from rlhf_bench.core.ray_folder import ray_folder

OWNER = """
import os, signal, subprocess, sys, time
from rlhf_bench.core.ray_folder import ray_folder
with ray_folder() as folder:
    folder.ray.mkdir()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    started = [subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, env=os.environ | folder.mark,
                                start_new_session=True) for _ in range(2)]
    for one in started:
        one.stdout.readline()
    started[0].send_signal(signal.SIGSTOP)
    print(folder.path, *(one.pid for one in started), flush=True)
    sys.stdin.readline()
"""


def gone_within(seconds, *paths):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, paths)):
        time.sleep(0.02)
    return not any(map(alive, paths))


def alive(path):
    """A folder, or a process of /proc, which is no zombie: nobody may be there to reap it."""
    try:
        return path.parent.name != "proc" or path.joinpath("environ").read_bytes() != b"" if path.exists() else False
    except ProcessLookupError:
        return False


@pytest.fixture
def owner():
    """A process with a folder and two others, one of them stopped and one deaf to SIGTERM; folder and processes."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder, *pids = process.stdout.readline().split()
    yield process, Path(folder), [Path("/proc") / pid for pid in pids]
    process.kill()
    process.wait()


def kill(process):
    process.kill()


def close(process):
    process.stdin.close()


@pytest.mark.parametrize("end", [kill, close])
def test_nothing_outlives_the_owner_however_it_ends(owner, end):
    process, folder, others = owner
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
    try:
        assert all(map(alive, [folder, *others]))
        end(process)
        process.wait()
        assert gone_within(10, folder, *others)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def reaper_of(folder):
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if bytes(folder) in command and any(part.endswith(b"/reaper.py") for part in command):
                return int(entry.name)
    raise AssertionError("there is no reaper")


def test_what_a_killed_container_left_is_cleared_at_the_next_start_and_what_lives_is_left_alone(owner):
    process, folder, others = owner
    with ray_folder():
        assert all(map(alive, [folder, *others]))
    os.kill(reaper_of(folder), signal.SIGKILL)
    with ray_folder():
        assert all(map(alive, [folder, *others])), "its owner lives"
    process.kill()
    process.wait()
    assert all(map(alive, [folder, *others]))
    with ray_folder() as another:
        assert gone_within(10, folder, *others) and another.path.exists()
    assert not another.path.exists()


def test_nobody_else_can_enter_the_folder_whatever_ray_does_in_it():
    with ray_folder() as folder:
        folder.ray.mkdir()
        folder.ray.chmod(0o777)  # as Ray does
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700 and folder.ray.parent == folder.path


def test_logs_are_kept_where_nobody_else_can_read_them(monkeypatch, tmp_path):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    with ray_folder() as folder:
        folder.logs.mkdir(parents=True)
        folder.logs.chmod(0o777)
        (folder.logs / "raylet.out").write_text("why")
        kept = folder.keep_logs()
    assert (kept / "raylet.out").read_text() == "why" and stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
