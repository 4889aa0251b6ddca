"""Runs all arms and seeds of a comparison that are not done yet, on as many workers as there are."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.experiment.arm import ArmRunner
from rlhf_bench.experiment.recording import Recorder
from rlhf_bench.experiment.scheduler import Worker, run_jobs
from rlhf_bench.experiment.shutdown import Grace, grace_period
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.starts import evaluate_against, score_by
from rlhf_bench.experiment.timing import Occupancy, Timing
from rlhf_bench.results.integrity import part_place, policy_damage
from rlhf_bench.results.store import is_done

if TYPE_CHECKING:
    from rlhf_bench.report.page import Elsewhere

Job = tuple[int, tuple[str, int]]
"""A run's number among all runs of the comparison, counted from 0; its arm and seed."""


@dataclass
class ParallelRuns:
    spec: ComparisonSpec
    runtime: Runtime
    runner: ArmRunner
    recorder: Recorder
    timing: Timing
    jobs: list[Job] = field(init=False)  # runs that are not done yet
    failed: set[tuple[str, int]] = field(default_factory=set)  # arms and seeds, in this run of the program
    elsewhere: Elsewhere | None = None

    def __post_init__(self) -> None:
        self.jobs = [job for job in enumerate(self.spec.runs) if not is_done(self.spec.directory, *job[1])]

    def run(self) -> Elsewhere | None:
        """Raises `Stopped` after a signal. The return value draws a part of the report in another process; None where no report
        is written."""
        for arm, seed in self.spec.runs:
            if is_done(self.spec.directory, arm, seed):
                self._keep(arm, seed)
        self.runtime.display.plan([run for _, run in self.jobs], 1 + len(self.runtime.others))
        if self.jobs:
            with grace_period(self.spec.recipe.reliability.grace_seconds) as grace:
                run_jobs(
                    self.jobs,
                    workers=[lambda: self.runtime.first, *self.runtime.others],
                    run=functools.partial(self._run, grace),
                    grace=grace,
                    end_workers=self.runtime.end_workers,
                )
        else:
            self._begin_report()
            self.recorder.record()  # this recipe may name other arms than the last one did
        return self.elsewhere

    @property
    def causes(self) -> dict[str, str]:
        """Why runs failed, in the comparison's order, whichever ended first."""
        return {
            f"{arm} · seed {seed}": self.recorder.failed[arm, seed]["cause"]
            for arm, seed in self.spec.runs
            if (arm, seed) in self.failed
        }

    def _run(self, grace: Grace, worker: Worker, job: Job) -> None:
        number, (arm, seed) = job
        occupancy = self.timing.occupy(Occupancy(worker.roles.engine_time))
        if job is self.jobs[-1]:
            self._begin_report()
        self.runtime.display.begin(arm, seed, number, len(self.spec.runs))
        self.recorder.begin(arm, seed)
        # No arm is charged for this: results must not depend on the number of fleets.
        start = self.runner.shared[seed].start
        score_by(worker, start, self.spec.recipe.model.dtype)
        evaluate_against(worker, start, tuning=False, charged=False)
        try:
            outcome = self.runner.run(arm, seed, worker, grace)
        except ArmFailed as failure:
            self._fail(arm, seed, failure)
            return
        finally:
            self.runtime.display.end(arm, seed)
            occupancy.end()
        self.recorder.finish(outcome)

    def _keep(self, arm: str, seed: int) -> None:
        """Say that it is done, and what has become of its policy since. Its records `open_directory` has checked."""
        self.runtime.display.say(f"{arm} · seed {seed}: already done, kept")
        for damage in policy_damage(self.spec.directory, arm, seed, trusting=True):
            self.runtime.display.warn(
                f"{arm} · seed {seed}: {self.spec.directory / damage}; its numbers stand; bring back a copy of it, or remove "
                f"{part_place(arm, seed)}, and the same command trains the policy again"
            )
        self.runner.checkpoints(arm, seed).clear()  # left where the run was killed between its end and this

    def _begin_report(self) -> None:
        if self.runtime.begin_report is not None:
            self.elsewhere = self.runtime.begin_report()

    def _fail(self, arm: str, seed: int, failure: ArmFailed) -> None:
        self.failed.add((arm, seed))
        self.recorder.fail(arm, seed, failure)
        self.runtime.tracker.end_arm(arm, seed, "failed", {"cause": str(failure)})
        self.runtime.display.warn(f"{arm} · seed {seed}: failed: {failure}; the other arms continue")
