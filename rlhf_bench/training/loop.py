"""The one training loop. It knows roles and the method's record; it never asks for a method's name.

draw data → measure (reference, old log-probs, values) → prepare → optimizer steps → sync → record → evaluate, at marks

Data comes in chunks, and each is measured while the engines draw the next. An arm that asks for it draws a whole
update's data while the learner takes the steps of the update before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import BASE_POINT, Row
from rlhf_bench.methods.base import MISMATCHED, PerResponse, uses_reward_model
from rlhf_bench.training.arm import ArmObserver, ArmSpec, Checkpointer, SharedByArms
from rlhf_bench.training.batch import Batch, joined, mismatched
from rlhf_bench.training.evaluation import Evaluations
from rlhf_bench.training.experience import FixedRows, Source, make_source
from rlhf_bench.training.reference import ReferenceLogprobs, reference_logprobs
from rlhf_bench.training.roles import Roles
from rlhf_bench.training.rollouts import RolloutSampler
from rlhf_bench.training.state import ArmState
from rlhf_bench.training.sync_check import Probe
from rlhf_bench.training.update import UpdateQueue

MEASURED_BY: dict[str, Literal["policy", "reference", "critic"]] = {
    "reference_logprobs": "reference", "logprobs": "policy", "values": "critic",
}  # fmt: skip


class ArmTrainer:
    """Trains one arm with one seed: what is asked (`spec`), what it works with, and what changes (`state`)."""

    updates: UpdateQueue
    evaluations: Evaluations
    source: Source
    references: ReferenceLogprobs | None  # of the rows of an arm whose data is fixed

    def __init__(
        self,
        *,
        spec: ArmSpec,
        shared: SharedByArms,
        roles: Roles,
        observer: ArmObserver,
        state: ArmState,
        checkpointer: Checkpointer | None = None,  # None: nothing is kept of an arm that is cut short
    ):
        self.spec, self.shared, self.roles, self.observer = spec, shared, roles, observer
        self.state, self.checkpointer = state, checkpointer
        self.began = perf_counter()

    @property
    def seconds(self) -> float:
        """Of this arm so far."""
        return self.state.seconds + perf_counter() - self.began

    def run(self, save_to: Path | None) -> Literal["done", "diverged"]:
        """Train until the budget is spent, from the last checkpoint on if there is one. The finished policy is written to
        `save_to`, unless that is None."""
        self.begin()
        self._resume()
        while self._goes_on():
            batch, owed, settings = self._next_batch()
            update = self.updates.hand_in(batch, owed, settings)
            if update is None:
                break
            self.state.rounds += 1
            self._note_cost(self.state.ledger.end_update())
            self.updates.settle()  # the update before this one: the learner has work meanwhile
            self.updates.pending.append(update)
            self._prefetch()
            self._evaluate_at_marks(batch)
            self._save()
        return self._finish(save_to)

    def _goes_on(self) -> bool:
        """Whether there is another update: data is left, and budget."""
        if self.state.status != "done" or (isinstance(self.source, FixedRows) and self.source.ended(self.state)):
            return False
        return bool(self.state.prefetched) or self.state.ledger.begin_update()

    def begin(self) -> None:
        """Models, data and the evaluation of the base policy."""
        spec, state = self.spec, self.state
        self.updates = UpdateQueue(spec, self.roles.learner, self.observer, state)
        self.evaluations = Evaluations(spec, self.roles, self.observer, state, lambda: self.seconds)
        self.load_models()
        self.evaluations.report(BASE_POINT, self.shared.base, spec.settings.resolve_at(0.0, state.method_state))
        if spec.settings.data != "offline":
            self.sync()
        inputs, samples = self.shared.inputs, self.shared.start_samples
        sampler = RolloutSampler(self.roles, inputs, spec.recipe.data, spec.settings, spec.seed, samples)
        self.source = make_source(
            spec.method, spec.settings, sampler, self.shared.start.pairs, inputs.shape, state, inputs.labelled,
            spec.recipe.compute.tokens_per_micro_batch,
        )  # fmt: skip
        self.references = self._measure_references()
        state.updates_began_at = state.ledger.committed
        while state.marks_left and state.ledger.fraction >= state.marks_left[0]:
            # Spent before any update, on a reward model or candidates.
            point = self.evaluations.now(state.marks_left.pop(0))
            self.evaluations.report(point, self.shared.base, spec.settings_now(state))

    def load_models(self) -> None:
        """Policy, and reference and critic where the method needs them, into the learner."""
        learner, settings, start = self.roles.learner, self.spec.settings, self.shared.start
        for name in ("reference", "critic"):  # of an arm before this one
            learner.free(name)
        rate = settings.learning_rate
        learner.load("policy", start.base, self.spec.seed, rate, settings.max_grad_norm, settings.adam)
        if self.spec.method.reference_at_hand(settings) and not settings.rows_come_again:
            learner.load("reference", start.base)
        if "values" in self.spec.needs:
            # A critic begins as the reward model only where the arm is charged for that one.
            path = start.reward_model if uses_reward_model(settings) and start.reward_model else start.base
            rate = settings.critic_learning_rate
            learner.load("critic", path, self.spec.seed, rate, settings.max_grad_norm, settings.adam)

    def sync(self) -> None:
        """Weights to the engines, then the check that they arrived: checksums and a fixed response's log-probs of both."""
        began, recipe, state = perf_counter(), self.spec.recipe, self.state
        self.roles.sync.send(state.version)
        state.synced_version = state.version
        probe = self._probe()
        ((expected,),), cost = self.roles.learner.measure("policy", [probe])
        tolerance = recipe.placement.tolerance(recipe.model.dtype, self.shared.inputs.shape)
        sums = self.roles.learner.checksums("policy")
        self.roles.pool.check(
            Probe(probe.prompt_ids, probe.responses[0], expected.tolist(), sums, tolerance, state.version)
        )
        seconds = (perf_counter() - began) * self.roles.learner.devices
        state.ledger.charge("sync", Cost(flops=cost.flops, device_seconds=seconds))

    def draw(self, ledger: Ledger) -> list[Batch]:
        """An update's data in chunks. The learner is asked for each one's forward passes as soon as the chunk is there."""
        return [self._measured_later(chunk) for chunk in self.source.draw(self.state, ledger)]

    def completed(self, chunks: Sequence[Batch]) -> tuple[Batch, Cost]:
        """All chunks as one batch, with what was measured on them; and what is owed. Of fixed rows every forward pass is
        owed when the arm first uses the row."""
        batch = joined(chunks)
        if batch.fixed:
            if self.references is None:
                return batch, Cost()
            new = list({row.id: row for row in batch.rows if row.id not in self.state.charged_rows}.values())
            owed = self.references.cost(self.roles.learner, new) if new else Cost()
            known = {"reference_logprobs": self.references.of(batch.rows)}
            return replace(batch, measured=known | self._mismatched(batch)), owed
        measured: dict[str, list[PerResponse]] = {name: [] for name in self.spec.needs if name not in MISMATCHED}
        for chunk in chunks:
            for name, pending in chunk.asked.items():
                found, cost = pending.result()
                measured[name] += found
                self.state.ledger.charge("measuring", cost)
        return replace(batch, measured=measured | self._mismatched(batch)), Cost()

    def _mismatched(self, batch: Batch) -> dict[str, list[PerResponse]]:
        """What a method wants to know of responses to other prompts, measured and charged now."""
        names = [name for name in self.spec.needs if name in MISMATCHED] if batch.rows else []
        rows = mismatched(batch.rows, self.spec.recipe.model.max_length) if names else []
        measured: dict[str, list[PerResponse]] = {}
        for name in names:
            measured[name], cost = self.roles.learner.measure(MISMATCHED[name], rows, self.spec.recipe.data.temperature)
            self.state.ledger.charge("measuring", cost)
        return measured

    def _next_batch(self) -> tuple[Batch, Cost, Any]:
        """The next update's data, what is owed for it, and the settings as they were before it was measured."""
        state, chunks = self.state, self.state.prefetched
        taken = self._take_prefetched(chunks) if chunks else None
        if self.spec.settings.data == "online" and state.synced_version != state.version:
            # Within the update that samples, so that its cost is foreseen; and after forward passes that it would
            # wait for, and count as its own.
            self.sync()
        return taken or self._with_settings(self.draw(state.ledger))

    def _take_prefetched(self, chunks: Sequence[Batch]) -> tuple[Batch, Cost, Any]:
        """What was drawn ahead, and is charged now."""
        assert self.state.prefetch_ledger is not None
        self.state.ledger.charge_all(self.state.prefetch_ledger)
        self.state.prefetched = None
        return self._with_settings(chunks)

    def _with_settings(self, chunks: Sequence[Batch]) -> tuple[Batch, Cost, Any]:
        settings = self.spec.settings_now(self.state)
        return *self.completed(chunks), settings

    def _prefetch(self) -> None:
        """Have the engines draw the next update's data, with their weights from before this one. The next is charged."""
        ledger = self.state.ledger
        if self.spec.settings.draws_ahead and ledger.begin_update():
            self.state.prefetch_ledger = Ledger(ledger.column, ledger.limit)
            self.state.prefetched = self.draw(self.state.prefetch_ledger)

    def _note_cost(self, cost: float) -> None:
        """Raises ArmFailed where updates no longer spend the budget's column, as when no prompt has candidates of different
        quality any more: the budget would never end."""
        state, column, most = self.state, self.state.ledger.column, self.spec.recipe.compute.skips_in_a_row
        state.free_in_a_row = 0 if cost > 0 or column == "device_seconds" else state.free_in_a_row + 1
        if state.free_in_a_row >= most:
            self.updates.settle()
            self.evaluations.collect(wait=True)  # or the next arm would be told
            raise ArmFailed(
                f"{most} updates in a row spent no {column}, so the budget would never end: the policy's samples no longer "
                "differ in quality; use compute.column flops, or a higher data.temperature"
            )

    def _evaluate_at_marks(self, batch: Batch) -> None:
        """Hand the evaluator the policy at every mark that is reached. What drawing costs is charged at once and must not
        stand in the record of the update before; fresh samples need its weights; seconds are known only afterwards. An update that may be the arm's last is waited for, so that the arm ends there whether or
        not a checkpoint is due."""
        state = self.state
        reached = bool(state.marks_left) and state.ledger.committed >= state.marks_left[0]
        last = state.skipped_in_a_row + 1 >= self.spec.recipe.compute.skips_in_a_row
        if reached or last or not batch.fixed or state.ledger.column == "device_seconds":
            self.updates.settle()
        while state.marks_left and state.ledger.fraction >= state.marks_left[0]:
            self.evaluations.submit(state.marks_left.pop(0))
        self.evaluations.collect(wait=False)

    def _finish(self, save_to: Path | None) -> Literal["done", "diverged"]:
        state, ledger = self.state, self.state.ledger
        self.updates.settle()
        if state.prefetched:  # drawn for an update that did not come
            self._take_prefetched(state.prefetched)
        if state.version == 0:
            self.evaluations.collect(wait=True)  # or the next arm would be told
            raise ArmFailed(
                f"the budget ended before the first update: {ledger.spent:.3g} of {ledger.limit:.3g} {ledger.column} spent; raise compute.limit"
            )
        self.evaluations.submit(1.0)
        self.evaluations.collect(wait=True)
        if save_to is not None:
            self.roles.learner.save("policy", save_to)
            self.shared.inputs.codec.save(save_to)
        return state.status

    def _resume(self) -> None:
        """Continue from the last checkpoint, if there is one, in place of what `begin` has begun."""
        found = None if self.checkpointer is None else self.checkpointer.latest()
        if found is None:
            return
        data, folder, files = found
        self.state = state = ArmState.from_json(data)
        self.updates = replace(self.updates, state=state)
        self.evaluations = replace(self.evaluations, state=state)
        self.roles.learner.load_state(folder, files)
        if self.spec.settings.data == "online" and state.synced_version == state.version:
            self.roles.sync.send(state.version)  # charged before the checkpoint; else the next update sends them

    def _save(self) -> None:
        """Write a checkpoint if it is time for one, or if the run has been asked to end."""
        if self.checkpointer is None or not self.checkpointer.due():
            return
        self.updates.settle()
        self.evaluations.collect(wait=True)
        state = replace(self.state, seconds=self.seconds)
        self.checkpointer.save(state.rounds, state.to_json(), self.roles.learner.save_state)

    def _measure_references(self) -> ReferenceLogprobs | None:
        """Of all rows that the arm may use, where they are known from the start."""
        if not isinstance(self.source, FixedRows) or "reference_logprobs" not in self.spec.needs:
            return None
        recipe, base = self.spec.recipe, self.shared.start.base
        placed = recipe.placement.learner.model_dump(mode="json")
        found = reference_logprobs(
            self.roles.learner, self.shared.cache, base, self.source.rows, recipe.data.temperature,
            [recipe.model.dtype, placed],
        )  # fmt: skip
        if self.spec.method.reference_at_hand(self.spec.settings):  # only now: measuring the rows may have freed it
            self.roles.learner.load("reference", base)
        return found

    def _measured_later(self, chunk: Batch) -> Batch:
        """The chunk, with the forward passes that the learner has been asked for."""
        if chunk.fixed or not chunk.rows:
            return chunk
        learner, temperature = self.roles.learner, self.spec.recipe.data.temperature
        rows = [Row(row.id, row.prompt_ids, row.responses) for row in chunk.rows]  # no forward pass needs their numbers
        asked = {
            name: learner.begin_measure(MEASURED_BY[name], rows, 1.0 if name == "values" else temperature)
            for name in self.spec.needs
            if name not in MISMATCHED
        }
        return replace(chunk, asked=asked)

    def _probe(self) -> Row:
        """The fixed prompt and response of the check, a token short of the context: the first pair's chosen side, or the first
        prompt once more where there are no pairs."""
        pairs, first = self.shared.start.pairs, self.shared.inputs.train[0]
        prompt, response = (pairs[0].prompt, pairs[0].chosen_ids) if pairs else (first, first.token_ids)
        room = self.spec.recipe.model.max_length - len(prompt.token_ids) - 1
        return Row("probe", prompt.token_ids, (response[:room],))
