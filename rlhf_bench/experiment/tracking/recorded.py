"""A comparison's runs as MLflow is told of them, from the records in its directory: for a store that lacks them.

What a table does not keep cannot be told again: how many numbers of a step were not finite, the nodes' loads, and the data
sets that a run names as its inputs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import yaml

from rlhf_bench.core.costs import COLUMNS
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import EvalPoint
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.experiment.tracking.metrics import Steps, scored_metrics, update_metrics
from rlhf_bench.experiment.tracking.outbox import MetricsLogged, Run, RunEnded, RunStarted, Status
from rlhf_bench.results.benchmarks import Measurement, of_policies, read_benchmarks, recorded_weights
from rlhf_bench.results.directory import MAY_DIFFER
from rlhf_bench.results.metrics import BENCHMARK, EVALUATION, JUDGE, SCORES, TRAIN, described
from rlhf_bench.results.schema import BASE, BASE_JSON, METRICS_TABLE, RECIPE, RESULTS, TUNING
from rlhf_bench.results.trials import Trial, best_trial

_PLACE = {"arm", "method", "data", "seed", "phase", "split", "update", "fraction", "mark", "wall_seconds"}


@dataclass(frozen=True)
class RecordedRun:
    """A run that has ended."""

    start: RunStarted
    points: Sequence[MetricsLogged]
    end: RunEnded


@dataclass(frozen=True)
class Records:
    """What DIR has of its comparison."""

    directory: Path

    @cached_property
    def recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = read_yaml((self.directory / RECIPE).read_text(encoding="utf-8"))
        return recipe

    @cached_property
    def results(self) -> dict[str, Any]:
        results: dict[str, Any] = json.loads((self.directory / RESULTS).read_text(encoding="utf-8"))
        return results

    @cached_property
    def tags(self) -> dict[str, str]:
        """On every run."""
        known = {key: str(self.results.get(key, "")) for key in ("run_key", "commit", "machine")}
        if not known["run_key"]:
            raise BadInput(f"{self.directory / RESULTS}: no run_key, by which MLflow knows the runs; record it again")
        return known | {"recipe": self.recipe["name"]}

    @property
    def ended(self) -> list[tuple[str, int]]:
        """Arms and seeds."""
        return [(arm, seed["seed"]) for arm, found in self.results["arms"].items() for seed in found["seeds"]]

    def comparison(self) -> RunStarted:
        named = {"seeds": str(list(self.recipe["seeds"])), "arms": ", ".join(self.recipe["arms"])}
        run = Run(self.tags["run_key"])
        return RunStarted(run, self._ended_at - self._wall_ms, params(self.recipe), self.tags | named)

    def start(self, run: Run) -> RunStarted:
        """LookupError where DIR has no records of it."""
        return self.comparison() if run.arm is None or run.seed is None else self.run(run.arm, run.seed).start

    @property
    def status(self) -> Status:
        """Of the comparison."""
        failed = any(seed["status"] == "failed" for found in self.results["arms"].values() for seed in found["seeds"])
        return "failed" if failed else "done"

    def of(self, run: Run) -> RecordedRun:
        """Of an arm with a seed, or of the comparison."""
        if run.arm is not None and run.seed is not None:
            return self.run(run.arm, run.seed)
        points = self._benchmarks(run, [one for one in self.benchmarks if one.arm == BASE])
        return RecordedRun(self.comparison(), points, RunEnded(run, self._ended_at, self.status, {}))

    def run(self, arm: str, seed: int) -> RecordedRun:
        """LookupError where DIR has no such arm and seed."""
        run, found = Run(self.tags["run_key"], arm, seed), self.results["arms"].get(arm, {"seeds": []})
        result = next((one for one in found["seeds"] if one["seed"] == seed), None)
        if result is None:
            raise LookupError(f"{self.directory} has no records of {run}")
        rows = pd.read_parquet(self.directory / METRICS_TABLE.file, filters=[("arm", "==", arm), ("seed", "==", seed)])
        seconds = rows["wall_seconds"].max() if len(rows) else 0.0
        began = self._ended_at - round(1000 * (0.0 if math.isnan(seconds) else seconds))
        settings = {f"arm/{key}": str(value) for key, value in self._settings(arm).items()}
        tags = self.tags | {"method": str(found["method"]), "data": str(found["data"]), "seed": str(seed)}
        end = {"updates": str(result["updates"])} if "updates" in result else {}
        return RecordedRun(
            RunStarted(run, began, settings, tags),
            [
                *(MetricsLogged(run, began + at, step, finite) for at, step, finite in _points(rows)),
                *self._benchmarks(run, [one for one in self.benchmarks if one.policy == (arm, seed)]),
                *self._judged(run),
            ],
            RunEnded(run, self._ended_at, result["status"], end),
        )

    @cached_property
    def benchmarks(self) -> list[Measurement]:
        """Of the policies as they are."""
        rows = read_benchmarks(self.directory)
        if not rows:
            return []
        base = json.loads((self.directory / BASE_JSON).read_text(encoding="utf-8"))
        return of_policies(rows, recorded_weights(base, self.results))

    def _benchmarks(self, run: Run, rows: Sequence[Measurement]) -> list[MetricsLogged]:
        """At the number of prompts as step; means where several base policies were measured. Of a benchmark whose prompts have
        changed, what was measured last."""
        last = {(row.prompts, benchmark_name(row)): row.digest for row in rows}
        return [
            MetricsLogged(
                run, self._ended_at, step, {name: fmean([row.value for row in rows if _is(row, step, name, digest)])}
            )
            for (step, name), digest in last.items()
        ]

    @cached_property
    def judged(self) -> list[tuple[str, dict[tuple[str, int], tuple[float, int]]]]:
        """Of every judging: the metric's name, and win rates with their numbers of prompts, by arm and seed."""
        from rlhf_bench.results.judged import read_judged, win_rates_of_seeds

        return [(judged_name(about), win_rates_of_seeds(rows)) for about, rows in read_judged(self.directory)]

    def _judged(self, run: Run) -> list[MetricsLogged]:
        """At the number of prompts as step."""
        of_run = [(name, rates.get((run.arm or "", run.seed or 0))) for name, rates in self.judged]
        return [MetricsLogged(run, self._ended_at, one[1], {name: one[0]}) for name, one in of_run if one is not None]

    @cached_property
    def _ended_at(self) -> int:
        return int(1000 * (self.directory / RESULTS).stat().st_mtime)

    @property
    def _wall_ms(self) -> int:
        return round(1000 * self.results.get("timing", {}).get("wall_seconds", 0.0))

    def _settings(self, arm: str) -> dict[str, Any]:
        """Those that the arm ran with, as tuned."""
        settings, trials = dict(self.recipe["arms"][arm]), self.directory / TUNING
        if trials.exists():
            found = json.loads(trials.read_text(encoding="utf-8")).get(arm, [])
            best = best_trial([Trial.from_json(one) for one in found])
            settings |= best.settings if best else {}
        return settings


