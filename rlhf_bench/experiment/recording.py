"""Writes into DIR what the report reads. After every arm, so that a comparison that is cut short can be reported too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.files import write_json
from rlhf_bench.core.types import BASE_POINT
from rlhf_bench.experiment.arm import ArmOutcome, ArmRunner
from rlhf_bench.experiment.spec import ComparisonSpec
from rlhf_bench.experiment.timing import Timing
from rlhf_bench.results.schema import BASE, BASE_JSON, RESULTS, SHARED, TUNING
from rlhf_bench.results.store import is_done, merge_parts, pair_rows, sample_rows


class Recorder:
    """One thread writes all tables, while the engines work on the next arms. Methods may be called from any thread.

    All of DIR is recorded, also arms and seeds of earlier runs, in the recipe's order, whichever ended first."""

    def __init__(
        self,
        *,
        spec: ComparisonSpec,
        runner: ArmRunner,
        timing: Timing,
        notes: Sequence[str],
        tags: Mapping[str, str],
    ):
        self.spec, self.runner, self.timing = spec, runner, timing
        self.notes, self.tags = notes, tags  # notes: what the data and the probes had to leave out
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
        write_json(self.spec.directory / BASE_JSON, self._base())
        write_json(self.spec.directory / RESULTS, self._results())
        start, base = self.runner.shared.start, self.runner.shared.base
        merge_parts(
            self.spec.directory,
            {arm: self.spec.recipe.seeds for arm in self.spec.recipe.arms},
            samples=sample_rows(BASE, 0, 0.0, base),
            ledger=self._shared_costs(),
            pairs=pair_rows(BASE, 0, BASE_POINT, base, start.reward_margins),
        )

    def _submit(self, write: Callable[[], None]) -> None:
        self._raise_errors()
        self._writes.append(self._thread.submit(write))

    def _raise_errors(self) -> None:
        """Of writes that have ended, such as a full disk."""
        for write in list(self._writes):
            if write.done():
                write.result()

    def _finish(self, outcome: ArmOutcome) -> None:
        outcome.records.finish(outcome.by_phase, outcome.result)
        arm, seed = outcome.records.key["arm"], outcome.records.key["seed"]
        self.runner.checkpoints(arm, seed).clear()
        if all(is_done(self.spec.directory, other, seed) for other in self.spec.recipe.arms):
            self.runner.shared.start_samples.clear(seed)
        self.record()

    def _base(self) -> dict[str, Any]:
        start, base = self.runner.shared.start, self.runner.shared.base
        main, accuracy = self.spec.recipe.evaluation.splits[0], start.reward_model_accuracy
        path = self.spec.directory / BASE_JSON
        if not accuracy and path.exists():  # measured by an earlier run of other arms
            accuracy = json.loads(path.read_text())["reward_model"]["accuracies"]
        return {
            "score": {split: result.score for split, result in base.splits.items()},
            "numbers": dict(base.numbers),
            "reward_model": {"accuracy": accuracy.get(main), "accuracies": accuracy},
            "setup": {
                "off_policy_pairs": len(start.pairs),
                "held_out_pairs": ", ".join(f"{len(p)} {split}" for split, p in start.held_out_pairs.items()),
                "notes": self.notes,
            },
        }

    def _results(self) -> dict[str, Any]:
        recipe, arms = self.spec.recipe, {}
        for arm, settings in recipe.arms.items():
            results = [self.runner.records(arm, seed).result or self.failed.get((arm, seed)) for seed in recipe.seeds]
            arms[arm] = {"method": settings.method, "data": settings.data, "seeds": [r for r in results if r]}
        identity = {key: self.tags[key] for key in ("run_key", "commit", "machine")}
        return {"arms": arms, "timing": self.timing.as_dict(), **identity}

    def _shared_costs(self) -> list[dict[str, Any]]:
        """Rows of the ledger that are charged to no arm: what all arms start from, and the trials."""
        start, tuning = self.runner.shared.start, self.spec.recipe.tuning
        rows = [{"arm": SHARED, "seed": 0, "phase": "shared", **(start.base_cost + start.pairs_cost).as_dict()}]
        if tuning is not None:
            for arm, trials in json.loads((self.spec.directory / TUNING).read_text()).items():
                rows += [{"arm": arm, "seed": tuning.seed, "phase": "tuning", **trial["spent"]} for trial in trials]
        return rows


def _failed_before(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of the arms and seeds that failed in earlier runs into DIR."""
    path = directory / RESULTS
    arms = json.loads(path.read_text())["arms"] if path.exists() else {}
    return {(arm, s["seed"]): s for arm, found in arms.items() for s in found["seeds"] if s["status"] == "failed"}
