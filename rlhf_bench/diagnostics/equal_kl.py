"""Scores at one common KL: the second comparison, beside the one at equal compute.

Arms that spent the same may have moved very differently far from the base policy. Comparing them where they are
equally far away asks which of them makes more of the same distance (2406.02900, 2405.08448).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curve = tuple[Sequence[float], Sequence[float]]
"""KL to the reference (nats per response) and score at one seed's evaluations [E], in time order, all finite. The first is
that of the base policy."""


@dataclass(frozen=True, slots=True)
class AtEqualKL:
    """`scores`: arm → seed → score where the seed first reached `kl` nats.

    Empty, with `kl` nan, where there is no common KL: `why` says so in a sentence. `left_out`: arms without a number, since
    no evaluation of one of their seeds, after the base policy's, was at or below `kl`: the way from the base policy to
    there was not observed.
    """

    kl: float
    scores: Mapping[str, Mapping[int, float]]
    why: str = ""
    left_out: tuple[str, ...] = ()


def at_equal_kl(curves: Mapping[str, Mapping[int, Curve]]) -> AtEqualKL:
    """Interpolate every seed's score at the largest KL that all seeds of all arms reach; `curves`: arm → seed → curve.

    Arms without a curve take no part. A curve is followed in time up to the first moment at which it is that far away: a
    policy that turns back later is taken on its way out. Between two evaluations the score is straight in √KL: a policy
    that moves a distance d has a KL that grows as d² (arXiv 2210.10760 plots over-optimisation by √KL for that reason).
    """
    present = {arm: seeds for arm, seeds in curves.items() if seeds}
    if len(present) < 2:
        return AtEqualKL(float("nan"), {}, "Fewer than two arms recorded KL at their evaluations.")
    reach = {arm: min(max(kl) for kl, _ in seeds.values()) for arm, seeds in present.items()}
    start = {arm: max(kl[0] for kl, _ in seeds.values()) for arm, seeds in present.items()}
    nearest, latest = min(reach, key=reach.__getitem__), max(start, key=start.__getitem__)
    level = reach[nearest]
    if level <= start[latest]:
        return AtEqualKL(
            float("nan"),
            {},
            f"The arms have no KL in common: a seed of {nearest} goes no further than {level:.3g} nats, and {latest} "
            f"is first seen at {start[latest]:.3g}.",
        )
    left_out = tuple(arm for arm, seeds in present.items() if not all(min(kl[1:]) <= level for kl, _ in seeds.values()))
    kept = {arm: seeds for arm, seeds in present.items() if arm not in left_out}
    if len(kept) < 2:
        return AtEqualKL(
            float("nan"),
            {},
            f"Only {nearest} was evaluated at or below {level:.3g} nats, the most that every seed reached; more marks early in "
            "the budget (evaluation.marks) would show the others there.",
            left_out,
        )
    scores = {arm: {s: _first_crossing(*curve, level) for s, curve in seeds.items()} for arm, seeds in kept.items()}
    return AtEqualKL(level, scores, left_out=left_out)


def _first_crossing(kl: Sequence[float], score: Sequence[float], level: float) -> float:
    """The score where the curve first reaches `level`, which lies above its first KL and not above its largest."""
    # An estimate of a KL may fall below 0, where it has no root.
    distances, scores = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0)), np.asarray(score, dtype=np.float64)
    after = int(np.argmax(np.asarray(kl, dtype=np.float64) >= level))
    share = (np.sqrt(level) - distances[after - 1]) / (distances[after] - distances[after - 1])
    return float(scores[after - 1] + share * (scores[after] - scores[after - 1]))
