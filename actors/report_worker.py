"""A second process draws a part of the report's figures while the driver draws the others: engines are idle meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PATIENCE_SECONDS = 300.0
"""Far more than drawing takes."""


class ReportWorker:
    def __init__(self) -> None:
        import rlhf_bench.report  # noqa: F401  this takes seconds, before there is anything to draw

    def draw(self, recorded: Any, summary: Any) -> Any:
        from rlhf_bench.report import draw_properties

        return draw_properties(recorded, summary)


def begin_report(say: Callable[[str], None]) -> Callable[[Any, Any], Callable[[], Any]]:
    """Start the process; gives `rlhf_bench.report.page.Elsewhere`. It ends with the last reference to that.

    It is on the driver's node, so that it does not depend on another one. Where it is lost all the same, or does not answer,
    the driver draws its figures."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(ReportWorker).options(num_cpus=0, scheduling_strategy=here).remote()

    def begin(recorded: Any, summary: Any) -> Callable[[], Any]:
        drawn = actor.draw.remote(recorded, summary)

        def wait() -> Any:
            try:
                return ray.get(drawn, timeout=PATIENCE_SECONDS)
            except (exceptions.RayActorError, exceptions.GetTimeoutError) as error:
                from rlhf_bench.report import draw_properties

                say(
                    f"the report's second process is lost ({type(error).__name__}): its figures are drawn by the driver"
                )
                ray.kill(actor)
                return draw_properties(recorded, summary)

        return wait

    return begin
