"""The sizes of a first recipe, by the forecast: its evaluations and budget, its reward model, its updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from rlhf_bench.compute.forecast import arm_forecast, data_use, look_flops, reward_model_forecast, sampling
from rlhf_bench.compute.speed import speeds_of
from rlhf_bench.compute.wall_time import budget_for, comparison_time
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.training.first_recipe.measured import Measured
from rlhf_bench.training.first_recipe.proposal import Budget, Proposal

SIZES = (
    (256, 4, 128, 16),
    (128, 4, 64, 8),
    (64, 4, 32, 8),
    (64, 2, 32, 4),
    (32, 2, 16, 4),
    (16, 2, 8, 2),
    (8, 2, 4, 0),
)
"""Of an evaluation, from large to small: prompts, samples of each, held-out pairs, pairs whose gradients are measured."""
EVALUATIONS = (
    *((size, marks) for size in SIZES for marks in ((0.25, 0.5, 0.75, 1.0), (0.5, 1.0))),
    (SIZES[-1], (1.0,)),
)
"""Sizes, and where on the way an arm is evaluated. A curve is worth more than many prompts."""
EVALUATION_SHARE = 0.15
"""Of an arm's budget: what its evaluations may cost."""
REWARD_SHARE = 0.25
"""Of an arm's budget: what a reward model may cost that it is charged for."""
PER_STEP, REWARD_PROMPTS = 16, 32
RIGHT_OR_WRONG = ("exact", "number", "boxed", "ifeval")
"""Judges of files that know right from wrong; `overlap` only has a preferred answer."""
SHORTER, FEWEST_PAIRS = 2, 16
"""The forecast takes all responses at full length, and so finds room for fewer pairs than there is."""
UPDATES = ((32, 12), (16, 12), (8, 12), (4, 3), (2, 2), (1, 1))
"""Rows of an update, and how many updates an arm should then have: few show little of how a method behaves."""


def set_evaluation(found: Proposal, measured: Measured, budget: Budget) -> None:
    """The largest evaluation whose cost is in proportion to the budget, and the budget that it leaves."""
    limit, others = budget.flops, 0.0
    for cost in _evaluations(found, measured):
        if budget.seconds is not None:
            limit, others = _limit_for(found, measured, budget.seconds)
        if limit is not None and cost <= EVALUATION_SHARE * limit:
            break
    if limit is None:
        raise BadInput(
            f"--budget: {budget.seconds:g} s is less than start and evaluations take here, {others:.0f} s without any training; "
            "give more time"
        )
    limit = float(f"{limit:.1e}")  # it is an estimate
    found.data["compute"]["limit"] = limit
    if budget.seconds is not None:
        runs = f"{len(found.data['arms'])} arms × {len(found.data['seeds'])} seed{'s' * (len(found.data['seeds']) > 1)}"
        found.assume(
            "compute", f"{budget.seconds:g} s for {runs}: {limit:.1e} FLOPs each, by the forecast for this machine"
        )
    much = (
        "; the budget is small for this data, so evaluation takes much of the time"
        if cost > EVALUATION_SHARE * limit
        else ""
    )
    held, chosen = measured.held_out[MAIN_SPLIT], found.data["evaluation"]
    found.assume(
        "evaluation",
        f"{chosen['prompts']} of {held} held-out prompts, {chosen['samples_per_prompt']} samples each, {len(chosen['marks']) + 1} "
        f"times an arm: about {cost / limit:.0%} of its budget{much}",
    )


def _evaluations(found: Proposal, measured: Measured) -> Iterator[float]:
    """From large to small: FLOPs for an arm. Each is in the recipe when its cost is given."""
    shape, n = measured.shape, measured.lengths
    for (most_prompts, samples, most_pairs, gradients), marks in EVALUATIONS:
        prompts, pairs = min(most_prompts, measured.held_out[MAIN_SPLIT]), min(most_pairs, measured.held_out_pairs)
        found.data["evaluation"] |= {
            "prompts": prompts, "samples_per_prompt": samples, "marks": list(marks), "gradient_pairs": min(gradients, pairs),
        }  # fmt: skip
        found.data["data"]["held_out_pairs"] = pairs
        drawn = sampling(shape, n, prompts * (samples + 1), judged=True).flops
        recipe = found.recipe()
        looks = [
            look_flops(recipe, shape, n, arms)
            for arms in (recipe.arms.values(), *([arm] for arm in recipe.arms.values()))
        ]
        yield looks[0] + drawn + len(marks) * (max(looks[1:]) + drawn)


