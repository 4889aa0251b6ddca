"""What a recipe will cost and need, from shapes alone: for `check`, and to refuse a budget that no update fits into."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.compute.memory import critic_shape, reward_models
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import FIXED
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MISMATCHED, MethodSettings, own_kind, uses_reward_model
from rlhf_bench.models.flops import ModelShape, forward_flops, generation_flops, input_gradients_flops, training_flops
from rlhf_bench.models.layout import Layout
from rlhf_bench.recipe import Recipe, RewardModelSettings

PROBE_SETS = 4
"""Kinds of probes of a held-out pair, see diagnostics/probes.py."""


@dataclass(frozen=True)
class ArmForecast:
    """`before`: spent before the first update (reward model; candidates of an arm with several epochs). `update`: one of
    the first updates. `steady`: one of the last, when every row of a fixed set has been measured. `least`: spent by the
    end of the first update, however small the budget."""

    before: Cost
    update: Cost
    steady: Cost
    least: Cost
    draws: int = 0  # of candidates before the first update: each is of an update's prompts


@dataclass(frozen=True)
class Lengths:
    """Tokens of a typical prompt, and of the longest response that may be sampled; of the prompt's, how many all prompts begin
    with, which rows of a micro-batch share; of a micro-batch; and of a typical side of the data's pairs, where these are known."""

    prompt: int
    response: int
    shared: int = 0
    micro_batch: int = 4096
    side: int | None = None

    @property
    def of_data(self) -> Lengths:
        """Of rows whose responses come with the data."""
        return self if self.side is None else replace(self, response=self.side)


def sampling(shape: ModelShape, n: Lengths, samples: int, judged: bool) -> Cost:
    flops = samples * generation_flops(shape, [(n.prompt, 0, n.response)])
    return Cost(flops=flops, generated_tokens=samples * n.response, judge_queries=samples if judged else 0)


def scoring(shape: ModelShape, n: Lengths, samples: int) -> Cost:
    layout, many = rows_of(n, 1, samples)
    return Cost(
        flops=many * forward_flops(shape.merged, layout, len(layout.rows)),
        scored_tokens=samples * (n.prompt + n.response),
    )


def rows_of(n: Lengths, responses: int, rows: int) -> tuple[Layout, float]:
    """A layout of a few rows, and the factor from its cost to that of `rows` rows, which may be any number."""
    return _alike(n, [n.response] * responses, rows)


def _alike(n: Lengths, responses: Sequence[int], rows: int) -> tuple[Layout, float]:
    if n.shared:
        fit = (n.micro_batch - n.shared) // (n.prompt - n.shared + sum(responses))
    else:
        fit = 2  # two neighbours may share a block
    together = max(1, min(rows, fit))
    layout = Layout.of([(n.prompt, responses)] * together, n.shared if together > 1 else 0)
    return layout, rows / together


@dataclass(frozen=True)
class _Rows:
    """`many` times the rows of a layout, `tokens` response tokens in a row."""

    layout: Layout
    many: float
    tokens: int

    def look(self, model: ModelShape) -> float:
        return self.many * forward_flops(model, self.layout, self.tokens * len(self.layout.rows))

    def learn(self, model: ModelShape) -> float:
        return self.many * training_flops(model, self.layout, self.tokens * len(self.layout.rows))


@dataclass(frozen=True)
class _Work:
    """What the learner does for an update's rows: forward passes that are made once for a row; steps, with the forward passes
    that are made before each update; gradients of both sides."""

    measuring: Cost
    learning: Cost
    adapting: Cost


