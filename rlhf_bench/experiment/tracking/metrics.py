"""What MLflow is told of a comparison: its description, metrics with their steps, the data that runs use, names of finished policies.

A metric of MLflow has a number and a step. `train/`, `score/` and `evaluation/` have the update as their step, and updates
cost differently from method to method. What arms are compared by therefore stands there twice more, with another step:
under `by_budget_permille/` thousandths of the budget, under `by_tokens/` response tokens that were drawn or learned from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_bench.core.plain_data import content_digest
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.experiment.tracking.telling import Dataset
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe import Recipe
from rlhf_bench.recipe.recipe import BEST, alias_of
from rlhf_bench.results.metrics import (
    BY_BUDGET,
    BY_TOKENS,
    COMPARED,
    EVALUATION,
    TRAIN,
    Phase,
    compared_name,
    mlflow_name,
)
from rlhf_bench.training.inputs import Inputs, StartingPoint

if TYPE_CHECKING:
    from rlhf_bench.report import Summary

_PROMPTS = {"prompt": "string"}
_PAIRS = {"prompt": "string", "chosen": "string", "rejected": "string"}
_LABELLED = {"prompt": "string", "response": "string", "desirable": "boolean"}
_DEMONSTRATIONS = {"prompt": "string", "response": "string"}

Steps = Iterator[tuple[int, dict[str, float]]]
"""Steps of MLflow, and the metrics that are logged at each."""


def update_metrics(update: int, numbers: Mapping[str, float], spent: Mapping[str, float], fraction: float) -> Steps:
    """Of one update. `spent`: by ledger column, up to and with it; `fraction`: of the budget."""
    yield update, _named({**numbers, **spent, "fraction": fraction}, TRAIN)
    compared = {name: value for name, value in numbers.items() if name in COMPARED[TRAIN]}
    yield from _against(_named(compared, TRAIN), spent, fraction)


def evaluation_metrics(point: EvalPoint, evaluation: Evaluation) -> Steps:
    """Of one evaluation of a policy."""
    scores = [(name, split, v) for split, found in evaluation.splits.items() for name, v in found.scores.items()]
    return scored_metrics(point, evaluation.numbers, scores)


def scored_metrics(point: EvalPoint, numbers: Mapping[str, float], scores: Sequence[tuple[str, str, float]]) -> Steps:
    """Of an evaluation by its numbers that are of no split, and its scores: name, split and value of each. What has no value, such as
    a correlation with lengths that are all equal, is null in the tables and left out here: so what is sent again from the tables
    is what was sent at first."""
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
    scores = [one for one in scores if math.isfinite(one[2])]
    at = {"mark": point.mark, "fraction": point.fraction}
    named = {mlflow_name(name, EVALUATION, split): value for name, split, value in scores}
    yield point.update, named | _named({**numbers, **at}, EVALUATION)
    compared = {name: value for name, value in numbers.items() if name in COMPARED[EVALUATION]}
    shown = {mlflow_name(n, EVALUATION, split): v for n, split, v in scores if n in COMPARED[EVALUATION]}
    yield from _against(shown | _named(compared, EVALUATION), point.spent, point.fraction)


def _named(numbers: Mapping[str, float], phase: Phase) -> dict[str, float]:
    return {mlflow_name(name, phase): value for name, value in numbers.items()}


def _against(compared: Mapping[str, float], spent: Mapping[str, float], fraction: float) -> Steps:
    """The same numbers twice more: at thousandths of the budget, and at response tokens."""
    tokens = spent["generated_tokens"] + spent["trained_tokens"]
    if compared:
        for axis, step in ((BY_BUDGET, 1000 * fraction), (BY_TOKENS, tokens)):
            yield round(step), {compared_name(axis, name): value for name, value in compared.items()}


def datasets(recipe: Recipe, inputs: Inputs, start: StartingPoint) -> dict[str, Dataset]:
    """All data of a comparison, by name."""
    made_by = {"task": recipe.task.model_dump(mode="json")}
    origin = "of a weaker policy" if inputs.pairs is None else "of the task's data"
    others = {**made_by, "pairs": "of the base policy's own answers" if inputs.pairs == [] else origin}
    found = [
        _dataset("demonstrations", "training", inputs.demonstrations, _DEMONSTRATIONS, made_by),
        _dataset("train_prompts", "training", inputs.train, _PROMPTS, made_by),
        _dataset("off_policy_pairs", "training", start.pairs, _PAIRS, others),
        _dataset("labelled_responses", "training", inputs.labelled or [], _LABELLED, made_by),
    ]
    for split, prompts in inputs.held_out.items():
        found.append(_dataset(f"held_out_prompts_{split}", "evaluation", prompts, _PROMPTS, made_by))
    for split, pairs in start.held_out_pairs.items():
        found.append(_dataset(f"held_out_pairs_{split}", "evaluation", pairs, _PAIRS, others))
    for kind, pairs in start.own_pairs.items():
        found.append(_dataset(f"own_pairs_{kind}", "evaluation", pairs, _PAIRS, {**made_by, "pairs": kind}))
    return {one.name: one for one in found if one.rows}


def used_by(arm: MethodSettings, known: Mapping[str, Dataset]) -> list[Dataset]:
    """Those that an arm learns from, and those that it is evaluated on."""
    by_label = arm.fixed_responses and "labelled_responses" in known
    learned_from = {
        "offline": ["labelled_responses" if by_label else "off_policy_pairs"],
        "online": ["train_prompts"],
    }
    names = learned_from.get(arm.data, ["off_policy_pairs", "train_prompts"])
    return [one for name, one in known.items() if name in names or one.context == "evaluation"]


def _dataset(
    name: str, context: Any, rows: Sequence[Any], columns: Mapping[str, str], source: Mapping[str, Any]
) -> Dataset:
    digest = content_digest(rows)[:16]
    return Dataset(name, digest, context, json.dumps(source, sort_keys=True), columns, len(rows))


def finished_policies(summary: Summary) -> Iterator[tuple[str, int, float, list[str]]]:
    """Of every arm and seed that ended well: its score, and the aliases that its policy gets."""
    ranked = [(seed.score, arm.name, seed.seed) for arm in summary.arms for seed in arm.finished]
    best = max(ranked, default=None, key=lambda one: one[0])
    for arm in summary.arms:
        own = max(arm.finished, default=None, key=lambda seed: seed.score)
        for seed in arm.finished:
            aliases = [f"{alias_of(arm.name)}-seed{seed.seed}"]
            aliases += [alias_of(arm.name)] if seed is own else []
            aliases += [BEST] if best is not None and best[1:] == (arm.name, seed.seed) else []
            yield arm.name, seed.seed, seed.score, aliases
