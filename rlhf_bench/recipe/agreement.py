"""What the sections of a recipe must agree on. Each check is a function of its own and names the sections that it reads, so that
all are asked, but for those that read a section which is wrong in itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

from rlhf_bench.methods import METHODS
from rlhf_bench.recipe.recipe import BEST, Recipe, alias_of

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 computes without a GPU."""

Check = Callable[[Recipe], Iterator[str]]
_CHECKS: list[tuple[tuple[str, ...], Check]] = []


def conflicts(recipe: Recipe, wrong: Collection[str] = ()) -> Iterator[str]:
    """A line for each problem. `wrong`: sections that are stood in for, since they are wrong in themselves."""
    for sections, check in _CHECKS:
        if not set(sections) & set(wrong):
            yield from check(recipe)


def _of(*sections: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        _CHECKS.append((sections, check))
        return check

    return add


@_of("data", "model")
def _room_for_a_prompt(recipe: Recipe) -> Iterator[str]:
    if recipe.data.max_response_tokens >= recipe.model.max_length:
        yield "data.max_response_tokens must leave room for a prompt within model.max_length"


@_of("model", "placement")
def _head_size(recipe: Recipe) -> Iterator[str]:
    size = recipe.model.hidden_size // recipe.model.heads
    if recipe.model.name_or_path is None and not recipe.placement.rollout.gpus and size not in CPU_HEAD_SIZES:
        yield (
            f"model.hidden_size / model.heads is {size}, and vLLM on a CPU knows only {', '.join(map(str, CPU_HEAD_SIZES))}; change one of the two"
        )


@_of("sft", "model")
def _start(recipe: Recipe) -> Iterator[str]:
    if recipe.sft is None and recipe.model.name_or_path is None:
        yield "sft: null needs model.name_or_path: untrained weights cannot be a base policy"


@_of("model")
def _adapters_of_a_model(recipe: Recipe) -> Iterator[str]:
    if recipe.model.lora is not None and recipe.model.name_or_path is None:
        yield (
            "model.lora needs model.name_or_path: adapters are trained beside pretrained weights; name a model, or remove model.lora"
        )


@_of("model", "placement")
def _adapters_are_merged(recipe: Recipe) -> Iterator[str]:
    if recipe.model.lora is not None and recipe.placement.weight_sync != "object_store":
        yield (
            f"placement.weight_sync: {recipe.placement.weight_sync} sends parameters unmerged, and with model.lora an engine needs adapters merged into the weights; use object_store"
        )


@_of("baseline", "arms", "sweep")
def _baseline(recipe: Recipe) -> Iterator[str]:
    if recipe.baseline is not None and recipe.baseline not in recipe.arms:
        yield f"baseline: there is no arm {recipe.baseline}; choose among {', '.join(recipe.arms)}"


@_of("claims", "arms", "sweep")
def _claims(recipe: Recipe) -> Iterator[str]:
    sides = dict.fromkeys(side for claim in recipe.claims for side in (claim.more, claim.less))
    for side in (side for side in sides if side not in recipe.arms):
        yield f"claims: there is no arm {side}; choose among {', '.join(recipe.arms)}"


@_of("placement", "arms")
def _whole_weights(recipe: Recipe) -> Iterator[str]:
    adapting = [name for name, arm in recipe.arms.items() if arm.method and METHODS[arm.method].adapt]
    if adapting and recipe.placement.learner.zero_stage == 3:
        yield (
            f"placement.learner.zero_stage: 3 shards the weights, and arm {adapting[0]} takes gradients of whole ones; use 2"
        )


@_of("compute", "arms")
def _seconds_known_before(recipe: Recipe) -> Iterator[str]:
    if recipe.compute.column != "device_seconds":
        return
    for name in (name for name, arm in recipe.arms.items() if arm.draws_ahead):
        yield (
            f"arms.{name}.rollouts_ahead: 1 samples before the seconds of the pending update are known, so it could exceed a budget of device_seconds; use another compute.column"
        )
    for name in (name for name, arm in recipe.arms.items() if arm.one_shot and arm.rows_come_again):
        yield (
            f"arms.{name}.epochs: how many pairs several epochs leave room for cannot be planned in device_seconds; use epochs: 1 or another compute.column"
        )


@_of("tracking", "arms")
def _aliases(recipe: Recipe) -> Iterator[str]:
    """Names that MLflow's registry, or this project, has given to other things."""
    seen: dict[str, str] = {}
    for arm in recipe.arms if recipe.tracking.register_as is not None else ():
        alias = alias_of(arm)
        if alias.lower() in ("latest", BEST) or re.fullmatch(r"[vV]\d+", alias):
            yield f"arms.{arm}: tracking.register_as cannot give a policy the alias {alias}; rename the arm"
        if alias in seen:
            yield f"arms.{arm}: its alias in the registry, {alias}, would be that of arm {seen[alias]} too; rename one"
        seen.setdefault(alias, arm)


@_of("tuning", "seeds")
def _seeds_of_trials(recipe: Recipe) -> Iterator[str]:
    if recipe.tuning is not None and (both := set(recipe.tuning.seeds) & set(recipe.seeds)):
        yield f"tuning.seeds: {min(both)} is one of seeds; trials need seeds of their own"


@_of("tuning", "arms", "sweep")
def _trials_of_arms(recipe: Recipe) -> Iterator[str]:
    """Trials of their own for everyone, and for everyone as many."""
    if (tuning := recipe.tuning) is None:
        return
    for arm, trials in tuning.arms.items():
        if arm not in recipe.arms:
            yield f"tuning.arms: there is no arm {arm}; choose among {', '.join(recipe.arms)}"
        elif len(trials) != len(tuning.trials):
            yield (
                f"tuning.arms.{arm}: {len(trials)} trials, where tuning.trials has {len(tuning.trials)}, and every arm is tuned by as "
                "many; give both the same number"
            )
