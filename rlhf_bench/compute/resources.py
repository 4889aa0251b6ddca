"""What a fleet needs of a cluster, and how many fleets a cluster has room for. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_bench.recipe import Placement, Recipe, RolePlacement

Bundle = dict[str, float]

PIN = 0.001
"""What one actor takes of its role's own Ray resource. A node that offers 1 of it takes as many as CPUs and GPUs allow."""
GIB = 2**30


def bundles(placement: Placement, scorer: bool = True) -> tuple[list[Bundle], dict[str, list[int]]]:
    """What is asked of the cluster, and for each role the bundle of each of its actors.

    Colocated: actor i of every role goes to bundle i, which is as large as the largest of them. Apart: a bundle each,
    which asks for a little of the resource of the role's name where roles are pinned.
    """
    roles = placement.roles(scorer)
    if placement.colocated:
        count = max(r.actors for r in roles.values())
        asked = [_bundle(*(r for r in roles.values() if r.actors > i)) for i in range(count)]
        return asked, {name: list(range(r.actors)) for name, r in roles.items()}
    asked, where = [], {}
    for name, role in roles.items():
        where[name] = list(range(len(asked), len(asked) + role.actors))
        asked += [_bundle(role) | ({name: PIN} if placement.pinned else {})] * role.actors
    return asked, where


def _bundle(*roles: RolePlacement) -> Bundle:
    gpus = max(r.gpus for r in roles)
    return {"CPU": float(max(r.cpus for r in roles))} | ({"GPU": float(gpus)} if gpus else {})


def fleet_needs(placement: Placement, scorer: bool) -> Bundle:
    """All of one fleet together, by Ray's names; `memory` in bytes, which is counted and not reserved."""
    needs: Bundle = {}
    for bundle in bundles(placement, scorer)[0]:
        for name, amount in bundle.items():
            needs[name] = needs.get(name, 0.0) + amount
    gib = sum(role.actors * role.memory_gib for role in placement.roles(scorer).values())
    return needs | {"memory": gib * GIB}


def fleet_count(recipe: Recipe, scorer: bool, cluster: Mapping[str, float], todo: int) -> int:
    """How many fleets to start for `todo` arms and seeds, on a cluster with these resources: at least one, and at most
    `todo`.

    A recipe that names a number gets it, since `memory_gib` is only an estimate. Without one, a budget in seconds means one
    fleet: fleets on one machine share its memory bandwidth, and arms that run at once would be charged for that.
    """
    placement = recipe.placement
    wanted = placement.fleets
    if wanted is None:
        needs = fleet_needs(placement, scorer)
        room = min(int(cluster.get(name, 0.0) // amount) for name, amount in needs.items())
        wanted = 1 if recipe.compute.column == "device_seconds" else room
    return max(1, min(wanted, todo))
