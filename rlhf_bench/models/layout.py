"""Where prompts and responses stand in a pack of rows, and which of them share a call to the attention kernel.

    scores of a row:          p p p a a b b
                         p    x
                         p    x x
                         p    x x x
                         a    x x x x              prompt and first response: one causal block
                         a    x x x x x
                         b    x x x     x          every other response: a block of its own
                         b    x x x     x x

On a CPU, a long row is computed in these blocks, one call each. Short rows share one padded call, since a call costs more
than padding wastes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

CALL_IN_SCORES = 4096
"""A call to the attention kernel, with its bookkeeping, costs about as much as so many scores (query × key, all heads)."""


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
        """Tokens of the longest sequence: a prompt and one of its responses."""
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
        """FlexAttention's mask of the pack, made once for all layers with the same window."""
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
