"""`python -m tests.support.local_nodes MANIFEST READY`: the cluster of a rendered RayJob on this machine, with a raylet for every
pod, which offers what the pod would: CPUs by its limits, and its group's resource. READY gets the dashboard's address and each
node's group, as JSON; the end of standard input ends the cluster."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import yaml

EVERY_NODE = {"object_store_memory": 100 * 2**20, "dashboard_agent_listen_port": 0}
"""The port: any that is free, since all nodes, and other clusters on this machine, have one address."""


def main() -> None:
    from ray.cluster_utils import Cluster

    manifest, ready = map(Path, sys.argv[1:])
    spec = yaml.safe_load(manifest.read_text())["spec"]["rayClusterSpec"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    head = {
        "num_cpus": int(spec["headGroupSpec"]["rayStartParams"]["num-cpus"]),
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
    } | EVERY_NODE
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = {cluster.head_node.node_id: "head"}
        for group in spec["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            offered = {name: float(amount) for name, amount in group.get("resources", {}).items()}
            for _ in range(group["replicas"]):
                node = cluster.add_node(num_cpus=int(limits["cpu"]), resources=offered, **EVERY_NODE)
                nodes[node.node_id] = group["groupName"]
        cluster.wait_for_nodes()
        aside = ready.with_suffix(".tmp")
        aside.write_text(json.dumps({"dashboard": f"http://127.0.0.1:{port}", "nodes": nodes}))
        aside.rename(ready)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
