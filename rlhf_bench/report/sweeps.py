"""How the arms' results depend on their settings: the recipe's sweep, and the trials before the comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from rlhf_bench.core.text import listed
from rlhf_bench.diagnostics import stability
from rlhf_bench.diagnostics.stability import Sensitivity
from rlhf_bench.report.format import ABSENT, decimal, quantity
from rlhf_bench.report.measures import short
from rlhf_bench.results.claims import metric_values
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.summary import Summary
from rlhf_bench.results.trials import Trial, best_trial, edge_of


@dataclass(frozen=True, slots=True)
class Swept:
    """One arm with one setting at several values: value → the arm's name there, in ascending order."""

    arm: str
    setting: str
    arms: Mapping[float, str]


def swept(arm: str, recipe: Mapping[str, Any]) -> tuple[str, str, float] | None:
    """(arm, setting, value) of a name that the recipe's sweep made, NAME.setting=value; None for any other arm."""
    for setting in recipe.get("sweep") or {}:
        name, found, value = arm.rpartition(f".{setting}=")
        if found:
            return name, setting, float(value)
    return None


def sweeps(recorded: RecordedComparison) -> list[Swept]:
    """Every arm and setting that was swept, the arm's own value among them where the sweep does not name it already."""
    values: dict[tuple[str, str], dict[float, str]] = {}
    for arm in recorded.results["arms"]:
        if made := swept(arm, recorded.recipe):
            values.setdefault(made[:2], {})[made[2]] = arm
    for (arm, setting), at in values.items():
        own = (recorded.recipe.get("arms") or {}).get(arm, {}).get(setting)
        if isinstance(own, int | float):
            at.setdefault(float(own), arm)
    return [Swept(arm, setting, dict(sorted(at.items()))) for (arm, setting), at in values.items()]


def sensitivity_of(recorded: RecordedComparison, one: Swept, metric: str) -> Sensitivity | None:
    """The sweep reduced to its numbers; None where fewer than two values have any."""
    found = [metric_values(recorded, arm, metric) for arm in one.arms.values()]
    seeds = sorted({seed for values in found for seed in values})
    if sum(bool(values) for values in found) < 2:
        return None
    table = [[values.get(seed, math.nan) for seed in seeds] for values in found]
    return stability.sensitivity(list(one.arms), table)


def sensitivity_table(recorded: RecordedComparison) -> list[dict[str, str]]:
    """One row per swept arm and setting."""
    rows = []
    for one in sweeps(recorded):
        found = sensitivity_of(recorded, one, "score")
        slope = ABSENT
        if found and not math.isnan(found.slope):
            ends = found.slope_interval
            slope = decimal(found.slope, sign=True) + (f" [{ends.low:+.3f}, {ends.high:+.3f}]" if ends else "")
        rows.append(
            {
                "Arm": one.arm,
                "Setting": one.setting,
                "Values": ", ".join(f"{value:g}" for value in one.arms),
                "Best at": f"{found.best_setting:g}" if found else ABSENT,
                "Worst at": f"{found.worst_setting:g}" if found else ABSENT,
                "Range of the score": decimal(found.score_range) if found else ABSENT,
                "Standard error of one mean": decimal(found.standard_error) if found else ABSENT,
                "Score per factor of ten [95% interval]": slope,
            }
        )
    return rows


def sensitivity_sentences(recorded: RecordedComparison) -> list[str]:
    """What each sweep shows, and where its range is no larger than noise would make it."""
    told = []
    for one in sweeps(recorded):
        found = sensitivity_of(recorded, one, "score")
        if found is None:
            told.append(f"Fewer than two values of {one.setting} of {one.arm} finished a seed.")
            continue
        noise = range_of_noise(sum(not math.isnan(mean) for mean in found.means)) * found.standard_error
        told.append(
            f"Over {len(one.arms)} values of {one.setting} of {one.arm}, the score ranges over {found.score_range:.3f}: it is highest "
            f"at {found.best_setting:g} and lowest at {found.worst_setting:g}; "
            + (
                "one seed says nothing about noise."
                if math.isnan(noise)
                else f"noise alone would make that range {noise:.3f}."
            )
        )
    return told


