"""Numbers of arms where they are equally far: at one common KL or margin, beside the comparison at equal compute.

Arms that spent the same may have moved very differently far. Comparing them where they are equally far away asks which of them
makes more of the same distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curve = tuple[Sequence[float], Sequence[float]]
"""How far, in nats, and the number that is compared, at one seed's evaluations [E], in time order, all finite. The first is
that of the base policy."""


@dataclass(frozen=True, slots=True)
class Matched:
    """`values`: arm → seed → the number where the seed first was `level` nats away.

    Empty, with `level` nan, where there is no common level: `why` says so in a sentence. `left_out`: arms without a number,
    since no evaluation of one of their seeds, after the base policy's, was at or below `level`: the way from the base
    policy to there was not observed.
    """

    level: float
    values: Mapping[str, Mapping[int, float]]
    why: str = ""
    left_out: tuple[str, ...] = ()


def matched(
    curves: Mapping[str, Mapping[int, Curve]], distance: str, straight_in: Callable[[np.ndarray], np.ndarray]
) -> Matched:
    """Interpolate every seed's number at the largest distance that all seeds of all arms reach; `curves`: arm → seed → curve.

    `distance`: its name in sentences. Arms without a curve take no part. A curve is followed in time up to the first moment at
    which it is that far away: a policy that turns back later is taken on its way out. Between two evaluations the number is
    straight in `straight_in` of the distance [E].
    """
    nothing = float("nan")
    present = {arm: seeds for arm, seeds in curves.items() if seeds}
    if len(present) < 2:
        return Matched(nothing, {}, f"Fewer than two arms recorded {distance} at their evaluations.")
    reach = {arm: min(max(far) for far, _ in seeds.values()) for arm, seeds in present.items()}
    start = {arm: max(far[0] for far, _ in seeds.values()) for arm, seeds in present.items()}
    nearest, latest = min(reach, key=reach.__getitem__), max(start, key=start.__getitem__)
    level = reach[nearest]
    if level <= start[latest]:
        why = (
            f"The arms have no {distance} in common: a seed of {nearest} goes no further than {level:.3g} nats, and {latest} "
            f"is first seen at {start[latest]:.3g}."
        )
        return Matched(nothing, {}, why)
    left_out = tuple(
        arm for arm, seeds in present.items() if not all(min(far[1:]) <= level for far, _ in seeds.values())
    )
    kept = {arm: seeds for arm, seeds in present.items() if arm not in left_out}
    if len(kept) < 2:
        why = (
            f"Only {nearest} was evaluated at or below {level:.3g} nats, the most that every seed reached; more marks early in "
            "the budget (evaluation.marks) would show the others there."
        )
        return Matched(nothing, {}, why, left_out)
    values = {
        arm: {seed: _first_crossing(*curve, level, straight_in) for seed, curve in seeds.items()}
        for arm, seeds in kept.items()
    }
    return Matched(level, values, left_out=left_out)


def _first_crossing(
    far: Sequence[float], number: Sequence[float], level: float, straight_in: Callable[[np.ndarray], np.ndarray]
) -> float:
    """The number where the curve first reaches `level`, which lies above its first distance and not above its largest."""
    after = int(np.argmax(np.asarray(far, dtype=np.float64) >= level))
    before, there, end = straight_in(np.array([far[after - 1], level, far[after]], dtype=np.float64))
    share = (there - before) / (end - before)
    return float(number[after - 1] + share * (number[after] - number[after - 1]))
