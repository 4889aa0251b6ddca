"""Where arms start from, seed by seed: one starting point for all seeds, or one for each (`sft.seed_follows`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.spec import ComparisonSpec, Runtime
from rlhf_bench.experiment.stages.base_evaluation import evaluate_base
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.experiment.stages.start import make_start
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.base import recorded_base, recorded_seeds
from rlhf_bench.results.schema import BASE
from rlhf_bench.results.store import is_done
from rlhf_bench.training.arm import SharedByArms
from rlhf_bench.training.inputs import StartingPoint
from rlhf_bench.training.rollouts import StartSamples

COMMON = 0
"""The seed under which a starting point of all seeds is recorded."""


def start_seed(recipe: Recipe, seed: int) -> int:
    """The seed under which the starting point of arms with `seed` is made and recorded."""
    return seed if recipe.seed_follows else COMMON


def to_begin(spec: ComparisonSpec) -> list[int]:
    """The seeds whose starting point this run needs. One that all seeds share is always needed; of those of single seeds,
    the ones with an arm that is not done yet, or whose base policy is not recorded."""
    recorded = recorded_seeds(recorded_base(spec.directory))
    left = {seed for arm, seed in spec.runs if not is_done(spec.directory, arm, seed)}
    return [s for s in spec.seeds if not spec.recipe.seed_follows or s in left or s not in recorded]


@dataclass(frozen=True)
class Begun:
    """What arms begin with, now that the base policy has been evaluated; and what the evaluator had to leave out."""

    shared: SharedByArms
    notes: Sequence[str]


@dataclass
class Starts:
    """Makes a seed's starting point when it is first asked for. All of them are the first worker's work."""

    spec: ComparisonSpec
    runtime: Runtime
    _points: dict[int, StartingPoint] = field(default_factory=dict)  # by the seed that they are recorded under
    _samples: dict[int, StartSamples] = field(default_factory=dict)

    def point(self, seed: int) -> StartingPoint:
        """Base policy, pairs and reward model."""
        number = start_seed(self.spec.recipe, seed)
        if number not in self._points:
            self._points[number] = self._make(number)
        return self._points[number]

    def samples(self, seed: int) -> StartSamples:
        """Of the seed's base policy."""
        number = start_seed(self.spec.recipe, seed)
        if number not in self._samples:
            policy = f"{self.point(seed).base.name} {self.spec.inputs.fingerprint['model']}"
            self._samples[number] = StartSamples(self.spec.directory / "state", policy)
        return self._samples[number]

    def begin(self, seed: int, *, tuning: bool = False) -> Begun:
        """Evaluate the seed's base policy: on the comparison's prompts and at all temperatures that the recipe names for it,
        or on the prompts of tuning trials."""
        recipe, start, worker = self.spec.recipe, self.point(seed), self.runtime.first
        notes = evaluate_against(worker, start, tuning=tuning, charged=True)
        draws = f"{BASE} of seed {seed}" if recipe.seed_follows else BASE
        temperatures = () if tuning else recipe.evaluation.base_temperatures
        base = evaluate_base(worker, start, temperatures, draws, self._say(seed))
        shared = SharedByArms(
            inputs=self.spec.inputs,
            start=start,
            base=base.evaluation,
            base_at_temperature=base.at_temperature,
            start_samples=self.samples(seed),
            cache=self.runtime.cache,
        )
        return Begun(shared, notes)

    def _make(self, number: int) -> StartingPoint:
        first = self.runtime.first
        context = StageContext(
            recipe=self.spec.recipe,
            inputs=self.spec.inputs,
            roles=first.roles,
            cache=self.runtime.cache,
            say=self._say(number),
            seed=number,
        )
        made = first.with_recovery(make_start, context)
        first.at.reward_model = made.reward_model
        return made

    def _say(self, seed: int) -> Callable[[str], None]:
        """Lines name the seed where each has a starting point of its own."""
        say = self.runtime.display.say
        return (lambda line: say(f"seed {seed}: {line}")) if self.spec.recipe.seed_follows else say


def score_by(worker: Worker, start: StartingPoint, dtype: str) -> None:
    """Have the worker score by that reward model, unless it does so already."""
    scorer, at = worker.roles.scorer, worker.at
    if scorer is not None and start.reward_model is not None and at.reward_model != start.reward_model:
        worker.with_recovery(scorer.load, start.reward_model, dtype)
        at.reward_model = start.reward_model


def evaluate_against(worker: Worker, start: StartingPoint, *, tuning: bool, charged: bool) -> Sequence[str]:
    """Have the worker evaluate against that base policy, unless it does so already. Returns what the evaluator had to leave
    out. `charged`: whether the cost of its beginning counts, which it does once for each base policy, however many fleets
    there are and however often they change from one to another."""
    at = worker.at
    if at.evaluates != (start.base, tuning):
        at.notes = worker.with_recovery(worker.begin_evaluation, start, tuning, charged)
        at.evaluates = (start.base, tuning)
    return at.notes
