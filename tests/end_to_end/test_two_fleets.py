"""Arms side by side on two fleets, of which one loses its learner: tables and weights are those of one fleet."""

import re
import shutil
import signal
import time
from os import kill
from pathlib import Path

import pytest

from tests.chaos.compare import differences
from tests.support.running import begin, end, with_cache

ARMS = ("ppo", "dpo-offline", "dpo-mixed", "adaptive-online", "ppo-ahead")


@pytest.fixture(scope="module")
def beside(compared, tmp_path_factory):
    """The whole recipe on two fleets, with the trials and the cache of the run with one. The first fleet's learner is held
    up in its first arm until the second fleet has one too; then the second one's is killed."""
    folder = tmp_path_factory.mktemp("two_fleets")
    directory, log, began = folder / "out", folder / "log", time.monotonic()
    directory.mkdir()
    shutil.copy(compared.directory / "tuning.json", directory)
    environment = with_cache(compared.directory.parents[1] / "cache") | {"TWO_FLEETS": str(folder)}
    more = ("placement.fleets=2", "reliability.checkpoint_seconds=0", "reliability.hang_seconds=120")
    process = begin(compared.directory.parents[1] / "tiny.yaml", directory, environment, log, *more)
    events = directory / "events.log"

    def wait_for(arms: int) -> None:
        while not (events.exists() and under_way(events.read_text()) >= arms):
            assert process.poll() is None and time.monotonic() - began < 300, Path(f"{log}.err").read_text()[-2000:]
            time.sleep(0.05)

    wait_for(1)
    first, *_ = learners(f"TWO_FLEETS={folder}")
    kill(first, signal.SIGSTOP)
    try:
        wait_for(2)
        second = learners(f"TWO_FLEETS={folder}")
    finally:
        kill(first, signal.SIGCONT)
    assert len(second) == 2 and second[0] == first, "two fleets, of which each has a learner"
    kill(second[1], signal.SIGKILL)
    done = end(process, directory, log, began)
    assert done.code == 0, done.errors[-2000:]
    return done


def under_way(events: str) -> int:
    return events.count(": begins") - len(re.findall(r"seed 1: (?:done|failed)", events))


def learners(setting: str) -> list[int]:
    """Numbers of the living learner processes that inherited an environment setting, oldest first."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and setting.encode() in (process / "environ").read_bytes().split(b"\0"):
                if (process / "cmdline").read_text().startswith("ray::LearnerRank"):
                    found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return sorted(found)


def test_tables_and_weights_are_those_of_one_fleet(beside, compared):
    assert differences(beside.directory, compared.directory, list(ARMS)) == []


def test_only_the_fleet_that_lost_its_learner_starts_another(beside):
    restarts = re.findall(r"fleet (\d): (\w+ \d): .*; started again", beside.errors)
    assert restarts == [("2", "learner 0")]


def test_arms_ran_beside_each_other(beside):
    events = (beside.directory / "events.log").read_text()
    assert "2 fleets, arms side by side" in events
    assert under_way(events[: events.index("seed 1: done")]) == 2
    assert list(beside.summary["arms"]) == list(ARMS) and beside.summary["timing"]["fleets"] == 2
