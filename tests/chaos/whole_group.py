"""SIGKILL to all processes of a run at once, at random moments: in its start, in its stages, in an update, in a checkpoint's write,
in the report. The same command goes on, as often as necessary."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos.runs import environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts

KILLS, KILLS_OF_A_RUN = 20, 10


def with_killed_groups(
    told: Told, folder: Path, recipe: Path, whole: Path, *, seed: int, seconds: float, kills: int = KILLS
) -> None:
    """So many kills in several runs, whose caches are their own, so that stages are interrupted too. Each moment is drawn from
    the `seconds` that an undisturbed run takes; a run that has ended by then was not killed, and another one begins."""
    draw, runs = random.Random(seed), 0
    while len(told.survived) < kills and not told.wrong:
        runs += 1
        tried = Attempts(recipe, folder / f"group-{runs}", environment(folder / f"group-{runs}"))
        for _ in range(min(KILLS_OF_A_RUN, kills - len(told.survived))):
            moment = draw.uniform(0, seconds)
            tried.start()
            if not tried.lives_for(moment):
                break
            number = tried.end_by_group_kill()
            after = tried.last_line()[len("HH:MM:SS ") :][:50] or "the command's start"
            told.survived[f"group kill {len(told.survived) + 1} at {moment:.1f} s"] = (
                f"{number} processes, after {after}"
            )
        else:
            tried.start()
        done = tried.end()
        if done.code:
            told.wrong.append(f"run {runs} of the group kills: exit code {done.code}: {done.errors[-500:]}")
        else:
            told.compare(f"run {runs} of the group kills", tried.directory, whole)
