"""Copies those records of a comparison that the report and its docs page need: few enough to commit.

What is left out: generated samples, parts, checkpoints, columns of training updates that nothing reads. What is kept is
enough for `write_report` and `write_page`. Log-ratios of single pairs, and numbers of single updates, are kept in single
precision (seven digits); every number of an evaluation is kept as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlhf_bench.core.types import MAIN_SPLIT
from rlhf_bench.report.series import series_labels
from rlhf_bench.results.judged_schema import JUDGED
from rlhf_bench.results.reader import RecordedComparison, read_recorded
from rlhf_bench.results.schema import (
    ARCHIVED_UPDATE_COLUMNS,
    BASE,
    BASE_JSON,
    BENCHMARKS,
    FIRST_DAY,
    GIVEN,
    LEDGER_TABLE,
    METRICS_TABLE,
    PAIRS_TABLE,
    RECIPE,
    RESULTS,
    SAMPLES_TABLE,
    SCORES_TABLE,
    SERIES,
    TUNING,
)


def archive(directory: Path, target: Path) -> None:
    """Copy the comparison in `directory`, or the series of them, to `target`, which is made anew.

    Raises BadInput where a record is missing, before anything is written.
    """
    labels = series_labels(directory)
    found = {label: read_recorded(directory / label) for label in labels or [""]}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if labels:
        shutil.copyfile(directory / SERIES, target / SERIES)
    for label, recorded in found.items():
        _keep_one(recorded, target / label)


def _keep_one(recorded: RecordedComparison, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (RECIPE, BASE_JSON, RESULTS, TUNING, BENCHMARKS, FIRST_DAY, GIVEN):
        if (recorded.directory / name).exists():
            shutil.copyfile(recorded.directory / name, target / name)
    if recorded.judged:
        shutil.copytree(recorded.directory / JUDGED, target / JUDGED)
    _write(_metrics(recorded), target / METRICS_TABLE.file, single=("reward", "gold", "grad_norm"))
    _write(recorded.ledger, target / LEDGER_TABLE.file)
    _write(recorded.samples.head(0), target / SAMPLES_TABLE.file)
    if not recorded.scores.empty:
        _write(_scores(recorded), target / SCORES_TABLE.file)
    if not recorded.pairs.empty:
        _write(_pairs(recorded), target / PAIRS_TABLE.file, single=("chosen_logratio", "rejected_logratio"))


def _metrics(recorded: RecordedComparison) -> pd.DataFrame:
    """Every evaluation, in full; of the updates the columns that the report reads."""
    updates = recorded.updates
    updates = updates[[column for column in updates.columns if column in ARCHIVED_UPDATE_COLUMNS]]
    both = pd.concat([recorded.evaluations.dropna(axis="columns", how="all"), updates], ignore_index=True)
    return both.reindex(columns=[column for column in recorded.metrics.columns if column in both.columns])


def _scores(recorded: RecordedComparison) -> pd.DataFrame:
    """Every prompt's at the first and the last evaluation of each arm and seed, and the base policy's."""
    scores = recorded.scores
    marks = scores.groupby(["arm", "seed"])["mark"]
    kept = scores["mark"].eq(marks.transform("min")) | scores["mark"].eq(marks.transform("max"))
    return scores[kept].dropna(axis="columns", how="all")


def _pairs(recorded: RecordedComparison) -> pd.DataFrame:
    """The pairs of the main split at every mark, and the base policy's of every split.

    What is the same in every evaluation (CHES, lengths, the reference's log-probabilities) stands in the base policy's rows
    alone. The first mark of an arm is the base policy again, and is left out.
    """
    pairs = recorded.pairs
    base = pairs["arm"] == BASE
    moved = ~base & (pairs["split"] == MAIN_SPLIT) & (pairs["mark"] > 0)
    changing = [column for column in pairs.columns if column in (*PAIRS_TABLE.required, "update", "kind")]
    return pd.concat([pairs[base], pairs.loc[moved, changing]], ignore_index=True)


def _write(table: pd.DataFrame, path: Path, single: Sequence[str] = ()) -> None:
    """Compressed, the columns `single` in single precision. Never scores or shares: equal ones must stay equal."""
    table = table.astype({column: "float32" for column in single if column in table.columns})
    table.to_parquet(path, compression="zstd", compression_level=19, index=False)
