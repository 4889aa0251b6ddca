"""What a comparison writes into its directory: one part per arm and seed, merged into the tables that the report reads.

A part is complete once its `result.json` is there: a comparison that is carried on keeps it and runs the rest.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlhf_bench.core.costs import Cost, Phase
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import write_json
from rlhf_bench.core.types import EvalPoint, Evaluation, PairEvaluation
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.schema import METRIC_KEYS, PAIR_KEYS, SAMPLE_KEYS, TABLES


class ArmRecords:
    """The records of one arm and seed, kept in memory while it runs and written when it ends."""

    def __init__(self, directory: Path, arm: str, method: str, data: str, seed: int):
        self.folder = directory / "parts" / f"{arm}-seed{seed}"
        self.key: dict[str, Any] = {"arm": arm, "method": method, "data": data, "seed": seed}
        self.metrics: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.pairs: list[dict[str, Any]] = []

    @property
    def result(self) -> dict[str, Any] | None:
        """What was written when this part ended, or None if it did not end yet."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def update(
        self,
        update: int,
        numbers: Mapping[str, float],
        spent: Mapping[str, float],
        fraction: float,
        wall_seconds: float,
    ) -> None:
        self.metrics.append(
            self.key
            | {
                "phase": "train",
                "split": None,
                "update": update,
                "fraction": fraction,
                "wall_seconds": wall_seconds,
                **spent,
                **numbers,
            }
        )

    def evaluated(self, look: EvalPoint, evaluation: Evaluation, reward_margins: Mapping[str, float]) -> None:
        for i, (split, result) in enumerate(evaluation.splits.items()):
            row = self.key | {
                "phase": "evaluation",
                "split": split,
                "mark": look.mark,
                "update": look.update,
                "fraction": look.fraction,
            }
            row |= {
                "wall_seconds": look.wall_seconds,
                **look.spent,
                "score": result.score,
                "response_length": result.response_length,
            }
            row |= {f"part/{name}": value for name, value in result.parts.items()}
            self.metrics.append(row | (dict(evaluation.numbers) if i == 0 else {}))
        arm, seed = self.key["arm"], self.key["seed"]
        self.samples += sample_rows(arm, seed, look.mark, evaluation)
        self.pairs += pair_rows(arm, seed, look, evaluation, reward_margins)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """All there is so far, for a checkpoint."""
        return {"metrics": self.metrics, "samples": self.samples, "pairs": self.pairs}

    def put_back(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        """What `rows` gave then, in place of what there is now."""
        self.metrics, self.samples, self.pairs = (list(rows[name]) for name in ("metrics", "samples", "pairs"))

    def finish(self, by_phase: Mapping[Phase, Cost], result: Mapping[str, Any]) -> None:
        """Write the tables, then `result.json`, which makes the part complete."""
        # In the order of the run, however long the evaluator took to answer.
        self.metrics.sort(key=lambda row: (row["update"], row["phase"] == "evaluation", row.get("mark", 0.0)))
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger = [
            {"arm": self.key["arm"], "seed": self.key["seed"], "phase": p, **c.as_dict()} for p, c in by_phase.items()
        ]
        for name, rows, keys in (
            ("metrics", self.metrics, METRIC_KEYS),
            ("samples", self.samples, SAMPLE_KEYS),
            ("ledger", ledger, ()),
            ("pairs", self.pairs, PAIR_KEYS),
        ):
            table(rows, keys).to_parquet(self.folder / f"{name}.parquet")
        write_json(self.folder / "result.json", result)


def is_done(directory: Path, arm: str, seed: int) -> bool:
    """Has that arm ended with that seed, in this run or an earlier one?"""
    return (directory / "parts" / f"{arm}-seed{seed}" / "result.json").exists()


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """Rows with at least the columns `keys`; numbers stay numbers where a row lacks them."""
    frame = pd.DataFrame(list(rows))
    return frame.reindex(columns=[*keys, *(c for c in frame.columns if c not in keys)])


def sample_rows(arm: str, seed: int, mark: float, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        dict(zip(SAMPLE_KEYS, (arm, seed, mark, split, *sample), strict=True))
        for split, result in evaluation.splits.items()
        for sample in result.samples
    ]


def pair_rows(
    arm: str, seed: int, look: EvalPoint, evaluation: Evaluation, reward_margins: Mapping[str, float]
) -> list[dict[str, Any]]:
    where = {"arm": arm, "seed": seed, "mark": look.mark, "update": look.update}
    names = [f.name for f in fields(PairEvaluation)]
    return [
        where | {n: getattr(p, n) for n in names} | {"reward_margin": reward_margins.get(p.pair_id, math.nan)}
        for p in evaluation.pairs
    ]


MAY_DIFFER = ("tracking", "placement", "reliability", "seeds", "arms", "description", "baseline", "claims", "sweep")
"""Keys of a recipe that change no number which is recorded already (arms are checked one by one)."""
DIGEST_FORMAT = "2:"
"""Before the digest of data: by which one of another version, made in another way, is told from that of other data."""


def open_directory(directory: Path, recipe: Recipe, data: str) -> None:
    """Make DIR this recipe's, or check that it is. Raises BadInput where results of another recipe or of other data are in
    it. `data`: a digest of what the recipe's data are, which a file that has changed gives another value.

    Where a run is recorded, where it is placed, what is claimed, and more seeds or arms may differ: no result changes.
    """
    path, digest = directory / "recipe.yaml", directory / "data_digest"
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
    path.write_text(yaml.safe_dump(new, sort_keys=False, allow_unicode=True))
    digest.write_text(f"{DIGEST_FORMAT}{data}\n")


def merge_parts(
    directory: Path,
    arms: Mapping[str, Sequence[int]],
    base_metrics: pd.DataFrame,
    base_samples: pd.DataFrame,
    shared: pd.DataFrame,
    base_pairs: pd.DataFrame,
) -> None:
    """Merge what is complete into DIR's tables."""
    folders = [directory / "parts" / f"{arm}-seed{seed}" for arm, seeds in arms.items() for seed in seeds]
    complete = [f for f in folders if (f / "result.json").exists()]
    first = {"metrics": base_metrics, "samples": base_samples, "ledger": shared, "pairs": base_pairs}
    for name in TABLES:
        frames = [f for f in (first[name], *(pd.read_parquet(c / f"{name}.parquet") for c in complete)) if len(f)]
        merged = pd.concat(frames, ignore_index=True) if frames else first[name]
        merged.to_parquet(directory / f"{name}.tmp")
        (directory / f"{name}.tmp").rename(directory / f"{name}.parquet")


def copy_checkpoint(source: Path, target: Path) -> None:
    """Put a finished policy in place in one step."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
