"""Updates: from a batch to the optimizer steps that the learner is handed, and what is kept of one that is skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.files import write_text
from rlhf_bench.core.types import Row
from rlhf_bench.training.arm import ArmObserver, ArmSpec
from rlhf_bench.training.batch import Batch, not_finite, sample_logprob
from rlhf_bench.training.roles import LearnerGroup, Means, Pending, Step
from rlhf_bench.training.state import ArmState


@dataclass(frozen=True)
class PendingUpdate:
    """An update whose optimizer steps the learner has been handed: its number, what is known of it, what is to come."""

    version: int
    metrics: Mapping[str, float]
    steps: Sequence[Step] = ()
    owed: Cost = Cost()  # reserved, for reference log-probs of rows that are new to the arm
    means: Pending[Means] | None = None  # None: there was nothing to learn from
    batch: Batch | None = None


@dataclass
class UpdateQueue:
    """An arm's updates on their way through the learner, oldest first."""

    spec: ArmSpec
    learner: LearnerGroup
    observer: ArmObserver
    state: ArmState
    pending: list[PendingUpdate] = field(default_factory=list)

    def hand_in(self, batch: Batch, owed: Cost, settings: Any) -> PendingUpdate | None:
        """Hand the learner one update's steps. None when it would pass the budget: then nothing is trained."""
        state = self.state
        if not batch.rows:
            return PendingUpdate(state.version, batch.metrics)
        if (wrong := not_finite(batch)) is not None:
            self.settle()
            state.version += 1
            self._skip(state.version, wrong, batch)
            return PendingUpdate(state.version, {**batch.metrics, "skipped": 1.0})
        method, learner, temperature = self.spec.method, self.learner, self.spec.recipe.data.temperature
        dtype = self.spec.recipe.model.dtype
        prepared = method.prepare(batch.rows, batch.rewards, batch.measured, settings, state.method_state, dtype)
        if not prepared.rows:
            return PendingUpdate(state.version, {**batch.metrics, **prepared.metrics})
        settings = settings.resolve_at(1.0, prepared.state)  # its schedules are numbers already: only the state is new
        minibatches = method.minibatches(prepared.rows, settings, state.minibatch_rng)
        parts = [[prepared.rows[i] for i in part] for part in minibatches]
        learning = learner.steps_cost(self._steps(parts, settings))
        adapts = method.adapt is not None and state.version % settings.adapt_every == 0
        adapting = learner.side_gradients_cost(prepared.rows) if adapts else Cost()
        if not state.ledger.has_room_for(owed + adapting + learning):
            return None
        state.ledger.reserve("measuring", owed)
        state.charged_rows |= {row.id for row in batch.rows}
        state.method_state = dict(prepared.state)
        if adapts:
            settings = self._adapt(prepared.rows, settings)
        steps = self._steps(parts, settings)
        means = learner.begin_steps(steps, temperature)
        state.ledger.reserve("learning", learning)
        state.version += 1
        adapted = {f"state/{key}": value for key, value in state.method_state.items()}
        rate = {"learning_rate": settings.learning_rate * settings.rate_share(state.done)}
        metrics = {**batch.metrics, **prepared.metrics, **adapted, **rate, **sample_logprob(batch.measured)}
        return PendingUpdate(state.version, metrics, steps, owed, means, batch)

    def settle(self) -> None:
        """Wait for the updates that the learner was handed, charge and report them."""
        while self.pending:
            update = self.pending.pop(0)
            learned = self._learned(update)
            if update.batch is not None:
                self._note_skip(update, learned)
            self.observer.update(update.version, {**learned, **update.metrics}, self.state.ledger)

    def _adapt(self, rows: Sequence[Row], settings: Any) -> Any:
        """Have the method adapt by both sides' gradients on these rows; the settings from then on."""
        assert self.spec.method.adapt is not None
        self.settle()
        sides, cost = self.learner.side_gradients(self.spec.method, rows, settings, self.spec.recipe.data.temperature)
        self.state.ledger.charge("measuring", cost)
        self.state.method_state = dict(self.spec.method.adapt(sides, settings, self.state.method_state))
        return self.spec.settings_now(self.state)

    def _learned(self, update: PendingUpdate) -> dict[str, float]:
        """Means over an update's steps, by metric; the critic's with a prefix. What they cost is charged."""
        if update.means is None:
            return {}
        found, cost = update.means.result()
        self.state.ledger.commit(update.owed)
        self.state.ledger.commit(cost)
        values: dict[str, list[float]] = {}
        for step, means in zip(update.steps, found, strict=True):
            prefix = "" if step.objective.model == "policy" else "critic_"
            for key, value in means.items():
                values.setdefault(prefix + key, []).append(value)
        return {key: float(np.mean(numbers)) for key, numbers in values.items()}

    def _note_skip(self, update: PendingUpdate, learned: dict[str, float]) -> None:
        """Say in `learned` whether a step of the update was skipped, since a number was not finite."""
        assert update.batch is not None
        checked = ("loss", "grad_norm", "critic_loss", "critic_grad_norm")
        wrong = [key for key in checked if not math.isfinite(learned.get(key, 0.0))]
        learned["skipped"] = float(bool(wrong) or any(learned.get(key) for key in ("skipped", "critic_skipped")))
        if learned["skipped"]:
            self._skip(update.version, f"{' and '.join(wrong) or 'a gradient'} not finite", update.batch)
        else:
            self.state.skipped_in_a_row = 0

    def _skip(self, version: int, why: str, batch: Batch) -> None:
        """Count an update that has left no trace in the weights. Too many in a row end the arm as diverged."""
        self.state.skipped_in_a_row += 1
        if self.state.skipped_in_a_row >= self.spec.recipe.compute.skips_in_a_row:
            self.state.status = "diverged"
        self.observer.skipped(version, why, batch)

    def _steps(self, parts: Sequence[Sequence[Row]], settings: Any) -> list[Step]:
        """The optimizer steps over an update's parts: each of the method's models on each part, all at the update's rates."""
        share = settings.rate_share(self.state.done)
        return [
            Step(
                o,
                rows,
                settings,
                share * (settings.learning_rate if o.model == "policy" else settings.critic_learning_rate),
            )
            for rows in parts
            for o in self.spec.method.objectives
        ]


SKIPPED_UPDATES_KEPT = 10
"""Of one arm and seed: enough to see what is wrong, and no full disk."""


def dump_skipped_update(directory: Path, key: str, update: int, why: str, batch: Batch) -> Path | None:
    """Keep the data of a skipped update for inspection: rows, rewards and what was measured on them. None where enough is
    kept of that arm."""
    folder = directory / "trouble"
    folder.mkdir(exist_ok=True)
    if len(list(folder.glob(f"{key}-update*.json"))) >= SKIPPED_UPDATES_KEPT:
        return None
    path = folder / f"{key}-update{update}.json"
    rows = [
        {
            "id": row.id, "prompt_ids": row.prompt_ids, "responses": row.responses,
            "rewards": [float(reward) for reward in rewards],
            "measured": {name: [a.tolist() for a in found[i]] for name, found in batch.measured.items()},
        }
        for i, (row, rewards) in enumerate(zip(batch.rows, batch.rewards, strict=True))
    ]  # fmt: skip
    content = json.dumps({"why": why, "update": update, "rows": rows}, indent=1)  # NaN and Infinity as Python has them
    write_text(path, content)
    return path
