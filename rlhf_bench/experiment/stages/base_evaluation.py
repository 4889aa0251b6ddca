"""The base policy's evaluation: every arm's curve begins with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_bench.core.types import BASE_POINT, Evaluation
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.training.inputs import StartingPoint


def evaluate_base(
    worker: Worker, start: StartingPoint, *, tuning: bool, say: Callable[[str], None]
) -> tuple[Sequence[str], Evaluation]:
    """From now on the worker evaluates on the tuning trials' prompts, or on the comparison's. Returns also what the
    evaluator had to leave out."""
    notes = worker.with_recovery(worker.begin_evaluation, start, tuning)
    return notes, worker.with_recovery(_evaluate, worker, start, say)


def _evaluate(worker: Worker, start: StartingPoint, say: Callable[[str], None]) -> Evaluation:
    learner, evaluator = worker.roles.learner, worker.roles.evaluator
    learner.load("policy", start.base)
    evaluator.submit(learner.weights("policy"), 0, BASE_POINT)
    ((_, evaluation),) = evaluator.collect(wait=True)
    say("base policy: " + ", ".join(f"{split} {r.score:.3f}" for split, r in evaluation.splits.items()))
    return evaluation
