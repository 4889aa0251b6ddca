"""What a comparison writes into its directory: one part per arm and seed, merged into the tables that the report reads.

A part is complete once its `result.json` is there: a comparison that is resumed keeps it and runs the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_bench.core.costs import Cost, Phase
from rlhf_bench.core.files import write_json, written_aside
from rlhf_bench.core.types import EvalPoint, Evaluation, PairEvaluation
from rlhf_bench.results.integrity import (
    Sums,
    part_place,
    read_table,
    sums_as_json,
    sums_of,
)
from rlhf_bench.results.metrics import EVALUATION, TRAIN
from rlhf_bench.results.schema import (
    BASE,
    CHECKSUMS,
    PARTS,
    RESULT,
    SAMPLES_TABLE,
    SHARED,
    TABLES,
    Table,
)

Rows = list[dict[str, Any]]


class ArmRecords:
    """The records of one arm and seed, kept in memory while it runs and written when it ends."""

    def __init__(self, directory: Path, arm: str, method: str, data: str, seed: int):
        self.folder = part_folder(directory, arm, seed)
        self.key: dict[str, Any] = {"arm": arm, "method": method, "data": data, "seed": seed}
        self.metrics: Rows = []
        self.samples: Rows = []
        self.pairs: Rows = []
        self.scores: Rows = []

    @property
    def result(self) -> dict[str, Any] | None:
        """What was written when this part ended, or None if it did not end yet."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def update(
        self,
        update: int,
        numbers: Mapping[str, float],
        spent: Mapping[str, float],
        fraction: float,
        wall_seconds: float,
    ) -> None:
        """Add an update's row. `spent`: by ledger column, up to and with this update; `fraction`: of the budget."""
        reached = {"update": update, "fraction": fraction, "wall_seconds": wall_seconds, **spent}
        self.metrics.append({**self.key, "phase": TRAIN, "split": None, **reached, **numbers})

    def evaluated(self, point: EvalPoint, evaluation: Evaluation, reward_margins: Mapping[str, float]) -> None:
        """Add an evaluation's rows. Numbers that are of no single split stand in the first one's, the main split's."""
        reached = {"mark": point.mark, "update": point.update, "fraction": point.fraction, **point.spent}
        for i, (split, result) in enumerate(evaluation.splits.items()):
            parts = {f"part/{name}": value for name, value in result.parts.items()}
            scored = {**result.scores, "response_length": result.response_length, "cut_off": result.cut_off, **parts}
            row = {**self.key, "phase": EVALUATION, "split": split, **reached, "wall_seconds": point.wall_seconds}
            self.metrics.append(row | scored | (dict(evaluation.numbers) if i == 0 else {}))
        arm, seed = self.key["arm"], self.key["seed"]
        self.samples += sample_rows(arm, seed, point.mark, evaluation)
        self.scores += score_rows(arm, seed, point.mark, evaluation)
        self.pairs += pair_rows(arm, seed, point, evaluation, reward_margins)

    def rows(self) -> dict[str, Rows]:
        """All rows so far, for a checkpoint."""
        return {"metrics": self.metrics, "samples": self.samples, "pairs": self.pairs, "scores": self.scores}

    def put_back(self, rows: Mapping[str, Rows]) -> None:
        """Replace all rows by those of a checkpoint."""
        self.metrics, self.samples = list(rows["metrics"]), list(rows["samples"])
        self.pairs, self.scores = list(rows["pairs"]), list(rows["scores"])

    def finish(self, by_phase: Mapping[Phase, Cost], result: Mapping[str, Any], policy: Sums | None = None) -> None:
        """Write the part: tables, result and checksums, also those of the `policy`, together and through to the disk."""
        # In the order of the run, however long the evaluator took to answer.
        self.metrics.sort(key=lambda row: (row["update"], row["phase"] == EVALUATION, row.get("mark", 0.0)))
        key = {"arm": self.key["arm"], "seed": self.key["seed"]}
        ledger: Rows = [{**key, "phase": phase, **cost.as_dict()} for phase, cost in by_phase.items()]
        with written_aside(self.folder) as aside:
            aside.mkdir(parents=True)
            for name, rows in {**self.rows(), "ledger": ledger}.items():
                as_frame(rows, TABLES[name]).to_parquet(aside / TABLES[name].file)
            write_json(aside / RESULT, result)
            own = sums_of(aside, f"{PARTS}/{self.folder.name}")
            write_json(aside / CHECKSUMS, sums_as_json({**own, **(policy or {})}))


