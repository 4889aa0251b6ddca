"""`python -m tests.chaos.two_nodes READY`: a Ray cluster of a head without CPUs and two nodes with two each, on this machine. Its
address is in the file READY once it is up. A line on standard input kills the node that has actors; its end ends the cluster."""

from __future__ import annotations

import sys
from pathlib import Path

CPUS = 2


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        workers = [cluster.add_node(num_cpus=CPUS) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        ready = Path(sys.argv[1])
        aside = ready.with_suffix(".tmp")
        aside.write_text(cluster.address)
        aside.rename(ready)
        for _ in sys.stdin:
            busy = _busy()
            cluster.remove_node(next(node for node in workers if node.node_id in busy), allow_graceful=False)
    finally:
        ray.shutdown()  # else the cluster refuses to end the node that this process is connected to
        cluster.shutdown()


def _busy() -> set[str]:
    """Nodes of which a CPU is reserved."""
    from ray._private.state import available_resources_per_node

    return {node for node, free in available_resources_per_node().items() if free.get("CPU", 0) < CPUS}


if __name__ == "__main__":
    main()
