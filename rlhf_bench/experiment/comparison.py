"""The whole experiment in its order: starting point (base policy, pairs, reward model), tuning, arms × seeds, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.experiment.arm import ArmRunner
from rlhf_bench.experiment.parallel_runs import ParallelRuns
from rlhf_bench.experiment.publish import publish
from rlhf_bench.experiment.recording import Recorder
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.stages.base_evaluation import evaluate_base
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.start import make_start
from rlhf_bench.experiment.timing import Occupancy, Timing
from rlhf_bench.experiment.tracking.metrics import datasets
from rlhf_bench.experiment.tuning import tune
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.training.arm import SharedByArms
from rlhf_bench.training.inputs import StartingPoint
from rlhf_bench.training.rollouts import StartSamples

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


@dataclass(frozen=True)
class Comparison:
    """One run of a recipe into one directory."""

    spec: ComparisonSpec
    runtime: Runtime

    def run(self) -> Summary:
        """Raises RunFailed after the report where an arm failed, and `Stopped` after a signal."""
        timing, engine_time = Timing(self.runtime.began), self.runtime.first.roles.engine_time
        before_arms = timing.occupy(Occupancy(engine_time, self.runtime.began))
        start = self._start()
        samples = StartSamples(
            self.spec.directory / "state", f"{start.base.name} {self.spec.inputs.fingerprint['model']}"
        )
        runner, notes = self._prepare(start, samples, timing)
        timing.before_arms = engine_time.breakdown(self.runtime.began, perf_counter())
        recorder = Recorder(spec=self.spec, runner=runner, timing=timing, notes=notes, tags=self.runtime.tags)
        runs = ParallelRuns(spec=self.spec, runtime=self.runtime, runner=runner, recorder=recorder, timing=timing)
        with recorder:
            before_arms.end()
            elsewhere = runs.run()
            timing.occupy(Occupancy(engine_time))
        summary = self._publish(runner.settings, timing, elsewhere)
        self._raise_failures(runs.causes)
        return summary

    def _start(self) -> StartingPoint:
        first = self.runtime.first
        context = StageContext(
            recipe=self.spec.recipe,
            inputs=self.spec.inputs,
            roles=first.roles,
            cache=self.runtime.cache,
            say=self.runtime.display.say,
        )
        return first.with_recovery(make_start, context)

    def _prepare(self, start: StartingPoint, samples: StartSamples, timing: Timing) -> tuple[ArmRunner, list[str]]:
        """What all arms and seeds have in common, and what the data and the probes had to leave out."""
        spec, runtime = self.spec, self.runtime
        used = datasets(spec.recipe, spec.inputs, start)
        for dataset in used.values():
            runtime.tracker.uses(dataset)
        settings = tune(spec, runtime, start, samples)
        notes, base = evaluate_base(runtime.first, start, tuning=False, say=runtime.display.say)
        shared = SharedByArms(inputs=spec.inputs, start=start, base=base, start_samples=samples, cache=runtime.cache)
        runner = ArmRunner(
            recipe=spec.recipe,
            settings=settings,
            directory=spec.directory,
            shared=shared,
            datasets=used,
            tracker=runtime.tracker,
            display=runtime.display,
            tags=runtime.tags,
            first_update=timing.first_update,
        )
        return runner, [*spec.inputs.notes, *notes]

    def _publish(self, settings: Mapping[str, MethodSettings], timing: Timing, elsewhere: Elsewhere) -> Summary:
        return publish(self.spec, self.runtime, settings=settings, timing=timing, elsewhere=elsewhere)

    def _raise_failures(self, causes: Mapping[str, str]) -> None:
        if causes:
            run, cause = next(iter(causes.items()))
            others = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
            report = self.spec.directory / "report.html"
            raise RunFailed(f"{run}{others}: {cause}; the other arms are done: {report}")
