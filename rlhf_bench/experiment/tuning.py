"""Trials before the comparison: every arm has as many, and continues with the settings of its best.

A method that was tuned less would lose for the wrong reason. So all arms have the same number of trials, each trial has the
same share of what its arm has to train with, and all are scored on held-out prompts that the comparison itself never uses.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_bench.compute.forecast import times
from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.errors import ArmFailed, RunFailed
from rlhf_bench.core.files import write_text
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.starts import Starts, evaluate_against, score_by, start_seed
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.recipe.recipe import TuningSettings
from rlhf_bench.results.schema import TUNING
from rlhf_bench.results.trials import Settings, Trial, TrialRun, best_trial, edge_of, next_trial
from rlhf_bench.training.arm import ArmObserver, ArmSpec, SharedByArms
from rlhf_bench.training.loop import ArmTrainer
from rlhf_bench.training.state import ArmState

RunTrial = Callable[[str, MethodSettings, int], TrialRun]
"""Arm, settings and seed -> what came of it."""


def tune(spec: ComparisonSpec, runtime: Runtime, starts: Starts) -> dict[str, MethodSettings]:
    """The settings of all arms of the recipe, after the trials of those that are to run, from the start of their own seed."""
    tuning = spec.recipe.tuning
    if tuning is None or not spec.arms:
        return dict(spec.recipe.arms)
    begun: dict[int, SharedByArms] = {}  # seeds may have one starting point in common
    for seed in tuning.seeds:
        if (number := start_seed(spec.recipe, seed)) not in begun:
            begun[number] = starts.begin(seed, tuning=True).shared
    trials = Trials(spec, runtime, tuning, {seed: begun[start_seed(spec.recipe, seed)] for seed in tuning.seeds})
    run_trial = functools.partial(runtime.first.with_recovery, trials.run)
    tuned = tuned_arms(spec.recipe, spec.directory, spec.arms, run_trial, runtime.display.say)
    for seed in tuning.seeds:
        starts.samples(seed).clear(seed)
    return tuned


@dataclass(frozen=True)
class Trials:
    spec: ComparisonSpec
    runtime: Runtime
    tuning: TuningSettings
    shared: Mapping[int, SharedByArms]  # by seed

    def run(self, arm: str, settings: MethodSettings, seed: int) -> TrialRun:
        """A trial is the comparison in small: it has the same share of the limit, and of what the arm is charged before its
        first update. So what is left to train with is the same share of every arm's, and schedules begin and end where they
        do there. The reward model is not made again, so its share is not among what the trial spent."""
        recipe, worker, shared = self.spec.recipe, self.runtime.first, self.shared[seed]
        evaluate_against(worker, shared.start, tuning=True, charged=False)
        score_by(worker, shared.start, recipe.model.dtype)
        worker.begin_arm(arm, seed)
        state = ArmState.begin(recipe.compute.column, recipe.compute.limit * self.tuning.fraction, seed)
        if uses_reward_model(settings):
            state.ledger.charge("reward_model", times(shared.start.reward_model_cost, self.tuning.fraction))
        scores: list[float] = []

        def evaluated(point: EvalPoint, evaluation: Evaluation) -> None:
            scores.append(next(iter(evaluation.splits.values())).score)

        trainer = ArmTrainer(
            spec=ArmSpec(f"a trial of {arm}", recipe, METHODS[settings.method], settings, seed),
            shared=shared,
            roles=worker.roles,
            observer=ArmObserver(lambda *_: None, evaluated),
            state=state,
        )
        try:
            status: str = trainer.run(None)
        except ArmFailed as failure:
            self.runtime.display.warn(f"{arm}: a trial failed: {failure}")
            return TrialRun(seed, math.nan, "failed", _spent(trainer.state.ledger))
        return TrialRun(seed, scores[-1], status, _spent(trainer.state.ledger))


def _spent(ledger: Ledger) -> dict[str, float]:
    """What a trial itself has spent."""
    own = Ledger(ledger.column, ledger.limit, {p: cost for p, cost in ledger.by_phase.items() if p != "reward_model"})
    return own.total().as_dict()


def tuned_arms(
    recipe: Recipe, directory: Path, arms: Sequence[str], run_trial: RunTrial, say: Callable[[str], None]
) -> dict[str, MethodSettings]:
    """The settings with which each of `arms` enters the comparison. Trials that DIR has already are not run again."""
    tuning = recipe.tuning
    if tuning is None:
        return dict(recipe.arms)
    path = directory / TUNING
    known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tuned = dict(recipe.arms)
    for arm in arms:
        grid, settings = tuning.of(arm), recipe.arms[arm]
        trials = [Trial.from_json(t) for t in known.get(arm, [])]
        while (values := next_trial(grid, trials, tuning.extend, functools.partial(_is_allowed, settings))) is not None:
            own = with_settings(settings, values)
            trials.append(Trial.of(values, [run_trial(arm, own, seed) for seed in tuning.seeds]))
            known[arm] = [t.as_json() for t in trials]
            write_text(path, json.dumps(known, indent=1))
            of = f"of {len(grid)}" if len(trials) <= len(grid) else "beyond the edge"
            say(f"{arm}: trial {len(trials)} {of}, {_shown(values)}: {trials[-1].status}, score {trials[-1].score:.3f}")
        best = best_trial(trials)
        if best is None:
            raise RunFailed(_no_trial_finished(arm, trials))
        tuned[arm] = with_settings(settings, best.settings)
        edge = edge_of(trials)
        say(f"{arm}: continues with {_shown(best.settings)}" + (f", the {edge.side} that was tried" if edge else ""))
    return tuned


def _is_allowed(settings: MethodSettings, values: Settings) -> bool:
    try:
        with_settings(settings, values)
    except ValidationError:
        return False
    return True


def with_settings(settings: MethodSettings, values: Settings) -> MethodSettings:
    """The same method with other values, checked like any recipe's."""
    return type(settings).model_validate(settings.model_dump() | dict(values))


def _no_trial_finished(arm: str, trials: Sequence[Trial]) -> str:
    statuses = ", ".join(sorted({t.status for t in trials}))
    return (
        f"tuning: no trial of arm {arm} finished ({statuses}); where they diverged, try smaller settings in "
        "tuning.trials; why one failed is said above"
    )


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())
