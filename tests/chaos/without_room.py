"""`python -m tests.chaos.without_room`: an actor's node is lost and the cluster has no room for another one in its place, at first for
longer than a run waits, then until a node is added. Prints as JSON what became of either."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

STORE_BYTES = 80 * 2**20
SHORT_SECONDS, LONG_SECONDS = 4.0, 120.0
WAITS = "waiting for room for echo 0: a node was lost"


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from actors.crew import Crew, Watched, loss
    from rlhf_bench.recipe.sections import Reliability
    from rlhf_bench.types import RunFailed

    class Echo(Watched):
        def answer(self, after: float = 0.0) -> str:
            time.sleep(after)
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
        crew = Crew(Reliability(hang_seconds=6), group, SHORT_SECONDS, said.append)
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        actor = crew.start("echo 0", lambda: ray.remote(Echo).options(num_cpus=1, scheduling_strategy=place).remote())
        assert ray.get(actor.answer.remote(), timeout=60) == "here"
        under_way = actor.answer.remote(after=LONG_SECONDS)
        cluster.remove_node(node, allow_graceful=False)
        cause = _cause(under_way, loss)

        began = time.monotonic()
        try:
            crew.replace(cause, "echo 0")
        except RunFailed as failure:
            found |= {"failure": str(failure), "waited": time.monotonic() - began}

        crew.room_seconds = LONG_SECONDS
        with ThreadPoolExecutor(1) as aside:  # a node can only be added by the main thread
            replaced = aside.submit(crew.replace, cause, "echo 0")
            _until_said(said, times=2)
            cluster.add_node(num_cpus=1, **store)
            (other,) = replaced.result()
        found["after"] = ray.get(other.answer.remote(), timeout=120)
        crew.stop()
    finally:
        ray.shutdown()  # else the cluster refuses to end the node that this process is connected to
        cluster.shutdown()
    print(json.dumps(found))


def _cause(under_way: Any, loss: Any) -> str:
    import ray

    try:
        ray.get(under_way, timeout=60)
    except ray.exceptions.RayActorError as error:
        return loss(error)
    raise AssertionError("its node is lost, and the actor answers")


def _until_said(said: list[str], times: int) -> None:
    deadline = time.monotonic() + 60
    while sum(line.startswith(WAITS) for line in said) < times:
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


if __name__ == "__main__":
    main()
