"""Checksums of tensors: the same for the same bits, another for any other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.models.checksum import BETWEEN, CHUNK, WHOLE, _factors, checksum

FORMATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@settings(deadline=None)
@given(rows=st.integers(1, 5), width=st.sampled_from([1, 7, CHUNK]), data=st.data())
def test_any_one_bit_changes_it(dtype, rows, width, data):
    tensor = torch.arange(rows * width, dtype=torch.float32).reshape(rows, width).to(dtype)
    before, bits = checksum(tensor), tensor.view(WHOLE[tensor.element_size()])
    place = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
    bits[place] ^= 1 << data.draw(st.integers(0, 8 * tensor.element_size() - 2))
    assert checksum(tensor) != before


def test_elements_and_rows_that_change_places_change_it():
    tensor = torch.randn(8, CHUNK // 4, generator=torch.Generator().manual_seed(1))
    swapped, rows = tensor.clone(), tensor.roll(1, 0)
    swapped[0, 0], swapped[7, 3] = tensor[7, 3], tensor[0, 0]
    assert len({checksum(t) for t in (tensor, swapped, rows, tensor.to(torch.bfloat16))}) == 4


def test_it_is_of_the_elements_and_not_of_where_they_are():
    whole = torch.randn(6, 10)
    assert (
        checksum(whole[:, ::2]) == checksum(whole[:, ::2].clone()) == checksum(whole[:, ::2].clone().requires_grad_())
    )
    assert checksum(whole[:3]) != checksum(whole[3:])


def test_it_is_the_sum_that_it_says():
    """By whole numbers of Python, which do not overflow."""
    tensor = torch.randn(CHUNK + 3)
    bits, factors = tensor.view(torch.int32).tolist(), _factors(tensor.device).tolist()
    first = sum(b * f for b, f in zip(bits[:CHUNK], factors, strict=True))
    last = sum(b * f for b, f in zip(bits[CHUNK:], factors, strict=False))
    assert checksum(tensor) == (first * BETWEEN + last) % 2**64
    assert all(f % 2 for f in factors)
