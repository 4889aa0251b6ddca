"""`python -m tests.chaos.without_room`: the node of an actor is lost, and the cluster has no room for another one in its place: at
first for longer than a run waits, then until a node is added. Prints both outcomes as JSON."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

STORE_BYTES = 80 * 2**20
SHORT_SECONDS, LONG_SECONDS = 4.0, 120.0
WAITS = "waiting for room: a node was lost"


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from actors.supervision.heartbeat import Heartbeat
    from actors.supervision.supervisor import Supervisor
    from rlhf_bench.core.errors import RunFailed
    from rlhf_bench.recipe.sections import Reliability

    class Echo(Heartbeat):
        def answer(self) -> str:
            return "here"

    said: list[str] = []
    found: dict[str, Any] = {"said": said}
    store = {"object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | store)
    try:
        node = cluster.add_node(num_cpus=1, **store)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        group = placement_group([{"CPU": 1}])
        assert group.wait(60)
        supervisor = Supervisor(Reliability(hang_seconds=6), group, SHORT_SECONDS, said.append)
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        actor = supervisor.start(
            "echo 0", lambda: ray.remote(Echo).options(num_cpus=1, scheduling_strategy=place).remote()
        )
        assert ray.get(actor.answer.remote(), timeout=60) == "here"
        cluster.remove_node(node, allow_graceful=False)
        _until_lost(actor)

        began = time.monotonic()
        try:
            _answer(supervisor)
        except RunFailed as failure:
            found |= {"failure": str(failure), "waited": time.monotonic() - began}

        supervisor.room_seconds = LONG_SECONDS
        with ThreadPoolExecutor(1) as aside:  # a node can only be added by the main thread
            answer = aside.submit(_answer, supervisor)
            cluster.add_node(num_cpus=1, **store)
            found["after"] = answer.result()
        supervisor.stop()
    finally:
        ray.shutdown()  # otherwise the cluster refuses to end the node that this process is connected to
        cluster.shutdown()
    print(json.dumps(found))


def _until_lost(actor: Any) -> None:
    """A process lives for a moment after its node is lost."""
    import ray

    with suppress(ray.exceptions.RayActorError):
        while ray.get(actor.answer.remote()):
            time.sleep(0.1)


def _answer(supervisor: Any) -> str:
    """As every caller of an actor does: replace a lost one, as often as necessary."""
    import ray

    from actors.supervision.failures import failure_reason

    while True:
        try:
            return ray.get(supervisor.actors["echo 0"].answer.remote())
        except ray.exceptions.RayActorError as error:
            supervisor.replace(failure_reason(error), "echo 0")


if __name__ == "__main__":
    main()
