"""Where a comparison's time went: the share in which engines waited for the driver."""

import time

import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.experiment.timing import Occupancy, Timing


def test_a_fleet_counts_for_the_drivers_share_only_while_it_has_an_arm():
    """Of two fleets, one works for 3 of its 4 seconds, the other for all of its 2: the driver's share is 1 of 6."""
    one, other, now = EngineTime(), EngineTime(), time.perf_counter()
    one.record_background("learning", "learner 0", now - 9, 3.0)
    other.record_background("learning", "learner 0", now - 8, 2.0)
    timing = Timing(began=now - 10)
    timing.occupy(Occupancy(one, now - 9, now - 5))
    timing.occupy(Occupancy(other, now - 8, now - 6))
    assert timing.driver_seconds == pytest.approx(1) and timing.driver_share == pytest.approx(1 / 6)
    assert timing.fleets == 2 and timing.wall_seconds == pytest.approx(10, abs=1)


def test_a_fleet_that_comes_twice_is_one_fleet_and_counts_up_to_now():
    fleet, now = EngineTime(), time.perf_counter()
    timing = Timing(began=now - 10)
    timing.occupy(Occupancy(fleet, now - 10)).end()
    timing.occupy(Occupancy(fleet))
    assert timing.fleets == 1 and timing.driver_seconds == pytest.approx(10, abs=1)


def test_results_have_no_first_update_where_all_arms_were_done_before():
    timing = Timing(began=time.perf_counter())
    timing.occupy(Occupancy(EngineTime(), timing.began))
    assert timing.as_dict()["first_update_seconds"] is None
    timing.first_update()
    timing.first_update()
    assert timing.as_dict()["first_update_seconds"] == timing.first_updates[0] >= 0
