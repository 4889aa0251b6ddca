"""Trials before the comparison: every arm tries the same settings, once each, and goes on with its best.

A rival that was tuned less loses for the wrong reason. So the list of trials is one for all arms, each trial has the
same budget, and all of them look at held-out prompts that the comparison itself never uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.methods.base import MethodSettings
from rlhf_bench.recipe import Recipe
from rlhf_bench.results.trials import Trial, best_trial


def tuned_arms(
    recipe: Recipe,
    directory: Path,
    arms: Sequence[str],
    run_trial: Callable[[str, MethodSettings], tuple[float, str, dict[str, float]]],
    say: Callable[[str], None],
) -> dict[str, MethodSettings]:
    """The settings that each of `arms` goes into the comparison with. Trials that DIR has already are not run again."""
    if recipe.tuning is None:
        return dict(recipe.arms)
    path = directory / "tuning.json"
    known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    tuned = dict(recipe.arms)
    for arm in arms:
        trials = [Trial(**t) for t in known.get(arm, [])]
        for number, values in enumerate(recipe.tuning.trials):
            if number < len(trials):
                continue
            score, status, spent = run_trial(arm, with_settings(recipe.arms[arm], values))
            trials.append(Trial(dict(values), score, status, spent))
            known[arm] = [asdict(t) for t in trials]
            aside = path.with_suffix(".tmp")
            aside.write_text(json.dumps(known, indent=1))
            aside.rename(path)
            say(
                f"{arm}: trial {number + 1} of {len(recipe.tuning.trials)}, {_shown(values)}: {status}, score {score:.3f}"
            )
        best = best_trial(trials)
        if best is None:
            ended = ", ".join(sorted({t.status for t in trials}))
            raise RunFailed(
                f"tuning: no trial of arm {arm} finished ({ended}); where they diverged, try smaller settings in "
                "tuning.trials; why one failed is said above"
            )
        tuned[arm] = with_settings(recipe.arms[arm], best.settings)
        say(f"{arm}: goes on with {_shown(best.settings)}")
    return tuned


def with_settings(settings: MethodSettings, values: dict[str, float]) -> MethodSettings:
    """The same method with other values, checked like any recipe's."""
    return type(settings).model_validate(settings.model_dump() | values)


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())
