"""A process that draws figures of the report while the driver draws the others: no engine waits for them then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ray


class DraughtsmanActor:
    def __init__(self) -> None:
        import rlhf_bench.report  # noqa: F401  takes seconds, long before there is anything to draw

    def draw(self, recorded: Any, summary: Any) -> Any:
        from rlhf_bench.report import draw_properties

        return draw_properties(recorded, summary)


def begin_report() -> Callable[[Any, Any], Callable[[], Any]]:
    """Start the process; gives `rlhf_bench.report.page.Elsewhere`. It ends with the last reference to that."""
    actor = ray.remote(DraughtsmanActor).options(num_cpus=0).remote()

    def begin(recorded: Any, summary: Any) -> Callable[[], Any]:
        return partial(ray.get, actor.draw.remote(recorded, summary))

    return begin
