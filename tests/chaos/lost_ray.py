"""The end of what a run stands on: a process of Ray's own, the driver alone, and the whole group at once. All in one run, in turn."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.chaos.runs import environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts
from tests.support.running import left_running, numbered_with, processes_with

OF_RAY = ("gcs_server", "raylet")
ENDS_SECONDS, GONE_SECONDS = 20.0, 10.0


def with_lost_ray(told: Told, folder: Path, recipe: Path, whole: Path) -> None:
    tried = Attempts(recipe, folder / "lost-ray", environment(folder))
    for name in OF_RAY:
        _kill_of_ray(told, tried, name)
    _kill_driver(told, tried)
    _leave_a_folder(told, tried)
    told.compare("lost Ray", tried.directory, whole)


def _kill_of_ray(told: Told, tried: Attempts, name: str) -> None:
    tried.start_and_reach("ppo", 2)
    (process,) = (n for n, line in numbered_with(tried.mark).items() if line.split(" ")[0].endswith(f"/{name}"))
    began = time.monotonic()
    os.kill(process, signal.SIGKILL)
    code, seconds = tried.end().code, time.monotonic() - began
    fine = code == 1 and seconds < ENDS_SECONDS and not left_running(tried.mark, GONE_SECONDS)
    fine = fine and tried.last_line().startswith(f"failed: Ray's process {name} ")
    fine = fine and tried.said().count("failed: ") == len(tried.logs)
    told.tell(f"kill {name}", f"one line after {seconds:.1f} s", fine, f"{code}: {tried.said()}")


def _kill_driver(told: Told, tried: Attempts) -> None:
    tried.start_and_reach("ppo", 2)
    folder = _ray_folder(tried.mark)
    tried.process.kill()
    tried.process.wait()
    began = time.monotonic()
    left = left_running(tried.mark, GONE_SECONDS)
    seconds = time.monotonic() - began
    fine = not left and not folder.exists()
    told.tell("kill of the driver alone", f"no process and no folder left after {seconds:.1f} s", fine, " ".join(left))


def _leave_a_folder(told: Told, tried: Attempts) -> None:
    """The reaper is killed as well."""
    tried.start_and_reach("ppo", 2)
    folder = _ray_folder(tried.mark)
    tried.end_by_group_kill()
    tried.start()
    done = tried.end()
    fine = done.code == 0 and not folder.exists()
    told.tell("session folder of a dead owner", "cleared at the next start", fine, f"{done.code}: {done.errors}")


def _ray_folder(mark: str) -> Path:
    """Of the run's cluster, as its reaper was told."""
    (line,) = (line for line in processes_with(mark) if "reaper.py" in line)
    return Path(line.split()[-2])
