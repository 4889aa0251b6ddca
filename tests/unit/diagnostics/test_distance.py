"""Edit distance between a pair's responses, against a table of all sub-problems, and the ranges that choose pairs by it."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.diagnostics.distance import edit_distance, pairs_within

RESPONSES = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple)
EOS = 2


@cache
def fewest_edits(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """By the definition: the last tokens are kept or replaced, or one of them is left out; the cheapest of all ways."""
    if not a or not b:
        return len(a) + len(b)
    changed = fewest_edits(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(changed, fewest_edits(a[:-1], b) + 1, fewest_edits(a, b[:-1]) + 1)


@settings(deadline=None)
@given(RESPONSES, RESPONSES)
def test_it_is_the_fewest_edits_per_token_of_the_longer_response(a, b):
    assert edit_distance(a, b) == pytest.approx(fewest_edits(a, b) / max(len(a), len(b)), abs=1e-12)


@settings(deadline=None)
@given(RESPONSES, RESPONSES, st.permutations(range(4)))
def test_it_is_symmetric_and_knows_tokens_only_as_equal_or_not(a, b, renamed):
    distance = edit_distance(a, b)
    assert distance == edit_distance(b, a)
    assert distance == edit_distance([renamed[t] for t in a], [renamed[t] for t in b])
    assert (distance == 0) == (a == b) and 0 <= distance <= 1


@pytest.mark.parametrize("chosen, rejected, distance", [
    ((9, 5, EOS), (9, 6, EOS), 1 / 3),  # "95" and "96"
    ((9, 5, EOS), (8, 6, EOS), 2 / 3),
    ((9, EOS), (8, EOS), 1 / 2),  # nothing in common but the end
    ((9, 5, EOS), (9, EOS), 1 / 3),  # a token left out
    ((9, 5, EOS), (9, 5, 5, 5), 1 / 2),  # the rejected did not end
    ((1, 2, 3, 4), (5, 6, 7, 8), 1.0),
])  # fmt: skip
def test_by_hand(chosen, rejected, distance):
    assert edit_distance(chosen, rejected) == pytest.approx(distance)


def pair(number: int, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Pair:
    return Pair(f"p{number}", Prompt("q", "1+1=", "2", (1,)), chosen, rejected)


@settings(deadline=None)
@given(st.lists(st.tuples(RESPONSES, RESPONSES), max_size=20), st.sets(st.sampled_from([0.2, 0.25, 1 / 3, 0.5, 0.75])))
def test_neighbouring_ranges_share_no_pair_and_miss_none(responses, cuts):
    pairs = [pair(n, a, b) for n, (a, b) in enumerate(responses)]
    edges = [0.0, *sorted(cuts), 1.0]
    parts = [pairs_within(pairs, low, high) for low, high in zip(edges, edges[1:], strict=False)]
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in pairs)
    for part, low, high in zip(parts, edges, edges[1:], strict=False):
        assert all(low <= edit_distance(p.chosen_ids, p.rejected_ids) <= high for p in part)
        assert part == [p for p in pairs if p in part]  # in their order


def test_a_distance_on_the_border_belongs_to_the_upper_range():
    half = pair(0, (9, EOS), (8, EOS))
    assert pairs_within([half], 0, 0.5) == [] and pairs_within([half], 0.5, 1) == [half]
    whole = pair(1, (1,), (3,))
    assert pairs_within([whole], 0.5, 1) == [whole]


@pytest.mark.parametrize("low, high", [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1)])
def test_ranges_that_are_none_are_refused(low, high):
    with pytest.raises(BadInput, match=f"edit distance from {low} to {high}: no such range; give 0 <= low < high <= 1"):
        pairs_within([], low, high)