def _work(arm: Any, shape: ModelShape, critic: ModelShape, rows: _Rows) -> _Work:
    method, heads = METHODS[arm.method], rows.many * len(rows.layout.rows) * rows.tokens
    of_need = {"values": critic, "reference_logprobs": shape.merged, "mismatched_reference_logprobs": shape.merged}
    once, anew = (
        [of_need.get(need, shape) for need in method.needs(arm) if (need in MISMATCHED) == every_time]
        for every_time in (False, True)
    )
    learned = [critic if o.model == "critic" else shape for o in method.objectives]
    epochs = getattr(arm, "epochs_per_update", 1)
    adapting = Cost()
    if method.adapt is not None:  # one forward and two backward passes
        adapting = Cost(flops=2 * rows.learn(shape) - rows.look(shape), scored_tokens=heads)
    return _Work(
        Cost(flops=sum(map(rows.look, once)), scored_tokens=len(once) * heads),
        Cost(
            flops=sum(map(rows.look, anew)) + epochs * sum(map(rows.learn, learned)),
            scored_tokens=len(anew) * heads,
            trained_tokens=epochs * len(learned) * heads,
        ),
        adapting,
    )


def pair_forecast(arm: Any, shape: ModelShape, n: Lengths, chosen: int, rejected: int) -> Cost:
    """All that training on one pair costs over the arm's epochs, beside others of its lengths. `chosen`, `rejected`: theirs in
    tokens."""
    layout, many = _alike(n, [chosen, rejected], max(2, arm.pairs_per_update))
    rows = _Rows(layout, many / max(2, arm.pairs_per_update), chosen + rejected)
    work = _work(arm, shape, shape, rows)
    share = 1 / getattr(arm, "adapt_every", 1)
    return work.measuring + times(work.learning + times(work.adapting, share), arm.epochs)


def times(cost: Cost, factor: float) -> Cost:
    return Cost(**{column: factor * amount for column, amount in cost.as_dict().items()})


def arm_forecast(
    recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths, reward: ModelShape | None = None
) -> ArmForecast:
    """Costs with every response at full length, and a pair from every prompt that is drawn. device_seconds are not
    forecast.

    Here and below, `reward` is the shape of a given reward model; None where it is trained and has the policy's shape."""
    if arm.data == "offline":
        n = n.of_data
    draw = drawing(recipe, arm, shape, n, reward or shape)
    drawn = draw.sampled + draw.scored
    responses = arm.responses_per_row
    layout, many = rows_of(n, responses, _per_update(arm))
    work = _work(arm, shape, critic_shape(arm, shape, reward), _Rows(layout, many, responses * n.response))
    steady = work.learning
    if METHODS[arm.method].adapt is not None:  # at the first update, then every `adapt_every` updates
        steady += times(work.adapting, 1 / arm.adapt_every)
    charged = reward_model_forecast(recipe, shape, n, reward) if uses_reward_model(arm) else Cost()
    least = charged + drawn + work.measuring + work.adapting + work.learning
    if not arm.rows_come_again:
        update = drawn + work.measuring + steady
        return ArmForecast(charged + work.adapting, update, update, least)
    draws = 0
    if arm.one_shot:  # as many as leave room for all epochs
        column = recipe.compute.column
        each = getattr(drawn + work.measuring + times(steady, arm.epochs), column)
        left = recipe.compute.limit - getattr(charged + work.adapting, column)
        draws = max(1, int(left / each)) if each else 1
    before = charged + work.adapting + times(drawn, draws)
    return ArmForecast(before, work.measuring + steady, steady, least, draws)


def _per_update(arm: Any) -> int:
    """Rows in an update; and prompts that are sampled for it, or at a time where all is sampled before."""
    return arm.prompts_per_update if arm.data == "online" else arm.rows_per_update


@dataclass(frozen=True)
class Drawing:
    """Samples for one update, what they cost, and what it costs to have the reward model score them."""

    samples: int = 0
    sampled: Cost = Cost()
    scored: Cost = Cost()


def drawing(recipe: Recipe, arm: Any, shape: ModelShape, n: Lengths, scorer: ModelShape) -> Drawing:
    """Nothing for an arm of fixed pairs."""
    if arm.data == "offline":
        return Drawing()
    judged = getattr(arm, "feedback", "judge") == "judge"
    samples = _per_update(arm) * getattr(arm, "samples_per_prompt", recipe.data.candidates_per_prompt)
    scored = Cost() if judged else times(scoring(scorer, n, samples), recipe.reward_model.members)
    return Drawing(samples, sampling(shape, n, samples, judged), scored)


