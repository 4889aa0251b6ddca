"""Evaluations of an arm: snapshots of the policy go to the evaluator, and what it finds goes to the observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import EvalPoint, Evaluation
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.training.arm import ArmObserver, ArmSpec
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.state import ArmState


@dataclass(frozen=True)
class Evaluations:
    """Those of one arm. `seconds`: of the arm so far."""

    spec: ArmSpec
    roles: Roles
    observer: ArmObserver
    state: ArmState
    seconds: Callable[[], float]

    def submit(self, mark: float) -> None:
        """A snapshot of the policy, to be evaluated while training continues."""
        weights = self.roles.learner.weights("policy")
        self.roles.evaluator.submit(weights, self.state.version, (self.now(mark), self.spec.settings_now(self.state)))

    def now(self, mark: float) -> EvalPoint:
        ledger = self.state.ledger
        return EvalPoint(mark, self.state.version, ledger.total().as_dict(), ledger.fraction, self.seconds())

    def collect(self, wait: bool) -> None:
        """Report what the evaluator has found meanwhile; with `wait`, all that it was handed."""
        for (point, settings), evaluation in self.roles.evaluator.collect(wait):
            self.state.ledger.charge("evaluation", Cost(**evaluation.cost))
            self.report(point, evaluation, settings)

    def report(self, point: EvalPoint, evaluation: Evaluation, settings: Any) -> None:
        """Pass an evaluation on, with the partial derivatives of the arm's own loss on the held-out pairs."""
        pairs = [p for p in evaluation.pairs if p.split == self.spec.recipe.evaluation.splits[0]]
        if self.spec.method.pair_loss is not None and pairs:
            numbers = partials(self.spec.method.pair_loss, pair_logprobs_of(pairs), settings)
            evaluation = replace(evaluation, numbers={**evaluation.numbers, **numbers})
        self.observer.evaluated(point, evaluation)
