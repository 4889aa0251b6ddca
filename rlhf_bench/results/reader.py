"""Reads what a comparison recorded in its directory, and refuses what cannot be reported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from rlhf_bench.core.costs import COLUMNS
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import FIXED, MAIN_SPLIT, OWN
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.recipe.recipe import ARM_NAME, RESERVED
from rlhf_bench.results.benchmarks import Measurement, of_policies, read_benchmarks, recorded_weights
from rlhf_bench.results.judged import read_judged
from rlhf_bench.results.metrics import EVALUATION, TRAIN
from rlhf_bench.results.schema import (
    BASE_JSON,
    MLFLOW,
    PAIRS_TABLE,
    RECIPE,
    RESULTS,
    SCORES_TABLE,
    STATUSES,
    TABLES,
    TUNING,
)

OF_NEWER_RUNS = (PAIRS_TABLE, SCORES_TABLE)
"""Tables that an older run's directory may lack."""


@dataclass(frozen=True)
class RecordedComparison:
    """Everything in a comparison's directory that the report draws on.

    `metrics`, `samples`, `scores`, `ledger` and `pairs` are the Parquet files as tables; of `metrics` and `pairs`, only the
    schema's required columns are sure to be there: `numbers` reads any other one.
    `pairs` and `scores` have no rows, and `tuning` (arm → its trials) no keys, where the run recorded none. `mlflow`: what MLflow
    lacks; None where that is not known. `judged`: of every judging by a language model, what it was and its verdicts.
    `benchmarks`: what was measured of the policies as they are.
    """

    directory: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    base: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: pd.DataFrame
    samples: pd.DataFrame
    scores: pd.DataFrame
    ledger: pd.DataFrame
    pairs: pd.DataFrame
    tuning: Mapping[str, list[dict[str, Any]]]
    mlflow: Mapping[str, Any] | None = None
    judged: tuple[tuple[Mapping[str, Any], pd.DataFrame], ...] = ()
    benchmarks: Sequence[Measurement] = ()

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """The rows of the held-out evaluations, in the order in which each seed reached them."""
        return self.metrics[self.metrics["phase"] == EVALUATION].sort_values(["mark", "update"], kind="stable")

    @cached_property
    def main_split(self) -> pd.DataFrame:
        """The evaluations on the main split: most plots are of them."""
        return self.evaluations[self.evaluations["split"] == MAIN_SPLIT]

    @cached_property
    def evaluations_by_seed(self) -> Mapping[tuple[str, str], Mapping[int, pd.DataFrame]]:
        """(arm, split) → seed → its evaluations, in time order. Split once: a table this wide is slow to filter."""
        found: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
        for (arm, split, seed), rows in self.evaluations.groupby(["arm", "split", "seed"], sort=True):
            found.setdefault((arm, split), {})[int(seed)] = rows
        return found

    @cached_property
    def fixed_pairs(self) -> pd.DataFrame:
        """The rows of `pairs` that are off-policy pairs, the same for every arm; older runs recorded no others."""
        if "kind" not in self.pairs.columns:
            return self.pairs
        return self.pairs[self.pairs["kind"].fillna(FIXED) == FIXED]

    @cached_property
    def own_kinds(self) -> Mapping[str, str]:
        """Arm → the kind of its own pairs, where any arm's numbers on pairs of another kind than `fixed` were recorded; else
        empty: then they are the numbers on the fixed pairs once more, or there are none."""
        kinds = {arm: str(result.get("own_kind", FIXED)) for arm, result in self.results["arms"].items()}
        others = [arm for arm, kind in kinds.items() if kind != FIXED]
        own = self.main_split[self.main_split["arm"].isin(others)]
        return kinds if numbers(own, f"{OWN}margin").notna().any() else {}

    @cached_property
    def updates(self) -> pd.DataFrame:
        """The rows of the training updates, in order."""
        return self.metrics[self.metrics["phase"] == TRAIN].sort_values("update", kind="stable")


