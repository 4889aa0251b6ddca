"""How long a comparison will take, from its FLOPs, the speed of its devices, and what each kind of work was measured to take.

All responses that are sampled are taken at full length, those of the data as they are, as in `forecast`. docs/compute.md has the
formulas.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.compute.forecast import (
    FixedData,
    Lengths,
    arm_forecast,
    data_use,
    drawing,
    look_flops,
    reward_model_forecast,
    rows_of,
    shared_flops,
)
from rlhf_bench.compute.memory import BYTES
from rlhf_bench.compute.speed import GPU_UTILISATION, Speeds
from rlhf_bench.core.errors import BadInput
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops
from rlhf_bench.recipe import Recipe, RolePlacement, RolloutPlacement

# From parts that were timed on two cores, or estimated from older rows; whole runs took 1.2 to 1.4 times as long (docs/benchmarks.md).
CORE_UTILISATION = 0.57
"""Share of a core's matrix products that forward and backward passes reach: 0.65 where these are slow, 0.57 where AVX-512 makes them
fast, and what lies between them weighs more."""
ENGINE_UTILISATION = 0.7
"""The same of what an engine computes for many sequences at once."""
STEP_SECONDS, LAYER_SECONDS = 4e-3, 2e-4
"""Of an engine's step for all sequences that it decodes at once, beyond its products: once, and for each layer."""
DRAW_SECONDS = 2e-8
"""Drawing a token, for each entry of the vocabulary: softmax, log-probability and the request's own random numbers."""
SYNC_COPIES, SYNC_SECONDS = 16.0, 1.0
"""Of a weight sync with its checks: how many copies of the weights it lasts, and what does not depend on their size."""
LOAD_COPIES = 8.0
"""Of loading a model: the same."""
START_SECONDS = 22.0
"""From `run` to the first call of an engine: imports, and the engines' own start. 17 to 25 s on an AMD EPYC, up to 30 on a Xeon."""
REPORT_SECONDS = 4.0
"""From the last arm's end to the report."""

OWN_PROMPTS = 64
"""Prompts at a time, at most, in the making of held-out pairs of arms' own kinds, see experiment/stages/own_pairs.py."""
CACHED_BLOCK = 32
"""Tokens of a block of an engine's prefix cache, see actors/rollout/vllm_engine.py."""

ONE_PAIR = FixedData()

Seconds = Mapping[str, float]
"""By part: starting, loading, sampling, scoring, learning, sync, evaluation."""


@dataclass(frozen=True)
class ArmTime:
    """Of one arm with one seed. `evaluation` is what the arm waits for: its last look, and earlier ones as far as they outlast
    the training beside them."""

    flops: float
    updates: float
    parts: Seconds

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class ComparisonTime:
    """Of a whole comparison: what comes before the arms, each arm with one seed, and everything together."""

    before: Seconds
    arms: Mapping[str, ArmTime]
    seeds: int
    fleets: int

    @property
    def seconds(self) -> float:
        arms = self.seeds * sum(arm.seconds for arm in self.arms.values())
        return sum(self.before.values()) + arms / self.fleets + REPORT_SECONDS


def comparison_time(
    recipe: Recipe, shape: ModelShape, n: Lengths, speeds: Speeds, reward: ModelShape | None = None,
    gold: ModelShape | None = None, *, weaker: bool = False, fixed: FixedData = ONE_PAIR,
) -> ComparisonTime:  # fmt: skip
    """`reward`, `gold`: the shapes of given reward models. `weaker`: whether a weaker policy makes the off-policy pairs. `fixed`: how
    many of them and of labelled responses there are."""
    clock = _Clock(recipe, shape, n, speeds, reward, gold)
    runs = len(recipe.arms) * len(recipe.seeds)
    return ComparisonTime(
        before=clock.before_arms(weaker, fixed),
        arms=_drawn_once({name: clock.arm(arm, fixed) for name, arm in recipe.arms.items()}, recipe),
        seeds=len(recipe.seeds),
        fleets=max(1, min(recipe.placement.fleets or 1, runs)),
    )


