"""The base policy's evaluation: every arm's curve begins with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_bench.core.types import Evaluation
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.training.inputs import StartingPoint


@dataclass(frozen=True)
class BaseEvaluation:
    """The base policy as an arm begins with it; and at other temperatures, which show what sharpness alone gives."""

    evaluation: Evaluation
    at_temperature: Mapping[float, Evaluation]


def evaluate_base(
    worker: Worker, start: StartingPoint, temperatures: Sequence[float], draws: str, say: Callable[[str], None]
) -> BaseEvaluation:
    """On what the worker's evaluator has been told to evaluate on. `draws`: names the samples."""
    found = worker.with_recovery(_evaluate, worker, start, temperatures, draws)
    for temperature, evaluation in found.items():
        at = f" at temperature {temperature:g}" if temperature is not None else ""
        shown = [f"{split} {r.score:.3f}, greedily {r.greedy_score:.3f}" for split, r in evaluation.splits.items()]
        say(f"base policy{at}: {'; '.join(shown)}")
        if evaluation.cut_off_line:
            say(f"base policy{at}: {evaluation.cut_off_line}")
    evaluation = found.pop(None)
    return BaseEvaluation(evaluation, {t: one for t, one in found.items() if t is not None})


def _evaluate(
    worker: Worker, start: StartingPoint, temperatures: Sequence[float], draws: str
) -> dict[float | None, Evaluation]:
    """By temperature; None is the recipe's."""
    learner, evaluator = worker.roles.learner, worker.roles.evaluator
    learner.load("policy", start.base)
    weights = learner.weights("policy")
    for temperature in (None, *temperatures):
        named = draws if temperature is None else f"{draws} at temperature {temperature:g}"
        evaluator.submit(weights, 0, temperature, draws=named, temperature=temperature)
    return dict(evaluator.collect(wait=True))
