"""The sections of a first recipe, in the order in which they depend on each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_bench.core.text import listed
from rlhf_bench.methods import METHODS
from rlhf_bench.training.first_recipe.measured import Measured
from rlhf_bench.training.first_recipe.proposal import Budget, Machine, Proposal
from rlhf_bench.training.first_recipe.sizes import set_evaluation, set_reward_model, set_updates

THREE_SEEDS = 3600.0
"""Seconds from which a comparison has three seeds."""
LARGE = 1e9
"""Parameters from which a model has the smaller learning rate."""

Arms = Mapping[str, Mapping[str, Any]]
"""Arms as in a recipe, without what depends on model, data and budget: learning rates, samples of a prompt, sizes of updates."""


def propose(
    name: str, task: Mapping[str, Any], measured: Measured, budget: Budget, machine: Machine, arms: Arms
) -> Proposal:
    """The recipe with those of `arms` that the data has pairs or labels for. BadInput where the budget has no room for one update of
    each."""
    found = Proposal({"name": name, "model": measured.model, "task": dict(task)})
    found.assumed += measured.assumed
    given = {"off_policy_pairs": measured.pairs, "labelled_responses": measured.labelled}
    fixed = {key: count for key, count in given.items() if count}
    found.data |= {
        "data": {
            "train_prompts": measured.train, **fixed, "candidates_per_prompt": measured.samples,
            "max_response_tokens": measured.response_tokens,
        },
        "sft": None,
        "reward_model": {},
        "compute": {"limit": budget.flops or 1e15, "tokens_per_micro_batch": measured.widest_row},
        "evaluation": {"splits": ["in_distribution"]},
        "seeds": [1] if budget.seconds is not None and budget.seconds < THREE_SEEDS else [1, 2, 3],
        "placement": _placement(found, machine),
        "arms": _arms(arms, measured),
    }  # fmt: skip
    _say_what_is_learnt(found, measured)
    set_evaluation(found, measured, budget)
    set_reward_model(found, measured)
    set_updates(found, measured)
    found.data = {section: value for section, value in found.data.items() if value != {}}
    return found


def _placement(found: Proposal, machine: Machine) -> dict[str, Any]:
    if machine.gpus:
        found.assume("placement", "all roles share one GPU")
        role = {"cpus": max(1, machine.cores // 4), "gpus": 1}
        engines = {"rollout": {**role, "gpu_memory_fraction": 0.2}, "evaluator": {**role, "gpu_memory_fraction": 0.15}}
        return {**engines, "learner": role, "scorer": role, "device": {"memory_gib": machine.gpu_gib}}
    found.assume("placement", f"no GPU: learner and engines take the {machine.cores} cores in turn")
    role = {"cpus": machine.cores}
    return {"fleets": 1, "rollout": role, "learner": role, "scorer": role, "evaluator": role}


def _arms(arms: Arms, measured: Measured) -> dict[str, Any]:
    """With a learning rate for the model's size; a critic, which begins without knowledge of its task, has twice that."""
    rate = 5e-6 if measured.shape.parameters < LARGE else 1e-6
    sized = {"learning_rate": rate, "critic_learning_rate": 2 * rate, "samples_per_prompt": measured.samples}
    found = dict[str, Any]()
    for name, arm in arms.items():
        keys = METHODS[arm["method"]].settings.model_fields
        there = measured.labelled if arm.get("unpaired") else measured.pairs
        if there or arm.get("data") != "offline":
            found[name] = {**arm, **{key: value for key, value in sized.items() if key in keys}}
    return found


def _say_what_is_learnt(found: Proposal, measured: Measured) -> None:
    of_data = [name for name, arm in found.data["arms"].items() if arm.get("data") == "offline"]
    others = [name for name in found.data["arms"] if name not in of_data]
    kind = (
        "labels" if measured.labelled and not measured.pairs else "pairs and labels" if measured.labelled else "pairs"
    )
    given = f"; {listed(of_data)} from the data's {kind}" if of_data else ", since the data has no preference pairs"
    found.assume("arms", f"{listed(others)} learn from the model's own answers{given}")
    found.assume("arms", "learning rates and strengths are first values, not tuned (docs/recipes.md, tuning)")
    found.assume("sft", "null: the arms start from the model as it is")
    one = len(found.data["seeds"]) == 1
    few = "one, as there is little time: three hint at an order, and five or more settle it"
    found.assume("seeds", few if one else "three")
