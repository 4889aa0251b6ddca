"""The driver: runs one comparison on a cluster that is there, with fleets and a tracker that end with it."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from actors import provenance
from actors.fleet_pool import FleetPool, FleetStarter, later_worker, worker_of
from actors.monitoring.trace import write_trace
from actors.report_worker import begin_report
from actors.supervision.failures import as_run_failed
from rlhf_bench.compute.resources import fleet_count
from rlhf_bench.core.errors import RunFailed, Stopped
from rlhf_bench.experiment.comparison import Comparison
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.tracking.descriptions import comparison_started
from rlhf_bench.experiment.tracking.outbox import Status
from rlhf_bench.experiment.tracking.recorded import params
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.results.store import is_done
from rlhf_bench.results.tracked import forget_tracked, note_tracked
from rlhf_bench.training.cache import Cache

if TYPE_CHECKING:
    from rlhf_bench.report import Summary


@dataclass(frozen=True)
class Job:
    """A comparison to run on a cluster."""

    spec: ComparisonSpec
    cache: Cache
    began: float  # `perf_counter` when the program started, or the comparison before this one ended
    profile: bool = False
    quiet: bool = False
    reported: bool = True  # False: it ends with its tables

    @property
    def scorer(self) -> bool:
        """Whether any arm needs a reward model, or evaluations a gold one."""
        recipe = self.spec.recipe
        return recipe.gold_reward_model is not None or any(uses_reward_model(recipe.arms[a]) for a in self.spec.arms)

    @property
    def left(self) -> int:
        """How many runs, of an arm and seed each, are not done yet."""
        return sum(not is_done(self.spec.directory, arm, seed) for arm, seed in self.spec.runs)

    @property
    def trace(self) -> Path:
        return self.spec.directory / "profile.json"


def run_on_cluster(job: Job) -> str:
    """Run the comparison; returns the text that ends it: table, verdict, where the report is; nothing where none is written.
    Raises RunFailed, and `Stopped` after a signal."""
    # MLflow's thread would otherwise hold this one up for 5 ms at a time, while an engine waits for its next call.
    sys.setswitchinterval(0.0005)
    tags = provenance.tags(job.spec.recipe, job.spec.directory)
    with (
        closing(ProgressDisplay(job.spec.directory, quiet=job.quiet)) as display,
        _tracking(job.spec, tags, display) as tracker,
        as_run_failed(),
    ):
        summary = _compare(job, tags, tracker, display)
    return "" if summary is None else _closing_text(job, summary, tracker.lacks)


@contextmanager
def _tracking(spec: ComparisonSpec, tags: Mapping[str, str], display: ProgressDisplay) -> Iterator[Tracker]:
    """MLflow's run of the comparison. Its status is how this context ends."""
    forget_tracked(spec.directory)
    tracker = Tracker(spec.recipe.tracking.uri, spec.recipe.name, spec.directory, on_warning=display.warn)
    named = {"seeds": str(list(spec.recipe.seeds)), "arms": ", ".join(spec.recipe.arms)}
    tracker.start_comparison(tags["run_key"], params(spec.recipe.resolved()), {**tags, **named})
    tracker.describe(comparison_started(spec.recipe))
    tracker.artifact(spec.directory / "recipe.yaml")
    status: Status = "failed"
    try:
        yield tracker
        status = "done"
    except Stopped:
        status = "interrupted"
        raise
    finally:
        for line in tracker.finish(status):
            display.warn(f"not in MLflow: {line}")
        note_tracked(spec.directory, tracker.uri, tracker.lacks)


def _compare(job: Job, tags: Mapping[str, str], tracker: Tracker, display: ProgressDisplay) -> Summary | None:
    """Start the fleets, run the comparison with them, end them."""
    recipe, inputs, resources = job.spec.recipe, job.spec.inputs, ray.cluster_resources()
    count = fleet_count(recipe, job.scorer, resources, job.left)
    start = FleetStarter(
        recipe=recipe, inputs=inputs, scorer=job.scorer, numbered=count > 1, profile=job.profile,
        warn=display.warn, on_loads=functools.partial(_track_loads, tracker),
    )  # fmt: skip
    fleets = FleetPool(start, display.warn)
    try:
        display.say(_starting_line(resources, count))
        first = fleets.first()
        others = fleets.others(count - 1)  # after the first one, which is all that the run waits for
        # Takes seconds, in which the engines are at work anyway.
        threading.Thread(target=import_module, args=("rlhf_bench.report",), daemon=True).start()
        runtime = Runtime(
            first=worker_of(first, recipe, inputs),
            others=[functools.partial(later_worker, other, recipe, inputs) for other in others],
            end_workers=fleets.stop, cache=job.cache, tracker=tracker, display=display, tags=tags, began=job.began,
            begin_report=functools.partial(begin_report, display.say) if job.reported else None,
            versions=provenance.versions(),
            threads=lambda: provenance.threads(first.actors),
        )  # fmt: skip
        summary = Comparison(job.spec, runtime).run()
        if job.profile:
            write_trace(job.trace, [(f.learner.engine_time, f.actors) for _, f in sorted(fleets.fleets.items())])
        return summary
    finally:
        fleets.stop()


def _starting_line(resources: Mapping[str, float], fleets: int) -> str:
    processors = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items() if kind in ("CPU", "GPU"))
    arms = f"; {fleets} fleets, arms side by side" if fleets > 1 else ""
    return f"starting the engines ({processors} in the cluster{arms})"


def _track_loads(tracker: Tracker, loads: Mapping[str, Mapping[str, float]]) -> None:
    """Called in the supervisor's thread, which must not end: a full disk ends the run with the next update's numbers."""
    for host, load in loads.items():
        with suppress(RunFailed):
            tracker.log(None, None, int(time.time()), {f"system/{host}/{name}": x for name, x in load.items()})


def _closing_text(job: Job, summary: Summary, lacks: Sequence[str]) -> str:
    from rlhf_bench.report.terminal import closing_text

    trace = [f"profile: {job.trace} (open it at ui.perfetto.dev)"] if job.profile else []
    report = f"report: {job.spec.directory / 'report.html'}"
    ending = [f"MLflow lacks {lacks[0]}{f' (and {len(lacks) - 1} more)' if len(lacks) > 1 else ''}"] if lacks else []
    return "\n".join([closing_text(summary), "", *trace, report, *ending])