def range_of_noise(count: int) -> float:
    """Expected range of `count` draws from a standard normal distribution: ∫ 1 − Φ(x)ⁿ − (1 − Φ(x))ⁿ dx (Tippett 1925)."""
    x = np.linspace(-9, 9, 3601)
    below = special.ndtr(x)
    return float(np.trapezoid(1 - below**count - (1 - below) ** count, x))


def tuning_table(recorded: RecordedComparison, summary: Summary) -> list[dict[str, str]]:
    """One row per arm and trial; no rows where no arm was tuned."""
    return [
        row for arm, trials in _trials(recorded).items() for row in _trial_rows(arm, trials, recorded, summary.unit)
    ]


def _trials(recorded: RecordedComparison) -> dict[str, list[Trial]]:
    return {arm: [Trial.from_json(trial) for trial in trials] for arm, trials in recorded.tuning.items()}


def _grid_size(recorded: RecordedComparison) -> int | None:
    """Trials that every arm has, before any beyond an edge; None where the recipe does not say."""
    trials = (recorded.recipe.get("tuning") or {}).get("trials")
    return len(trials) if isinstance(trials, list | tuple) else None


def _trial_rows(arm: str, trials: Sequence[Trial], recorded: RecordedComparison, unit: str) -> Iterable[dict[str, str]]:
    best, size = best_trial(trials), _grid_size(recorded) or len(trials)
    for number, trial in enumerate(trials, 1):
        by_seed = ", ".join(decimal(run.score) for run in trial.runs) if len(trial.runs) > 1 else ""
        yield {
            "Arm": arm,
            "Trial": f"{number}{', beyond the edge' if number > size else ''}",
            "Settings": ", ".join(f"{key} {short(value)}" for key, value in trial.settings.items()),
            "Score on the tuning prompts": decimal(trial.score) + (f" ({by_seed})" if by_seed else ""),
            "Status": trial.status,
            "Spent": quantity(trial.spent.get(unit, math.nan), unit),
            "Kept": "yes" if trial is best else "",
        }


def tuning_sentences(recorded: RecordedComparison, summary: Summary) -> list[str]:
    """Whether the arms were tuned alike, and which of them ended at an edge of their grid."""
    if not recorded.tuning:
        return ["No arm was tuned in this comparison: every setting is the recipe's."]
    found = _trials(recorded)
    counts = {arm.name: len(found.get(arm.name, [])) for arm in summary.arms}
    size, extend = _grid_size(recorded), int((recorded.recipe.get("tuning") or {}).get("extend") or 0)
    in_grid = {arm: min(count, size or count) for arm, count in counts.items()}
    if len(set(in_grid.values())) > 1:
        uneven = ", ".join(f"{arm} {count}" for arm, count in counts.items())
        return [f"The arms were not tuned alike, so do not compare their scores as equals: trials {uneven}."]
    most = quantity(max(sum(t.spent.get(summary.unit, 0.0) for t in trials) for trials in found.values()), summary.unit)
    told = [
        f"Every arm had {next(iter(in_grid.values()))} tuning trials{_beyond(counts, in_grid, extend)} and kept its best; "
        f"they cost up to {most} an arm, recorded in the ledger and beside the budget, not in it."
    ]
    edges = {arm: edge for arm, trials in found.items() if (edge := edge_of(trials)) is not None}
    if edges:
        named = listed([f"{arm} ({edge.key} {short(edge.value)}, the {edge.side})" for arm, edge in edges.items()])
        told.append(f"The best trial lies at an edge of what was tried, and a better one may lie beyond, for {named}.")
    elif any(len({key for t in trials for key in t.settings}) == 1 for trials in found.values()):
        told.append("No arm that was tuned by a single key ended at an edge of what was tried.")
    return told


def _beyond(counts: Mapping[str, int], in_grid: Mapping[str, int], extend: int) -> str:
    """How many trials went beyond the grid's edges, of those allowed."""
    if not extend:
        return ""
    used = [f"{arm} {count - in_grid[arm]}" for arm, count in counts.items() if count > in_grid[arm]]
    return f" and was allowed {extend} more beyond an edge ({'used by ' + listed(used) if used else 'used by none'})"