def _drawn_once(arms: Mapping[str, ArmTime], recipe: Recipe) -> dict[str, ArmTime]:
    """Arms with one seed that learn from the start policy's samples draw the very same ones, so that only the first of them
    waits, and a later one for what it needs beyond."""
    found, drawn = dict[str, ArmTime](), dict[str, float]()
    for name, time in arms.items():
        data, sampling = recipe.arms[name].data, time.parts.get("sampling", 0.0)
        if data in ("offline", "online"):
            found[name] = time
            continue
        before = drawn.get(data, 0.0)
        found[name] = replace(time, parts={**time.parts, "sampling": max(0.0, sampling - before)})
        drawn[data] = max(before, sampling)
    return found


def budget_for(
    seconds: float, recipe: Recipe, shape: ModelShape, n: Lengths, speeds: Speeds, reward: ModelShape | None = None, *,
    weaker: bool = False, fixed: FixedData = ONE_PAIR,
) -> float:  # fmt: skip
    """The `compute.limit`, in the recipe's column, with which the whole comparison is forecast to take so many seconds, on
    arms × seeds, evaluation and start included. BadInput where what does not depend on the limit alone takes longer."""

    def forecast(limit: float) -> float:
        compute = recipe.compute.model_copy(update={"limit": limit})
        asked = recipe.model_copy(update={"compute": compute})
        return comparison_time(asked, shape, n, speeds, reward, weaker=weaker, fixed=fixed).seconds

    low, high = 0.0, 1.0
    if (least := forecast(low)) >= seconds:
        raise BadInput(
            f"budget: {seconds:.0f} s is less than start, evaluation and what all arms share take here, {least:.0f} s; allow "
            "more time, or fewer arms, seeds, evaluation.marks or evaluation.prompts"
        )
    while forecast(high) < seconds:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if forecast(middle) < seconds else (low, middle)
    return low


