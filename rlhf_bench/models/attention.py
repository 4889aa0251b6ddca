"""Attention over packed rows: each response sees its prompt and itself, and no other scores are computed.

It is registered with transformers under the name `PACKED_ROWS`. Every model class that looks its attention up by name then
works on packed rows: their layout (`layout.py`) is an argument of the forward call.

On a CPU the kernel is called once for each block of the layout. On a GPU the whole pack is one FlexAttention call with a
block mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rlhf_bench.models.cpu_kernels import faster_in_float32
from rlhf_bench.models.layout import Layout, Padded

PACKED_ROWS = "packed_rows"


def register() -> None:
    """Register `PACKED_ROWS` with transformers. The first call takes seconds: it imports transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED_ROWS, packed_attention)
    AttentionMaskInterface.register(PACKED_ROWS, sdpa_mask)  # for a call without a layout


class _Pad(torch.autograd.Function):
    """[n, ...] -> [size, ...]: each row to its place, zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return flat.new_zeros(size, *flat.shape[1:]).index_copy_(0, places, flat)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Unpad(torch.autograd.Function):
    """[size, ...] -> [n, ...]: the rows at the places."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = padded.shape[0]
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D], key and value [1, H or fewer, N, D] -> [1, N, H, D], and None for the attention weights.

    Without a layout it is ordinary attention over a batch, causal or with the given mask.
    """
    if layout is not None and query.is_cuda:
        return flex_attention_of(query, key, value, layout, scaling, sliding_window, softcap), None
    if dropout:
        raise ValueError("attention over packed rows has no dropout")
    if faster_in_float32(query):
        rounded = packed_attention(
            module,
            query.float(),
            key.float(),
            value.float(),
            attention_mask,
            layout=layout,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
        )[0]
        return rounded.to(query.dtype), None
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if layout is None:
        kernel = _Kernel(scaling, softcap, sliding_window if attention_mask is None else None)
        before = key.shape[2] - query.shape[2]
        if attention_mask is None:
            return kernel(query, key, value, before).transpose(1, 2), None
        return kernel.masked(query, key, value, attention_mask).transpose(1, 2), None
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest else None
    kernel = _Kernel(scaling, softcap, window)
    # One split: the gradient of each slice on its own would be a tensor of the whole pack's size.
    cuts = [layout.prefix, *(length for block in layout.blocks for length in block.spans)]
    pieces = zip(*(tensor.split(cuts, 2) for tensor in (query, key, value)), strict=True)
    prefix = next(pieces)
    ahead = prefix[1:]
    out = [kernel(prefix[0], prefix[1], prefix[2], 0)] if layout.prefix else []
    for block in layout.blocks:
        if len(block.rows) == 1:
            out += kernel.row([next(pieces) for _ in block.spans], block.rows[0].prompt, ahead)
        else:
            out.append(kernel.padded(next(pieces), layout.padded[block], ahead))
    return torch.cat(out, 2).transpose(1, 2), None


@dataclass(frozen=True)
class _Kernel:
    scaling: float | None
    softcap: float | None
    window: int | None

    def row(
        self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]], prompt: int, ahead: Sequence[Tensor]
    ) -> list[Tensor]:
        """One row in blocks. Query, key and value of prompt and first response; then of each other response. `ahead`: key and
        value of the prefix."""
        (query, *own), *others = pieces
        before = ahead[0].shape[2]
        keys, values = (torch.cat(two, 2) for two in zip(ahead, own, strict=True)) if before else own
        out = [self(query, keys, values, before)]
        stem = before + prompt
        if others:
            keys, values = keys[:, :, :stem], values[:, :, :stem]
        for query, key, value in others:
            out.append(self(query, torch.cat([keys, key], 2), torch.cat([values, value], 2), stem))
        return out

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, before: int) -> Tensor:
        """Causal attention: a query sees the keys up to its own place. `before` keys stand ahead of the first query."""
        if before == 0 and self.softcap is None and self.window is None:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scaling)
        place = torch.arange(query.shape[2], device=query.device)[:, None] + before
        seen = torch.arange(key.shape[2], device=key.device)
        return self.masked(query, key, value, seen <= place, place - seen)

    def padded(self, pieces: tuple[Tensor, ...], block: Padded, ahead: Sequence[Tensor]) -> Tensor:
        """Several rows padded to the longest, in one call: query, key and value of all of them. `ahead`: key and value of the
        prefix."""
        count, _, length, _ = block.sees.shape

        def pad(flat: Tensor) -> Tensor:
            side_by_side = _Pad.apply(flat[0].transpose(0, 1), block.places, count * length)
            return side_by_side.unflatten(0, (count, length)).transpose(1, 2)

        query, key, value = (pad(piece) for piece in pieces)
        if ahead[0].shape[2]:
            key, value = (
                torch.cat([one.expand(count, -1, -1, -1), own], 2) for one, own in zip(ahead, (key, value), strict=True)
            )
        out = self.masked(query, key, value, block.sees, block.distance)
        return _Unpad.apply(out.transpose(1, 2).flatten(0, 1), block.places).transpose(0, 1)[None]

    def masked(self, query: Tensor, key: Tensor, value: Tensor, sees: Tensor, distance: Tensor | None = None) -> Tensor:
        if self.window is not None and distance is not None:
            sees = sees & (distance < self.window)
        if self.softcap is None:
            return scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=self.scaling)
        scale = self.scaling if self.scaling is not None else query.shape[-1] ** -0.5
        scores = self.softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / self.softcap))
        weights = scores.masked_fill(~sees, float("-inf")).softmax(
            -1, dtype=torch.promote_types(query.dtype, torch.float32)
        )
        return weights.to(query.dtype) @ value


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_attention_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    kernel: Any = None,
) -> Tensor:
    """The same by FlexAttention, which skips blocks that no query sees. It is compiled, unless a `kernel` is given."""

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    out = (kernel or _compiled())(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=layout.block_mask(str(query.device), window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)
