"""A user hears of responses that are cut off, where there are many."""

import math

from rlhf_bench.core.types import cut_off_line


def test_many_responses_that_are_cut_off_are_one_line_and_few_are_none():
    assert cut_off_line(0.62).startswith(
        "62% of responses reached max_response_tokens, and score 0; raise data.max_response_tokens"
    )
    assert [cut_off_line(share) for share in (0.0, 0.09, math.nan)] == ["", "", ""]
