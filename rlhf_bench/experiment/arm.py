"""One arm with one seed on one worker: from its last checkpoint to its records, its policy and its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost, Phase
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.files import put_in_place
from rlhf_bench.core.types import BASE_POINT, EvalPoint, Evaluation
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.shutdown import Grace
from rlhf_bench.experiment.tracking.metrics import evaluation_metrics, update_metrics, used_by
from rlhf_bench.experiment.tracking.telling import Dataset
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.models.weights import file_sha256, weights_sha256
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.integrity import Sums, policy_place, sums_of
from rlhf_bench.results.schema import CHECKPOINTS
from rlhf_bench.results.store import ArmRecords
from rlhf_bench.training.arm import ArmObserver, ArmSpec, SharedByArms
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.checkpoints import Checkpoints
from rlhf_bench.training.loop import ArmTrainer
from rlhf_bench.training.state import ArmState
from rlhf_bench.training.update import dump_skipped_update


class ArmCheckpointer:
    """Checkpoints of one arm and seed, with its records: see `training.arm.Checkpointer`."""

    def __init__(
        self,
        *,
        checkpoints: Checkpoints,
        every_seconds: float,
        records: ArmRecords,
        grace: Grace,
        say: Callable[[str], None],
    ):
        self.checkpoints, self.every_seconds, self.records = checkpoints, every_seconds, records
        self.grace, self.say, self.last = grace, say, perf_counter()

    def due(self) -> bool:
        return self.grace.number is not None or perf_counter() - self.last >= self.every_seconds

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        self.checkpoints.save(number, {"arm": state, "records": self.records.rows()}, write)
        self.last = perf_counter()
        self.grace.raise_if_stopped()

    def latest(self) -> tuple[Mapping[str, Any], str, Sequence[str]] | None:
        found = self.checkpoints.latest()
        if found is None:
            return None
        self.records.put_back(found.state["records"])
        self.say(f"resuming from {found.url}, after update {found.state['arm']['version']}")
        return found.state["arm"], found.url, found.files


@dataclass(frozen=True)
class ArmOutcome:
    """An arm and seed whose budget is spent: its records, still in memory, what it cost, its result, and the checksums of its
    policy."""

    records: ArmRecords
    by_phase: Mapping[Phase, Cost]
    result: dict[str, Any]
    policy: Sums


@dataclass(frozen=True)
class ArmRunner:
    """What all arms and seeds of a comparison have in common. Read by several threads at once, and changed by none."""

    recipe: Recipe
    settings: Mapping[str, MethodSettings]  # by arm, as tuned
    directory: Path
    shared: Mapping[int, SharedByArms]  # by the arms' seed, of those that are to run
    datasets: Mapping[int, Mapping[str, Dataset]]  # by the same, then by name
    tracker: Tracker
    display: Any  # progress.ProgressDisplay
    tags: Mapping[str, str]
    first_update: Callable[[], None]  # called after the first update of each in this run

    def run(self, arm: str, seed: int, worker: Worker, grace: Grace) -> ArmOutcome:
        """From the last checkpoint on. Raises ArmFailed where the other arms may continue, and Stopped once a checkpoint is
        written after a signal that `grace` has noted."""
        return worker.with_recovery(self._run, arm, seed, worker, grace, grace=grace)

    def records(self, arm: str, seed: int) -> ArmRecords:
        settings = self.settings[arm]
        return ArmRecords(self.directory, arm, settings.method, settings.data, seed)

    def checkpoints(self, arm: str, seed: int) -> Checkpoints:
        settings = self.recipe.reliability
        place = (
            self.directory / "state"
            if settings.checkpoint_place is None
            else f"{settings.checkpoint_place.rstrip('/')}/{self.tags['run_key']}"
        )
        return Checkpoints(f"{place}/{arm}-seed{seed}", settings.checkpoints, self.display.warn)

    def _run(self, arm: str, seed: int, worker: Worker, grace: Grace) -> ArmOutcome:
        recipe, settings, records = self.recipe, self.settings[arm], self.records(arm, seed)
        shared = self.shared[seed]
        state = ArmState.begin(recipe.compute.column, recipe.compute.limit, seed, recipe.evaluation.marks)
        if uses_reward_model(settings):
            state.ledger.charge("reward_model", shared.start.reward_model_cost)
        self._announce(arm, seed, settings)
        worker.begin_arm(arm, seed)
        began, evaluations = perf_counter(), list[Evaluation]()
        trainer = ArmTrainer(
            spec=ArmSpec(arm, recipe, METHODS[settings.method], settings, seed),
            shared=shared,
            roles=worker.roles,
            observer=self._observer(arm, seed, records, evaluations, lambda: trainer.seconds),
            state=state,
            checkpointer=ArmCheckpointer(
                checkpoints=self.checkpoints(arm, seed),
                every_seconds=recipe.reliability.checkpoint_seconds,
                records=records,
                grace=grace,
                say=self.display.say,
            ),
        )
        aside = self.directory / CHECKPOINTS / f".{arm}-seed{seed}.tmp"
        try:
            trainer.run(aside)
        except ArmFailed as failure:
            failure.spent = trainer.state.ledger.total().as_dict()
            raise
        weights, place = weights_sha256(aside), policy_place(arm, seed)
        policy = sums_of(aside, place, file_sha256)
        put_in_place(aside, self.directory / place)
        result = _result(seed, trainer.state, evaluations[-1]) | {"weights": weights}
        result["seconds"] = worker.roles.engine_time.breakdown(began, perf_counter())
        self._announce_end(arm, seed, trainer, result)
        return ArmOutcome(records, trainer.state.ledger.by_phase, result, policy)

    def _announce_end(self, arm: str, seed: int, trainer: ArmTrainer, result: Mapping[str, Any]) -> None:
        """To MLflow and the display."""
        status, updates, fraction = result["status"], result["updates"], trainer.state.ledger.fraction
        self.tracker.end_arm(arm, seed, status, {"updates": str(updates)})
        self.display.say(
            f"{arm} · seed {seed}: {status}, score {result['score']:.3f}, {updates} updates, {fraction:.1%} of the budget, {trainer.seconds:.0f} s"
        )

    def _announce(self, arm: str, seed: int, settings: MethodSettings) -> None:
        """To MLflow."""
        params = {f"arm/{k}": v for k, v in settings.model_dump(mode="json").items()}
        tags = {**self.tags, "method": settings.method, "data": settings.data, "seed": str(seed)}
        self.tracker.start_arm(arm, seed, params, tags)
        for dataset in used_by(settings, self.datasets[seed]):
            self.tracker.uses(dataset, arm, seed)

    def _observer(
        self, arm: str, seed: int, records: ArmRecords, evaluations: list[Evaluation], seconds: Callable[[], float]
    ) -> ArmObserver:
        """What the loop tells goes to records, MLflow and the display. `evaluations` gets every one."""
        updates = 0

        def updated(update: int, numbers: Mapping[str, float], ledger: Ledger) -> None:
            nonlocal updates
            updates += 1
            if updates == 1:
                self.first_update()
            spent = ledger.total().as_dict()
            records.update(update, numbers, spent, ledger.fraction, seconds())
            self.display.update(arm, seed, update, numbers, ledger.fraction)
            for step, metrics in update_metrics(update, numbers, spent, ledger.fraction):
                self.tracker.log(arm, seed, step, metrics)

        def evaluated(point: EvalPoint, evaluation: Evaluation) -> None:
            records.evaluated(point, evaluation, self.shared[seed].start.reward_margins)
            for step, metrics in evaluation_metrics(point, evaluation):
                self.tracker.log(arm, seed, step, metrics)
            if point is not BASE_POINT:
                self.display.evaluated(arm, seed, point, evaluation)
                if (line := evaluation.cut_off_line) and not any(e.cut_off_line for e in evaluations):
                    self.display.warn(f"{arm} · seed {seed}: {line}")
            evaluations.append(evaluation)

        def skipped(update: int, why: str, batch: Batch) -> None:
            kept = dump_skipped_update(self.directory, f"{arm}-seed{seed}", update, why, batch)
            where = f"; its data are in {kept}" if kept else ""
            self.display.warn(f"{arm} · seed {seed}: update {update} is skipped, {why}{where}")

        return ArmObserver(updated, evaluated, skipped)


def _result(seed: int, state: ArmState, final: Evaluation) -> dict[str, Any]:
    """What `result.json` holds of an arm and seed that has ended, but for seconds and the policy's weights."""
    return {
        "seed": seed,
        "status": state.status,
        "spent": state.ledger.total().as_dict(),
        "score": (main := next(iter(final.splits.values()))).score,
        "greedy_score": main.greedy_score,
        "kl": final.numbers.get("kl", math.nan),
        "updates": state.version,
    }