@dataclass(frozen=True)
class _Clock:
    """Seconds of each kind of work of a recipe."""

    recipe: Recipe
    shape: ModelShape
    n: Lengths
    speeds: Speeds
    reward: ModelShape | None
    gold: ModelShape | None = None

    @property
    def scorer(self) -> ModelShape:
        return self.reward or self.shape

    def products(self, flops: float, role: RolePlacement, actors: int = 1) -> float:
        """Forward and backward passes of a role."""
        utilisation = self.recipe.placement.device.utilisation or (GPU_UTILISATION if role.gpus else CORE_UTILISATION)
        return flops / (actors * self.speeds.of(role).learner_flops * utilisation)

    def copies(self, count: float, role: RolePlacement, shape: ModelShape | None = None) -> float:
        """So many copies of a model's weights."""
        return count * self.bytes(shape or self.shape) / self.speeds.of(role).bytes_per_second

    def bytes(self, shape: ModelShape) -> float:
        return shape.parameters * BYTES[self.recipe.model.dtype]

    def sampling(self, samples: float, role: RolloutPlacement, of_a_prompt: int = 1) -> float:
        """Responses of full length by all engines of a role, so many of each prompt, whose whole blocks are computed once. A step
        reads all weights, and computes a token of each sequence that is decoded at once."""
        each = samples / role.actors
        if not each:
            return 0.0
        speed, at_once = self.speeds.of(role), min(each, role.concurrent_requests)
        steps = each * self.n.response / at_once
        cached = (self.n.prompt - 1) // CACHED_BLOCK * CACHED_BLOCK
        first, others = (generation_flops(self.shape, [(self.n.prompt, c, self.n.response)]) for c in (0, cached))
        products = each * (first + (of_a_prompt - 1) * others) / of_a_prompt
        products /= speed.engine_flops * self._engine_utilisation(role)
        reading = steps * self.bytes(self.shape) / speed.bytes_per_second
        drawing_tokens = 0.0 if role.gpus else each * self.n.response * self.shape.vocabulary * DRAW_SECONDS
        calls = steps * (STEP_SECONDS + self.shape.layers * LAYER_SECONDS)
        return products + reading + drawing_tokens + calls

    def _engine_utilisation(self, role: RolePlacement) -> float:
        return self.recipe.placement.device.utilisation or (GPU_UTILISATION if role.gpus else ENGINE_UTILISATION)

    def sync(self) -> float:
        return SYNC_SECONDS + self.copies(SYNC_COPIES, self.recipe.placement.rollout)

    def arm(self, arm: Any, fixed: FixedData, share: float = 1.0) -> ArmTime:
        """With one seed. `share`: of the budget, as a tuning trial has it; a trial has no marks."""
        recipe, learner = self.recipe, self.recipe.placement.learner
        f = arm_forecast(recipe, arm, self.shape, self.n, self.reward)
        charged = reward_model_forecast(recipe, self.shape, self.n, self.reward) if uses_reward_model(arm) else None
        made_once = charged.flops if charged else 0.0
        use = data_use(recipe, arm, f, fixed)
        if use is None:  # a budget in seconds
            training = {"learning": share * recipe.compute.limit / learner.actors / (learner.gpus or learner.cpus)}
            flops = updates = 0.0
        else:
            updates = share * use.updates
            draws = share * f.draws or (0.0 if arm.data == "offline" else updates)
            drawn = drawing(recipe, arm, self.shape, self.n, self.scorer)
            flops = share * f.before.flops + updates * f.update.flops
            learning = flops - share * made_once - draws * (drawn.sampled.flops + drawn.scored.flops)
            syncs = 0 if arm.data == "offline" else updates if arm.data == "online" else 1
            training = {
                "sampling": draws * self.sampling(drawn.samples, recipe.placement.rollout, self._of_a_prompt(arm)),
                "scoring": draws
                * self.products(drawn.scored.flops, recipe.placement.scorer, recipe.placement.scorer.actors),
                "learning": self.products(max(0.0, learning), learner, learner.actors),
                "sync": syncs * self.sync(),
            }
        needs = METHODS[arm.method].needs(arm)
        models = 1 + METHODS[arm.method].reference_at_hand(arm) + ("values" in needs)
        loading = {"loading": self.copies(models * LOAD_COPIES, learner)}
        marks = recipe.evaluation.marks if share == 1.0 else ()
        waits = self.waits(sum(training.values()), marks, self.look([arm]) if share == 1.0 else self.trial_look())
        return ArmTime(flops, updates, loading | training | {"evaluation": waits})

    def _of_a_prompt(self, arm: Any) -> int:
        return getattr(arm, "samples_per_prompt", self.recipe.data.candidates_per_prompt)

    def waits(self, training: float, marks: Iterable[float], look: float) -> float:
        """Seconds in which an arm waits for the evaluator, which works beside it where the machine has cores for both."""
        early = [mark for mark in marks if mark < 1.0]
        if not self._evaluator_has_its_own_devices():
            return (len(early) + 1) * look
        free = 0.0
        for mark in early:
            free = max(free, mark * training) + look
        return max(training, free) + look - training

    def _evaluator_has_its_own_devices(self) -> bool:
        placement, core = self.recipe.placement, self.speeds.core
        if placement.evaluator.gpus or core is None or core.cores is None:
            return not placement.colocated
        others = [role.cpus for role in (placement.learner, placement.rollout) if not role.gpus]
        return core.cores >= max(others, default=0) + placement.evaluator.cpus

    def look(self, arms: Collection[Any]) -> float:
        """One evaluation of a policy, with pairs of the own kinds of these arms."""
        evaluation, role = self.recipe.evaluation, self.recipe.placement.evaluator
        prompts = evaluation.prompts * len(evaluation.splits)
        forward = look_flops(self.recipe, self.shape, self.n, arms, self.reward, self.gold)
        each = evaluation.samples_per_prompt
        sampled = self.sampling(prompts * (each + 1), role, each + 1)
        return sampled + self.products(forward, role) + self.copies(SYNC_COPIES, role)

    def look_again(self) -> float:
        """The same weights at another temperature: nothing is loaded, and the likeliest responses and the pairs' likelihoods are
        at hand."""
        evaluation, role = self.recipe.evaluation, self.recipe.placement.evaluator
        samples = evaluation.prompts * len(evaluation.splits) * evaluation.samples_per_prompt
        forward = look_flops(self.recipe, self.shape, self.n, (), self.reward, self.gold, samples_alone=True)
        return self.sampling(samples, role, evaluation.samples_per_prompt) + self.products(forward, role)

    def trial_look(self) -> float:
        tuning, role = self.recipe.tuning, self.recipe.placement.evaluator
        assert tuning is not None
        each = tuning.samples_per_prompt
        sampled = self.sampling(tuning.prompts * (each + 1), role, each + 1)
        return sampled + self.copies(SYNC_COPIES, role)

    def before_arms(self, weaker: bool, fixed: FixedData) -> Seconds:
        """Start, fine-tuning, pairs, reward model, base evaluation, trials. Nothing is taken from a cache."""
        recipe, placement = self.recipe, self.recipe.placement
        starts = len(recipe.seeds) if recipe.seed_follows else 1
        parts = {"starting": START_SECONDS}
        parts["fine-tuning"] = self.products(
            shared_flops(recipe, self.shape, self.n, weaker), placement.learner, placement.learner.actors
        )
        measured = {
            (fixed.rows(arm), arm.responses_per_row)
            for arm in recipe.arms.values()
            if arm.data == "offline" and "reference_logprobs" in METHODS[arm.method].needs(arm)
        }
        if measured:
            parts["reference"] = sum(self.reference(rows, responses) for rows, responses in measured)
        if recipe.reward_models:
            parts["reward model"] = starts * sum(map(self.reward_model, recipe.reward_models))
        if any(arm.data != "offline" for arm in recipe.arms.values()):
            data, each = recipe.data, recipe.data.candidates_per_prompt
            size = min(OWN_PROMPTS, 2 * data.held_out_pairs)
            asked = size * math.ceil(data.held_out_pairs / size)
            asked = min(asked, data.held_out_pairs + recipe.evaluation.prompts)
            parts["held-out pairs"] = starts * self.sampling(asked * each, placement.rollout, each)
        again = len(recipe.evaluation.base_temperatures) * self.look_again()
        probes = self.sampling(
            recipe.data.held_out_pairs, placement.evaluator
        )  # the first sample of a prompt is a probe, mostly
        parts["base evaluation"] = starts * (self.look(recipe.arms.values()) + again + probes)
        if recipe.tuning is not None:
            trials = [self.arm(arm, fixed, recipe.tuning.fraction).seconds for arm in recipe.arms.values()]
            parts["trials"] = sum(trials) * len(recipe.tuning.trials) * len(recipe.tuning.seeds)
        return parts

    def reference(self, rows: int, responses: int) -> float:
        """One pass over all fixed rows, whose log-probabilities all arms and seeds share, see training/reference.py."""
        learner, n = self.recipe.placement.learner, self.n.of_data
        layout, many = rows_of(n, responses, rows)
        flops = many * forward_flops(self.shape, layout, responses * n.response * len(layout.rows))
        return self.products(flops, learner, learner.actors) + self.copies(LOAD_COPIES, learner)

    def reward_model(self, key: str) -> float:
        """Samples of the start policy, training, and the scale of its scores."""
        recipe, placement, settings = self.recipe, self.recipe.placement, self.recipe.reward_models[key]
        samples = settings.start_policy_prompts * recipe.data.candidates_per_prompt
        given = self.gold if key == "gold_reward_model" else self.reward
        total = reward_model_forecast(recipe, self.shape, self.n, given, settings)
        passes = total.flops - samples * generation_flops(self.shape, [(self.n.prompt, 0, self.n.response)])
        drawn = self.sampling(samples, placement.rollout, recipe.data.candidates_per_prompt)
        return drawn + self.products(passes, placement.learner, placement.learner.actors)
