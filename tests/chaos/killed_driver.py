"""`python -m tests.chaos.killed_driver ACTIVITY run RECIPE ...`: the command line, whose process kills itself in that activity
after its second update."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def main() -> None:
    (when,) = sys.argv[1:2]
    sys.argv[1:2] = []

    from actors import driver, fleet_pool
    from rlhf_bench.cli import main as cli

    updates = []
    plain_time, plain_display = fleet_pool.EngineTime, driver.ProgressDisplay

    class Time(plain_time):
        @contextmanager
        def busy(self, activity: Any) -> Iterator[None]:
            if activity == when and len(updates) >= 2:
                os.kill(os.getpid(), signal.SIGKILL)
            with super().busy(activity):
                yield

    class ProgressDisplay(plain_display):
        def update(self, *args: Any) -> None:
            super().update(*args)
            updates.append(args)

    fleet_pool.EngineTime, driver.ProgressDisplay = Time, ProgressDisplay  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    # Before Ray is imported, as in `rlhf_bench.cli.main`.
    from rlhf_bench.cli.run import guard_local_cluster

    guard_local_cluster()
    main()
