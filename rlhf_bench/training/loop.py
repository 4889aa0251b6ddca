"""The one training loop. It knows roles and the method's record; it never asks for a method's name.

draw data → measure (reference, old log-probs, values) → prepare → optimizer steps → sync → record → look, at marks

UpdateData comes in parts, and each is measured while the engines draw the next. An arm that asks for it draws a whole update's
data while the learner is at the steps of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import BASE_POINT, EvalPoint, Evaluation, Row
from rlhf_bench.diagnostics.gradients import pair_logprobs_of, partials
from rlhf_bench.methods.base import Measured, Method, PerResponse, uses_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.experience import Batch, FixedPairs, Source, joined, make_source
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.reference import ReferenceLogprobs, reference_logprobs
from rlhf_bench.training.roles import Measures, Pending, Roles, Step
from rlhf_bench.training.rollouts import RolloutSampler, SampleCache
from rlhf_bench.training.state import PendingChunk, PendingUpdate, UpdateData, restore, state_of

MEASURED_BY: dict[str, Literal["policy", "reference", "critic"]] = {
    "reference_logprobs": "reference", "logprobs": "policy", "values": "critic",
}  # fmt: skip
DEFAULT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class ArmObserver:
    """What the loop tells the outside after every update and every look."""

    update: Callable[[int, Mapping[str, float], Ledger], None]
    evaluated: Callable[[EvalPoint, Evaluation], None]
    skipped: Callable[[int, str, UpdateData], None] = lambda *_: (
        None
    )  # an update, why, and what it should have learnt from


class Checkpointer(Protocol):
    """Keeps an arm's state where a later run finds it."""

    def due(self) -> bool:
        """Is it time for a checkpoint?"""

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        """The arm's state, and what the learner writes into a folder of its own. Ends the run if it was asked to end."""

    def latest(self) -> tuple[Mapping[str, Any], str, Sequence[str]] | None:
        """The arm's state, the learner's folder, and names of files in it; None to begin at the beginning."""


def not_finite(data: UpdateData) -> str | None:
    """What is wrong with an update's numbers before anything has learnt from them. A reward of nan, or of −∞ in a pair, marks
    a response that did not end."""
    if any(reward == math.inf for rewards in data.drawn.rewards for reward in rewards):
        return "a reward is not finite"
    for name, rows in data.measured.items():
        if not all(np.isfinite(numbers).all() for row in rows for numbers in row):
            return f"{name} not finite"
    return None


def _finite(numbers: Mapping[str, float], key: str) -> bool:
    return math.isfinite(numbers.get(key, 0.0))


