"""Placement: what is asked of a cluster, and the error where it has no room."""

import time

import pytest

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.recipe import Placement

ROLES = {
    "learner": {"actors": 2, "cpus": 3}, "rollout": {"actors": 3, "cpus": 2, "gpus": 1},
    "evaluator": {"cpus": 1}, "scorer": {"actors": 1, "cpus": 4},
}  # fmt: skip


def test_colocated_roles_share_bundles():
    from actors.fleet import bundles

    placement = Placement.model_validate({"colocated": True, **ROLES})
    asked, where = bundles(placement)
    assert asked == [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert where == {"learner": [0, 1], "rollout": [0, 1, 2], "evaluator": [0], "scorer": [0]}
    asked, where = bundles(placement, scorer=False)
    assert asked[0] == {"CPU": 3.0, "GPU": 1.0} and "scorer" not in where


def test_roles_apart_have_bundles_of_their_own():
    from actors.fleet import bundles

    asked, where = bundles(Placement.model_validate({"colocated": False, **ROLES}))
    assert sorted(i for role in where.values() for i in role) == list(range(len(asked)))
    for role, settings in ROLES.items():
        assert len(where[role]) == settings.get("actors", 1)
        expected = {"CPU": float(settings["cpus"])} | ({"GPU": 1.0} if settings.get("gpus") else {})
        assert all(asked[i] == expected for i in where[role])


def test_a_pinned_roles_bundles_ask_for_the_resource_of_its_name():
    from actors.fleet import bundles

    asked, where = bundles(Placement.model_validate({"colocated": False, "pinned": True, **ROLES}))
    plain, same = bundles(Placement.model_validate({"colocated": False, **ROLES}))
    assert where == same
    for role, indices in where.items():
        # Little enough that what a node offers, 1, never bounds how many actors it takes.
        assert all(asked[i] == plain[i] | {role: asked[i][role]} and 0 < asked[i][role] <= 0.01 for i in indices)


def test_roles_that_no_node_offers_are_an_error(cluster):
    from actors.fleet import reserve

    with pytest.raises(RunFailed) as failure:
        reserve(Placement.model_validate({"colocated": False, "pinned": True, "timeout_seconds": 1}), scorer=False)
    line = str(failure.value)
    assert "asked for 1 CPU, 0.001 learner + 1 CPU, 0.001 rollout + 1 CPU, 0.001 evaluator; " in line
    assert "the cluster has 2 CPU, 0 learner, 0 rollout, 0 evaluator, of which" in line
    assert line.endswith("nodes that offer the resource of each role's name")


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"learner": {"cpus": 64}}, "64 CPU"),
        ({"colocated": False, "rollout": {"actors": 2, "gpus": 1}}, "1 CPU, 1 GPU"),
    ],
)
def test_the_error_of_no_room_has_the_numbers(cluster, settings, asked):
    from actors.fleet import reserve

    with pytest.raises(RunFailed) as failure:
        reserve(Placement.model_validate({"timeout_seconds": 2, **settings}))
    line = str(failure.value)
    assert f"asked for {asked}" in line or f"+ {asked}" in line, line
    assert "the cluster has 2 CPU" in line and "after 2 s" in line and "\n" not in line


def test_a_refused_placement_keeps_no_room(cluster):
    """A placement that fits succeeds at once after one that did not."""
    from ray.util.placement_group import remove_placement_group

    from actors.fleet import reserve

    with pytest.raises(RunFailed):
        reserve(Placement.model_validate({"timeout_seconds": 1, "learner": {"cpus": 3}}))
    room = reserve(Placement.model_validate({"timeout_seconds": 20, "learner": {"cpus": 2}}))
    assert room.bundles == [{"CPU": 2.0}]
    remove_placement_group(room.group)


# Further fleets


def test_a_further_fleet_without_room_is_reported_and_left_out(cluster):
    from actors.fleet import reserve
    from actors.fleet_pool import FleetPool

    placement, said = Placement.model_validate({"timeout_seconds": 1, "learner": {"cpus": 3}}), []
    fleets = FleetPool(lambda number, ending: reserve(placement, True, ending), said.append)
    (other,) = fleets.others(1)
    assert other.result(timeout=60) is None
    (line,) = said
    assert line.startswith("fleet 2: placement: no room after 1 s: asked for 3 CPU")
    assert line.endswith("the run continues with the fleets that are there")
    fleets.stop()


def test_waiting_for_room_ends_when_the_run_ends(cluster):
    from actors.fleet import reserve
    from actors.fleet_pool import FleetPool

    placement, said = Placement.model_validate({"timeout_seconds": 300, "learner": {"cpus": 3}}), []
    fleets = FleetPool(lambda number, ending: reserve(placement, True, ending), said.append)
    (other,) = fleets.others(1)
    began = time.monotonic()
    fleets.stop()
    assert time.monotonic() - began < 30 and other.result(timeout=0) is None and said == []
