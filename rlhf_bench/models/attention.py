"""Attention over packed rows: every response sees its row's prompt and itself, and nothing is computed for the rest.

Registered with transformers under `PACKED_ROWS`, so that every model class that asks for its attention by name works on packed
rows: the rows' layout is handed down with the forward call.

    scores of a row:          p p p a a b b
                         p    x
                         p    x x
                         p    x x x
                         a    x x x x              prompt and first response: one causal block
                         a    x x x x x
                         b    x x x     x          every other response: a block of its own
                         b    x x x     x x

On a CPU, rows that are long are computed in these blocks, a call each; short rows share one padded call, since calls
cost more than what padding wastes. On a GPU the whole pack is one FlexAttention call with a block mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rlhf_bench.models.cpu_kernels import faster_in_float32

PACKED_ROWS = "packed_rows"
CALL_IN_SCORES = 4096
"""So many scores (query × key, all heads) cost about as much as a call to the attention kernel and its bookkeeping."""


@dataclass(frozen=True)
class RowLayout:
    """Where a row stands in the pack: its first position, the prompt's length, the responses' lengths in order."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def scores(self) -> int:
        """Query × key places of its blocks."""
        first, *others = self.responses
        return (self.prompt + first) ** 2 + sum(n * (self.prompt + n) for n in others)


