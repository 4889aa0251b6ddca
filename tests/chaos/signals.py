"""What reaches a whole run from outside: a pause, a closed terminal, an output that nobody reads. All in one run, in turn."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.chaos.runs import environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts
from tests.support.running import left_running, paused, signal_all

PAUSE_SECONDS = 20.0
"""More than twice the recipe's `reliability.hang_seconds`."""
HEAD = ("bash", "-c", 'set -o pipefail; "$@" 2>&1 | head -1', "run")
"""The exit code is that of the command, unless it was 0."""
RESTARTED = "started again"


def with_signals(told: Told, folder: Path, recipe: Path, whole: Path) -> None:
    tried = Attempts(recipe, folder / "signals", environment(folder))
    _pause_and_hang_up(told, tried)
    _close_the_output(told, tried, whole)


def _pause_and_hang_up(told: Told, tried: Attempts) -> None:
    tried.start_and_reach("ppo", 2)
    with paused(tried.mark):
        time.sleep(PAUSE_SECONDS)
    after = tried.round("ppo") + 2
    tried.wait_for(lambda: tried.round("ppo") >= after)
    told.tell(f"pause of {PAUSE_SECONDS:.0f} s", "no restart", RESTARTED not in tried.said(), tried.said())

    began = time.monotonic()
    signal_all(tried.mark, signal.SIGHUP)
    code, seconds = tried.end().code, time.monotonic() - began
    fine = code == 129 and tried.last_line().startswith("stopped by SIGHUP: ") and tried.round("ppo") >= after
    fine = fine and not left_running(tried.mark)
    told.tell("SIGHUP", f"exit code 129 after {seconds:.1f} s, with a checkpoint", fine, f"{code}: {tried.said()}")


def _close_the_output(told: Told, tried: Attempts, whole: Path) -> None:
    tried.start(within=HEAD)
    done = tried.end()
    fine = done.code == 0 and len(done.said.splitlines()) == 1 and (tried.directory / "report.html").exists()
    told.tell("run … | head -1", "went on to its end", fine, f"{done.code}: {done.said}")
    told.compare("signals", tried.directory, whole)
