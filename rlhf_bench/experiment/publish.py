"""What follows the arms: the report, the policies' cards, and what MLflow is told of the whole comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.timing import Timing
from rlhf_bench.experiment.tracking.finished import tell_finished

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


def publish(
    spec: ComparisonSpec,
    runtime: Runtime,
    *,
    timing: Timing,
    elsewhere: Elsewhere,
) -> Summary:
    """`elsewhere` draws a part of the report in another process."""
    # Not at the top: importing matplotlib takes seconds, which the driver spends while the engines work.
    from rlhf_bench.report import write_report
    from rlhf_bench.report.model_card import write_cards

    driver_seconds = timing.driver_seconds
    summary = write_report(spec.directory, elsewhere)
    write_cards(spec.directory, summary)
    runtime.display.say(_time_line(runtime, timing, driver_seconds))
    tell_finished(runtime.tracker, spec.directory, summary, runtime.tags)
    return summary


def _time_line(runtime: Runtime, timing: Timing, before_report: float) -> str:
    """Where the time went. `before_report`: seconds in which only the driver worked, before the report."""
    roles = runtime.first.roles
    first_call = next(roles.engine_time.spans()).began - timing.began
    first_step = (roles.learner.first_step_began or timing.began) - timing.began  # none where all arms were done before
    fleets = f" of {timing.fleets} fleets together" if timing.fleets > 1 else ""
    return (
        f"timing: {timing.wall_seconds:.0f} s in total; first optimizer step (of the base policy, unless cached) after "
        f"{first_step:.0f} s, first update of an arm after {min(timing.first_updates, default=0):.0f} s; no engine worked in "
        f"{timing.driver_share:.1%} of the time{fleets}: {first_call:.0f} s before the engines started, "
        f"{before_report - first_call:.0f} s between their calls, {timing.driver_seconds - before_report:.0f} s for the report"
    )