@dataclass(frozen=True)
class Block:
    """Rows that share a call to the kernel: one long row, or neighbours padded to the longest."""

    rows: tuple[RowLayout, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """Lengths of the stretches of the pack that go to the kernel."""
        if len(self.rows) > 1:
            return (sum(row.tokens for row in self.rows),)
        (row,) = self.rows
        return (row.prompt + row.responses[0], *row.responses[1:])

    @property
    def scores(self) -> int:
        if len(self.rows) == 1:
            return self.rows[0].scores
        return len(self.rows) * max(row.tokens for row in self.rows) ** 2


@dataclass(frozen=True)
class Layout:
    """All rows of a pack, one behind the other."""

    rows: tuple[RowLayout, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, Sequence[int]]]) -> Layout:
        """Of prompt and response lengths."""
        rows, at = [], 0
        for prompt, responses in shapes:
            rows.append(RowLayout(at, prompt, tuple(responses)))
            at += rows[-1].tokens
        return cls(tuple(rows))

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest way from a prompt's first to a response's last."""
        return max(row.prompt + max(row.responses) for row in self.rows)

    @property
    def scores(self) -> int:
        """Query × key places that the kernel computes on a CPU."""
        return sum(block.scores for block in self.blocks)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Neighbours join as long as padding wastes less per row than a call of its own costs."""
        blocks: list[list[RowLayout]] = []
        longest = fewest = 0
        for row in self.rows:
            tokens, scores = row.tokens, row.scores
            if blocks and max(longest, tokens) ** 2 - min(fewest, scores) <= CALL_IN_SCORES:
                blocks[-1].append(row)
                longest, fewest = max(longest, tokens), min(fewest, scores)
            else:
                blocks.append([row])
                longest, fewest = tokens, scores
        return tuple(Block(tuple(rows)) for rows in blocks)

    @cached_property
    def padded(self) -> dict[Block, Padded]:
        """How each block of several rows is padded."""
        return {block: Padded.of(block.rows) for block in self.blocks if len(block.rows) > 1}

    @cached_property
    def segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Per position of the pack [N]: its row, 0 in a prompt or the response's number, and its position in the row."""
        row: list[int] = []
        part: list[int] = []
        position: list[int] = []
        for i, r in enumerate(self.rows):
            row += [i] * r.tokens
            part += [0] * r.prompt
            position += range(r.prompt)
            for k, n in enumerate(r.responses, 1):
                part += [k] * n
                position += range(r.prompt, r.prompt + n)
        return torch.tensor(row), torch.tensor(part), torch.tensor(position)

    def block_mask(self, device: str, window: int | None) -> Any:
        """FlexAttention's mask of the pack, made once for all layers that look back as far."""
        if (device, window) not in self._block_masks:
            self._block_masks[device, window] = self._new_block_mask(device, window)
        return self._block_masks[device, window]

    @cached_property
    def _block_masks(self) -> dict[tuple[str, int | None], Any]:
        return {}

    def _new_block_mask(self, device: str, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        row, part, position = (t.to(device) for t in self.segments)

        def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same = (row[q] == row[k]) & ((part[k] == 0) | (part[k] == part[q])) & (q >= k)
            return same if window is None else same & (position[q] - position[k] < window)

        return create_block_mask(sees, None, None, self.tokens, self.tokens, device=device)


@dataclass(frozen=True)
class Padded:
    """B rows side by side, padded to L tokens."""

    places: Tensor  # [n] of the B·L places, those that hold a token
    sees: Tensor  # [B, 1, L, L] bool, True where the query may see the key
    distance: Tensor  # [B, 1, L, L] positions from key to query

    @classmethod
    def of(cls, rows: Sequence[RowLayout]) -> Padded:
        longest = max(row.tokens for row in rows)
        # Segment 0 is the prompt, 1..k its responses, -1 padding; padding sees padding: no softmax over nothing.
        segment = torch.full((len(rows), longest), -1)
        position = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            at = row.prompt
            segment[i, :at], position[i, :at] = 0, torch.arange(at)
            for k, n in enumerate(row.responses, 1):
                segment[i, at : at + n], position[i, at : at + n] = k, torch.arange(row.prompt, row.prompt + n)
                at += n
        query, key = segment[:, :, None], segment[:, None, :]
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        sees = (((key == 0) & (query >= 0)) | (key == query)) & causal
        distance = position[:, :, None] - position[:, None, :]
        return cls((segment.flatten() >= 0).nonzero().squeeze(1), sees[:, None], distance[:, None])


def register() -> None:
    """Make `PACKED_ROWS` a name that transformers' models know. Takes seconds, once: it imports transformers."""
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
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *,
    layout: Layout | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, N, D], key and value [1, H or fewer, N, D] -> [1, N, H, D], and no weights.

    Without a layout it is attention as usual over a plain batch, or one with transformers' mask.
    """
    if layout is not None and query.is_cuda:
        return flex_attention_of(query, key, value, layout, scaling, sliding_window, softcap), None
    if dropout:
        raise ValueError("attention over packed rows has no dropout")
    if faster_in_float32(query):
        rounded = packed_attention(
            module, query.float(), key.float(), value.float(), attention_mask, layout=layout, scaling=scaling,
            sliding_window=sliding_window, softcap=softcap,
        )[0]  # fmt: skip
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
    # Cut once: the gradient of every slice by itself would be a tensor of the whole pack's size.
    cuts = [length for block in layout.blocks for length in block.spans]
    pieces = zip(*(tensor.split(cuts, 2) for tensor in (query, key, value)), strict=True)
    out: list[Tensor] = []
    for block in layout.blocks:
        if len(block.rows) == 1:
            out += kernel.row([next(pieces) for _ in block.spans], block.rows[0].prompt)
        else:
            out.append(kernel.padded(next(pieces), layout.padded[block]))
    return torch.cat(out, 2).transpose(1, 2), None


@dataclass(frozen=True)
class _Kernel:
    scaling: float | None
    softcap: float | None
    window: int | None

    def row(self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]], prompt: int) -> list[Tensor]:
        """One row in blocks. Query, key and value of prompt and first response; then of each other response."""
        (_, keys, values), others = pieces[0], pieces[1:]
        out = [self(*pieces[0], 0)]
        if others:
            keys, values = keys[:, :, :prompt], values[:, :, :prompt]
        for query, key, value in others:
            out.append(self(query, torch.cat([keys, key], 2), torch.cat([values, value], 2), prompt))
        return out

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, before: int) -> Tensor:
        """A query sees the keys up to its own place, which has `before` keys ahead of the first query's."""
        if before == 0 and self.softcap is None and self.window is None:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scaling)
        place = torch.arange(query.shape[2], device=query.device)[:, None] + before
        seen = torch.arange(key.shape[2], device=key.device)
        return self.masked(query, key, value, seen <= place, place - seen)

    def padded(self, pieces: tuple[Tensor, ...], block: Padded) -> Tensor:
        """Several rows padded to the longest, in one call: query, key and value of all of them."""
        count, _, length, _ = block.sees.shape

        def pad(flat: Tensor) -> Tensor:
            side_by_side = _Pad.apply(flat[0].transpose(0, 1), block.places, count * length)
            return side_by_side.unflatten(0, (count, length)).transpose(1, 2)

        query, key, value = (pad(piece) for piece in pieces)
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
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None,
    softcap: float | None, kernel: Any = None,
) -> Tensor:  # fmt: skip
    """The same by FlexAttention, which skips blocks that nobody sees. Compiled, unless another `kernel` is given."""

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    out = (kernel or _compiled())(
        query, key, value, score_mod=None if softcap is None else capped,
        block_mask=layout.block_mask(str(query.device), window), scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.transpose(1, 2)