def read_recorded(directory: Path) -> RecordedComparison:
    """Read the comparison in `directory`. Raises BadInput with one line per file that is missing or unreadable.

    `pairs.parquet`, `scores.parquet` and `tuning.json` may be missing: older runs, and those without trials, have none.
    """
    texts: dict[str, str] = {TUNING: "{}"}
    tables = {table.name: pd.DataFrame(columns=list(table.required)) for table in OF_NEWER_RUNS}
    problems: list[str] = []
    for name in (RECIPE, BASE_JSON, RESULTS, *(name for name in (TUNING, MLFLOW) if (directory / name).exists())):
        try:
            texts[name] = (directory / name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            problems.append(_unreadable(directory / name, error))
    for name, table in TABLES.items():
        path = directory / table.file
        if table in OF_NEWER_RUNS and not path.exists():
            continue
        try:
            tables[name] = _plain_strings(pd.read_parquet(path))
        except (OSError, ValueError, pa.ArrowException) as error:
            problems.append(_unreadable(path, error))
            continue
        if missing := [key for key in table.required if key not in tables[name].columns]:
            problems.append(f"{path}: no column {', '.join(missing)}: resume it with `rlhf-bench run` to record it")
    if problems:
        raise BadInput(*problems)
    recorded = RecordedComparison(
        directory=directory,
        recipe=_mapping(directory / RECIPE, texts[RECIPE], read_yaml),
        recipe_text=texts[RECIPE].removesuffix("...\n"),
        base=_mapping(directory / BASE_JSON, texts[BASE_JSON], json.loads),
        results=_mapping(directory / RESULTS, texts[RESULTS], json.loads),
        tuning=_mapping(directory / TUNING, texts[TUNING], json.loads),
        mlflow=_mapping(directory / MLFLOW, texts[MLFLOW], json.loads) if MLFLOW in texts else None,
        judged=read_judged(directory),
        **tables,
    )
    if problems := [f"{directory / line}" for line in _contradictions(recorded)]:
        raise BadInput(*problems)
    weights = recorded_weights(recorded.base, recorded.results)
    return replace(recorded, benchmarks=of_policies(read_benchmarks(directory), weights))


def _plain_strings(table: pd.DataFrame) -> pd.DataFrame:
    """Strings as Python's own: a report filters by them many hundred times, which Arrow's strings make slow. Copied, since
    changed columns stand each by itself, and pandas warns of what it does with a hundred of them."""
    return table.astype(dict.fromkeys(table.select_dtypes("string").columns, object)).copy()


def numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """The numbers in `column`; all nan where this comparison never recorded that column."""
    if column not in table.columns:
        return pd.Series(float("nan"), index=table.index, name=column)
    return table[column].astype("float64")


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file: `rlhf-bench run RECIPE --output {path.parent}` records it"
    return f"{path}: cannot be read ({str(error).splitlines()[0]}): resume it with `rlhf-bench run` to record it again"


def _mapping(path: Path, text: str, parse: Any) -> Mapping[str, Any]:
    try:
        value = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(_unreadable(path, error)) from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected a mapping, found {type(value).__name__}: record it again by `rlhf-bench run`")
    return value


def _contradictions(recorded: RecordedComparison) -> Iterable[str]:
    """What would make the tables wrong, one line each, starting with the file's name."""
    compute = recorded.recipe.get("compute", {})
    if compute.get("column") not in COLUMNS:
        yield f"recipe.yaml: compute.column is {compute.get('column')!r}: one of {', '.join(COLUMNS)}"
    limit = compute.get("limit")
    if not isinstance(limit, int | float) or not limit > 0:
        yield f"recipe.yaml: compute.limit is {limit!r}: a number above 0"
    if not isinstance(recorded.base.get("score", {}).get(MAIN_SPLIT), int | float):
        yield f"base.json: score.{MAIN_SPLIT} is missing: evaluate the base model again by `rlhf-bench run`"
    if "arms" not in recorded.results:
        yield "results.json: no key arms: record it again by `rlhf-bench run`"
    for arm, result in recorded.results.get("arms", {}).items():
        if arm in RESERVED or not re.fullmatch(ARM_NAME, arm):
            yield f"results.json: arms: {arm!r} is no name of an arm: letters, digits and _ . = + -, and neither of {', '.join(RESERVED)}"
        for seed in result["seeds"]:
            where = f"results.json: arms.{arm} seed {seed['seed']}"
            if seed["status"] not in STATUSES:
                yield f"{where}: status is {seed['status']!r}: one of {', '.join(STATUSES)}"
            if compute.get("column") not in seed["spent"]:
                yield f"{where}: spent has no {compute.get('column')}: the budget's column must be recorded"
            if seed["status"] == "done" and not _is_finite(seed.get("score")):
                yield f"{where}: done, but its score is {seed.get('score')!r}: run this seed again"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