def part_folder(directory: Path, arm: str, seed: int) -> Path:
    return directory / part_place(arm, seed)


def is_done(directory: Path, arm: str, seed: int) -> bool:
    """Whether that arm has ended with that seed, in this run or an earlier one."""
    return (part_folder(directory, arm, seed) / RESULT).exists()


def as_frame(rows: Iterable[Mapping[str, Any]], table: Table) -> pd.DataFrame:
    """Rows with the table's columns first, those that no row has too, then any others."""
    frame = pd.DataFrame(list(rows))
    return frame.reindex(columns=[*table.keys, *(c for c in frame.columns if c not in table.keys)])


def sample_rows(arm: str, seed: int, mark: float, evaluation: Evaluation) -> Rows:
    """An evaluation's responses, as rows of samples.parquet."""
    return [
        dict(zip(SAMPLES_TABLE.keys, (arm, seed, mark, split, *sample), strict=True))
        for split, result in evaluation.splits.items()
        for sample in result.samples
    ]


def score_rows(arm: str, seed: int, mark: float, evaluation: Evaluation) -> Rows:
    """An evaluation's prompts, as rows of scores.parquet."""
    return [
        {"arm": arm, "seed": seed, "mark": mark, "split": split, **asdict(prompt)}
        for split, result in evaluation.splits.items()
        for prompt in result.prompts
    ]


def pair_rows(
    arm: str, seed: int, point: EvalPoint, evaluation: Evaluation, reward_margins: Mapping[str, float]
) -> Rows:
    """An evaluation's held-out pairs, as rows of pairs.parquet."""
    where = {"arm": arm, "seed": seed, "mark": point.mark, "update": point.update}
    names = [f.name for f in fields(PairEvaluation)]
    return [
        where | {n: getattr(p, n) for n in names} | {"reward_margin": reward_margins.get(p.pair_id, math.nan)}
        for p in evaluation.pairs
    ]


def merge_parts(
    directory: Path, arms: Mapping[str, Sequence[int]], first: Mapping[str, Rows], kept: Sequence[int] = ()
) -> None:
    """Write DIR's tables from all complete parts of `arms` (name → seeds). `first` by table: what comes before them, of the base
    policy and of the stages before the arms. Of the base policies of the seeds `kept`, what DIR has stays."""
    folders = [part_folder(directory, arm, seed) for arm, seeds in arms.items() for seed in seeds]
    complete = [folder for folder in folders if (folder / RESULT).exists()]
    for name, table in TABLES.items():
        begins = as_frame([*_recorded_before_arms(directory, table, kept), *first.get(name, [])], table)
        frames = [f for f in (begins, *(read_table(folder / table.file) for folder in complete)) if len(f)]
        with written_aside(directory / table.file) as aside:
            (pd.concat(frames, ignore_index=True) if frames else begins).to_parquet(aside)


def _recorded_before_arms(directory: Path, table: Table, seeds: Sequence[int]) -> Rows:
    """What DIR's table has of these seeds' base policies and shared stages."""
    if not seeds:
        return []
    rows = read_table(directory / table.file)
    before = rows["arm"].isin([BASE, SHARED]) | rows["arm"].astype(str).str.startswith(
        f"{BASE} at "
    )  # no arm's name has spaces
    rows = rows[before & rows["seed"].isin(seeds)]
    return rows.to_dict("records")