@dataclass(frozen=True)
class DataUse:
    """What an arm's budget makes of the data. `pair_passes`: how often it trains on each of its pairs; `prompt_passes`: how
    often it samples for each of its prompts. None where it has no such thing."""

    updates: float
    pair_passes: float | None
    prompt_passes: float | None


@dataclass(frozen=True)
class FixedData:
    """How many off-policy pairs there are, and responses that come with a label; where none do, they are the pairs' sides."""

    pairs: int = 1
    labelled: int | None = None

    def rows(self, arm: Any) -> int:
        """Of which an arm with data: offline makes its passes."""
        if not arm.fixed_responses:
            return self.pairs
        return 2 * self.pairs if self.labelled is None else self.labelled


def data_use(recipe: Recipe, arm: Any, forecast: ArmForecast, fixed: FixedData) -> DataUse | None:
    """None where an update costs nothing that is known, as in seconds."""
    column = recipe.compute.column
    before, update = getattr(forecast.before, column), getattr(forecast.update, column)
    if not update:
        return None
    updates, rows = max(0.0, (recipe.compute.limit - before) / update), _per_update(arm)
    if forecast.draws:
        updates = forecast.draws * arm.epochs
    if arm.data == "offline":
        there = fixed.rows(arm)
        return DataUse(updates, updates * min(rows, there) / there, None)
    prompts = fixed.pairs if arm.data.endswith("_on_policy") else recipe.data.train_prompts
    epochs = arm.epochs if arm.one_shot else 1
    passes = updates * rows / epochs / prompts
    return DataUse(updates, float(epochs) if METHODS[arm.method].consumes == "pairs" else None, passes)


def reward_model_forecast(
    recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None,
    settings: RewardModelSettings | None = None,
) -> Cost:  # fmt: skip
    """Of the reward model that arms learn from, or with these settings."""
    settings, data = settings or recipe.reward_model, recipe.data
    samples = settings.start_policy_prompts * data.candidates_per_prompt
    if reward is not None:  # nothing to train: only the scale of its scores is found
        return sampling(shape, n, samples, judged=False) + scoring(reward, n, samples)
    per_step = settings.examples_per_step
    layout, many = rows_of(n, 2, per_step)
    learning = Cost(
        flops=settings.steps * many * training_flops(shape, layout, 2 * len(layout.rows)),
        trained_tokens=settings.steps * per_step * 2 * n.response,
    )
    drawn = sampling(shape, n, samples, settings.pairs != "off_policy")
    return drawn + times(scoring(shape, n, samples) + learning, settings.members)


def check_budget(recipe: Recipe, shape: ModelShape, n: Lengths, reward: ModelShape | None = None) -> None:
    """Raises BadInput with one line per arm whose budget would never end, or whose first update does not fit into
    compute.limit or into a tuning trial's part of it."""
    column, limit, problems = recipe.compute.column, recipe.compute.limit, []
    for name, arm in recipe.arms.items():
        forecast = arm_forecast(recipe, arm, shape, n, reward)
        least, update = getattr(forecast.least, column), getattr(forecast.update, column)
        if column != "device_seconds" and getattr(forecast.steady, column) == 0:  # device-seconds are not forecast
            problems.append(
                f"compute.column: an update of arm {name} spends no {column}, so its budget would never end; use flops, "
                "trained_tokens or device_seconds, or leave the arm out"
            )
            continue
        if least > limit:
            problems.append(
                f"compute.limit: {limit:.3g} {column} is less than arm {name} needs before its first update ({least - update:.3g}) and "
                f"for it ({update:.3g}); raise it to at least {_rounded_up(least):.2g}"
            )
            continue
        if recipe.tuning is None:
            continue
        shared = 0.0
        if uses_reward_model(arm):  # trials divide what it leaves
            shared = getattr(reward_model_forecast(recipe, shape, n, reward), column)
        room, needed = (limit - shared) * recipe.tuning.fraction, least - shared
        if needed > room:
            problems.append(
                f"tuning.fraction: {recipe.tuning.fraction:g} of what arm {name} has for training is {room:.3g} {column}, "
                f"less than a trial needs for its first update ({needed:.3g}); raise it, or compute.limit"
            )
    if problems:
        raise BadInput(*problems)


