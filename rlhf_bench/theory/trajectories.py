"""Trajectories of a comparison's policies through the field: log-ratios of held-out pairs at every mark, as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from pydantic import ValidationError

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import FIXED, MAIN_SPLIT, PAIR_PROPERTIES, PairEvaluation
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.methods import METHODS
from rlhf_bench.theory.field import FieldOf, Start, at_start

KEYS = ("arm", "seed", "mark", *(f.name for f in fields(PairEvaluation) if f.name not in (*PAIR_PROPERTIES, "kind")))
"""Columns of pairs.parquet that must be there; older ones have no kind."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One arm's trajectory, in nats. M marks, the start (0, 0) first; `singles` are pairs of one seed, [M, pairs, 2].

    `mean` [M, 2] is over seeds and pairs, of Δ⁺ and Δ⁻; `low` and `high` [M, 2] are the 16th and 84th percentiles.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    singles: np.ndarray


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What `theory field --run` needs of a comparison: its arms' losses, their trajectories, and where they started."""

    fields: list[FieldOf]
    trajectories: dict[str, Trajectory]
    start: Start


def read_run(directory: Path, methods: Sequence[str] = ()) -> RecordedRun:
    """Read the arms of a comparison, those of `methods` only where any are given.

    Raises BadInput, one line, for a directory that holds no comparison, or one without recorded pairs.
    """
    pairs = _pairs(directory)
    fields = [f for f in _arms(directory) if not methods or getattr(f.settings, "method", None) in methods]
    recorded = set(pairs["arm"])
    fields = [f for f in fields if f.name in recorded]
    if not fields:
        wanted = f" of {', '.join(methods)}" if methods else ""
        raise BadInput(
            f"--run {directory}: no recorded arm{wanted}; resume it with `rlhf-bench run`, or leave out --method"
        )
    return RecordedRun(fields, {f.name: _trajectory(pairs[pairs["arm"] == f.name]) for f in fields}, _start(pairs))


def _pairs(directory: Path) -> pd.DataFrame:
    path = directory / "pairs.parquet"
    try:
        table = pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        what = (
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({str(error).splitlines()[0]})"
        )
        raise BadInput(f"{path}: {what}; --run takes the --output of a finished `rlhf-bench run`") from error
    if missing := [key for key in KEYS if key not in table.columns]:
        raise BadInput(f"{path}: no column {', '.join(missing)}; record the comparison again by `rlhf-bench run`")
    table = table[table["split"] == MAIN_SPLIT]
    if "kind" in table.columns:  # arms of one kind do not have the trajectories of another's pairs
        table = table[table["kind"].fillna(FIXED) == FIXED]
    if table.empty:
        raise BadInput(f"{path}: no pairs of split {MAIN_SPLIT}; record the comparison again by `rlhf-bench run`")
    return table


def _arms(directory: Path) -> list[FieldOf]:
    path = directory / "recipe.yaml"
    try:
        arms = read_yaml(path.read_text(encoding="utf-8"))["arms"]
        return [
            at_start(name, METHODS[arm["method"]].settings.model_validate(arm), METHODS[arm["method"]].pair_loss)
            for name, arm in arms.items()
        ]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read; --run takes the --output of a `rlhf-bench run`") from error
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: its arms are not a recipe's; --run takes the --output of a `rlhf-bench run`"
        ) from error


def _trajectory(rows: pd.DataFrame) -> Trajectory:
    ratios = ["chosen_logratio", "rejected_logratio"]
    by_mark = rows[rows["mark"] > 0].groupby("mark")[ratios]
    still = np.zeros((1, 2))
    first = rows[(rows["mark"] > 0) & (rows["seed"] == rows["seed"].min())]
    wide = first.pivot_table(index="mark", columns="pair_id", values=ratios)
    singles = np.stack([wide[name].to_numpy() for name in ratios], axis=-1)
    return Trajectory(
        mean=np.concatenate([still, by_mark.mean().to_numpy()]),
        low=np.concatenate([still, by_mark.quantile(0.16).to_numpy()]),
        high=np.concatenate([still, by_mark.quantile(0.84).to_numpy()]),
        singles=np.concatenate([np.zeros((1, singles.shape[1], 2)), singles]),
    )


def _start(pairs: pd.DataFrame) -> Start:
    """Means over the held-out pairs: log π0 is what the policy gave, less its log-ratio, whatever the policy."""
    return Start(
        chosen_logprob=float((pairs["chosen_logprob"] - pairs["chosen_logratio"]).mean()),
        rejected_logprob=float((pairs["rejected_logprob"] - pairs["rejected_logratio"]).mean()),
        chosen_tokens=float(pairs["chosen_tokens"].mean()),
        rejected_tokens=float(pairs["rejected_tokens"].mean()),
    )
