"""`python -m tests.chaos.watched SAMPLES run RECIPE ...`: the command line, which records what its processes hold after some of
its updates: a JSON line with MiB of its own by role, bytes in the object store, open files, and numbers of processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

UPDATES_PER_SAMPLE = 10


def held(fleet: Any, pids: dict[str, int]) -> dict[str, Any]:
    import psutil
    import ray

    for name, actor in fleet.supervisor.actors.items():
        if name not in pids:
            pids[name] = ray.get(actor.__ray_call__.remote(lambda _: __import__("os").getpid()))
    own = psutil.Process()
    processes = {"driver": own} | {name: psutil.Process(pid) for name, pid in pids.items()}
    has, free = ray.cluster_resources(), ray.available_resources()
    return {
        # Not what is mapped of Ray's store: every snapshot of weights may lie at another place in it.
        "own": {name: (m.rss - m.shared) / 2**20 for name, p in processes.items() for m in [p.memory_info()]},
        "files": {name: p.num_fds() for name, p in processes.items()},
        "store": has["object_store_memory"] - free.get("object_store_memory", 0.0),
        "processes": [p.pid for p in own.children(recursive=True)],
    }


def main() -> None:
    (samples,) = sys.argv[1:2]
    sys.argv[1:2] = []

    from actors import driver, fleet_pool
    from rlhf_bench.cli import main as cli

    fleets: list[Any] = []
    pids: dict[str, int] = {}
    plain_display, plain_start = driver.ProgressDisplay, fleet_pool.start_fleet

    class ProgressDisplay(plain_display):
        def update(self, arm: str, seed: int, update: int, *args: Any) -> None:
            super().update(arm, seed, update, *args)
            if update % UPDATES_PER_SAMPLE == 0 or update == 1:
                with Path(samples).open("a") as file:
                    file.write(json.dumps({"update": update, **held(fleets[-1], pids)}) + "\n")

    def start(*args: Any, **kwargs: Any) -> Any:
        fleets.append(plain_start(*args, **kwargs))
        return fleets[-1]

    driver.ProgressDisplay, fleet_pool.start_fleet = ProgressDisplay, start  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    # Before Ray is imported, as in `rlhf_bench.cli.main`.
    from rlhf_bench.cli.run import guard_local_cluster

    guard_local_cluster()
    main()
