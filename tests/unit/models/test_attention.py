"""Attention over packed rows against one softmax over all positions with the mask written out, place by place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.models import layout as layout_file
from rlhf_bench.models.attention import flex_attention_of, packed_attention
from rlhf_bench.models.layout import Layout

SHAPES = [(3, (4, 2)), (1, (1, 6)), (7, (3, 2, 5)), (2, (1,)), (30, (20, 25)), (4, (4, 3)), (5, (3, 1, 2, 4, 2, 1))]


def behind(prefix):
    """A layout of rows of these shapes, behind a prefix that all prompts begin with."""
    return Layout.of([(prefix + prompt, responses) for prompt, responses in SHAPES], prefix)


def path(shape, response):
    """Positions within the row that come before and up to each place of a response, and its own."""
    prompt, responses = shape
    start = prompt + sum(responses[:response])
    return [*range(prompt), *range(start, start + responses[response])]


def by_hand(shapes, prefix, query, key, value, scale, window, softcap):
    """Each place by itself: [H, N, D]. `shapes`: prompts behind the prefix."""
    out, at = torch.zeros_like(query), prefix
    for shape in shapes:
        prompt, responses = shape
        for k in range(len(responses)):
            way = [*range(prefix), *(at + i for i in path(shape, k))]
            for n, place in enumerate(way):
                seen = way[max(0, n + 1 - window) if window else 0 : n + 1]
                scores = (query[:, place, None] * key[:, seen]).sum(-1) * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                out[:, place] = (scores.softmax(-1)[:, :, None] * value[:, seen]).sum(1)
        at += prompt + sum(responses)
    return out


def numbers(tokens, heads=2, size=8, key_heads=None):
    torch.manual_seed(tokens)
    shapes = (heads, key_heads or heads, key_heads or heads)
    return [torch.randn(1, h, tokens, size, dtype=torch.float64, requires_grad=True) for h in shapes]


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("call", [-1, 200, 10**6], ids=["a_call_per_row", "mixed", "one_call"])
@pytest.mark.parametrize("prefix", [0, 5])
def test_each_place_sees_its_prompt_and_its_own_response_up_to_itself(prefix, call, softcap, window, monkeypatch):
    monkeypatch.setattr(layout_file, "CALL_IN_SCORES", call)
    layout = behind(prefix)
    assert len(layout.blocks) == {-1: len(SHAPES), 10**6: 1}.get(call, len(layout.blocks))
    tensors = numbers(layout.tokens)
    found, _ = packed_attention(None, *tensors, layout=layout, scaling=0.4, sliding_window=window, softcap=softcap)
    expected = by_hand(SHAPES, prefix, *(t[0] for t in tensors), 0.4, window, softcap)
    torch.testing.assert_close(found[0].transpose(0, 1), expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found[0].transpose(0, 1) * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("prefix", [0, 5])
def test_the_gpus_kernel_is_given_the_same_mask(prefix, softcap, window):
    """FlexAttention as PyTorch computes it without compiling, on a CPU: the mask and the scores' bend are the same."""
    from torch.nn.attention.flex_attention import flex_attention

    layout = behind(prefix)
    with torch.no_grad():
        tensors = [t.float() for t in numbers(layout.tokens, heads=4, key_heads=2)]
        expected, _ = packed_attention(
            None, *tensors, layout=layout, scaling=0.4, sliding_window=window, softcap=softcap
        )
        found = flex_attention_of(*tensors, layout, 0.4, window, softcap, kernel=flex_attention)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_a_layout_it_is_causal_attention():
    query, key, value = numbers(6)
    found, _ = packed_attention(None, query, key, value, scaling=0.4)
    scores = (query @ key.transpose(2, 3) * 0.4).masked_fill(~torch.ones(6, 6).tril().bool(), -math.inf)
    torch.testing.assert_close(found.transpose(1, 2), scores.softmax(-1) @ value)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(31, 90), st.lists(st.integers(1, 40), min_size=1, max_size=4)), min_size=1, max_size=20
    ),
    st.integers(0, 30),
)
def test_blocks_are_all_rows_in_order_and_waste_no_more_than_a_call_each(shapes, prefix):
    layout = Layout.of(shapes, prefix)
    assert [row for block in layout.blocks for row in block.rows] == list(layout.rows)
    needed = prefix**2 + sum(row.scores for row in layout.rows)
    joined = sum(len(block.rows) for block in layout.blocks if len(block.rows) > 1)
    assert needed <= layout.scores <= needed + joined * layout_file.CALL_IN_SCORES


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="no dropout"):
        packed_attention(None, *numbers(6), layout=Layout.of([(2, (2, 2))]), dropout=0.1)
