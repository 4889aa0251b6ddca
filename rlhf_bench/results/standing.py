"""Where the arms stand in final score: which differences are settled, between arms and against the base policy.

One rule for every sentence: a difference is settled where the interval of the paired difference, over the seeds that both
sides share and the prompts that both were scored on, leaves out 0, corrected by Holm over all arms that are compared with
each other and with the base policy. The headline, the table of all pairs, `summary.json`, MLflow and the model cards say
"best", "beat" and "settled" by that and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.statistics import Adjusted, Paired
from rlhf_bench.results.final_scores import ArmScores, FinalScores

BASE_POLICY = "the base policy"
"""Stands for an arm where one is compared with the base policy. No arm has this name: it has spaces."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` minus `against` in final score, over the seeds that both finished. `adjusted` is None where nothing was tested.

    `more_seeds`: how many would settle it, were mean and spread of the differences to stay as they are; 0 where it is
    settled; None where no number of seeds is foreseeable, or nothing was tested. `wants_prompts`: then, more held-out prompts
    are what is lacking.
    """

    arm: str
    against: str
    paired: Paired
    adjusted: Adjusted | None
    more_seeds: int | None
    wants_prompts: bool

    def turned(self) -> Difference:
        """The same of `against` minus `arm`."""
        found, corrected = self.paired, self.adjusted
        if corrected is not None:
            corrected = replace(corrected, interval=corrected.interval.negated() if corrected.interval else None)
        return replace(self, arm=self.against, against=self.arm, paired=found.turned(), adjusted=corrected)

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


def standing(scores: Mapping[str, ArmScores]) -> Standing:
    """Of the arms with a finished seed, in the recipe's order."""
    ranking = tuple(sorted(scores, key=lambda arm: -scores[arm].final.mean))
    pairs = {(arm, other): (scores[arm].final, scores[other].final) for arm, other in combinations(ranking, 2)}
    pairs |= {(arm, BASE_POLICY): (scores[arm].final, scores[arm].base) for arm in ranking}
    return Standing(ranking, _differences(pairs))


def _differences(pairs: Mapping[tuple[str, str], tuple[FinalScores, FinalScores]]) -> dict[tuple[str, str], Difference]:
    """One family: what each may say depends on how many are compared."""
    paired = {names: one.minus(other, flips=False) for names, (one, other) in pairs.items()}
    adjusted = iter(statistics.adjust([one for one in paired.values() if one.tested]))
    found = {}
    for names, one in paired.items():
        corrected = next(adjusted) if one.tested else None
        more = statistics.seeds_to_settle(one, corrected)
        found[names] = Difference(*names, one, corrected, more, statistics.wants_prompts(one, corrected))
    return found
