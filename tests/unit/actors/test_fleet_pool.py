"""How the fleets of a run start and end, with fleets that have no processes."""

import threading
import time

import pytest

from actors.fleet import NoRoom
from actors.fleet_pool import FleetPool
from rlhf_bench.core.errors import RunFailed

PATIENCE = 20.0


class Scripted:
    """A fleet whose learner never answers, where `hangs`, until it is stopped."""

    def __init__(self, hangs=False):
        self.hangs, self.joining, self.stopped = hangs, threading.Event(), threading.Event()

    def join(self):
        self.joining.set()
        if self.hangs:
            assert self.stopped.wait(PATIENCE)
            raise RunFailed("learner 0: not started again, since the run is ending")

    def stop(self):
        self.stopped.set()


def none_is_starting():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("fleet")]


def test_the_first_fleet_waits_for_no_other_one():
    made, may_start = {}, threading.Event()

    def start(number, ending):
        assert number == 1 or may_start.wait(PATIENCE)
        return made.setdefault(number, Scripted())

    fleets = FleetPool(start, print)
    assert fleets.first() is made[1]
    others = fleets.others(2)
    assert list(made) == [1] and not any(other.done() for other in others)
    may_start.set()
    assert [other.result(PATIENCE) for other in others] == [made[2], made[3]] and fleets.fleets == made
    fleets.stop()
    assert all(fleet.stopped.is_set() for fleet in made.values()) and none_is_starting()


def test_a_fleet_without_room_is_reported_and_left_out():
    def start(number, ending):
        raise NoRoom("placement: no room after 1 s")

    said = []
    fleets = FleetPool(start, said.append)
    assert [other.result(PATIENCE) for other in fleets.others(1)] == [None]
    assert said == ["fleet 2: placement: no room after 1 s; the run continues with the fleets that are there"]
    with pytest.raises(NoRoom):  # without which there is no run
        fleets.first()
    fleets.stop()


def test_a_fleet_that_cannot_start_says_why():
    def start(number, ending):
        raise RunFailed("learner 0: 3 restarts were not enough")

    fleets = FleetPool(start, print)
    (other,) = fleets.others(1)
    with pytest.raises(RunFailed, match="3 restarts"):
        other.result(PATIENCE)
    fleets.stop()


def test_the_end_of_the_run_ends_the_wait_for_a_fleet():
    fleet = Scripted(hangs=True)
    fleets = FleetPool(lambda number, ending: fleet, print)
    (other,) = fleets.others(1)
    assert fleet.joining.wait(PATIENCE)
    fleets.stop()
    with pytest.raises(RunFailed, match="the run is ending"):
        other.result(0)
    assert none_is_starting()


def test_the_end_of_the_run_ends_the_wait_for_room_without_a_warning():
    def start(number, ending):
        assert ending.wait(PATIENCE)
        raise NoRoom("placement: no room")

    said = []
    fleets = FleetPool(start, said.append)
    (other,) = fleets.others(1)
    fleets.stop()
    assert other.result(0) is None and said == []


def test_a_fleet_that_comes_up_while_the_run_ends_is_ended_too():
    fleet = Scripted()

    def start(number, ending):
        assert ending.wait(PATIENCE)
        time.sleep(0.1)
        return fleet

    fleets = FleetPool(start, print)
    (other,) = fleets.others(1)
    fleets.stop()
    with pytest.raises(RunFailed, match="fleet 2: not started, since the run is ending"):
        other.result(0)
    assert fleet.stopped.is_set() and fleets.fleets == {}
