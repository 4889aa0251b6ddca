"""What a comparison recorded, as tidy data frames for notebooks: `rlhf_bench.load_results`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.reader import RecordedComparison, read_recorded
from rlhf_bench.results.standing import Difference
from rlhf_bench.results.summary import Summary, summarize


@dataclass(frozen=True)
class Results:
    """One comparison. Every frame has a row for each thing and a column for each fact; a number that was not recorded is NaN.

    arms: one row per arm, best mean score first: method, data, finished seeds, mean score with its 95% interval, greedy score, KL (nats),
    what a seed spent of the budget.
    finals: one row per arm and seed: how it ended, its last evaluation, all that it spent.
    curves: the held-out evaluations, one row per arm, seed, split and mark; columns as in metrics.parquet (docs/output_files.md).
    updates: the training updates, one row per arm, seed and update; the same columns.
    scores: one row per prompt of an evaluation, of arms and of the base policy.
    pairs: one row per held-out pair of an evaluation: likelihoods, margins.
    samples: responses, with prompt, reference and score.
    ledger: what was spent, one row per arm, seed and phase.
    verdicts: every difference in final score between two arms, and between an arm and the base policy, and whether it is settled
    (docs/statistics.md): one family, corrected by Holm.
    """

    name: str
    directory: Path
    recipe: dict[str, Any]
    verdict: str
    arms: pd.DataFrame
    finals: pd.DataFrame
    curves: pd.DataFrame
    updates: pd.DataFrame
    scores: pd.DataFrame
    pairs: pd.DataFrame
    samples: pd.DataFrame
    ledger: pd.DataFrame
    verdicts: pd.DataFrame

    def __repr__(self) -> str:
        return f"Results({self.name}, {len(self.arms)} arms, {len(self.finals)} runs, {self.directory})"


def load_results(directory: str | Path) -> Results:
    """Of the --output of a run, also before its end, or of a folder that `rlhf-bench report --page` keeps. BadInput, with a line for
    each, where files are missing or cannot be read."""
    recorded = read_recorded(Path(directory))
    summary = summarize(recorded)
    return Results(
        name=summary.name,
        directory=Path(directory),
        recipe=dict(recorded.recipe),
        verdict=verdict(summary),
        arms=_arms(summary),
        finals=_finals(summary),
        curves=_filled(recorded, "evaluations"),
        updates=_filled(recorded, "updates"),
        scores=recorded.scores.reset_index(drop=True),
        pairs=recorded.pairs.reset_index(drop=True),
        samples=recorded.samples.reset_index(drop=True),
        ledger=recorded.ledger.reset_index(drop=True),
        verdicts=_verdicts(summary),
    )


def _arms(summary: Summary) -> pd.DataFrame:
    rows = [
        {
            "arm": arm.name,
            "method": arm.method,
            "data": arm.data,
            "seeds": len(arm.seeds),
            "finished": len(arm.finished),
            "score": arm.mean,
            **_ends("score", arm.interval),
            "greedy_score": arm.greedy,
            **_ends("greedy_score", arm.greedy_interval),
            "kl": arm.kl,
            "kl_error": arm.kl_error,
            "entropy": arm.entropy,
            "spent": arm.spent(summary.unit) / summary.limit,
        }
        for arm in summary.arms
    ]
    return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _finals(summary: Summary) -> pd.DataFrame:
    names = (
        "score",
        "greedy_score",
        "kl",
        "kl_error",
        "entropy",
        "best_score",
        "drawdown",
        "skipped_updates",
        "cut_off",
    )
    return pd.DataFrame(
        {"arm": arm.name, "method": arm.method, "data": arm.data, "seed": seed.seed, "status": seed.status}
        | {name: getattr(seed, name) for name in names}
        | {f"spent/{column}": amount for column, amount in seed.spent.items()}
        for arm in summary.arms
        for seed in arm.seeds
    )


def _verdicts(summary: Summary) -> pd.DataFrame:
    columns = ["arm", "against", "difference", "low", "high", "p_holm", "seeds", "settled", "more_seeds"]
    return pd.DataFrame((_difference(one) for one in summary.standing.differences.values()), columns=columns)


def _difference(one: Difference) -> dict[str, Any]:
    interval = one.adjusted.interval if one.adjusted is not None else None
    return {
        "arm": one.arm,
        "against": one.against,
        "difference": one.mean,
        "low": interval.low if interval else math.nan,
        "high": interval.high if interval else math.nan,
        "p_holm": one.adjusted.p if one.adjusted is not None else math.nan,
        "seeds": one.seeds,
        "settled": one.settled,
        "more_seeds": one.more_seeds,
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    return {
        f"{name}_low": interval.low if interval else math.nan,
        f"{name}_high": interval.high if interval else math.nan,
    }


def _filled(recorded: RecordedComparison, rows: str) -> pd.DataFrame:
    """The rows of metrics of one kind, without the columns of the other kind."""
    return getattr(recorded, rows).dropna(axis="columns", how="all").reset_index(drop=True)
