"""Trials before the comparison: every arm tries the same settings, once each, and continues with its best.

A method that was tuned less would lose for the wrong reason. So all arms have one list of trials, each trial has the
same budget, and all trials are scored on held-out prompts that the comparison itself never uses.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import ArmFailed, RunFailed
from rlhf_bench.core.files import write_text
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.stages.base_evaluation import evaluate_base
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe import Recipe
from rlhf_bench.recipe.recipe import TuningSettings
from rlhf_bench.results.schema import TUNING
from rlhf_bench.results.trials import Trial, best_trial
from rlhf_bench.training.arm import ArmObserver, ArmSpec, SharedByArms
from rlhf_bench.training.inputs import StartingPoint
from rlhf_bench.training.loop import ArmTrainer
from rlhf_bench.training.rollouts import StartSamples
from rlhf_bench.training.state import ArmState

RunTrial = Callable[[str, MethodSettings], tuple[float, str, dict[str, float]]]
"""Arm and settings -> score, status, and what it spent by ledger column."""


def tune(
    spec: ComparisonSpec, runtime: Runtime, start: StartingPoint, samples: StartSamples
) -> dict[str, MethodSettings]:
    """The settings of all arms of the recipe, after the trials of those that are to run."""
    tuning = spec.recipe.tuning
    if tuning is None:
        return dict(spec.recipe.arms)
    _, base = evaluate_base(runtime.first, start, tuning=True, say=runtime.display.say)
    shared = SharedByArms(inputs=spec.inputs, start=start, base=base, start_samples=samples, cache=runtime.cache)
    trials = Trials(spec, runtime, tuning, shared)
    run_trial = functools.partial(runtime.first.with_recovery, trials.run)
    tuned = tuned_arms(spec.recipe, spec.directory, spec.arms, run_trial, runtime.display.say)
    samples.clear(tuning.seed)
    return tuned


@dataclass(frozen=True)
class Trials:
    spec: ComparisonSpec
    runtime: Runtime
    tuning: TuningSettings
    shared: SharedByArms

    def run(self, arm: str, settings: MethodSettings) -> tuple[float, str, dict[str, float]]:
        """See `RunTrial`. The reward model is charged in the comparison, once, and not again in every trial."""
        recipe, worker = self.spec.recipe, self.runtime.first
        worker.begin_arm(arm, self.tuning.seed)
        limit = recipe.compute.limit * self.tuning.fraction
        scores: list[float] = []

        def evaluated(point: EvalPoint, evaluation: Evaluation) -> None:
            scores.append(next(iter(evaluation.splits.values())).score)

        trainer = ArmTrainer(
            spec=ArmSpec(recipe, METHODS[settings.method], settings, self.tuning.seed),
            shared=self.shared,
            roles=worker.roles,
            observer=ArmObserver(lambda *_: None, evaluated),
            state=ArmState.begin(recipe.compute.column, limit, self.tuning.seed),
        )
        try:
            status: str = trainer.run(None)
        except ArmFailed as failure:
            self.runtime.display.warn(f"{arm}: a trial failed: {failure}")
            return math.nan, "failed", trainer.state.ledger.total().as_dict()
        return scores[-1], status, trainer.state.ledger.total().as_dict()


def tuned_arms(
    recipe: Recipe, directory: Path, arms: Sequence[str], run_trial: RunTrial, say: Callable[[str], None]
) -> dict[str, MethodSettings]:
    """The settings with which each of `arms` enters the comparison. Trials that DIR has already are not run again."""
    if recipe.tuning is None:
        return dict(recipe.arms)
    path = directory / TUNING
    known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    tuned = dict(recipe.arms)
    for arm in arms:
        trials = [Trial(**t) for t in known.get(arm, [])]
        for number, values in enumerate(recipe.tuning.trials):
            if number < len(trials):
                continue
            score, status, spent = run_trial(arm, with_settings(recipe.arms[arm], values))
            trials.append(Trial(dict(values), score, status, spent))
            known[arm] = [asdict(t) for t in trials]
            write_text(path, json.dumps(known, indent=1))
            say(
                f"{arm}: trial {number + 1} of {len(recipe.tuning.trials)}, {_shown(values)}: {status}, score {score:.3f}"
            )
        best = best_trial(trials)
        if best is None:
            raise RunFailed(_no_trial_finished(arm, trials))
        tuned[arm] = with_settings(recipe.arms[arm], best.settings)
        say(f"{arm}: continues with {_shown(best.settings)}")
    return tuned


def with_settings(settings: MethodSettings, values: dict[str, float]) -> MethodSettings:
    """The same method with other values, checked like any recipe's."""
    return type(settings).model_validate(settings.model_dump() | values)


def _no_trial_finished(arm: str, trials: Sequence[Trial]) -> str:
    statuses = ", ".join(sorted({t.status for t in trials}))
    return (
        f"tuning: no trial of arm {arm} finished ({statuses}); where they diverged, try smaller settings in "
        "tuning.trials; why one failed is said above"
    )


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())