@dataclass
class ArmTrainer:
    """One arm and one seed: everything that lives as long as it does."""

    recipe: Recipe
    method: Method
    settings: Any  # of the method's own model
    seed: int
    inputs: Inputs
    start: StartingPoint
    roles: Roles
    ledger: Ledger
    progress: ArmObserver
    base: Evaluation  # the look at the start policy, shared by all arms
    marks: tuple[float, ...]  # fractions of the budget at which to look
    sample_cache: SampleCache  # shared by the arms of a comparison
    cache: Cache
    version: int = 0
    status: Literal["done", "diverged"] = "done"
    handed_in: list[PendingUpdate] = field(default_factory=list)
    saver: Checkpointer | None = None  # None: nothing is kept of an arm that is cut short
    state: dict[str, float] = field(default_factory=dict)
    references: ReferenceLogprobs | None = None  # of the rows of an arm whose data is fixed
    paid_for: set[str] = field(default_factory=set)  # ids of rows whose reference log-probs have been charged
    began: float = field(default_factory=perf_counter)
    seconds_before: float = 0.0  # of this arm, in runs before this one
    rounds: int = 0  # how often data was drawn
    synced: int = 0  # the version that the engines hold
    skipped_in_a_row: int = 0
    ahead: list[PendingChunk] | None = None  # drawn and not yet trained on
    rng: np.random.Generator = field(init=False)  # of minibatches
    sampler: RolloutSampler = field(init=False)
    source: Source = field(init=False)
    marks_left: list[float] = field(init=False)

    def run(self, save_to: Path | None) -> Literal["done", "diverged"]:
        """Train until the budget is spent, from the last checkpoint on if there is one. The finished policy is written to
        `save_to`, unless that is None."""
        self._begin()
        self._go_on()
        while self.status == "done" and (self.ahead or self.ledger.begin_update()):
            if self.ahead:
                self.ledger.charge_all(self.sampler.ledger)
                settings, data = self._now_settings(), self._all_of(self.ahead)
            if self.settings.data == "online" and self.synced != self.version:
                # Within the update that samples, so that its cost is foreseen; and after forward passes that it would
                # wait for, and count as its own.
                self._sync()
            if not self.ahead:
                parts = self._draw()
                settings, data = self._now_settings(), self._all_of(parts)
            update = self._hand_in(data, settings)
            if update is None:
                break
            self.rounds += 1
            self.ledger.end_update()
            self._settle()  # the update before this one: the learner has work meanwhile
            self.handed_in.append(update)
            self.ahead = None
            if self.settings.draws_ahead and self.ledger.begin_update():
                # By the engines, whose weights are those from before this update. The next one is charged for it.
                self.sampler.ledger = Ledger(self.ledger.column, self.ledger.limit)
                self.ahead = self._draw()
            look = bool(self.marks_left) and self.ledger.committed >= self.marks_left[0]
            # Fresh samples need the new weights, and seconds are known only afterwards. An update that may be the arm's
            # last is waited for, so that it ends there whether or not a checkpoint is due.
            last = self.skipped_in_a_row + 1 >= self.recipe.compute.skips_in_a_row
            if look or last or not data.drawn.fixed or self.ledger.column == "device_seconds":
                self._settle()
            while self.marks_left and self.ledger.fraction >= self.marks_left[0]:
                self._evaluate(self.marks_left.pop(0))
            self._collect(wait=False)
            self._save()
        self._settle()
        if self.ahead:  # drawn, and looked at, for an update that did not come
            self.ledger.charge_all(self.sampler.ledger)
            self._all_of(self.ahead)
        if self.version == 0:
            self._collect(wait=True)  # or the next arm would be told
            raise ArmFailed(
                f"the budget ended before the first update: {self.ledger.spent:.3g} of {self.ledger.limit:.3g} {self.ledger.column} spent; raise compute.limit"
            )
        self._evaluate(1.0)
        self._collect(wait=True)
        if save_to is not None:
            self.roles.learner.save("policy", save_to)
            self.inputs.tokenizer.save_pretrained(save_to)
        return self.status

    def _begin(self) -> None:
        """Models, data and the look at the start policy."""
        self._load()
        self._evaluated(BASE_POINT, self.base, self.settings.resolve_at(0.0, self.state))
        self.rng = np.random.default_rng([self.seed, 3])
        if self.settings.data != "offline":
            self._sync()
        self.sampler = RolloutSampler(
            self.roles, self.inputs, self.recipe.data, self.settings, self.ledger, self.seed, self.sample_cache
        )
        self.source = make_source(self.method, self.settings, self.sampler, self.start.pairs)
        self._measure_references()
        self.marks_left = [m for m in self.marks if m < 1]
        while self.marks_left and self.ledger.fraction >= self.marks_left[0]:
            # Spent before any update, on a reward model or candidates.
            self._evaluated(self._now(self.marks_left.pop(0)), self.base, self._now_settings())

    def _go_on(self) -> None:
        """Lay the last checkpoint, if there is one, over what `_begin` has begun."""
        found = None if self.saver is None else self.saver.latest()
        if found is None:
            return
        state, folder, files = found
        restore(self, state)
        self.roles.learner.load_state(folder, files)
        if self.settings.data == "online" and self.synced == self.version:
            self.roles.sync.send(self.version)  # paid for before the checkpoint; else the next update sends them

    def _save(self) -> None:
        """Write a checkpoint if it is time for one, or if the run has been asked to end."""
        if self.saver is None or not self.saver.due():
            return
        self._settle()
        self._collect(wait=True)
        self.saver.save(self.rounds, state_of(self), self.roles.learner.save_state)

    @property
    def seconds(self) -> float:
        """Of this arm so far."""
        return self.seconds_before + perf_counter() - self.began

    def _now_settings(self) -> Any:
        """The arm's settings as numbers: schedules at the budget spent so far, and what the method has adapted."""
        return self.settings.resolve_at(min(self.ledger.committed, 1.0), self.state)

    def _load(self) -> None:
        learner, settings = self.roles.learner, self.settings
        for left in ("reference", "critic"):  # by an arm before this one
            learner.free(left)
        learner.load("policy", self.start.base, self.seed, settings.learning_rate, settings.max_grad_norm)
        if "reference_logprobs" in self.method.needs(settings) and settings.data == "online":
            learner.load("reference", self.start.base)
        if "values" in self.method.needs(settings):
            paid_for = uses_reward_model(
                self.settings
            )  # else it would begin with work that this arm is not charged for
            path = self.start.reward_model if paid_for and self.start.reward_model else self.start.base
            learner.load("critic", path, self.seed, settings.critic_learning_rate, settings.max_grad_norm)

    def _measure_references(self) -> None:
        """Of all rows that the arm may use, where they are known from the start."""
        if isinstance(self.source, FixedPairs) and "reference_logprobs" in self.method.needs(self.settings):
            placed = self.recipe.placement.learner.model_dump(mode="json")
            self.references = reference_logprobs(
                self.roles.learner, self.cache, self.start.base, self.source.rows, self.recipe.data.temperature,
                [self.recipe.model.dtype, placed],
            )  # fmt: skip

    def _draw(self) -> list[PendingChunk]:
        """An update's data. The learner is handed every part for its forward passes as soon as the part is there."""
        return [PendingChunk(drawn, self._begin_measuring(drawn)) for drawn in self.source.draw(self.version)]

    def _begin_measuring(self, drawn: Batch) -> Mapping[str, Pending[Measures]]:
        if drawn.fixed or not drawn.rows:
            return {}
        learner, temperature = self.roles.learner, self.recipe.data.temperature
        rows = [Row(row.id, row.prompt_ids, row.responses) for row in drawn.rows]  # without numbers nobody asks for
        return {
            name: learner.begin_measure(MEASURED_BY[name], rows, 1.0 if name == "values" else temperature)
            for name in self.method.needs(self.settings)
        }

    def _all_of(self, parts: Sequence[PendingChunk]) -> UpdateData:
        """All parts as one, with what was measured on them. Of fixed rows every forward pass is owed when the arm first
        uses the row."""
        drawn = joined([part.drawn for part in parts])
        if drawn.fixed:
            if self.references is None:
                return UpdateData(drawn, {})
            new = list({row.id: row for row in drawn.rows if row.id not in self.paid_for}.values())
            owed = self.references.cost(self.roles.learner, new) if new else Cost()
            return UpdateData(drawn, {"reference_logprobs": self.references.of(drawn.rows)}, owed)
        measured: dict[str, list[PerResponse]] = {name: [] for name in self.method.needs(self.settings)}
        for part in parts:
            for name, under_way in part.asked.items():
                found, cost = under_way.result()
                measured[name] += found
                self.ledger.charge("measuring", cost)
        return UpdateData(drawn, measured)

    def _hand_in(self, data: UpdateData, settings: Any) -> PendingUpdate | None:
        """One update on drawn data. None when it would pass the budget: then nothing is trained."""
        drawn, measured = data.drawn, data.measured
        if not drawn.rows:
            return PendingUpdate(self.version, drawn.metrics)
        if (wrong := not_finite(data)) is not None:
            self._settle()
            self.version += 1
            self._skip(self.version, wrong, data)
            return PendingUpdate(self.version, {**drawn.metrics, "skipped": 1.0})
        prepared = self.method.prepare(drawn.rows, drawn.rewards, measured, settings, self.state)
        parts = [
            [prepared.rows[i] for i in part] for part in self.method.minibatches(prepared.rows, settings, self.rng)
        ]
        learner = self.roles.learner
        learning = learner.steps_cost(self._steps(parts, settings))
        adapts = self.method.adapt is not None and self.version % settings.adapt_every == 0
        adapting = learner.side_gradients_cost(prepared.rows) if adapts else Cost()
        if not self.ledger.has_room_for(data.owed + adapting + learning):
            return None
        self.ledger.reserve("measuring", data.owed)
        self.paid_for |= {row.id for row in drawn.rows}
        self.state = prepared.state
        if adapts and self.method.adapt is not None:
            self._settle()
            temperature = self.recipe.data.temperature
            sides, cost = learner.side_gradients(self.method, prepared.rows, settings, temperature)
            self.ledger.charge("measuring", cost)
            self.state = self.method.adapt(sides, settings, self.state)
            settings = self._now_settings()
        adapted = {f"state/{key}": value for key, value in self.state.items()}
        steps = self._steps(parts, settings)
        under_way = learner.begin_steps(steps, self.recipe.data.temperature)
        self.ledger.reserve("learning", learning)
        self.version += 1
        metrics = {**drawn.metrics, **prepared.metrics, **adapted, **self._sample_logprob(measured)}
        return PendingUpdate(self.version, metrics, steps, data.owed, under_way, data)

    def _settle(self) -> None:
        """Wait for the updates that the learner was handed, charge and report them."""
        while self.handed_in:
            update = self.handed_in.pop(0)
            sums: dict[str, list[float]] = {}
            if update.under_way is not None:
                found, cost = update.under_way.result()
                self.ledger.commit(update.owed)
                self.ledger.commit(cost)
                for step, means in zip(update.steps, found, strict=True):
                    prefix = "" if step.objective.model == "policy" else "critic_"
                    for key, value in means.items():
                        sums.setdefault(prefix + key, []).append(value)
            learned = {key: float(np.mean(values)) for key, values in sums.items()}
            if update.data is not None:
                worst = [
                    key for key in ("loss", "grad_norm", "critic_loss", "critic_grad_norm") if not _finite(learned, key)
                ]
                learned["skipped"] = float(
                    bool(worst) or any(learned.get(key) for key in ("skipped", "critic_skipped"))
                )
                if learned["skipped"]:
                    self._skip(update.version, f"{' and '.join(worst) or 'a gradient'} not finite", update.data)
                else:
                    self.skipped_in_a_row = 0
            self.progress.update(update.version, {**learned, **update.metrics}, self.ledger)

    def _skip(self, version: int, why: str, data: UpdateData) -> None:
        """Count an update that has left no trace in the weights. Too many in a row, and there is no way on."""
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.recipe.compute.skips_in_a_row:
            self.status = "diverged"
        self.progress.skipped(version, why, data)

    def _steps(self, parts: Sequence[Sequence[Row]], settings: Any) -> list[Step]:
        """The optimizer steps over an update's parts: each of the method's models on each part."""
        return [
            Step(o, rows, settings, settings.learning_rate if o.model == "policy" else settings.critic_learning_rate)
            for rows in parts
            for o in self.method.objectives
        ]

    def _sample_logprob(self, measured: Measured) -> dict[str, float]:
        """Mean log-probability of the policy's own samples, where a method measures it."""
        if "logprobs" not in measured:
            return {}
        return {"sample_logprob": float(np.mean([a.sum() for row in measured["logprobs"] for a in row]))}

    def _sync(self) -> None:
        """Weights to the engines, then the check that they arrived: a fixed response's log-probs on both sides."""
        began = perf_counter()
        self.roles.sync.send(self.version)
        self.synced = self.version
        probe = self._probe()
        ((expected,),), cost = self.roles.learner.measure("policy", [probe])
        tolerance = self.recipe.placement.sync_tolerance or DEFAULT_TOLERANCE[self.recipe.model.dtype]
        self.roles.pool.check(probe.prompt_ids, probe.responses[0], expected.tolist(), tolerance, self.version)
        self.ledger.charge(
            "sync", Cost(flops=cost.flops, device_seconds=(perf_counter() - began) * self.roles.learner.devices)
        )

    def _probe(self) -> Row:
        """The fixed prompt and response of the check: the first pair's chosen side, a token short of the context."""
        pair = self.start.pairs[0]
        room = self.recipe.model.max_length - len(pair.prompt.token_ids) - 1
        return Row("probe", pair.prompt.token_ids, (pair.chosen_ids[:room],))

    def _evaluate(self, mark: float) -> None:
        weights = self.roles.learner.weights("policy")
        self.roles.evaluator.submit(weights, self.version, (self._now(mark), self._now_settings()))

    def _now(self, mark: float) -> EvalPoint:
        return EvalPoint(mark, self.version, self.ledger.total().as_dict(), self.ledger.fraction, self.seconds)

    def _collect(self, wait: bool) -> None:
        for (look, settings), evaluation in self.roles.evaluator.collect(wait):
            self.ledger.charge("evaluation", Cost(**evaluation.cost))
            self._evaluated(look, evaluation, settings)

    def _evaluated(self, look: EvalPoint, evaluation: Evaluation, settings: Any) -> None:
        """Pass a look on, with the partial derivatives of the arm's own loss on the held-out pairs."""
        pairs = [p for p in evaluation.pairs if p.split == self.recipe.evaluation.splits[0]]
        if self.method.pair_loss is not None and pairs:
            numbers = partials(self.method.pair_loss, pair_logprobs_of(pairs), settings)
            evaluation = replace(evaluation, numbers={**evaluation.numbers, **numbers})
        self.progress.evaluated(look, evaluation)
