"""Means of tables of scores [seeds, prompts] of which both are samples: two-way crossed random effects, no repeats.

Score of seed s at prompt p = mean + seed's effect + prompt's effect + the rest, where the rest is what this seed does
differently at this prompt, and the luck of the responses that were sampled. Other seeds *and* other prompts would have given
another grand mean. By the mean squares of the analysis of variance (Scheffé 1959, §7.4; Searle et al. 1992, §4.3), with
M_s = P · variance of the S seeds' means, M_p = S · variance of the P prompts' means, M_r that of the rest:

    Var(grand mean) = (M_s + M_p − M_r) / (S P) = v_s/S + v_p/P − v_r/(S P)

A difference of two arms on the same seeds and prompts is such a table too, and so is an arm less the base policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_bench.diagnostics.intervals import CONFIDENCE, Estimate, Interval, Part, finite, part_of


def crossed_mean(table: np.ndarray) -> Estimate:
    """The grand mean of `table` [S >= 2 seeds, P >= 2 prompts] and its uncertainty over seeds and prompts.

    No component of variance is below 0, so neither the seeds' mean square nor the prompts' counts for less than the rest's:
    by chance it can, and without that three seeds of equal means would leave no spread at all. The seeds' part therefore
    never is below v_s/S: prompts only ever add to what the seeds alone say. Where all cells are equal, both parts are 0.
    Raises ValueError on another shape and on a value that is not finite.
    """
    cells = np.asarray(table, dtype=np.float64)
    if cells.ndim != 2 or min(cells.shape) < 2:
        raise ValueError(f"expected a table of at least two seeds and two prompts, got one of shape {cells.shape}")
    if not np.isfinite(cells).all():
        raise ValueError("every score must be finite")
    seeds, prompts = cells.shape
    if np.ptp(cells) == 0:
        return Estimate(float(cells[0, 0]), Part(0.0, seeds - 1), Part(0.0, prompts - 1))
    mean, of_seeds, of_prompts = cells.mean(), cells.mean(1), cells.mean(0)
    rest = cells - of_seeds[:, None] - of_prompts + mean
    square_rest = float((rest**2).sum()) / ((seeds - 1) * (prompts - 1))
    square_seeds = max(prompts * float(of_seeds.var(ddof=1)), square_rest)
    square_prompts = max(seeds * float(of_prompts.var(ddof=1)), square_rest)
    return Estimate(
        float(mean),
        Part(square_seeds / cells.size, seeds - 1),
        Part((square_prompts - square_rest) / cells.size, prompts - 1),
    )


def crossed_interval(table: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Of the grand mean of `table` [S >= 2, P >= 2], over seeds and prompts: see `crossed_mean`."""
    return crossed_mean(table).interval(confidence)


def mean_over_prompts(scores: np.ndarray) -> Estimate:
    """Of one policy, such as the base, its mean of `scores` [P >= 2], one per prompt: over other prompts (and other draws),
    not over other trainings. Student's."""
    array = finite(scores)
    if array.size < 2:
        raise ValueError("a spread over prompts takes at least two of them")
    if np.ptp(array) == 0:
        return Estimate(float(array[0]), prompts=Part(0.0, array.size - 1))
    return Estimate(float(array.mean()), prompts=part_of(array))


def mean_with_errors(values: Sequence[float], errors: Sequence[float], prompts: int) -> Estimate | None:
    """The mean of `values` [S], one per seed on the same P prompts, of which only each one's standard error over prompts is known:
    `errors` [S], nan where it is not. One value has uncertainty over prompts alone.

    A squared error estimates (v_p + v_r)/P, of which the prompts' part of the grand mean is v_p/P at most: so the interval is
    wider than that of `crossed_mean`, but where seeds' means agree better than the rest lets them, which cannot be told here.
    Where an error is not known, seeds alone count; None where nothing is left. Raises ValueError on a value that is not finite.
    """
    cells, known = finite(values), np.asarray(errors, dtype=np.float64)
    of_seeds = part_of(cells) if cells.size > 1 else None
    of_prompts = None
    if known.size and np.isfinite(known).all() and prompts > 1:
        of_prompts = Part(float((known**2).mean()), prompts - 1)
    if of_seeds is None and of_prompts is None:
        return None
    return Estimate(float(cells.mean()), of_seeds, of_prompts)


def interval_over_prompts(scores: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Of one policy's mean of `scores` [P >= 2]: see `mean_over_prompts`."""
    return mean_over_prompts(scores).interval(confidence)
