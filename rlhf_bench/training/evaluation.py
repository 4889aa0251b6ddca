"""Evaluations of an arm: snapshots of the policy go to the evaluator, and what it finds goes to the observer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import FIXED, OWN, EvalPoint, Evaluation, PairEvaluation
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.diagnostics.likelihood import numbers_of_evaluated
from rlhf_bench.methods.base import own_kind
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
        weights, version = self.roles.learner.weights("policy"), self.state.version
        label = (self.now(mark), self.spec.settings_now(self.state))
        draws = f"{self.spec.name}, seed {self.spec.seed}, mark {mark}, update {version}"
        self.roles.evaluator.submit(weights, version, label, draws=draws, own=own_kind(self.spec.settings).name)

    def now(self, mark: float) -> EvalPoint:
        ledger = self.state.ledger
        return EvalPoint(mark, self.state.version, ledger.total().as_dict(), ledger.fraction, self.seconds())

    def collect(self, wait: bool) -> None:
        """Report what the evaluator has found meanwhile; with `wait`, all that it was handed."""
        for (point, settings), evaluation in self.roles.evaluator.collect(wait):
            self.state.ledger.charge("evaluation", Cost(**evaluation.cost))
            self.report(point, evaluation, settings)

    def report(self, point: EvalPoint, evaluation: Evaluation, settings: Any) -> None:
        """Pass an evaluation on, with what depends on the arm: the pairs of its own kind, and the partial derivatives of its
        own loss, on the fixed held-out pairs and on those."""
        fixed, own = (self._main_pairs(evaluation, kind) for kind in (FIXED, own_kind(self.spec.settings).name))
        numbers = {**evaluation.numbers, **self._partials(fixed, settings)}
        if own:
            of_own = numbers_of_evaluated(own) | self._partials(own, settings)
            numbers |= {f"{OWN}{name}": value for name, value in of_own.items()}
        self.observer.evaluated(point, replace(evaluation, numbers=numbers))

    def _main_pairs(self, evaluation: Evaluation, kind: str) -> list[PairEvaluation]:
        main = self.spec.recipe.evaluation.splits[0]
        return [p for p in evaluation.pairs if p.split == main and p.kind == kind]

    def _partials(self, pairs: Sequence[PairEvaluation], settings: Any) -> dict[str, float]:
        """Empty without pairs, and for a method without a loss on them."""
        loss = self.spec.method.pair_loss
        return partials(loss, pair_logprobs_of(pairs), settings) if loss is not None and pairs else {}
