"""The whole experiment in its order: starting points (base policy, pairs, reward model), tuning, arms × seeds, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.experiment.arm import ArmRunner
from rlhf_bench.experiment.parallel_runs import ParallelRuns
from rlhf_bench.experiment.publish import publish
from rlhf_bench.experiment.recording import Recorder
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.starts import Begun, Starts, start_seed, to_begin
from rlhf_bench.experiment.timing import Occupancy, Timing
from rlhf_bench.experiment.tracking.metrics import datasets
from rlhf_bench.experiment.tuning import tune
from rlhf_bench.results.integrity import discard_damaged

if TYPE_CHECKING:
    from rlhf_bench.report import Summary
    from rlhf_bench.report.page import Elsewhere


@dataclass(frozen=True)
class Comparison:
    """One run of a recipe into one directory."""

    spec: ComparisonSpec
    runtime: Runtime

    def run(self) -> Summary | None:
        """Raises RunFailed after the report where an arm failed, and `Stopped` after a signal. None where no report is written:
        then `results.json` says which arms failed."""
        discard_damaged(self.spec.directory, self.runtime.display.warn)
        timing, engine_time = Timing(self.runtime.began), self.runtime.first.roles.engine_time
        self.runtime.display.doing = engine_time.now
        before_arms = timing.occupy(Occupancy(engine_time, self.runtime.began))
        runner, bases = self._prepare(timing)
        timing.before_arms = engine_time.breakdown(self.runtime.began, perf_counter())
        recorder = Recorder(spec=self.spec, runner=runner, bases=bases, timing=timing, identity=self._identity())
        runs = ParallelRuns(spec=self.spec, runtime=self.runtime, runner=runner, recorder=recorder, timing=timing)
        with recorder:
            before_arms.end()
            elsewhere = runs.run()
            timing.occupy(Occupancy(engine_time))
        if elsewhere is None:
            return None
        summary = self._publish(timing, elsewhere)
        self._raise_failures(runs.causes)
        return summary

    def _prepare(self, timing: Timing) -> tuple[ArmRunner, dict[int, Begun]]:
        """What arms begin with, the settings that they continue with, and the base policies by the seed that each is recorded
        under."""
        spec, runtime = self.spec, self.runtime
        starts = Starts(spec, runtime)
        recorded_as = {seed: start_seed(spec.recipe, seed) for seed in spec.seeds}
        needed = dict(sorted((recorded_as[seed], seed) for seed in to_begin(spec)))
        used = {number: datasets(spec.recipe, spec.inputs, starts.point(seed)) for number, seed in needed.items()}
        for dataset in {(one.name, one.digest): one for found in used.values() for one in found.values()}.values():
            runtime.tracker.uses(dataset)
        settings = tune(spec, runtime, starts)
        bases = {number: starts.begin(seed) for number, seed in needed.items()}
        runner = ArmRunner(
            recipe=spec.recipe,
            settings=settings,
            directory=spec.directory,
            shared={seed: bases[number].shared for seed, number in recorded_as.items() if number in bases},
            datasets={seed: used[number] for seed, number in recorded_as.items() if number in used},
            tracker=runtime.tracker,
            display=runtime.display,
            tags=runtime.tags,
            first_update=timing.first_update,
        )
        return runner, bases

    def _identity(self) -> dict[str, Any]:
        """What this run is known by, and what its numbers depend on beyond the recipe."""
        tags = {key: self.runtime.tags[key] for key in ("run_key", "commit", "machine")}
        return {**tags, "versions": dict(self.runtime.versions), "threads": dict(self.runtime.threads())}

    def _publish(self, timing: Timing, elsewhere: Elsewhere) -> Summary:
        return publish(self.spec, self.runtime, timing=timing, elsewhere=elsewhere)

    def _raise_failures(self, causes: Mapping[str, str]) -> None:
        if causes:
            run, cause = next(iter(causes.items()))
            others = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
            report = self.spec.directory / "report.html"
            raise RunFailed(f"{run}{others}: {cause}; the other arms are done: {report}")
