"""Where the arms stand in final score: which differences are settled, between arms and against the base policy.

One rule for every sentence: a difference is settled where the paired Student interval of the seeds that both sides share,
corrected by Holm over all arms that are compared with each other and with the base policy, leaves out 0. The headline, the
table of all pairs, `summary.json`, MLflow and the model cards say "best", "beat" and "settled" by that and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.statistics import Adjusted, Interval, Paired

BASE_POLICY = "the base policy"
"""Stands for an arm where one is compared with the base policy. No arm has this name: it has spaces."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` minus `against` in final score, over the seeds that both finished. `adjusted` is None where nothing was tested.

    `more_seeds`: how many would settle it, were mean and spread of the differences to stay as they are; 0 where it is
    settled; None where no number of seeds is foreseeable, or nothing was tested.
    """

    arm: str
    against: str
    paired: Paired
    adjusted: Adjusted | None
    more_seeds: int | None

    def turned(self) -> Difference:
        """The same of `against` minus `arm`."""
        found, corrected = self.paired, self.adjusted
        if corrected is not None:
            corrected = replace(corrected, interval=_negated(corrected.interval))
        negated = tuple(-one for one in found.differences)
        paired = replace(found, differences=negated, interval=_negated(found.interval))
        return Difference(self.against, self.arm, paired, corrected, self.more_seeds)

    @property
    def mean(self) -> float:
        return self.paired.mean

    @property
    def seeds(self) -> int:
        return len(self.paired.differences)

    @property
    def above(self) -> bool:
        """`arm` scores higher than `against`, and that is settled."""
        interval = self.adjusted.interval if self.adjusted else None
        return interval is not None and interval.low > 0

    @property
    def below(self) -> bool:
        interval = self.adjusted.interval if self.adjusted else None
        return interval is not None and interval.high < 0

    @property
    def settled(self) -> bool:
        return self.above or self.below


@dataclass(frozen=True, slots=True)
class Standing:
    """All arms with a finished seed, by mean score, the highest first; and the difference of every two of them, and of each
    and the base policy, as one family."""

    ranking: tuple[str, ...]
    differences: Mapping[tuple[str, str], Difference]

    @property
    def leader(self) -> str | None:
        return self.ranking[0] if self.ranking else None

    @property
    def over(self) -> tuple[Difference, ...]:
        """The leader minus every other arm, by their ranking."""
        return tuple(self.differences[self.ranking[0], other] for other in self.ranking[1:])

    @property
    def against_base(self) -> tuple[Difference, ...]:
        """Every arm minus the base policy, by ranking."""
        return tuple(self.differences[arm, BASE_POLICY] for arm in self.ranking)

    @property
    def compared(self) -> int:
        """How many differences were tested."""
        return sum(one.adjusted is not None for one in self.differences.values())

    def difference(self, arm: str, against: str) -> Difference:
        """Of two ranked arms, whichever of them is ranked first."""
        found = self.differences.get((arm, against))
        return found if found is not None else self.differences[against, arm].turned()


def standing(scores: Mapping[str, Mapping[int, float]], base_score: float) -> Standing:
    """`scores`: arm → seed → final score, of finished seeds."""
    present = {arm: seeds for arm, seeds in scores.items() if seeds}
    means = {arm: statistics.mean(list(seeds.values())) for arm, seeds in present.items()}
    ranking = tuple(sorted(present, key=lambda arm: -means[arm]))
    base = {seed: base_score for seeds in present.values() for seed in seeds}
    sides = {**present, BASE_POLICY: base}
    wanted = [*combinations(ranking, 2), *((arm, BASE_POLICY) for arm in ranking)]
    return Standing(ranking, dict(zip(wanted, _differences(sides, wanted), strict=True)))


def _differences(sides: Mapping[str, Mapping[int, float]], wanted: list[tuple[str, str]]) -> list[Difference]:
    """One family: what each may say depends on how many are compared."""
    paired = [_paired(sides[arm], sides[other]) for arm, other in wanted]
    adjusted = iter(statistics.adjust([one for one in paired if one.tested]))
    found = []
    for (arm, other), one in zip(wanted, paired, strict=True):
        corrected = next(adjusted) if one.tested else None
        found.append(Difference(arm, other, one, corrected, statistics.seeds_to_settle(one, corrected)))
    return found


def _negated(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(-interval.high, -interval.low, interval.method)


def _paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    common = sorted(one.keys() & other.keys())
    return statistics.paired([one[seed] for seed in common], [other[seed] for seed in common], flips=False)