def _is(row: Measurement, prompts: int, name: str, digest: str) -> bool:
    return (row.prompts, benchmark_name(row), row.digest) == (prompts, name, digest)


def benchmark_name(row: Measurement) -> str:
    """What MLflow calls a number of lm-eval. It takes letters, digits and _ - . space / in a metric's name."""
    parts = (BENCHMARK, row.task, row.metric, *((row.filter,) if row.filter != "none" else ()))
    return "/".join(re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII) for part in parts)


def judged_name(about: Mapping[str, Any]) -> str:
    """What MLflow calls the win rate that a language model has judged."""
    from rlhf_bench.results.judged import judging_name

    parts = (JUDGE, str(about["model"]), judging_name(about), "win_rate")
    return "/".join(re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII) for part in parts)


def params(resolved: Mapping[str, Any]) -> dict[str, str]:
    """A recipe's settings as section/key -> YAML. MLflow's params never change, so what may differ when a comparison is resumed is
    not among them."""
    return {key: _as_yaml(value) for key, value in _flat(resolved) if key.split("/")[0] not in MAY_DIFFER}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _points(rows: pd.DataFrame) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Milliseconds since the arm began, step and metrics, in the order of the updates."""
    for _, group in rows.groupby([rows["update"], rows["phase"] == EVALUATION, rows["mark"]], dropna=False):
        first = group.iloc[0]
        at = 0 if math.isnan(first["wall_seconds"]) else round(1000 * first["wall_seconds"])
        for step, metrics in _updates(first) if first["phase"] == TRAIN else _evaluation(group):
            yield at, step, metrics


def _updates(row: pd.Series) -> Steps:
    numbers = _numbers(row)
    spent: dict[str, float] = {column: numbers.pop(column) for column in COLUMNS if column in numbers}
    return update_metrics(int(row["update"]), numbers, spent, float(row["fraction"]))


def _evaluation(rows: pd.DataFrame) -> Steps:
    """`rows`: of every split; the first one's has the numbers that are of no split."""
    first = rows.iloc[0]
    numbers = _numbers(first)
    spent: dict[str, float] = {column: numbers.pop(column) for column in COLUMNS if column in numbers}
    tracked = {
        n: v for n, v in numbers.items() if n not in SCORES and ((m := described(n, EVALUATION)) is None or m.tracked)
    }
    scores = [(n, str(row["split"]), v) for _, row in rows.iterrows() for n, v in _numbers(row).items() if n in SCORES]
    point = EvalPoint(first["mark"], int(first["update"]), spent, first["fraction"], first["wall_seconds"])
    return scored_metrics(point, tracked, scores)


def _numbers(row: pd.Series) -> dict[str, float]:
    return {str(k): float(v) for k, v in row.items() if k not in _PLACE and v is not None and math.isfinite(float(v))}