def _rounded_up(x: float) -> float:
    """The number rounded up to two digits, so that the advice in the error is enough."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return math.ceil(x / unit) * unit


def shared_flops(recipe: Recipe, shape: ModelShape, n: Lengths, weaker: bool) -> float:
    """FLOPs of fine-tuning the base policy, and a `weaker` one where the data has no pairs: once, or once for each seed. They
    are charged to no arm."""
    if recipe.sft is None:
        return 0.0
    layout, many = rows_of(n, 1, recipe.sft.examples_per_step)
    step = many * training_flops(shape, layout, n.response * len(layout.rows))
    policies = len(recipe.seeds) if recipe.seed_follows else 1
    return policies * recipe.sft.steps * (1 + weaker * recipe.data.weaker_policy_steps) * step


def look_flops(
    recipe: Recipe, shape: ModelShape, n: Lengths, arms: Collection[MethodSettings], reward: ModelShape | None = None,
    gold: ModelShape | None = None, *, samples_alone: bool = False,
) -> float:  # fmt: skip
    """FLOPs of the forward passes, and of the gradients, of one evaluation: policy and reference on the samples of the main
    split, every reward model on all of these, held-out pairs with their probes, and pairs of the own kinds of `arms`: of the
    evaluated one, or for the base policy of all. `gold`: the shape of a given gold reward model. `samples_alone`: without
    pairs and gradients, as at another temperature."""
    evaluation, pairs = recipe.evaluation, recipe.data.held_out_pairs
    each = evaluation.samples_per_prompt
    compared, many = rows_of(n, each, min(evaluation.kl_prompts or evaluation.prompts, evaluation.prompts))
    flops = 2 * many * forward_flops(shape.merged, compared, each * n.response * len(compared.rows))
    scored, many = rows_of(n, each, evaluation.prompts)
    for members in reward_models(recipe, shape, reward, gold).values():
        flops += many * sum(forward_flops(m, scored, each * len(scored.rows)) for m in members)
    if samples_alone:
        return flops
    own = {own_kind(arm).name for arm in arms} - {FIXED}
    fixed, others = (2 + PROBE_SETS, pairs), (2, pairs * len(own))
    # Each prompt once, see diagnostics/panel.py.
    for (responses, prompts), m in ((fixed, n.of_data), (others, n)) if own else ((fixed, n.of_data),):
        looked, many = rows_of(m, responses, prompts)
        flops += many * forward_flops(shape.merged, looked, responses * m.response * len(looked.rows))
    if not evaluation.gradient_pairs:
        return flops
    # Each a row of its own, which shares nothing, see diagnostics/pair_gradients.py.
    one = replace(n.of_data, shared=0)
    sides, many = rows_of(one, 1, 2 * evaluation.gradient_pairs)
    return flops + many * input_gradients_flops(shape, sides, one.response * len(sides.rows))


def largest_step(recipe: Recipe, n: Lengths) -> int:
    """Tokens of the largest optimizer step of an arm or stage, at full length; a micro-batch may hold less of it."""

    def step(rows: int, responses: int) -> int:
        return n.shared + rows * (n.prompt - n.shared + responses * n.response)

    steps = [] if recipe.sft is None else [step(recipe.sft.examples_per_step, 1)]
    steps += [step(made.examples_per_step, 2) for made in recipe.reward_models.values() if made.name_or_path is None]
    for arm in recipe.arms.values():
        rows = -(-_per_update(arm) // getattr(arm, "minibatches_per_epoch", 1))
        steps.append(step(rows, arm.responses_per_row))
    return max(steps)