def _limit_for(found: Proposal, measured: Measured, seconds: float) -> tuple[float | None, float]:
    """The FLOPs of an arm and seed with which the whole comparison takes these seconds, None where there is no time for any;
    and the seconds of everything else."""
    recipe, fixed = found.recipe(), measured.fixed
    speeds, shape, n = speeds_of(recipe), measured.shape, measured.lengths
    idle = recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"limit": 1.0})})
    others = comparison_time(idle, shape, n, speeds, fixed=fixed).seconds
    return (budget_for(seconds, recipe, shape, n, speeds, fixed=fixed) if others < seconds else None), others


def set_reward_model(found: Proposal, measured: Measured) -> None:
    """Without right answers, one that is trained on the data's pairs, where the budget has room for one."""
    untrained = "the judge rewards responses and ranks pairs of them"
    if not measured.pairs or measured.judge in RIGHT_OR_WRONG or found.data["task"]["kind"] != "files":
        found.assume("arms", f"{untrained}; no reward model is trained")
        return
    whole = max(1, round(measured.pairs / PER_STEP))
    for steps in dict.fromkeys(max(1, whole // part) for part in (1, 2, 4)):
        settings = {
            "pairs": "off_policy", "steps": steps, "examples_per_step": PER_STEP, "learning_rate": 1e-5,
            "start_policy_prompts": min(REWARD_PROMPTS, measured.train),
        }  # fmt: skip
        recipe = parse_recipe(found.data | {"reward_model": settings})
        cost = reward_model_forecast(recipe, measured.shape, measured.lengths).flops
        if cost <= REWARD_SHARE * recipe.compute.limit:
            found.data["reward_model"] = settings
            for arm in found.data["arms"].values():
                if arm.get("data") != "offline":
                    arm["feedback"] = "reward_model"
            does = "it rewards responses and ranks pairs of them"
            found.assume("reward_model", f"trained on the data's pairs, {steps} steps of {PER_STEP}; {does}")
            return
    found.assume("arms", f"{untrained}: a reward model would take more than {REWARD_SHARE:.0%} of the budget")


def set_updates(found: Proposal, measured: Measured) -> None:
    """The largest updates of which the budget has room for enough. BadInput where there is none for one."""
    updates, problems = dict[str, float](), list[str]()
    for name, arm in found.data["arms"].items():
        key = "prompts_per_update" if found.recipe().arms[name].data == "online" else "pairs_per_update"
        for size, wanted in UPDATES:
            arm[key] = size
            if "minibatches_per_epoch" in arm:
                arm["minibatches_per_epoch"] = min(2, size)
            recipe = found.recipe()
            forecast = arm_forecast(recipe, recipe.arms[name], measured.shape, measured.lengths)
            use = data_use(recipe, recipe.arms[name], forecast, measured.fixed)
            updates[name] = use.updates if use else 0.0
            if size <= measured.train and updates[name] >= wanted:
                break
        if forecast.least.flops > recipe.compute.limit:
            problems.append(
                f"--budget: {recipe.compute.limit:.1e} FLOPs has no room for one update of arm {name}, which is {forecast.least.flops:.1e} "
                f"with {measured.response_tokens} tokens to a response; give a larger one"
            )
    if problems:
        raise BadInput(*problems)
    shown = ", ".join(f"{name} {int(count)}" for name, count in updates.items())
    found.assume("compute", f"updates that the budget has room for: about {shown}")
    _set_fixed_data(found, measured, updates)


def _set_fixed_data(found: Proposal, measured: Measured, updates: Mapping[str, float]) -> None:
    """As much as the budget has room to train on: the reference's log-probabilities are measured of all of it beforehand."""
    trained = found.data["reward_model"]
    by_reward_model = [trained["steps"] * trained["examples_per_step"]] if trained else []
    offline = {name: arm for name, arm in found.data["arms"].items() if arm.get("data") == "offline"}
    of_pairs, of_labels = (
        [
            rows * arm["pairs_per_update"] * updates[name]
            for name, arm in offline.items()
            if bool(arm.get("unpaired")) == apart
        ]
        for rows, apart in ((1, False), (2, True))
    )
    for key, what, there, used in (
        ("off_policy_pairs", "pairs", measured.pairs, of_pairs + by_reward_model),
        ("labelled_responses", "labelled responses", measured.labelled, of_labels),
    ):
        if there:
            count = min(there, max(FEWEST_PAIRS, math.ceil(SHORTER * max(used, default=0))))
            found.data["data"][key] = count
            found.assume("data", f"{count} of {there} {what}: about as many as the budget has room to train on")
