"""Scores at one common KL: the second comparison, beside the one at equal compute (2406.02900, 2405.08448)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_bench.diagnostics.matched import Curve, matched


@dataclass(frozen=True, slots=True)
class AtEqualKL:
    """`scores`: arm → seed → score where the seed first reached `kl` nats. `why`, `left_out`: as in `matched.Matched`."""

    kl: float
    scores: Mapping[str, Mapping[int, float]]
    why: str = ""
    left_out: tuple[str, ...] = ()


def at_equal_kl(curves: Mapping[str, Mapping[int, Curve]]) -> AtEqualKL:
    """Every seed's score at the largest KL that all seeds of all arms reach; `curves`: arm → seed → KL to the reference (nats
    per response) and score.

    Between two evaluations the score is straight in √KL: a policy that moves a distance d has a KL that grows as d²
    (arXiv 2210.10760 plots over-optimisation by √KL for that reason).
    """
    found = matched(curves, "KL", _root)
    return AtEqualKL(found.level, found.values, found.why, found.left_out)


def _root(kl: np.ndarray) -> np.ndarray:
    """An estimate of a KL may fall below 0, where it has no root."""
    return np.sqrt(np.maximum(kl, 0.0))
