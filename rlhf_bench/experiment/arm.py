"""One arm with one seed on one team: from its last checkpoint to its records, its policy and what it cost."""

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
from rlhf_bench.core.types import BASE_POINT, EvalPoint, Evaluation
from rlhf_bench.experiment.scheduler import Worker
from rlhf_bench.experiment.shutdown import Grace
from rlhf_bench.experiment.tracking.metrics import evaluation_metrics, update_metrics, used_by
from rlhf_bench.experiment.tracking.tracker import Dataset, Tracker
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import MethodSettings, uses_reward_model
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.store import ArmRecords, copy_checkpoint
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.checkpoints import Checkpoints
from rlhf_bench.training.inputs import Inputs, StartingPoint
from rlhf_bench.training.loop import ArmObserver, ArmTrainer
from rlhf_bench.training.rollouts import SampleCache
from rlhf_bench.training.state import UpdateData
from rlhf_bench.training.update import write_trouble


class ArmCheckpointer:
    """Checkpoints of one arm and seed, with its records: see `loop.Checkpointer`."""

    def __init__(
        self, checkpoints: Checkpoints, every_seconds: float, part: ArmRecords, grace: Grace, say: Callable[[str], None]
    ):
        self.checkpoints, self.every_seconds, self.part = checkpoints, every_seconds, part
        self.grace, self.say, self.last = grace, say, perf_counter()

    def due(self) -> bool:
        return self.grace.number is not None or perf_counter() - self.last >= self.every_seconds

    def save(self, number: int, state: Mapping[str, Any], write: Callable[[str], Mapping[str, str]]) -> None:
        self.checkpoints.save(number, {"arm": state, "records": self.part.rows()}, write)
        self.last = perf_counter()
        self.grace.raise_if_stopped()

    def latest(self) -> tuple[Mapping[str, Any], str, Sequence[str]] | None:
        found = self.checkpoints.latest()
        if found is None:
            return None
        self.part.put_back(found.state["records"])
        self.say(f"resuming from {found.url}, after update {found.state['arm']['version']}")
        return found.state["arm"], found.url, found.files


@dataclass(frozen=True)
class ArmOutcome:
    """An arm and seed whose budget is spent: its records, still in memory, what it cost and its result."""

    part: ArmRecords
    by_phase: Mapping[Phase, Cost]
    result: dict[str, Any]


@dataclass(frozen=True)
class ArmRunner:
    """What all arms and seeds of a comparison have in common. Read by several threads at once, and changed by none."""

    recipe: Recipe
    settings: Mapping[str, MethodSettings]  # by arm, as tuned
    directory: Path
    inputs: Inputs
    cache: Cache
    start: StartingPoint
    base: Evaluation
    datasets: Mapping[str, Dataset]  # by name
    sample_cache: SampleCache
    tracker: Tracker
    display: Any  # progress.ProgressDisplay
    tags: Mapping[str, str]
    first_update: Callable[[], None]  # called after the first update of each in this run

    def run(self, arm: str, seed: int, worker: Worker, patience: Grace) -> ArmOutcome:
        """From the last checkpoint on. Raises ArmFailed where the others may go on, and Stopped once a checkpoint is written
        after a signal that `patience` has noted."""
        return worker.with_recovery(self._run, arm, seed, worker, patience, grace=patience)

    def part(self, arm: str, seed: int) -> ArmRecords:
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

    def _run(self, arm: str, seed: int, worker: Worker, patience: Grace) -> ArmOutcome:
        recipe, settings, part = self.recipe, self.settings[arm], self.part(arm, seed)
        ledger = Ledger(recipe.compute.column, recipe.compute.limit)
        if uses_reward_model(settings):
            ledger.charge("reward_model", self.start.reward_model_cost)
        self._announce(arm, seed, settings)
        worker.begin_arm(arm, seed)
        began, looks = perf_counter(), list[Evaluation]()
        saver = ArmCheckpointer(
            self.checkpoints(arm, seed), recipe.reliability.checkpoint_seconds, part, patience, self.display.say
        )
        run = ArmTrainer(
            recipe, METHODS[settings.method], settings, seed, self.inputs, self.start, worker.roles, ledger,
            self._progress(arm, seed, part, looks, lambda: run.seconds), self.base, recipe.evaluation.marks,
            self.sample_cache, self.cache, saver=saver,
        )  # fmt: skip
        aside = self.directory / "checkpoints" / f".{arm}-seed{seed}.tmp"
        try:
            status = run.run(aside)
        except ArmFailed as failure:
            failure.spent = ledger.total().as_dict()
            raise
        copy_checkpoint(aside, self.directory / "checkpoints" / arm / f"seed-{seed}")
        final = looks[-1]
        score = next(iter(final.splits.values())).score
        result = {
            "seed": seed,
            "status": status,
            "spent": ledger.total().as_dict(),
            "score": score,
            "kl": final.numbers.get("kl", math.nan),
            "updates": run.version,
            "seconds": worker.roles.engine_time.breakdown(began, perf_counter()),
        }
        self.tracker.end_arm(arm, seed, status, {"updates": str(run.version)})
        self.display.say(
            f"{arm} · seed {seed}: {status}, score {score:.3f}, {run.version} updates, {ledger.fraction:.1%} of the budget, {run.seconds:.0f} s"
        )
        return ArmOutcome(part, ledger.by_phase, result)

    def _announce(self, arm: str, seed: int, settings: MethodSettings) -> None:
        """To MLflow."""
        params = {f"arm/{k}": v for k, v in settings.model_dump(mode="json").items()}
        tags = {**self.tags, "method": settings.method, "data": settings.data, "seed": str(seed)}
        self.tracker.start_arm(arm, seed, params, tags)
        for dataset in used_by(settings.data, self.datasets):
            self.tracker.uses(dataset, arm, seed)

    def _progress(
        self, arm: str, seed: int, part: ArmRecords, looks: list[Evaluation], seconds: Callable[[], float]
    ) -> ArmObserver:
        """What the loop tells goes to records, MLflow and the display. `looks` gets every look."""
        updates = 0

        def updated(update: int, numbers: Mapping[str, float], ledger: Ledger) -> None:
            nonlocal updates
            updates += 1
            if updates == 1:
                self.first_update()
            spent = ledger.total().as_dict()
            part.update(update, numbers, spent, ledger.fraction, seconds())
            self.display.update(arm, seed, update, numbers, ledger.fraction)
            for step, metrics in update_metrics(update, numbers, spent, ledger.fraction):
                self.tracker.log(arm, seed, step, metrics)

        def evaluated(look: EvalPoint, evaluation: Evaluation) -> None:
            part.evaluated(look, evaluation, self.start.reward_margins)
            for step, metrics in evaluation_metrics(look, evaluation):
                self.tracker.log(arm, seed, step, metrics)
            if look is not BASE_POINT:
                self.display.evaluated(arm, seed, look, evaluation)
            looks.append(evaluation)

        def skipped(update: int, why: str, data: UpdateData) -> None:
            kept = write_trouble(self.directory, f"{arm}-seed{seed}", update, why, data)
            where = f"; its data are in {kept}" if kept else ""
            self.display.warn(f"{arm} · seed {seed}: update {update} is skipped, {why}{where}")

        return ArmObserver(updated, evaluated, skipped)
