"""What a comparison writes into its directory: one part per arm and seed, merged into the tables that the report reads.

A part is complete once its `result.json` is there: a comparison that is resumed keeps it and runs the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlhf_bench.core.costs import Cost, Phase
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import write_json, write_text, written_aside
from rlhf_bench.core.types import EvalPoint, Evaluation, PairEvaluation
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.metrics import EVALUATION, TRAIN
from rlhf_bench.results.schema import DATA_DIGEST, PARTS, RECIPE, RESULT, SAMPLES_TABLE, TABLES, Table

Rows = list[dict[str, Any]]


class ArmRecords:
    """The records of one arm and seed, kept in memory while it runs and written when it ends."""

    def __init__(self, directory: Path, arm: str, method: str, data: str, seed: int):
        self.folder = part_folder(directory, arm, seed)
        self.key: dict[str, Any] = {"arm": arm, "method": method, "data": data, "seed": seed}
        self.metrics: Rows = []
        self.samples: Rows = []
        self.pairs: Rows = []

    @property
    def result(self) -> dict[str, Any] | None:
        """What was written when this part ended, or None if it did not end yet."""
        path = self.folder / RESULT
        return json.loads(path.read_text()) if path.exists() else None

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
            scored = {"score": result.score, "response_length": result.response_length, **parts}
            row = {**self.key, "phase": EVALUATION, "split": split, **reached, "wall_seconds": point.wall_seconds}
            self.metrics.append(row | scored | (dict(evaluation.numbers) if i == 0 else {}))
        arm, seed = self.key["arm"], self.key["seed"]
        self.samples += sample_rows(arm, seed, point.mark, evaluation)
        self.pairs += pair_rows(arm, seed, point, evaluation, reward_margins)

    def rows(self) -> dict[str, Rows]:
        """All rows so far, for a checkpoint."""
        return {"metrics": self.metrics, "samples": self.samples, "pairs": self.pairs}

    def put_back(self, rows: Mapping[str, Rows]) -> None:
        """Replace all rows by those of a checkpoint."""
        self.metrics, self.samples, self.pairs = (list(rows[name]) for name in ("metrics", "samples", "pairs"))

    def finish(self, by_phase: Mapping[Phase, Cost], result: Mapping[str, Any]) -> None:
        """Write the tables, then `result.json`, which makes the part complete."""
        # In the order of the run, however long the evaluator took to answer.
        self.metrics.sort(key=lambda row: (row["update"], row["phase"] == EVALUATION, row.get("mark", 0.0)))
        self.folder.mkdir(parents=True, exist_ok=True)
        key = {"arm": self.key["arm"], "seed": self.key["seed"]}
        ledger: Rows = [{**key, "phase": phase, **cost.as_dict()} for phase, cost in by_phase.items()]
        for name, rows in {**self.rows(), "ledger": ledger}.items():
            as_frame(rows, TABLES[name]).to_parquet(self.folder / TABLES[name].file)
        write_json(self.folder / RESULT, result)


def part_folder(directory: Path, arm: str, seed: int) -> Path:
    return directory / PARTS / f"{arm}-seed{seed}"


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


def merge_parts(directory: Path, arms: Mapping[str, Sequence[int]], samples: Rows, ledger: Rows, pairs: Rows) -> None:
    """Write DIR's tables from all complete parts of `arms` (name → seeds). `samples` and `pairs` of the base policy, and
    the `ledger` of the stages before the arms, come first."""
    folders = [part_folder(directory, arm, seed) for arm, seeds in arms.items() for seed in seeds]
    complete = [folder for folder in folders if (folder / RESULT).exists()]
    first: dict[str, Rows] = {"samples": samples, "ledger": ledger, "pairs": pairs}
    for name, table in TABLES.items():
        begins = as_frame(first.get(name, []), table)
        frames = [f for f in (begins, *(pd.read_parquet(folder / table.file) for folder in complete)) if len(f)]
        with written_aside(directory / table.file) as aside:
            (pd.concat(frames, ignore_index=True) if frames else begins).to_parquet(aside)


MAY_DIFFER = ("tracking", "placement", "reliability", "seeds", "arms", "description", "baseline", "claims", "sweep")
"""Keys of a recipe that change no number which is recorded already (arms are checked one by one)."""
DIGEST_FORMAT = "2:"
"""Stands before the digest of the data. It tells a digest that another version made in another way from one of other data."""


def open_directory(directory: Path, recipe: Recipe, data: str) -> None:
    """Make DIR this recipe's, or check that it is. Raises BadInput where results of another recipe or of other data are in
    it. `data`: a digest of what the recipe's data are, which a file that has changed gives another value.

    Where a run is recorded, where it is placed, what is claimed, and more seeds or arms may differ: no result changes.
    """
    path, digest = directory / RECIPE, directory / DATA_DIGEST
    new = recipe.resolved()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        old = read_yaml(path.read_text()) if path.exists() else None
        before = digest.read_text().strip() if digest.exists() else DIGEST_FORMAT + data
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise BadInput(f"--output {directory}: cannot be used ({reason}); choose another directory") from None
    if old is not None:
        differing = sorted(k for k in new if k not in MAY_DIFFER and old.get(k) != new[k])
        differing += [f"arms.{a}" for a in new["arms"] if a in old.get("arms", {}) and old["arms"][a] != new["arms"][a]]
        if differing:
            raise BadInput(
                f"--output {directory}: holds a comparison whose {differing[0]} differs from this recipe's; choose another directory"
            )
    if not before.startswith(DIGEST_FORMAT):
        raise BadInput(
            f"--output {directory}: holds a comparison that another version of rlhf-bench has begun; continue with that "
            "version, or choose another directory"
        )
    if before != DIGEST_FORMAT + data:
        raise BadInput(
            f"--output {directory}: holds a comparison on other data: a file that task names has changed since; "
            "bring back what it held, or choose another directory"
        )
    write_text(path, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))
    write_text(digest, f"{DIGEST_FORMAT}{data}\n")
