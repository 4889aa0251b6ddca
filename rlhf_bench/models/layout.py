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

Where all prompts of a pack begin alike, as behind one system message, the tokens that they share (the prefix) stand in it
once, ahead of the rows, each of which sees them.
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
    """Where a row stands in the pack: its first position, the length of its prompt behind the prefix, the responses' lengths in
    order, and the prefix's length."""

    start: int
    prompt: int
    responses: tuple[int, ...]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def scores(self) -> int:
        """Query × key places of its blocks."""
        first, *others = self.responses
        stem, own = self.prefix + self.prompt, self.prompt + first
        return own * (self.prefix + own) + sum(n * (stem + n) for n in others)


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
        longest = max(row.tokens for row in self.rows)
        return len(self.rows) * longest * (self.rows[0].prefix + longest)


@dataclass(frozen=True)
class Layout:
    """The prefix, and all rows of a pack, one behind the other."""

    rows: tuple[RowLayout, ...]
    prefix: int = 0

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, Sequence[int]]], prefix: int = 0) -> Layout:
        """Of prompt and response lengths. `prefix`: of a prompt's tokens, how many all of them begin with; fewer than any has."""
        rows, at = [], prefix
        for prompt, responses in shapes:
            rows.append(RowLayout(at, prompt - prefix, tuple(responses), prefix))
            at += rows[-1].tokens
        return cls(tuple(rows), prefix)

    @property
    def tokens(self) -> int:
        return self.prefix + sum(row.tokens for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: a prompt and one of its responses."""
        return self.prefix + max(row.prompt + max(row.responses) for row in self.rows)

    @property
    def scores(self) -> int:
        """Query × key places that the kernel computes on a CPU."""
        return self.prefix**2 + sum(block.scores for block in self.blocks)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Neighbours join as long as padding wastes less per row than a call of its own costs."""
        blocks: list[list[RowLayout]] = []
        longest = fewest = 0
        for row in self.rows:
            tokens, scores = row.tokens, row.scores
            widest = max(longest, tokens)
            if blocks and widest * (self.prefix + widest) - min(fewest, scores) <= CALL_IN_SCORES:
                blocks[-1].append(row)
                longest, fewest = widest, min(fewest, scores)
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
        """Per position of the pack [N]: its row, -1 in the prefix; 0 in a prompt or the response's number; and its position in the
        sequence."""
        row = [-1] * self.prefix
        part = [0] * self.prefix
        position = [*range(self.prefix)]
        for i, r in enumerate(self.rows):
            stem = self.prefix + r.prompt
            row += [i] * r.tokens
            part += [0] * r.prompt
            position += range(self.prefix, stem)
            for k, n in enumerate(r.responses, 1):
                part += [k] * n
                position += range(stem, stem + n)
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
            own = (row[q] == row[k]) & ((part[k] == 0) | (part[k] == part[q]))
            same = ((row[k] < 0) | own) & (q >= k)
            return same if window is None else same & (position[q] - position[k] < window)

        return create_block_mask(sees, None, None, self.tokens, self.tokens, device=device)


@dataclass(frozen=True)
class Padded:
    """B rows side by side, padded to L tokens. Their keys stand behind those of the prefix, P in all."""

    places: Tensor  # [n] of the B·L places, those that hold a token
    sees: Tensor  # [B, 1, L, P + L] bool, True where the query may see the key
    distance: Tensor  # [B, 1, L, P + L] positions from key to query

    @classmethod
    def of(cls, rows: Sequence[RowLayout]) -> Padded:
        longest, prefix = max(row.tokens for row in rows), rows[0].prefix
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
        ahead = torch.arange(-prefix, 0).expand(len(rows), -1)
        distance = position[:, :, None] - torch.cat([ahead, position], 1)[:, None, :]
        sees = torch.cat([sees.new_ones(len(rows), longest, prefix), sees], 2)
        return cls((segment.flatten() >= 0).nonzero().squeeze(1), sees[:, None], distance[:, None])
