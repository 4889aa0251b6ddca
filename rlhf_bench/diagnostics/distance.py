"""How far apart a pair's two responses are: the share of tokens that must be edited to turn one into the other."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Pair


def edit_distance(chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> float:
    """Levenshtein distance over tokens, divided by the length of the longer response: 0 (the same) to 1.

    Insertions, deletions and substitutions cost 1 each. EOS is a token like any other, as it is in a response's
    log-probability: two responses that both end have it in common, so their distance stays below 1, and short ones
    come out closer than their texts alone would (two different one-token answers: 1/2).
    """
    return Levenshtein.normalized_distance(chosen_ids, rejected_ids)


def pairs_within(pairs: Sequence[Pair], low: float, high: float) -> list[Pair]:
    """The pairs with low <= distance < high, in their order; `high` = 1 takes a distance of 1 in as well.

    Neighbouring ranges therefore share no pair and miss none. Raises BadInput unless 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise BadInput(f"edit distance from {low} to {high}: no such range; give 0 <= low < high <= 1")

    def fits(distance: float) -> bool:
        return low <= distance < high or distance == high == 1

    return [pair for pair in pairs if fits(edit_distance(pair.chosen_ids, pair.rejected_ids))]
