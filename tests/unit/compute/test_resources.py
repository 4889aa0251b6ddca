"""How many fleets a cluster has room for: reckoned from numbers alone."""

import pytest

from rlhf_bench.compute.resources import GIB, fleet_count, fleet_needs
from rlhf_bench.recipe import Placement, parse_recipe

PLACED = {
    "learner": {"actors": 2, "cpus": 3, "gpus": 1, "memory_gib": 10},
    "rollout": {"actors": 2, "cpus": 1, "gpus": 1, "memory_gib": 5},
    "evaluator": {"cpus": 2, "gpus": 1, "memory_gib": 4},
    "scorer": {"cpus": 1, "memory_gib": 6},
}
LAPTOP = {"CPU": 2.0, "memory": 14.0 * GIB}


def recipe(compute=None, **placement):
    arms = {"a": {"method": "dpo"}}
    return parse_recipe(
        {
            "name": "r",
            "task": {"kind": "arithmetic"},
            "compute": compute or {"limit": 1e9},
            "arms": arms,
            "placement": placement,
        }
    )


def test_a_fleet_needs_what_its_bundles_ask_for_and_the_memory_of_all_its_roles():
    colocated = fleet_needs(Placement.model_validate(PLACED), scorer=True)
    assert colocated == {"CPU": 6.0, "GPU": 2.0, "memory": (20 + 10 + 4 + 6) * GIB}
    assert fleet_needs(Placement.model_validate(PLACED), scorer=False)["memory"] == 34 * GIB
    apart = fleet_needs(Placement.model_validate({"colocated": False, "pinned": True, **PLACED}), scorer=True)
    assert (apart["CPU"], apart["GPU"]) == (6.0 + 2.0 + 2.0 + 1.0, 5.0)
    assert {role: apart[role] for role in PLACED} == pytest.approx(
        {"learner": 0.002, "rollout": 0.002, "evaluator": 0.001, "scorer": 0.001}
    )


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"CPU": 60.0, "GPU": 20.0, "memory": 400 * GIB}, 10),  # all three suffice for ten
        ({"CPU": 60.0, "GPU": 7.0, "memory": 400 * GIB}, 3),
        ({"CPU": 17.0, "GPU": 20.0, "memory": 400 * GIB}, 2),
        ({"CPU": 60.0, "GPU": 20.0, "memory": 79 * GIB}, 1),
        ({"CPU": 60.0, "GPU": 20.0}, 1),  # whose memory is not known
        ({"CPU": 1.0}, 1),  # too small for one: what it lacks is said when it is asked for
    ],
)
def test_the_scarcest_resource_bounds_the_fleets(cluster, expected):
    assert fleet_count(recipe(**PLACED), True, cluster, todo=100) == expected


def test_pinned_roles_need_nodes_that_offer_them():
    placement, cluster = {"colocated": False, "pinned": True}, {"CPU": 60.0, "memory": 1000 * GIB}
    offered = {role: 1.0 for role in ("learner", "rollout", "evaluator", "scorer")}
    assert fleet_count(recipe(**placement), True, cluster, 100) == 1
    assert fleet_count(recipe(**placement), True, cluster | offered, 100) == 15


def test_never_more_fleets_than_arms_and_seeds_to_do():
    large = {"CPU": 600.0, "GPU": 200.0, "memory": 4000 * GIB}
    assert [fleet_count(recipe(**PLACED), True, large, todo) for todo in (0, 1, 3)] == [1, 1, 3]
    assert fleet_count(recipe(fleets=4), True, LAPTOP, todo=3) == 3


def test_a_number_that_is_named_is_the_number():
    assert [fleet_count(recipe(fleets=n), True, LAPTOP, 9) for n in (None, 1, 2)] == [1, 1, 2]
    large = {"CPU": 600.0, "memory": 4000 * GIB}
    assert fleet_count(recipe(fleets=2), True, large, 9) == 2


def test_a_budget_in_seconds_has_one_fleet_unless_the_recipe_wants_more():
    """Arms beside each other on one machine take each other's memory bandwidth, and seconds are what they pay in."""
    large, seconds = {"CPU": 600.0, "memory": 4000 * GIB}, {"column": "device_seconds", "limit": 60}
    assert fleet_count(recipe(), False, large, 9) == 9
    assert (
        fleet_count(recipe(seconds), False, large, 9) == 1
        and fleet_count(recipe(seconds, fleets=3), False, large, 9) == 3
    )
