"""Writes into DIR what the report reads. After every arm, so that a comparison that is cut short can be reported too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.files import write_json
from rlhf_bench.core.types import BASE_POINT, MAIN_SPLIT, Evaluation
from rlhf_bench.experiment.arm import ArmOutcome, ArmRunner
from rlhf_bench.experiment.spec import ComparisonSpec
from rlhf_bench.experiment.starts import COMMON, Begun
from rlhf_bench.experiment.timing import Timing
from rlhf_bench.methods.base import own_kind
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.models.weights import weights_sha256
from rlhf_bench.results.base import BaseRecord, over_seeds, recorded_base, recorded_seeds
from rlhf_bench.results.metrics import SCORES
from rlhf_bench.results.schema import (
    BASE,
    BASE_JSON,
    LEDGER_TABLE,
    PAIRS_TABLE,
    RESULTS,
    SAMPLES_TABLE,
    SCORES_TABLE,
    SHARED,
    TUNING,
    base_at,
)
from rlhf_bench.results.store import Rows, is_done, merge_parts, pair_rows, sample_rows, score_rows
from rlhf_bench.training.inputs import StartingPoint


class Recorder:
    """One thread writes all tables, while the engines work on the next arms. Methods may be called from any thread.

    All of DIR is recorded, also arms and seeds of earlier runs, in the recipe's order, whichever ended first."""

    def __init__(
        self,
        *,
        spec: ComparisonSpec,
        runner: ArmRunner,
        bases: Mapping[int, Begun],
        timing: Timing,
        identity: Mapping[str, Any],
    ):
        self.spec, self.runner, self.timing = spec, runner, timing
        self.bases = bases  # the base policies of this run, by the seed that they are recorded under
        self.earlier = recorded_base(spec.directory)  # what earlier runs have recorded
        self.identity = identity  # what the run is known by and made with, as `results.json` has it
        self.failed = _failed_before(spec.directory)  # results by arm and seed
        self._thread = ThreadPoolExecutor(1, "records")
        self._writes: list[Future[None]] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait until all is written; raise what went wrong, unless there is an error already."""
        self._thread.shutdown()
        if error is None:
            self._raise_errors()

    def begin(self, arm: str, seed: int) -> None:
        """It is tried again: an earlier failure no longer counts."""
        self.failed.pop((arm, seed), None)

    def fail(self, arm: str, seed: int, failure: ArmFailed) -> None:
        self.failed[arm, seed] = {"seed": seed, "status": "failed", "cause": str(failure), "spent": failure.spent}
        self._submit(self.record)

    def finish(self, outcome: ArmOutcome) -> None:
        self._submit(lambda: self._finish(outcome))

    def record(self) -> None:
        """Write `base.json`, `results.json` and the merged tables."""
        write_json(self.spec.directory / RESULTS, self._results())
        first: dict[str, Rows] = {table.name: [] for table in (SAMPLES_TABLE, SCORES_TABLE, PAIRS_TABLE)}
        for number, begun in self.bases.items():
            base, margins = begun.shared.base, begun.shared.start.reward_margins
            first[SAMPLES_TABLE.name] += sample_rows(BASE, number, 0.0, base)
            first[SCORES_TABLE.name] += score_rows(BASE, number, 0.0, base)
            for temperature, evaluation in begun.shared.base_at_temperature.items():
                first[SCORES_TABLE.name] += score_rows(base_at(temperature), number, 0.0, evaluation)
            first[PAIRS_TABLE.name] += pair_rows(BASE, number, BASE_POINT, base, margins)
        first[LEDGER_TABLE.name] = self._shared_costs()
        arms = {arm: self.spec.recipe.seeds for arm in self.spec.recipe.arms}
        merge_parts(self.spec.directory, arms, first, kept=self._kept())
        write_json(self.spec.directory / BASE_JSON, self._base())  # last: what it names is in the tables

    def _submit(self, write: Callable[[], None]) -> None:
        self._raise_errors()
        self._writes.append(self._thread.submit(write))

    def _raise_errors(self) -> None:
        """Of writes that have ended, such as a full disk."""
        for write in list(self._writes):
            if write.done():
                write.result()

    def _finish(self, outcome: ArmOutcome) -> None:
        outcome.records.finish(outcome.by_phase, outcome.result, outcome.policy)
        arm, seed = outcome.records.key["arm"], outcome.records.key["seed"]
        self.runner.checkpoints(arm, seed).clear()
        if all(is_done(self.spec.directory, other, seed) for other in self.spec.recipe.arms):
            self.runner.shared[seed].start_samples.clear(seed)
        self.record()

    def _base(self) -> dict[str, Any]:
        if not self.spec.recipe.seed_follows:
            return self._base_record(self.bases[COMMON], self.earlier)
        earlier = recorded_seeds(self.earlier)
        now = {number: self._base_record(begun, earlier.get(number, {})) for number, begun in self.bases.items()}
        return over_seeds({number: earlier[number] for number in self._kept()} | now)

    def _kept(self) -> list[int]:
        """Seeds with a base policy of their own that an earlier run has recorded, and this one did not make again."""
        return [s for s in self.spec.recipe.seeds if s in recorded_seeds(self.earlier) and s not in self.bases]

    def _base_record(self, begun: Begun, earlier: BaseRecord) -> dict[str, Any]:
        start, base = begun.shared.start, begun.shared.base
        return {
            **_scores(base),
            "weights": weights_sha256(start.base),
            "at_temperature": {
                f"{temperature:g}": _scores(found) for temperature, found in begun.shared.base_at_temperature.items()
            },
            **_reward_models(start, earlier),
            "setup": {
                "off_policy_pairs": len(start.pairs),
                "held_out_pairs": ", ".join(f"{len(p)} {split}" for split, p in start.held_out_pairs.items()),
                "own_pairs": ", ".join(f"{len(p)} {kind}" for kind, p in start.own_pairs.items())
                or "none but the fixed",
                "notes": [*self.spec.inputs.notes, *begun.notes],
            },
        }

    def _results(self) -> dict[str, Any]:
        recipe, arms = self.spec.recipe, {}
        for arm, settings in recipe.arms.items():
            results = [self.runner.records(arm, seed).result or self.failed.get((arm, seed)) for seed in recipe.seeds]
            arms[arm] = {"method": settings.method, "data": settings.data, "own_kind": own_kind(settings).name,
                         "seeds": [r for r in results if r]}  # fmt: skip
        return {"arms": arms, "timing": self.timing.as_dict(), **self.identity}

    def _shared_costs(self) -> list[dict[str, Any]]:
        """Rows of the ledger that are charged to no arm: what all arms start from, and the trials."""
        tuning, rows = self.spec.recipe.tuning, list[dict[str, Any]]()
        for number, begun in self.bases.items():
            start = begun.shared.start
            cost = start.base_cost + start.pairs_cost + start.own_pairs_cost + start.gold_reward_model_cost
            rows.append({"arm": SHARED, "seed": number, "phase": "shared", **cost.as_dict()})
        if tuning is not None:
            for arm, trials in json.loads((self.spec.directory / TUNING).read_text(encoding="utf-8")).items():
                runs = [run for trial in trials for run in trial["runs"]]
                rows += [{"arm": arm, "seed": run["seed"], "phase": "tuning", **run["spent"]} for run in runs]
        return rows


def _reward_models(start: StartingPoint, earlier: BaseRecord) -> dict[str, Any]:
    """How well they rank held-out pairs, by their key. `earlier`: recorded by a run of other arms, where this one has none."""
    found: dict[str, Any] = {}
    accuracies = {"reward_model": start.reward_model_accuracy, "gold_reward_model": start.gold_accuracy}
    for key, accuracy in accuracies.items():
        if not accuracy and key in earlier:
            found[key] = earlier[key]
        elif accuracy or key == "reward_model":
            found[key] = {"accuracy": accuracy.get(MAIN_SPLIT), "accuracies": accuracy}
            if (path := start.reward_models.get(key)) is not None:
                found[key]["scale"] = RewardScaling.read(path).scale
    return found


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    """By kind of score and split; and the other numbers."""
    kinds = {kind for result in evaluation.splits.values() for kind in result.scores}
    scores = {
        kind: {split: result.scores[kind] for split, result in evaluation.splits.items()}
        for kind in SCORES
        if kind in kinds
    }
    return {**scores, "numbers": dict(evaluation.numbers)}


def _failed_before(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of the arms and seeds that failed in earlier runs into DIR."""
    path = directory / RESULTS
    arms = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    return {(arm, s["seed"]): s for arm, found in arms.items() for s in found["seeds"] if s["status"] == "failed"}
