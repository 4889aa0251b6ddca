"""What follows the arms: the report, the policies' cards, and what MLflow is told of the whole comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.timing import Timing
from rlhf_bench.experiment.tracking.metrics import finished_policies
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.results.schema import RECIPE, REPORT, SUMMARY, TABLES, TUNING

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


def publish(
    spec: ComparisonSpec,
    runtime: Runtime,
    *,
    settings: Mapping[str, MethodSettings],
    timing: Timing,
    elsewhere: Elsewhere,
) -> Summary:
    """`settings`: of every arm, as tuned. `elsewhere` draws a part of the report in another process."""
    # Not at the top: importing matplotlib takes seconds, which the driver spends while the engines work.
    from rlhf_bench.report import write_report
    from rlhf_bench.report.model_card import write_cards

    driver_seconds = timing.driver_seconds
    summary = write_report(spec.directory, elsewhere)
    write_cards(spec.directory, summary)
    runtime.display.say(_time_line(runtime, timing, driver_seconds))
    _upload(spec, runtime.tracker)
    _describe(summary, runtime.tracker)
    if spec.recipe.tracking.register_as is not None:
        _register(spec.recipe.tracking.register_as, summary, spec, runtime, settings)
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


def _upload(spec: ComparisonSpec, tracker: Tracker) -> None:
    """The files of DIR, to MLflow."""
    tables = [table.file for table in TABLES.values()]
    trials = [TUNING] if spec.recipe.tuning else []
    for name in (REPORT, SUMMARY, RECIPE, *tables, *trials):
        tracker.artifact(spec.directory / name)


def _describe(summary: Summary, tracker: Tracker) -> None:
    """In MLflow: the verdict, and the result of each arm's run."""
    from rlhf_bench.experiment.tracking import descriptions

    tracker.describe(descriptions.comparison_finished(summary))
    for arm in summary.arms:
        for seed in arm.seeds:
            tracker.describe(descriptions.arm_finished(arm, seed, summary), arm.name, seed.seed)


def _register(
    model: str, summary: Summary, spec: ComparisonSpec, runtime: Runtime, settings: Mapping[str, MethodSettings]
) -> None:
    """In MLflow: every finished policy of the recipe's arms and seeds, also of earlier runs; then their aliases."""
    policies = list(finished_policies(summary))
    for arm, seed, score, _ in policies:
        folder = spec.directory / "checkpoints" / arm / f"seed-{seed}"
        tags = {**runtime.tags, "arm": arm, "seed": seed, "score": score, "method": settings[arm].method}
        runtime.tracker.register(model, folder, arm, seed, tags)
    for arm, seed, _, aliases in policies:
        for alias in aliases:
            runtime.tracker.alias(model, alias, arm, seed)
