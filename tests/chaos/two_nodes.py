"""`python -m tests.chaos.two_nodes READY`: a Ray cluster on this machine, of a head without CPUs and two nodes with two each.
Its address is in the file READY once it is up. A line on standard input kills the node that has actors; the end of standard
input ends the cluster.

The object store of every node is full: a process that puts something there must wait until Ray has made room on disk."""

from __future__ import annotations

import sys
from pathlib import Path

CPUS = 2
STORE_BYTES, PIECE_BYTES = 96 * 2**20, 8 * 2**20


def main() -> None:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def piece() -> np.ndarray:
        return np.zeros(PIECE_BYTES, np.uint8)

    store = {"object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | store)
    try:
        workers = [cluster.add_node(num_cpus=CPUS, **store) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        full = [
            piece.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote()
            for node in (cluster.head_node, *workers)
            for _ in range(STORE_BYTES // PIECE_BYTES)
        ]
        ray.wait(full, num_returns=len(full), fetch_local=False)
        ready = Path(sys.argv[1])
        aside = ready.with_suffix(".tmp")
        aside.write_text(cluster.address)
        aside.rename(ready)
        for _ in sys.stdin:
            busy = _busy()
            cluster.remove_node(next(node for node in workers if node.node_id in busy), allow_graceful=False)
    finally:
        ray.shutdown()  # otherwise the cluster refuses to end the node that this process is connected to
        cluster.shutdown()


def _busy() -> set[str]:
    """Nodes with reserved CPUs."""
    from ray._private.state import available_resources_per_node

    return {node for node, free in available_resources_per_node().items() if free.get("CPU", 0) < CPUS}


if __name__ == "__main__":
    main()
